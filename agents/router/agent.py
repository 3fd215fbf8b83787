"""The router's shell: a request comes in, goes on to the conductor with its route, and the conductor's answer goes back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar, cast

from agents.router import core, words
from bus import DEFERRED, Answer, BaseAgent, Deferred, Transaction, Wiring, keys
from configs import Configs, load
from configs.tiers import PROJECT
from protocol import Code, JobSnapshot, LabError, MCPMessage, State, TrainRequest
from protocol.ids import valid_job_id
from protocol.signature import submission
from protocol.voice import TextQuery, TextRoute

MODEL = PROJECT / "models" / "router"


class RouterAgent(BaseAgent):
    """Serves `train.submit`, answered when the conductor has reserved or refused the job, `train.quote` and `route.text`.

    The model that understands free words is read when the first text comes: a lab whose requests name their domain needs
    neither it nor numpy in memory.
    """

    role: ClassVar[str] = "router"

    def __init__(self, wiring: Wiring, configs: Configs | None = None, model: Path = MODEL) -> None:
        self._configs = configs or load()  # before the store is opened: a bad value must leave nothing behind
        self._folder = model
        self._reader: words.Reader | None = None
        super().__init__(wiring)
        self.message_handlers["train.submit"] = self._submit
        self.message_handlers["train.quote"] = self._quote
        self.message_handlers["route.text"] = self._read
        self.reply_handlers["train.route"] = self._answered
        self.reply_handlers["job.quote"] = self._answered

    def _submit(self, message: MCPMessage, tx: Transaction) -> Deferred:
        request = cast(TrainRequest, self.params(message))
        routed = core.routed(message, request, self._configs, self._understand)
        if request.signature is not None:  # one of something else is refused here, where the caller has its answer
            keys.check(request.signature, submission(self.topics.lab, routed.job, routed.digest))
        tx.call(
            "train.route", routed, key=message.id, id=f"{routed.job}:route", priority=max(message.priority, request.priority)
        )
        self.log.info("routed", job=routed.job, domain=routed.route.domain, tier=routed.route.tier)
        return DEFERRED

    def _quote(self, message: MCPMessage, tx: Transaction) -> Deferred:
        request = cast(TrainRequest, self.params(message))
        routed = core.routed(message, request, self._configs, self._understand)
        tx.call("job.quote", routed, key=message.id, priority=message.priority, deadline=message.deadline)
        return DEFERRED

    def _read(self, message: MCPMessage, tx: Transaction) -> TextRoute:
        return self._understand(cast(TextQuery, self.params(message)).text)

    def _understand(self, text: str) -> TextRoute:
        began = time.perf_counter()
        return words.read(text, self._words(), self._configs.domains, lambda: (time.perf_counter() - began) * 1000)

    def _words(self) -> words.Reader:
        if self._reader is None:
            from textmodel.model import TextModel

            try:
                model = TextModel.load(self._folder)
            except ValueError as error:
                raise LabError(
                    Code.CONFIGURATION, f"{error}.",
                    advice="Name the `domain`, or restore the folder (agents/router/fit.py fits it anew).",
                    file=str(self._folder),
                ) from error  # fmt: skip
            self._reader = words.Reader(
                lambda text: list(zip(model.labels, model.probabilities(text).tolist(), strict=True)), model.facts["ranks"]
            )
        return self._reader

    def _answered(self, answer: Answer, tx: Transaction) -> None:
        outcome = answer.error or answer.result
        if outcome is not None:
            tx.reply(answer.key, outcome)

    def refused(self, message: MCPMessage, error: LabError, tx: Transaction) -> bool:
        """Publish a refused state for a request that had no response topic; the bus calls this.

        Only for what the router itself refuses: a job that the conductor refuses has its state from there.

        Returns:
            Whether the person can read the reason at `job/{id}/state`; if not, the message belongs on `dead/router`.
        """
        if message.type == "train.quote" or error.code is Code.CONFLICT:
            return False  # a quote is no job; or the id belongs to another request, whose state must stay
        if message.generated_id or not valid_job_id(message.id):
            return False
        tx.publish("job_state", _refused_snapshot(message, error, tx), job=message.id)
        return True


def _refused_snapshot(message: MCPMessage, error: LabError, tx: Transaction) -> JobSnapshot:
    """Return the state of a request that never became a job; what the request did not say is empty."""

    def text(name: str, default: str = "") -> str:
        value: Any = message.data.get(name)
        return value if isinstance(value, str) else default

    return JobSnapshot(
        job=message.id, state=State.REFUSED, stage=None, attempt=0, domain=text("domain"), tier=text("tier"),
        profile=text("profile", "edge"), cost_usd=0.0, quality_percent=None, artefacts=[], gates={},
        reason=str(error), priority=message.priority, at=tx.now,
    )  # fmt: skip
