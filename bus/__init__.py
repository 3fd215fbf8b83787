"""The wire of the lab: MQTT 5 sessions, exactly-once calls, the store, leases, a private broker.

`bus.agent` is what agents are built on, `bus.client` what passing clients use.
"""

from bus.address import BrokerAddress
from bus.agent import BaseAgent
from bus.client import Client
from bus.process import Wiring
from bus.store import Store
from bus.transaction import DEFERRED, Answer, Deferred, Transaction

__all__ = ["DEFERRED", "Answer", "BaseAgent", "BrokerAddress", "Client", "Deferred", "Store", "Transaction", "Wiring"]
