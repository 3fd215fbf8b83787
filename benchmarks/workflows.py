"""The peer of `benchmarks.transitions` as a process: `python -m benchmarks.workflows FILE WORKFLOWS STEPS`.

Durable workflows of DBOS on SQLite, side by side, each of so many steps; then messages from one to another. Prints
`ready`, then one line of JSON.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from typing import Any

from dbos import DBOS

HOPS = 7


@DBOS.step()
def step(number: int) -> dict[str, Any]:
    """A transition that costs nothing but its record."""
    return {"state": "training", "stage": number, "results": {"loss": 1.5, "tokens_per_second": 1200.0}}


@DBOS.workflow()
def job(steps: int) -> int:
    for number in range(steps):
        step(number)
    return steps


@DBOS.workflow()
def listener(messages: int) -> list[float]:
    received = []
    for _ in range(messages):
        DBOS.recv("hop", timeout_seconds=30)
        received.append(time.time())
    return received


def main() -> None:
    file, workflows, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    logging.disable(logging.WARNING)
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{file}", "log_level": "ERROR"})
    DBOS.launch()
    job(2)
    print("ready", flush=True)
    began = time.perf_counter()
    handles = [DBOS.start_workflow(job, steps) for _ in range(workflows)]
    done = sum(handle.get_result() for handle in handles)
    rate = done / (time.perf_counter() - began)
    waiting = DBOS.start_workflow(listener, HOPS)
    sent = []
    for _ in range(HOPS):
        time.sleep(random.uniform(0.3, 1.3))  # at any time of the receiver's polling
        sent.append(time.time())
        DBOS.send(waiting.get_workflow_id(), "message", "hop")
    received = waiting.get_result()
    hops = [(there - here) * 1000 for here, there in zip(sent, received, strict=True)]
    print(json.dumps({"steps_per_second": rate, "hops_ms": hops}), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main()
