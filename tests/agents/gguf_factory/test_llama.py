from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llama import LlamaForCausalLM

from agents.gguf_factory import chat, convert, llama
from agents.gguf_factory.generation import Sampling, generate, generate_many
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job
from protocol import Code, LabError
from tests.agents.gguf_factory.exports import ROWS

IDS = [1, 4, 300, 301, 302, 6, 5, 77, 78]


def test_logits_of_every_row_are_torchs(exported: Job) -> None:
    network = LlamaForCausalLM.from_pretrained(exported.path("merge", "model")).eval()
    with torch.no_grad():
        wanted = network(input_ids=torch.tensor([IDS])).logits[0].numpy()
    with llama.load(exported.path("convert", convert.FILE), n_ctx=256, n_batch=4, exact=True) as model:
        found = model.logits(IDS)  # in three chunks
    assert found.shape == (len(IDS), 8192)
    np.testing.assert_allclose(found, wanted, atol=0.1)
    assert (found.argmax(1) == wanted.argmax(1)).all()


def test_log_likelihood_sums_the_masked_tokens_only(exported: Job) -> None:
    mask = [False] * 7 + [True, True]
    with llama.load(exported.path("convert", convert.FILE), n_ctx=256, n_batch=4) as model:
        logits = torch.tensor(model.logits(IDS)).double().log_softmax(-1)
        total, count = model.log_likelihood(IDS, mask)
        everything = model.log_likelihood(IDS, [True] * 9)
    assert (count, everything[1]) == (2, 8)  # nothing stands before the first
    assert total == pytest.approx(float(logits[6, 77] + logits[7, 78]), abs=1e-6)


def test_an_answer_ends_itself_and_is_the_same_alone_or_beside_others(exported: Job) -> None:
    tokenizer = chat.load(exported.path("merge", "model"))
    prompts = [
        tokenizer.encode(chat.render(tokenizer, messages[:1], prompt=True), add_special_tokens=False)
        for messages in ROWS
    ]
    with llama.load(exported.path("convert", convert.FILE), n_ctx=1024, sequences=4) as model:
        seeds = list(range(len(prompts)))
        together = list(generate_many(model, prompts, sampling=Sampling(), seeds=seeds, max_tokens=40))
        alone = generate(model, prompts[7], seed=7, max_tokens=40)
        text = model.text(alone.ids)
    assert together[7] == alone
    assert alone.stopped and text == ROWS[7][1]["content"]


def test_an_answer_that_does_not_end_is_cut_at_the_limit(exported: Job) -> None:
    with llama.load(convert.convert_base(exported.base, exported.home), n_ctx=256) as model:
        answer = generate(model, IDS, seed=1, max_tokens=5)
        assert generate(model, IDS, seed=1, max_tokens=5) == answer
        assert generate(model, IDS, seed=2, max_tokens=5) != answer
    assert (len(answer.ids), answer.stopped) == (5, False)


def test_special_tokens_are_read_as_one_only_where_asked(exported: Job) -> None:
    with llama.load(exported.path("convert", convert.FILE), n_ctx=256) as model:
        assert model.tokenize("<|user|>") == [4]
        assert len(model.tokenize("<|user|>", special=False)) > 1
        assert (model.bos, model.eos, model.ends(6)) == (1, 6, True)
        assert model.text([4, 6]) == "<|user|><|end|>"


def test_more_tokens_than_the_context_are_refused(exported: Job) -> None:
    with (
        llama.load(exported.path("convert", convert.FILE), n_ctx=256) as model,
        pytest.raises(LabError, match="300 tokens do not fit a context of 256"),
    ):
        model.logits([1] * 300)


def test_a_truncated_file_is_a_clear_error(exported: Job, tmp_path: Path) -> None:
    content = exported.path("quantise", "sleep-Q4_K_M.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (len(content) - 1_000_000, 5_000, 10, 0):
        cut.write_bytes(content[:length])
        with pytest.raises(LabError, match="not a whole GGUF file") as caught:
            read_header(cut)
        assert caught.value.code is Code.TOOLCHAIN and str(cut) in caught.value.message
        with pytest.raises(LabError, match=r"llama\.cpp does not load"), llama.load(cut, n_ctx=256):
            pass


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    lie = tmp_path / "lie.gguf"
    lie.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62))
    with pytest.raises(LabError, match="not a whole GGUF file"):
        read_header(lie)


def test_small_files_get_one_thread(exported: Job) -> None:
    assert llama.threads_for(exported.path("convert", convert.FILE), 8) == 1
