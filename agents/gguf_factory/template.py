"""The chat template inside a GGUF, rendered as llama.cpp's programs do. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agents.gguf_factory.llama import Model


def render(template: str, model: Model, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
    """Render a conversation by a GGUF's template with the GGUF's own bos and eos, as llama.cpp's programs do.

    Raises:
        jinja2.TemplateError: the template is wrong or refuses the conversation.
    """

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    bos = model.text([model.bos]) if model.bos >= 0 else ""
    eos = model.text([model.eos]) if model.eos >= 0 else ""
    return environment.from_string(template).render(
        messages=list(messages), add_generation_prompt=prompt, bos_token=bos, eos_token=eos
    )
