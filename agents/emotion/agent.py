"""The emotion agent's shell: a text comes in, the reading goes back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar, cast

from agents.emotion import core
from bus import BaseAgent, Transaction, Wiring
from configs import Configs, load
from configs.tiers import PROJECT
from protocol import Code, LabError, MCPMessage
from protocol.voice import EmotionQuery, EmotionReading
from textmodel.model import TextModel

MODEL = PROJECT / "models" / "emotion"


class EmotionAgent(BaseAgent):
    """Serves `emotion.analyse`: the feeling of a text, by the model in models/emotion."""

    role: ClassVar[str] = "emotion"

    def __init__(self, wiring: Wiring, configs: Configs | None = None, model: Path = MODEL) -> None:
        self._domains = (configs or load()).domains  # before the store is opened: a bad value must leave nothing behind
        try:
            self._model = TextModel.load(model)
        except ValueError as error:
            raise LabError(
                Code.CONFIGURATION, f"{error}.", advice="Restore the folder, or fit it anew with agents/emotion/fit.py.",
                file=str(model),
            ) from error  # fmt: skip
        super().__init__(wiring)
        self.message_handlers["emotion.analyse"] = self._analyse

    def _analyse(self, message: MCPMessage, tx: Transaction) -> EmotionReading:
        query = cast(EmotionQuery, self.params(message))
        context = core.context(query, self._domains)
        began = time.perf_counter()
        probabilities = dict(zip(self._model.labels, self._model.probabilities(query.text).tolist(), strict=True))
        took_ms = (time.perf_counter() - began) * 1000
        return core.reading(query.text, context, probabilities, self._model.facts["thresholds"], took_ms)
