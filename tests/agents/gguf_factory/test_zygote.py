"""Processes forked off a warm one: what they are given, how they end, and who goes with whom."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.gguf_factory import convert
from agents.gguf_factory.job import Job
from agents.gguf_factory.launcher import WARM, Fork, Launcher, Started
from agents.gguf_factory.program import Program
from tests.agents.gguf_factory.bases import ROOT

pytestmark = pytest.mark.skipif(not WARM, reason="processes are forked on Linux only")

BARE = """
import sys
from agents.gguf_factory import zygote
zygote.LIGHT, zygote.HEAVY, zygote.IDLE_S = (), {heavy!r}, {idle}
sys.exit(zygote.main(sys.argv[1:]))
"""
SLEEPER = "import os, sys, time\nos.write(1, b'on')\ntime.sleep(600)\n"


def bare(*heavy: str, idle: float = 600) -> tuple[str, ...]:
    """Return the command of a zygote that imports next to nothing."""
    return (sys.executable, "-c", BARE.format(heavy=heavy, idle=idle))


@asynccontextmanager
async def launching(home: Path, *command: str) -> AsyncIterator[Launcher]:
    launcher = Launcher(home, zygote_command=command or bare())
    yield launcher
    await launcher.close()


class Run:
    """A script that a launcher has started, with what it writes."""

    def __init__(self, launcher: Launcher, script: Path) -> None:
        self.launcher, self.script = launcher, script
        self.out, self.error = script.with_suffix(".out").open("w+b"), script.with_suffix(".error").open("w+b")

    async def start(self, *arguments: str, session: bool = False, **environment: str) -> Started:
        return await self.launcher.start(
            Program(str(self.script), arguments, script=True, forked=True), environment,
            stdout=self.out.fileno(), stderr=self.error.fileno(), session=session,
        )  # fmt: skip

    def text(self) -> str:
        return os.pread(self.out.fileno(), 1 << 20, 0).decode()

    def words(self) -> str:
        return os.pread(self.error.fileno(), 1 << 20, 0).decode()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / f"program-{len(list(tmp_path.glob('program-*')))}.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def gone(pid: int) -> bool:
    """Whether a process has ended; whoever inherited it may not have collected it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not test():
            await asyncio.sleep(0.01)  # nothing announces what is looked for


async def test_a_forked_program_has_its_own_arguments_environment_session_name_and_exit_status(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    path = script("""
        import json, os, sys
        print(json.dumps([sys.argv[1:], os.environ["MORE"], os.getsid(0) == os.getpid(), os.getppid(), sys.stdin.read()]))
        print("a word", file=sys.stderr)
        sys.exit(7)
    """)
    async with launching(tmp_path) as launcher:
        run = Run(launcher, path)
        process = await run.start("one", "two words", session=True, MORE="more")
        assert isinstance(process, Fork) and await process.wait() == 7 == process.returncode
        assert json.loads(run.text()) == [["one", "two words"], "more", True, launcher.pid, ""]
        assert run.words() == "a word\n"
        sleeper = Run(launcher, script(SLEEPER))
        process = await sleeper.start(session=True)
        await until(lambda: sleeper.text() == "on")
        assert "zygote" not in " ".join(psutil.Process(process.pid).cmdline())
        os.killpg(process.pid, signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM


async def test_an_error_in_a_forked_program_is_its_own(tmp_path: Path, script: Callable[[str], Path]) -> None:
    async with launching(tmp_path) as launcher:
        run = Run(launcher, script("raise RuntimeError('oh')"))
        assert await (await run.start()).wait() == 1
        assert run.words().endswith("RuntimeError: oh\n")
        pid = launcher.pid
        assert await (await Run(launcher, script("")).start()).wait() == 0 and launcher.pid == pid


async def test_a_killed_zygote_takes_its_processes_along_and_is_replaced(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    async with launching(tmp_path) as launcher:
        process = await Run(launcher, script(SLEEPER)).start(session=True)
        first = launcher.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert await process.wait() == -signal.SIGKILL
        assert await (await Run(launcher, script("")).start()).wait() == 0
        assert launcher.pid not in (None, first)
        await until(lambda: gone(process.pid))


async def test_changed_code_makes_a_zygote_stale_but_ends_nothing(tmp_path: Path, script: Callable[[str], Path]) -> None:
    module = tmp_path / "imported_before.py"
    module.write_text("VALUE = 1\n")
    show, environment = script("import imported_before; print(imported_before.VALUE)"), {"PYTHONPATH": str(tmp_path)}
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        async with launching(tmp_path, *bare("imported_before")) as launcher:
            sleeper = Run(launcher, script(SLEEPER))
            old = await sleeper.start(session=True)
            run, first = Run(launcher, show), launcher.pid
            assert await (await run.start(**environment)).wait() == 0 and run.text() == "1\n" and launcher.pid == first
            module.write_text("VALUE = 'another'\n")
            run = Run(launcher, show)
            assert await (await run.start(**environment)).wait() == 0 and run.text() == "another\n"
            assert launcher.pid != first and old.returncode is None
            os.kill(old.pid, signal.SIGTERM)
            assert await old.wait() == -signal.SIGTERM
            await until(lambda: first is not None and gone(first))
    finally:
        del os.environ["PYTHONPATH"]


async def test_a_zygote_without_work_ends_and_the_next_process_gets_another(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    async with launching(tmp_path, *bare(idle=0.1)) as launcher:
        sleeper = Run(launcher, script("import time; time.sleep(0.3)"))
        assert await (await sleeper.start()).wait() == 0, "it is not idle as long as a process lives"
        first = launcher.pid
        await until(lambda: launcher.pid is None)
        assert await (await Run(launcher, script("")).start()).wait() == 0 and launcher.pid != first


async def test_a_start_that_is_given_up_while_a_zygote_imports_never_runs(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    go = tmp_path / "go"
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
    )
    command = bare("slow_to_import")
    async with launching(tmp_path, command[0], "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{command[2]}") as launcher:
        given_up, waiting = Run(launcher, script(SLEEPER)), Run(launcher, script("print('on')"))
        first = asyncio.create_task(given_up.start(session=True))
        second = asyncio.create_task(waiting.start())
        await until(lambda: launcher.pid is not None)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go.touch()
        assert await (await second).wait() == 0 and waiting.text() == "on\n"
        assert first.cancelled() and given_up.text() == ""


async def test_where_no_zygote_starts_the_program_starts_afresh(tmp_path: Path, script: Callable[[str], Path]) -> None:
    async with launching(tmp_path, sys.executable, "-c", "raise SystemExit(1)") as launcher:
        run = Run(launcher, script("import sys; print(sys.argv[1:])"))
        process = await run.start("x")
        assert not isinstance(process, Fork) and await process.wait() == 0 and run.text() == "['x']\n"


async def test_a_program_forked_off_a_job_is_in_its_group_and_ends_when_the_job_is_to_stop(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    deaf = script("""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, str(os.getpgid(0)).encode())
        time.sleep(600)
    """)
    job = script(f"""
        import os
        from pathlib import Path
        from agents.gguf_factory import child
        from agents.gguf_factory.job import Stopped
        output = Path({str(tmp_path / "deaf.log")!r})
        with child.forking():
            try:
                child.run(child.script(Path({str(deaf)!r})), output=output, stop=lambda: output.read_text() != "", what="it")
            except Stopped:
                print(output.read_text() == str(os.getpid()))
    """)
    async with launching(tmp_path) as launcher:
        run = Run(launcher, job)
        status = await (await run.start(session=True)).wait()
        assert status == 0 and run.text() == "True\n", run.words()


def test_nothing_outlives_a_killed_factory(tmp_path: Path, script: Callable[[str], Path]) -> None:
    """Factory, zygote, job, the job's branch and a program forked off that all hold the pipe that is read to its end."""
    job = script(f"""
        import os, sys, threading
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from agents.gguf_factory import child
        with child.forking():
            child.run(child.script(Path({str(script(SLEEPER))!r})), output=Path("/proc/self/fd/1"), stop=lambda: False, what="it")
    """)
    factory = f"""
        import asyncio, sys
        from pathlib import Path
        from agents.gguf_factory.launcher import Launcher
        from agents.gguf_factory.program import Program

        async def main():
            launcher = Launcher(Path({str(tmp_path)!r}), zygote_command={bare()!r})
            program = Program({str(job)!r}, script=True, forked=True)
            await (await launcher.start(program, {{}}, stdout=1, stderr=2, session=True)).wait()

        asyncio.run(main())
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(factory)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"on"
    assert len(psutil.Process(process.pid).children(recursive=True)) == 4
    process.kill()
    assert process.stdout.read() == b""
    process.wait()


async def test_what_the_real_zygote_has_imported_can_be_forked_and_converts_as_a_fresh_process_does(
    tmp_path: Path, script: Callable[[str], Path], exported: Job
) -> None:
    path = script(f"""
        import json, os, sys
        from pathlib import Path
        import torch
        from agents.gguf_factory import child, convert, toolchain
        before = set(sys.modules)
        tasks = len(os.listdir("/proc/self/task"))
        with child.forking():
            torch.ones(512, 512) @ torch.ones(512, 512)
            source, target = Path({str(exported.path("merge", "model"))!r}), Path({str(tmp_path / "f16.gguf")!r})
            convert.convert(source, target, program=toolchain.converter())
        print(json.dumps({{"threads": tasks, "cuda": [torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()]}}))
    """)
    async with launching(tmp_path, sys.executable, "-m", "agents.gguf_factory.zygote") as launcher:
        run = Run(launcher, path)
        status = await (await run.start()).wait()
        assert status == 0, run.words()
        found: dict[str, Any] = json.loads(run.text())
        assert found == {"threads": 1, "cuda": [False, False]}
        assert (tmp_path / "f16.gguf").read_bytes() == exported.path("convert", convert.FILE).read_bytes()
