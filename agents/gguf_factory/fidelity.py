"""Whether a GGUF says the same as the model it was made from: token ids, chat template, logits."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from agents.gguf_factory import chat
from agents.gguf_factory.distance import divergence
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.llama import Logits, Model
from agents.gguf_factory.pretokenizer import UNICODE_FORMS
from agents.gguf_factory.template import render

ODD_TEXTS = (
    "", " ", "  two  spaces  ", "\ttab\tand\nline\r\nends\n\n\n", "trailing space ", "emoji 😀👩‍👩‍👧‍👦🇩🇪 ✈️",
    "中文字符和日本語のテキスト、한국어", "Ünïcödé naïve café ß ﬁ ﬂ Å Å", "العربية עברית हिन्दी ไทย", "12345678 3.14159 1e-9 0x1F",
    "def f(x):\n    return {'a': [1, 2]}  # comment", "<b>html</b> &amp; {{ jinja }} {% raw %}", "quotes “curly” ‘single’ — dash…",
    "zero\u200bwidth\u00a0nbsp\ufeffbom", "\x01\x7f control", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "don't I'LL we've",
    "a" * 300, "snake_case camelCase SCREAMING", "https://example.org/a?b=c&d=%20#e", "▁lower one eighth block▁",
)  # fmt: skip
"""Texts on which tokenizers differ: white space, bytes beyond the vocabulary, normalisation, digits."""


def tokenizer_ids(tokenizer: Any, model: Model, renders: Sequence[str]) -> Measured:
    """Count the texts whose ids differ between transformers' tokenizer and the GGUF's; bos and eos count as two more."""
    specials = [str(token) for token in tokenizer.all_special_tokens]
    odd = [*ODD_TEXTS, *specials, " x ".join(specials), "".join(specials)]
    texts = [*renders, *odd]
    different = [text for text in texts if _ids(tokenizer, text) != model.tokenize(text)]
    form = normal_form(tokenizer)
    if form:  # llama.cpp does not normalise: a text in another form has other ids there, which no file can mend
        same = [text for text in different if model.tokenize(unicodedata.normalize(form, text)) == _ids(tokenizer, text)]
        different = [text for text in different if text not in same]
    wrong = [repr(text[:40]) for text in different]
    for name, ours, theirs in (("bos", model.bos, tokenizer.bos_token_id), ("eos", model.eos, tokenizer.eos_token_id)):
        if theirs is not None and ours != theirs:
            wrong.append(f"{name} is {ours} in the file, {theirs} in the tokenizer")
    detail = f"{len(texts)} texts" + (f"; different: {', '.join(wrong[:4])}" if wrong else "")
    if form and same:
        detail += f"; {len(same)} more only because they are not in {form}, to which llama.cpp does not bring them"
    return Measured(float(len(wrong)), detail)


def normal_form(tokenizer: Any) -> Any:
    """Return the Unicode normal form to which a tokenizer brings texts before it cuts them, or None."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = type(getattr(backend, "normalizer", None)).__name__
    return name if name in UNICODE_FORMS else None


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def chat_template(tokenizer: Any, model: Model, conversations: Sequence[Sequence[dict[str, str]]]) -> Measured:
    """Count the conversations that render differently by the GGUF's template, or whose last answer has no end.

    An answer has an end when the first token after it in the render is one at which llama.cpp stops.
    """
    template = model.chat_template
    if template is None:
        return Measured(float(len(conversations)), "the file has no chat template")
    wrong: list[str] = []
    for messages in conversations:
        opened = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        ours = chat.render(tokenizer, opened, prompt=True)
        whole = chat.render(tokenizer, messages)
        try:
            same = (
                render(template, model, opened, prompt=True) == ours
                and render(template, model, messages, prompt=False) == whole
            )
        except (TemplateError, SecurityError) as error:
            wrong.append(f"the file's template fails: {error}")
            continue
        if not same:
            wrong.append("renders differ")
        elif messages[-1]["role"] == "assistant":
            after = whole.rpartition(messages[-1]["content"].strip())[2].lstrip(" ")  # Llama 2 puts a space before its end
            ids = model.tokenize(after)
            if not ids or not model.ends(ids[0]) or not chat.ends(tokenizer).intersection(ids):
                wrong.append("an answer is followed by no end token")
    detail = f"{len(conversations)} conversations" + (f"; {wrong[0]}" if wrong else "")
    return Measured(float(len(wrong)), detail)


def mean_divergences(
    network: Any | None, exact: Model | None, product: Model | None, samples: Iterable[Sequence[int]]
) -> tuple[float | None, float | None, int]:
    """Return mean KL per token of (torch || F16) and of (F16 || product) in nats, and the tokens; None where one is None."""
    first = second = 0.0
    tokens = 0
    for ids in samples:
        tokens += len(ids)
        middle = exact.logits(ids) if exact else None
        if network is not None and middle is not None:
            first += divergence(torch_logits(network, ids), middle)
        if product is not None and middle is not None:
            second += divergence(middle, product.logits(ids))
    known = exact is not None and tokens > 0
    return (
        first / tokens if known and network is not None else None,
        second / tokens if known and product is not None else None,
        tokens,
    )


@torch.no_grad()
def torch_logits(network: Any, ids: Sequence[int]) -> Logits:
    """Return a transformers model's logits after every id, in float32."""
    return network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
