"""What all commands share: options, output, errors and exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from typer.core import TyperGroup

from protocol import Code, LabError

T = TypeVar("T")

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's, or that of the click inside newer typers; both are the base of what typer exports."""

OK, FAILED, WRONG, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: fine; the job failed or missed a gate; wrong input; not reachable or busy; interrupted by Ctrl-C."""

EXITS = {
    Code.INTERNAL: FAILED, Code.GATE_MISSED: FAILED, Code.CANCELLED: FAILED, Code.FENCED: FAILED,
    Code.UNREACHABLE: UNREACHABLE, Code.BUSY: UNREACHABLE, Code.EXPIRED: UNREACHABLE, Code.NO_CAPACITY: UNREACHABLE,
}  # fmt: skip
"""Exit code by error code; what is not named is input that the user has to change."""

PIPE_COLUMNS = 200
"""Columns of a table that goes to a file or another program; the widest has about 150."""

FLAGS = {
    "dataset": "--data", "eval_dataset": "--eval-data", "budget_usd": "--budget", "parameters": "--param",
    "data": "--data", "domain": "--domain", "tier": "--tier", "base": "--base", "priority": "--priority",
    "train_data": "--train-data", "only": "--only", "types": "--type", "out": "--out", "file": "FILE",
    "quantisation": "--quantisation", "profile": "--profile", "licence": "--licence", "deadline_hours": "--deadline",
    "providers": "--provider", "provider": "--provider", "gpu": "--gpu", "max_price_usd": "--max-price", "region": "--region",
    "min_gpu_memory_gb": "--min-memory", "csv": "--csv", "yes": "--yes", "usd": "USD", "key": "KEY", "emotion": "--emotion", "text": "TEXT",
}  # fmt: skip
"""The flag behind a field of a request."""

Home = Annotated[Path | None, typer.Option("--home", help="State of the lab (MEETARA_HOME).", show_default=False)]
Host = Annotated[str | None, typer.Option("--host", help="The broker's host (MEETARA_BROKER).", show_default=False)]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="The broker's port (MEETARA_PORT).", show_default=False)
]
LabName = Annotated[str | None, typer.Option("--lab", help="The lab's name (MEETARA_LAB).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; errors as {\"error\": …}.")]


def console() -> Console:
    """Return the console of this call's stdout; in a pipe it is wide, so that nothing is cut for want of a screen."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def tell(sentence: str) -> None:
    """Say something to a person, beside the command's output."""
    print(sentence, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """Return models, and whatever holds them, as JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def emit(document: Any) -> None:
    """Write one JSON document as one line to stdout."""
    print(json.dumps(plain(document), ensure_ascii=False), flush=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(work)


def report(error: LabError, *, as_json: bool) -> int:
    """Show an error and return its exit code."""
    if as_json:
        emit({"error": error.body()})
    else:
        field = error.data.get("field")
        if isinstance(field, str) and field.split(".")[0] in FLAGS:
            tell(f"error ({FLAGS[field.split('.')[0]]}): {error}")
        else:
            tell(f"error: {error}")
    if error.data.get("snapshot", {}).get("state") == "refused":
        return WRONG
    return EXITS.get(error.code, WRONG)


class Door(TyperGroup):
    """The command group: turns every expected error into a message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        as_json = bool(ctx.meta.get("json"))
        try:
            return super().invoke(ctx)
        except LabError as error:
            raise typer.Exit(report(error, as_json=as_json)) from error
        except UsageError as error:
            if not as_json:
                raise
            wrong = LabError(Code.INVALID_PARAMS, _usage(error), advice="See --help.")
            raise typer.Exit(report(wrong, as_json=True)) from error
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            if as_json:
                emit({"error": LabError(Code.CANCELLED, "interrupted.").body()})
            raise typer.Exit(INTERRUPTED) from error


def _usage(error: Exception) -> str:
    told: str = error.format_message()  # type: ignore[attr-defined]
    return told
