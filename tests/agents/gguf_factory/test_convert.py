from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from agents.gguf_factory import child, convert
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job, Stopped
from protocol import Code, LabError
from tests.agents.gguf_factory import exports


def test_the_file_holds_the_whole_model_in_16_bits(exported: Job) -> None:
    header = read_header(exported.path("convert", convert.FILE))
    assert header.values["general.architecture"] == "llama"
    assert header.values["llama.block_count"] == 2
    assert len(header.tensors) == 2 + 2 * 9
    assert {tensor.type for tensor in header.tensors} == {"F16", "F32"}
    assert header.weights == exported.read_manifest("convert")["results"]["weights"]


def test_the_base_is_converted_once_and_found_again_by_what_it_is_made_from(exported: Job) -> None:
    found = convert.convert_base(exported.base, exported.home, program=Path("/no/converter"))  # a second run would fail
    assert found == exported.home / "models" / convert.identity(exported.base) / convert.FILE


def test_another_weight_or_tokenizer_is_another_base(exported: Job, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(exported.base, copy)
    assert convert.identity(copy) == convert.identity(exported.base)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert convert.identity(copy) != convert.identity(exported.base)


def test_a_failed_conversion_tells_the_converters_last_words_and_leaves_no_file(exported: Job, tmp_path: Path) -> None:
    job = exports.copy(exported, tmp_path)
    config = job.path("merge", "model", "config.json")
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    target = tmp_path / "made" / "model.gguf"
    from agents.gguf_factory import toolchain

    with pytest.raises(LabError, match="NoSuchForCausalLM") as caught:
        convert.convert(job.path("merge", "model"), target, program=toolchain.converter())
    assert caught.value.code is Code.TOOLCHAIN
    assert [path.name for path in target.parent.iterdir()] == ["model.log"]


def test_a_stop_ends_the_program_and_returns_within_three_seconds(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    output = tmp_path / "out.log"
    start: list[float] = []

    def stop() -> bool:
        if output.exists() and "on" in output.read_text():
            start.append(time.monotonic())
            return True
        return False

    with pytest.raises(Stopped):
        child.run(child.script(script), output=output, stop=stop, what="a stubborn program")
    assert time.monotonic() - start[0] < 3
    assert not [process for process in psutil.Process().children() if str(script) in " ".join(process.cmdline())]


def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "forever.py"
    script.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    starter = (
        "import os, subprocess, sys, time; from agents.gguf_factory import child; from pathlib import Path\n"
        f"subprocess.Popen(child.script(Path({str(script)!r})).command(os.getpid()))\n"
        f"while not (p := Path({str(tmp_path / 'pid')!r})).exists() or not p.read_text(): time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", starter])
    pid = int((tmp_path / "pid").read_text())
    try:
        psutil.Process(pid).wait(5)
    except psutil.NoSuchProcess:
        return
    assert not psutil.pid_exists(pid)
