"""Test clouds: one small stateful server per vendor, speaking the vendor's real API.

In a test, without sockets and with a clock that stands still until told:

    clock = VirtualClock()
    cloud = VastCloud(clock)                               # or LambdaCloud, RunPodCloud
    vast = cloud.provider()                                # the real adapter, talking to it

With sockets, for another process (an orchestrator that reads VAST_API_KEY and VAST_API_URL):

    with VastCloud(real_time, boot=start_worker) as cloud: # listens on a free port of loopback
        environment = cloud.environment()                  # the key and addresses, as variables

`cloud.bill(id)` is the truth about money, in micro-dollars. What can go wrong: `cloud.fail("launch", Fault.LOST)`,
`cloud.stock[...]`, `cloud.preempt(id)`, `cloud.revoke()`, `cloud.unreachable()`; see `cloud.py` and `faults.py`.
"""
