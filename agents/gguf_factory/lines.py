"""Run one piece of work as a process that speaks JSON lines: {"progress": …} while it works, one {"report"} or {"error"}.

Nothing else goes to stdout; whatever libraries print goes to stderr. SIGINT and SIGTERM ask for a stop.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.gguf_factory import lifeline
from agents.gguf_factory.job import Stopped
from agents.gguf_factory.work import private_stdout
from configs import Settings
from protocol import Code, LabError

DONE, MISSED, WRONG, STOPPED = 0, 1, 2, 130

Work = Callable[[Path, Callable[[], bool], Callable[..., None]], tuple[dict[str, Any], bool]]
"""Takes MEETARA_HOME, a stop to ask and a progress to tell; returns a report and whether all is well."""


def run(work: Work) -> int:
    """Do the work, write its lines, and return the exit code."""
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopping.append(number))
    out = private_stdout()
    lifeline.die_with_parent()

    def write(line: dict[str, Any]) -> None:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
        out.flush()

    def progress(**facts: Any) -> None:
        write({"progress": facts})

    def fail(error: LabError, code: int) -> int:
        write({"error": error.body().model_dump(mode="json")})
        return code

    try:
        report, fine = work(Settings.read().home, lambda: bool(stopping), progress)
    except Stopped:
        return fail(LabError(Code.CANCELLED, "interrupted."), STOPPED)
    except LabError as error:
        return fail(error, WRONG)
    except MemoryError:
        return fail(LabError(Code.NO_CAPACITY, "the machine ran out of memory."), WRONG)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(
            LabError(Code.INTERNAL, f"{error.strerror or error}{where}.", advice="Check the file and the disk."), WRONG
        )
    write({"report": report})
    return DONE if fine else MISSED
