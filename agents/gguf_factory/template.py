"""Chat templates: the jinja that transformers and llama.cpp's programs run them in, and a GGUF's own rendered. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from agents.gguf_factory.llama import Model


class Generation(Extension):
    """The block `generation`, by which some templates mark answers; what stands in it is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  # jinja declares it as an attribute of instances

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """Return jinja as transformers sets it up for chat templates (utils/chat_template_utils.py)."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def render(template: str, model: Model, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
    """Render a conversation by a GGUF's template with the GGUF's own bos and eos, as llama.cpp's programs do.

    Raises:
        jinja2.TemplateError: the template is wrong or refuses the conversation.
    """
    bos = model.text([model.bos]) if model.bos >= 0 else ""
    eos = model.text([model.eos]) if model.eos >= 0 else ""
    return (
        environment()
        .from_string(template)
        .render(messages=list(messages), add_generation_prompt=prompt, bos_token=bos, eos_token=eos)
    )


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """Write JSON as transformers does: jinja's own filter would escape what is special in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
