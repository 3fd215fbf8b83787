"""Wrong input: an error that names the place and the remedy, nothing half-started, and a lab that still serves."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bus.broker import free_port
from protocol import MAX_BYTES, Code, LabError
from protocol.job import Empty, JobQuery, State
from tests.integration.lab import (
    DOMAIN,
    SHORT,
    Ground,
    Outcome,
    RunningLab,
    environment,
    listening,
    program,
    settled,
    submit,
    write_rows,
)

pytestmark = pytest.mark.timeout(900)

WRONG, UNREACHABLE = 2, 3
"""Exit codes of the command line."""


@dataclass(frozen=True)
class Case:
    """A wrong request. `place` and `remedy` are words that the message must have; `flags` are the command line's."""

    fields: dict[str, Any]
    place: tuple[str, ...]
    remedy: str
    flags: tuple[str, ...] = field(default=())


def cases(folder: Path, rows: Path) -> dict[str, Case]:
    """Return the wrong requests by name, with their files written to a folder."""
    good = rows.read_text(encoding="utf-8").splitlines()

    def data(name: str, content: str | bytes) -> str:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def dataset(path: str, *place: str, remedy: str) -> Case:
        return Case({"dataset": path}, (path, *place), remedy)

    broken = [*good[:6], good[6][:40], *good[7:]]
    silent = [*good[:2], json.dumps({"messages": [{"role": "user", "content": "Why?"}]}), *good[3:]]
    blank = [*good[:4], json.dumps({"instruction": "Why?", "output": "  "}), *good[5:]]
    few = write_rows(folder / "few.jsonl", 10)
    return {
        "domain": Case({"domain": "slep"}, ("domain", "slep"), "Did you mean sleep"),
        "missing": dataset(str(folder / "nowhere.jsonl"), "does not exist", remedy="Check the name"),
        "folder": dataset(str(folder), "is a folder", remedy="Give one file"),
        "bytes": dataset(data("bytes.jsonl", b'{"a"\n\xff\xfe'), "line 2", remedy="Save it as UTF-8"),
        "empty": dataset(data("empty.jsonl", ""), "is empty", remedy="one question and answer per line"),
        "broken": dataset(data("broken.jsonl", "\n".join(broken)), "line 7", "not JSON", remedy="Mend or remove"),
        "silent": dataset(data("silent.jsonl", "\n".join(silent)), "line 3", remedy="Mend or remove"),
        "blank": dataset(data("blank.jsonl", "\n".join(blank)), "line 5", remedy="Mend or remove"),
        "few": dataset(str(few), "10 rows", "at least 25", remedy="Add rows"),
        "base": Case(
            {"base": str(folder / "no-base")}, ("base model", str(folder / "no-base")), "Give the folder",
            ("--base", str(folder / "no-base")),
        ),
        "tier": Case({"tier": "golden"}, ("tier", "golden"), "Known tiers are", ("--tier", "golden")),
        "priority": Case({"priority": 7}, ("priority", "3"), "Correct the named field", ("--priority", "7")),
        "parameter": Case(
            {"parameters": {"batch_sise": 2}}, ("parameters.batch_sise",), "Did you mean batch_size",
            ("--param", "batch_sise=2"),
        ),
        "type": Case(
            {"parameters": {"batch_size": "many"}}, ("parameters.batch_size", "many"), "Correct the value",
            ("--param", "batch_size=many"),
        ),
        "disk": Case({"parameters": {"lora_r": 512}}, ("MB", "may be used"), "Free ", ("--param", "lora_r=512")),
    }  # fmt: skip


def check(message: str, case: Case) -> None:
    for words in (*case.place, case.remedy):
        assert words in message, f"{words!r} is not in {message!r}"


async def few_at_a_time(*works: Callable[[], Any]) -> list[Any]:
    """Run them all, three at once: more would only wait for the cores."""
    free = asyncio.Semaphore(3)

    async def one(work: Callable[[], Any]) -> Any:
        async with free:
            return await work()

    return await asyncio.gather(*(one(work) for work in works))


async def test_the_command_line_names_place_and_remedy(lab: RunningLab, ground: Ground, tmp_path: Path) -> None:
    wrong = cases(tmp_path, ground.rows)

    def run(name: str, case: Case) -> Callable[[], Any]:
        domain, rows = case.fields.get("domain", DOMAIN), case.fields.get("dataset", ground.rows)
        return lambda: lab.cli("train", "--domain", domain, "--data", rows, "--id", f"cli-{name}", *case.flags)

    outcomes = await few_at_a_time(*(run(name, case) for name, case in wrong.items()))
    for (name, case), outcome in zip(wrong.items(), outcomes, strict=True):
        assert outcome.code == WRONG, f"{name}: {outcome}"
        assert outcome.error.startswith("error"), f"{name}: {outcome}"
        check(outcome.error, case)
    await nothing_started(lab, [f"cli-{name}" for name in wrong], ground)


async def test_a_published_request_is_refused_with_its_reason(
    lab: RunningLab, ground: Ground, tmp_path: Path
) -> None:
    wrong = cases(tmp_path, ground.rows)
    wrong["types"] = Case({"domain": 5, "dataset": ["x"]}, ("domain", "dataset", "valid string"), "Correct the named field")
    wrong["unknown-field"] = Case({"datasett": "x"}, ("datasett",), "Correct the named field")
    async with lab.client() as client:

        async def refused(name: str, case: Case) -> None:
            job = f"pub-{name}"
            async with listening(client, job) as ears:
                body = {"domain": DOMAIN, "dataset": str(ground.rows), **case.fields, "id": job}
                await lab.publish(json.dumps(body))
                final = await ears.end()
            assert final.state is State.REFUSED, f"{name}: {final}"
            assert final.reason is not None
            check(final.reason, case)

        def work(name: str, case: Case) -> Callable[[], Any]:
            return lambda: refused(name, case)

        await few_at_a_time(*(work(name, case) for name, case in wrong.items()))
    await nothing_started(lab, [f"pub-{name}" for name in wrong], ground)


async def test_what_no_job_can_be_made_of_is_kept_as_a_dead_letter(lab: RunningLab) -> None:
    async with lab.client() as client, client.subscription("dead", role="router") as letters:

        async def buried(text: str | bytes) -> dict[str, Any]:
            await lab.publish(text)
            async with asyncio.timeout(60):
                _, payload = await anext(letters)
            letter: dict[str, Any] = json.loads(payload)
            return letter

        letter = await buried("train me a model")
        assert "not JSON" in letter["reason"] and "line 1" in letter["reason"] and "Send an object" in letter["reason"]
        assert letter["original"] == "train me a model"
        assert "list" in (await buried("[1, 2]"))["reason"]
        assert "UTF-8" in (await buried(b'{"domain": "\xff"}'))["reason"]
        letter = await buried(json.dumps({"domain": "slep", "dataset": "x"}))
        assert "Did you mean sleep" in letter["reason"], "without an id there is no job to look at"
        letter = await buried(json.dumps({"domain": "sleep", "dataset": "x" * MAX_BYTES, "id": "too-large"}))
        assert str(MAX_BYTES) in letter["reason"] and "reference to the data" in letter["reason"]
        letter = await buried(json.dumps({"domain": "sleep", "dataset": "x", "id": "../up"}))
        assert "../up" in letter["reason"] and "letters" in letter["reason"]


async def test_the_client_refuses_what_is_too_large_before_it_sends_it(lab: RunningLab, ground: Ground) -> None:
    async with lab.client() as client:
        with pytest.raises(LabError) as caught:
            await submit(client, "huge", ground.request({"x" * MAX_BYTES: 1}))
        assert caught.value.code is Code.TOO_LARGE and "reference" in caught.value.advice
    await nothing_started(lab, ["huge"], ground, serves=False)


async def test_a_broker_that_is_not_there_a_port_that_is_taken_and_a_home_in_use(
    lab: RunningLab, ground: Ground, tmp_path: Path
) -> None:
    nobody, elsewhere = free_port(), environment(tmp_path / "other", ground.configs)
    train = ("train", "--domain", DOMAIN, "--data", ground.rows, "--port", nobody)
    unreachable, taken, twice = await few_at_a_time(
        lambda: lab.cli(*train),
        lambda: program(sys.executable, "-m", "meetara.cli", "up", "--port", lab.port, environment=elsewhere),
        lambda: lab.cli("up", "--port", "0"),
    )
    for outcome, words in (
        (unreachable, (f"127.0.0.1:{nobody}", "meetara up", "--port")),
        (taken, (f"127.0.0.1:{lab.port}", "mosquitto", "--port")),
        (twice, (str(lab.home), f"pid {lab.process.pid}", "meetara down")),
    ):
        told: Outcome = outcome
        assert told.code == UNREACHABLE, told
        for word in words:
            assert word in told.error, told.error
    assert not list((tmp_path / "other").rglob("*.db")), "nothing was begun on the other home"
    await nothing_started(lab, [], ground)


async def nothing_started(lab: RunningLab, jobs: list[str], ground: Ground, *, serves: bool = True) -> None:
    """Assert that refused jobs left neither folder nor reservation, and that the next good request is admitted."""
    assert not [job for job in jobs if lab.folder(job).exists()]
    async with lab.client() as client:
        report = await client.call("budget.report", Empty())
        assert not {item.job for item in report.open_reservations} & set(jobs)
        if serves:
            admitted = f"good-after-{jobs[0] if jobs else 'none'}"
            assert (await submit(client, admitted, ground.request(SHORT))).state is State.RESERVED
            assert (await client.call("job.cancel", JobQuery(job=admitted))).state is State.CANCELLED
            await settled(client, admitted)
