"""The words of the lab: envelope, typed messages, topics, errors. Pure data; imports pydantic and nothing else.

Messages live in `protocol.job`, `protocol.machine` and `protocol.money`; the tables in `protocol.topics` and
`protocol.methods`.
"""

from protocol.envelope import MAX_BYTES, MCPMessage, Reply
from protocol.errors import Code, ErrorBody, LabError, Retry
from protocol.ids import uuid7
from protocol.job import JobSnapshot, Progress, State, TrainRequest
from protocol.methods import METHODS
from protocol.topics import Topics

__all__ = [
    "MAX_BYTES", "METHODS", "Code", "ErrorBody", "JobSnapshot", "LabError", "MCPMessage", "Progress", "Reply", "Retry",
    "State", "Topics", "TrainRequest", "uuid7",
]  # fmt: skip
