"""One request published with nothing but mosquitto_pub becomes a proven file; asking again changes nothing."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from bus import Client
from protocol import Code, JobSnapshot, LabError, Progress, TrainRequest
from protocol.job import Empty, JobEvent, Stage, State
from tests.integration.lab import (
    DOMAIN,
    Ground,
    RunningLab,
    done_once,
    events_of,
    listening,
    settled,
    submit,
)

pytestmark = pytest.mark.timeout(900)

JOB = "published-1"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FIELDS = {
    "job", "state", "stage", "attempt", "domain", "tier", "profile", "cost_usd", "quality_percent", "artefacts",
    "gates",
}  # fmt: skip
"""What architecture §3 promises of the snapshot."""


async def test_a_published_request_becomes_a_file_and_stays_one_job(lab: RunningLab, ground: Ground) -> None:
    body = {"domain": DOMAIN, "dataset": ground.rows.as_uri(), "id": JOB, "_meta": {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}}
    async with lab.client() as client, listening(client, JOB) as ears:
        await lab.publish(json.dumps(body))
        final = await ears.end()
        assert final.state is State.DONE, final.reason
        check_snapshot(final)
        await ears.first(JobEvent, lambda event: event.type == "done")
        heard = ears.all(JobEvent)
        assert [event.seq for event in heard] == list(range(1, len(heard) + 1)), "published without a gap"
        events = await events_of(client, JOB)
        assert events == heard
        done_once(events)
        check_states(ears.all(JobSnapshot))
        check_progress(ears.all(Progress), lab)

        before = len(ears.heard)
        request = ground.request(dataset=ground.rows.as_uri(), use_cache=True)
        first = await submit(client, JOB, request)
        second = await submit(client, JOB, request)
        assert first == second and first.job == JOB
        assert first.state is State.RESERVED, "the reply of then, not of now"
        with pytest.raises(LabError) as caught:
            await submit(client, JOB, request.model_copy(update={"priority": 2}))
        assert caught.value.code is Code.CONFLICT and "id" in caught.value.message
        async with client.subscription("dead", role="router") as letters:
            await lab.publish(json.dumps({**body, "domain": "sleep"}))
            _, letter = await anext(letters)
        assert "another body" in json.loads(letter)["reason"]
        assert await events_of(client, JOB) == events and len(ears.heard) == before, "nothing happened again"
        await settled(client, JOB)
        await check_the_same_under_another_id(client, request, final)

    await check_commands(lab, final, events)
    await check_logs(lab)


async def check_the_same_under_another_id(client: Client, request: TrainRequest, first: JobSnapshot) -> None:
    """Nothing is quoted, reserved, leased or trained; the file is the first job's, and the answer says so."""
    again = "published-again"
    async with listening(client, again) as ears:
        said = await submit(client, again, request)
        assert said.state is State.DONE and f"the job {JOB} made this model" in said.message
        final = await ears.end(client)
    assert (final.state, final.cached_from, final.cost_usd, final.attempt) == (State.DONE, JOB, 0.0, 0)
    assert (final.artefacts, final.gates) == (first.artefacts, first.gates)
    assert [event.type for event in await events_of(client, again)] == ["submitted", "routed", "planned", "done"]
    report = await client.call("budget.report", Empty(), timeout=60)
    assert again not in report.jobs and again not in {item.job for item in report.open_reservations}


async def check_logs(lab: RunningLab) -> None:
    """The trace of one request is in the log of every process that had a part in it, and `meetara logs` merges them."""
    names = [f"{role}-1.log" for role in ("router", "conductor", "cost_monitor", "gpu_orchestrator", "gguf_factory")]
    for path in [*(lab.home / "logs" / name for name in names), lab.folder(JOB) / "log.txt"]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if TRACE in line]
        assert lines, f"nothing of the trace is in {path}"
        assert any(json.loads(line).get("job") == JOB for line in lines), path
    merged = await lab.cli("logs", "--trace", TRACE, "--json", "-n", "0")
    lines = [json.loads(line) for line in merged.out.splitlines()]
    assert {line["agent"] for line in lines} == {name.removesuffix(".log") for name in names}
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    events = [line["event"] for line in lines]
    told = ["routed", "planned", "quoted", "reserved", "leased", "job begins", "job done", "job ended"]
    assert [event for event in dict.fromkeys(events) if event in told] == told
    assert {"settled", "released"} & set(events)
    one = await lab.cli("logs", "conductor-1", "--job", JOB)
    assert "job ended" in one.out and "router-1" not in one.out


def check_snapshot(final: JobSnapshot) -> None:
    plain = final.model_dump(mode="json")
    assert plain.keys() >= FIELDS
    assert (final.job, final.domain, final.tier, final.profile) == (JOB, DOMAIN, "tiny", "edge")
    assert final.cost_usd == 0 and final.attempt == 1 and final.stage is Stage.PUBLISH and final.reason is None
    assert {item.kind for item in final.artefacts} == {"gguf", "manifest", "card", "curves"}
    assert {"question", "base", "tuned"} <= final.results["answers"][0].keys(), "answers beside the base's"
    for item in final.artefacts:
        path = Path(unquote(urlparse(item.uri).path))
        content = path.read_bytes()
        assert len(content) == item.bytes and hashlib.sha256(content).hexdigest() == item.sha256
    model = next(item for item in final.artefacts if item.kind == "gguf")
    assert Path(unquote(urlparse(model.uri).path)).read_bytes()[:4] == b"GGUF"
    assert f"/artefacts/{model.sha256}/" in model.uri
    assert final.quality_percent is not None and final.quality_percent > 0
    for name in ("tokenizer_ids", "chat_template", "f16_kl"):
        assert final.gates[name].ok is True and final.gates[name].level == "fail"
    assert final.gates["quality_percent"].value == final.quality_percent
    for name in ("stops_percent", "lesson_percent"):
        assert (final.gates[name].value, final.gates[name].ok) == (None, None), "not measured is said so"


def check_states(snapshots: list[JobSnapshot]) -> None:
    order = [
        State.ROUTED, State.QUOTED, State.PROVISIONING, State.TRAINING, State.EXPORTING, State.VALIDATING, State.DONE,
    ]  # fmt: skip
    seen = list(dict.fromkeys(snapshot.state for snapshot in snapshots if snapshot.state is not State.RESERVED))
    assert seen == order
    assert all(earlier.at <= later.at for earlier, later in pairwise(snapshots))


def check_progress(progress: list[Progress], lab: RunningLab) -> None:
    training = [item for item in progress if item.stage is Stage.TRAIN and item.step]
    assert training, "the training was seen"
    assert all(item.steps == 3 and item.loss and item.tokens and item.cost_usd == 0 for item in training)
    manifest = json.loads((lab.folder(JOB) / "train" / "manifest.json").read_text())
    assert manifest["results"]["steps"] == 3


async def check_commands(lab: RunningLab, final: JobSnapshot, events: list[JobEvent]) -> None:
    one = await lab.cli("job", JOB, "--json")
    assert one.code == 0
    assert one.json["job"] == final.model_dump(mode="json")
    assert one.json["events"] == [event.model_dump(mode="json") for event in events]
    listed = await lab.cli("jobs", "--json")
    [mine] = [job for job in listed.json["jobs"] if job["job"] == JOB]
    assert {name: mine[name] for name in FIELDS - {"gates"}} == {
        name: value for name, value in final.model_dump(mode="json").items() if name in FIELDS - {"gates"}
    }
    money = await lab.cli("budget", "--json")
    assert money.json["jobs"].get(JOB, 0) == 0
    assert JOB not in [item["job"] for item in money.json["open_reservations"]]
    agents = (await lab.cli("agents", "--json")).json["agents"]
    assert {agent["role"] for agent in agents} == {
        "conductor", "router", "gpu_orchestrator", "cost_monitor", "gguf_factory", "emotion", "tts",
    }  # fmt: skip
    assert all(agent["online"] for agent in agents)
    assert [agent["card"]["slots"] for agent in agents if agent["role"] == "gguf_factory"] == [1]
