"""A process that has imported what jobs need and is forked for each of them. Forking costs milliseconds, importing seconds.

    python -m agents.gguf_factory.zygote FD HOME    # what the factory starts; FD is this end of the socket of requests

A request is one message: a program and its environment as JSON, and descriptors: stdout, stderr, a pipe for lines about
it, and stdin unless it is to be empty. The lines are `pid N` from the forked process, `ended STATUS` when it is over, or
`stale` when a file of an imported module is no longer what it was, and another zygote has to be started. A pipe that
closes without a word: it is gone.

Nothing here computes: a process that has run a parallel region or initialised CUDA cannot be forked any more. The
libraries' threads that importing starts (OpenBLAS) end before each fork by their own fork handlers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agents.gguf_factory import lifeline
from agents.gguf_factory.forked import MESSAGE_BYTES
from agents.gguf_factory.program import Program
from agents.gguf_factory.sources import changed, module_files

LIGHT = ("agents.gguf_factory.work", "agents.gguf_factory.plan", "sentencepiece", "tokenizers")
"""What planning needs: imported first, so that the first plan need not wait for torch."""
HEAVY = (
    "torch", "torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "transformers.modeling_utils", "peft",
    *(f"agents.gguf_factory.{name}" for name in (
        "pipeline", "data", "train", "merge", "convert", "quantise", "imatrix", "validate", "publish")),
    "google.protobuf.internal.builder", "sentencepiece.sentencepiece_model_pb2", "safetensors.numpy",
    "transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama",
    "peft.utils.transformers_weight_conversion",
)  # fmt: skip
"""What a job on the starter base imports, found by comparing `sys.modules` before and after one. The first line only makes
steps of at most a second of it, between which those who planned are told."""
IDLE_S = 300.0
"""Seconds without a process after which it ends: 300 MB that nobody uses against 4 s of a core for the next burst."""
DESCRIPTORS = 3, 4
"""Least and greatest number that come with a request."""
_loaded = False


@dataclass(frozen=True)
class Request:
    """A program to fork for, with its environment and descriptors (stdout, stderr, status, perhaps stdin)."""

    program: Program
    environment: dict[str, str]
    session: bool
    descriptors: tuple[int, ...]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Server:
    """Forks for each request, and tells how each process ended.

    Args:
        control: where requests come; when its other end closes, the server ends with its last process.
        idle: seconds without a process after which it ends; None: never.
    """

    def __init__(self, control: socket.socket, *, idle: float | None = None) -> None:
        self.control = control
        self.idle = idle
        self.files: dict[str, tuple[int, ...]] | None = None
        self.open = True
        self.ready = True
        self.waiting: list[Request] = []
        self.children: dict[int, int] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        self.woken, self.waker = socket.socketpair()
        for end in (self.woken, self.waker):
            end.setblocking(False)
        self.selector.register(self.woken, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the waker
        signal.signal(signal.SIGTERM, self._end)  # for the whole group: the processes may save before this one goes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self.waker.fileno())

    def _end(self, *_: object) -> None:
        self.open = False

    def load(self) -> None:
        """Import what plans need, answer those that wait, and import the rest."""
        global _loaded
        self.ready = False
        for names in (LIGHT, *((name,) for name in HEAVY)):
            for name in names if self.open else ():
                importlib.import_module(name)
            while self.step(0):
                pass
        gc.collect()
        gc.freeze()  # the collector of a forked process would touch, and so copy, every page
        self.files = module_files()
        self.ready = _loaded = True

    def serve(self) -> None:
        """Serve until nobody can ask any more, or for too long nobody has."""
        while self.open or self.children:
            if not self.step(None if self.children or not self.open else self.idle) and not self.children:
                return

    def step(self, timeout: float | None) -> bool:
        """Do what there is to do, or wait for it; False when nothing came in time."""
        while self.ready and self.waiting:
            self.fork(self.waiting.pop(0))
        found = self.selector.select(timeout)
        for key, _ in found:
            if key.fileobj is self.woken:
                self.woken.recv(4096)
                self.reap()
            else:
                self.read()
        return bool(found)

    def read(self) -> None:
        """Take in a request."""
        message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, max(DESCRIPTORS))
        if not message:
            self.open = False
            self.selector.unregister(self.control)
            return
        if len(descriptors) not in DESCRIPTORS:  # this process has too many open
            for descriptor in descriptors:
                os.close(descriptor)
            return
        asked = json.loads(message)
        fields = asked["program"]
        program = Program(**{**fields, "arguments": tuple(fields["arguments"])})
        request = Request(program, asked["environment"], asked["session"], tuple(descriptors))
        if self.ready or "--plan" in program.arguments:
            self.fork(request)
        else:
            self.waiting.append(request)

    def fork(self, request: Request) -> None:
        """Fork for a request, or say that this process is stale."""
        status = request.descriptors[2]
        if self.files is not None and changed(self.files):
            with contextlib.suppress(BrokenPipeError):  # who asked for it is gone
                os.write(status, b"stale\n")
            request.close()
            return
        here = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError:  # no memory, too many processes: the pipe closes without a word, the others live on
            request.close()
            return
        if pid == 0:
            self._leave()
            _become(request, here)
        self.children[pid] = os.dup(status)
        request.close()

    def _leave(self) -> None:
        """Let go, in a forked process, of all that is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self.selector.close()
        for end in (self.control, self.woken, self.waker):
            end.close()
        for status in self.children.values():
            os.close(status)
        for request in self.waiting:
            request.close()

    def reap(self) -> None:
        """Tell of each process that has ended how it did: its exit status, or the signal as a negative number."""
        for pid in list(self.children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                told = self.children.pop(pid)
                with contextlib.suppress(BrokenPipeError):  # who asked for it is gone
                    os.write(told, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
                os.close(told)


def _become(request: Request, parent: int) -> None:
    """Turn this forked process into the one that was asked for, run it, and end."""
    code = 1
    try:
        if request.session:
            os.setsid()
        lifeline.die_with_parent(parent)
        out, error, status, *given = request.descriptors
        for descriptor, number in ((out, 1), (error, 2), *((stdin, 0) for stdin in given)):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(request.environment)
        rename(request.program.words())
        os.write(status, f"pid {os.getpid()}\n".encode())
        request.close()
        _obey(request.environment)
        code = request.program.call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the boundary: what a fresh interpreter would print and end with 1
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk; a stream that the program has closed
                stream.flush()
        os._exit(code)  # not the server's way out, and no seconds spent on taking torch down


def _obey(environment: Mapping[str, str]) -> None:
    """Do by hand what a starting interpreter and a loading OpenMP do on account of the environment."""
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", *sys.path)]
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))


def rename(words: Sequence[str]) -> None:
    """Show a forked process under its own name in lists of processes; Linux only, cut where the room ends.

    A library (setproctitle) would take the room of the environment too, and /proc/PID/environ would be empty.
    """
    if not sys.platform.startswith("linux"):
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, the 48th and 49th field (proc(5))
    text = b"\0".join(os.fsencode(word) for word in words)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def loaded() -> bool:
    """Whether this process is a zygote's, forked after everything was imported."""
    return _loaded


@contextmanager
def branched(private: Sequence[int] = ()) -> Iterator[socket.socket]:
    """Keep a fork of this process, as it is now, to fork programs from; yields the socket to `ask` on.

    To be entered before this process has threads of its own or computes anything.

    Args:
        private: descriptors that are not to be inherited.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            for descriptor in private:
                os.close(descriptor)
            lifeline.die_with_parent(here)
            rename(["python", "-m", "agents.gguf_factory.zygote", *sys.argv[1:]])
            Server(theirs).serve()
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(pid, 0)


def main(arguments: Sequence[str]) -> int:
    lifeline.die_with_parent()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a library that looks for a GPU at import must not initialise CUDA
    server = Server(socket.socket(fileno=int(arguments[0])), idle=IDLE_S)
    server.load()
    server.serve()
    return 0


if __name__ == "__main__":
    from agents.gguf_factory import zygote  # forked programs must find this very module, not a second one

    sys.exit(zygote.main(sys.argv[1:]))
