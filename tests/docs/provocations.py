"""Ways to meet each error of docs/troubleshooting.md, named as its sections are. Each returns the text that a person reads."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import socket
import sqlite3
import ssl
import struct
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

import configs as lab_configs
from agents.conductor.agent import ConductorAgent
from agents.conductor.record import JobRecord
from agents.cost_monitor.bills import Bills
from agents.cost_monitor.caps import Caps
from agents.cost_monitor.ledger import Ledger
from agents.cost_monitor.tables import MIGRATIONS as LEDGER
from agents.gguf_factory import compare, dataset, machine, place, plan, proof, recovery, staging, talk, targets
from agents.gguf_factory.adapter import BASE_NAME, BASE_QUANTISATION
from agents.gguf_factory.checkpoint_store import CheckpointStore
from agents.gguf_factory.gates import Measured, judge, verdict
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.gguf_values import add_values
from agents.gguf_factory.hashes import Hashes
from agents.gguf_factory.llama import BASE_SHA256
from agents.gguf_factory.loop import Loop
from agents.gguf_factory.loop import Settings as TrainingSettings
from agents.gguf_factory.rows import Schedule
from agents.gguf_factory.work import make_plan
from agents.gguf_factory.worker import worker_of
from agents.gpu_orchestrator.clouds import replaced
from agents.gpu_orchestrator.market import desk
from agents.gpu_orchestrator.rentals.owner import REPLACED, out_of_sight
from agents.router import core
from bus import BrokerAddress, Client, Wiring, workers
from bus import certs as bus_certs
from bus import keys as bus_keys
from bus.address import tls_failure
from bus.broker import check_port, free_port
from bus.freeze import read_freeze
from bus.logs import wanted
from bus.migration import TABLE
from bus.mosquitto import find_mosquitto
from bus.session import Session, taken_over
from bus.setup import role_of
from bus.store import Store
from bus.users import add
from configs import Settings, accounts
from configs.budget import Budget
from configs.source import SHIPPED
from configs.tiers import GateRule
from meetara import lab as lab_module
from meetara import models
from meetara.home import hold
from meetara.job import check
from meetara.lab import Lab
from meetara.request import checked
from meetara.screens.train import parameters
from meetara.supervise import Supervisor
from protocol import JobSnapshot, LabError, MCPMessage, State, TrainRequest
from protocol.format import FORMAT, check_format
from protocol.job import Empty, PlanRequest, Route
from protocol.machine import Listing, ListingQuery, QuoteRequest
from protocol.money import BillRequest, CapRequest
from protocol.signature import signed_text, submission
from tests.agents.gguf_factory.families import byte_level
from tests.agents.gguf_factory.tiny import network
from tests.agents.gguf_factory.tiny import rows as rows_of_tokens
from tests.agents.gpu_orchestrator.rentals.test_life import rental
from tests.conftest import PlainBroker

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOOL = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]})
ROW = json.dumps({"question": "Why?", "answer": "So."})


class Ground(SimpleNamespace):
    """What provocations stand on: `folder` (empty, of their own), `base` (a whole tiny base), `broker`, `patch`."""

    folder: Path
    base: Path
    broker: PlainBroker
    patch: Any


def error_of(act: Callable[[], Any]) -> str:
    """Return the text of the LabError that an act raises."""
    try:
        found = act()
        if isinstance(found, Coroutine):
            asyncio.run(found)
    except LabError as error:
        return str(error)
    raise AssertionError("it raised nothing")


def another_account(ground: Ground) -> str:
    """A rental of a key that was replaced."""
    return out_of_sight("vast", [rental().model_copy(update={"key": "0123456789abcdef"})])


def rows(ground: Ground, content: str | bytes, name: str = "sleep.jsonl") -> Path:
    path = ground.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def planned(ground: Ground, **changes: Any) -> str:
    route = Route(
        domain="sleep", category="health", tier="starter", base=str(changes.pop("base", ground.base)), voice="v", empathy="e",
        quality_floor=101.0, safety_critical=False,
    )  # fmt: skip
    if "dataset" not in changes:
        changes["dataset"] = str(rows(ground, "\n".join(json.dumps({"question": f"Why {n}?", "answer": f"So {n}."}) for n in range(60))))
    request = PlanRequest(job="sleep-1", request=TrainRequest(domain="sleep", **changes), route=route)
    return error_of(lambda: plan.plan(request, ground.folder))


def _never(text: str) -> Any:
    raise AssertionError("a request that names its domain needs no understanding")


def routed(**fields: Any) -> str:
    request = TrainRequest(dataset="file:///data/sleep.jsonl", **{"domain": "sleep", **fields})
    return error_of(lambda: core.route(request, lab_configs.load(Settings.read()), understand=_never))


def market(ground: Ground, tier: str, **wanted: Any) -> str:
    """What a market says in which Lambda sells one T4 for fifty cents."""
    found = desk.Desk(lab_configs.load(Settings.read()), {}, ["lambda"])
    found.book.note("lambda", [Listing(
        provider="lambda", id="gpu_1x_t4@us-1", gpu="T4", gpus=1, gpu_memory_bytes=16 << 30, price_micros_per_hour=500_000, seen_at=AT,
    )])  # fmt: skip
    job = plan.Plan(
        rows=1, held_out_rows=1, tokens=1, steps=846, parameters={}, base_parameters=600_000_000, file_bytes=1, disk_bytes=1,
        memory_bytes=1, seconds_p50=1, seconds_p90=1, working_bytes=1, trained_tokens=650_000,
    )  # fmt: skip
    return error_of(lambda: found.quote(QuoteRequest(job="j", tier=tier, plan=job, **wanted), [], AT))


def catalogue(ground: Ground, content: bytes | None) -> str:
    folder = ground.folder / "catalogs"
    ground.patch.setenv("GPUHUNT_CATALOG_DIR", str(folder))
    if content is not None:
        folder.mkdir()
        (folder / "runpod.csv").write_bytes(content)
    return error_of(lambda: desk.Desk(lab_configs.load(Settings.read())))


def config(ground: Ground, name: str, text: str) -> str:
    (ground.folder / name).write_text(text, encoding="utf-8")
    return error_of(lambda: lab_configs.load(Settings.read(configs=ground.folder)))


def taken_port(ground: Ground) -> str:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        return error_of(lambda: check_port(owner.getsockname()[1]))


def home_in_use(ground: Ground) -> str:
    def again() -> None:
        with hold(ground.folder):
            pass

    with hold(ground.folder):
        return error_of(again)


async def connected(ground: Ground, **where: Any) -> None:
    async with Lab(home=ground.folder, **where):
        pass


def no_users(ground: Ground) -> str:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LabError(lab_module.Code.UNREACHABLE, "no broker answers: Not authorized.")

    ground.patch.setattr(lab_module, "Client", refuse)
    ground.patch.setattr(lab_module, "GATE_SECONDS", 0.0)
    return error_of(lambda: connected(ground, port=1883))


def wrong_login(ground: Ground) -> str:
    ground.patch.setenv("MEETARA_BROKER_USER", "zoe")
    return no_users(ground)


async def silent(ground: Ground) -> None:
    async with Client(ground.broker.address) as client:
        await client.call("budget.report", Empty(), timeout=0.2)


def speaks_no_tls(ground: Ground) -> str:
    """Connect with TLS to something that answers in plain text."""

    async def connect() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        bus_certs.make(ground.folder / "tls", hosts=["localhost"], now=datetime.now(UTC))
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            address = BrokerAddress("127.0.0.1", port, tls=True, ca=ground.folder / "tls" / "ca.pem")
            async with Session.connect(address, "meetara-test", durable=False):
                pass
        finally:
            server.close()

    return error_of(connect)


def foreign_certificate(ground: Ground) -> str:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    found = tls_failure(error, BrokerAddress("broker.example", 8883, tls=True))
    assert found is not None
    return str(found)


def supervised(ground: Ground, **flags: Any) -> str:
    settings = Settings.read(home=ground.folder, **flags)
    return error_of(lambda: Supervisor(settings, port=0, tell=lambda _: None))


def wrong_ca(ground: Ground) -> str:
    path = ground.folder / "ca.pem"
    path.write_text("no certificate")
    return error_of(lambda: BrokerAddress("broker.example", 8883, tls=True, ca=path).tls_context())


def token(ground: Ground, **changes: str) -> workers.Token:
    certs = ground.folder / "certs"
    bus_certs.make(certs, hosts=[], now=datetime.now(UTC))
    return replace(workers.make("r1", provider="vast", ca=certs / "ca.pem"), **changes)


def started_worker(ground: Ground, mine: workers.Token, **changes: Any) -> Any:
    given = {"broker": f"mqtts://localhost:{free_port()}", "home": ground.folder / "worker", "ca": None, "slots": 1}
    return worker_of(Namespace(**{**given, "wait": 0.0, "idle": 600.0, **changes}), mine, lambda _: None)


def worker_fails(ground: Ground, error: Exception | None = None) -> str:
    """Run a worker that finds no broker, or one that answers so."""
    worker = started_worker(ground, token(ground))
    if error is None:
        return error_of(worker.run)
    try:
        return error_of(lambda: worker.disconnected(error))
    finally:
        worker.store.close()


def changed_base(ground: Ground) -> str:
    store = (ground.folder / "store").as_uri()
    target = staging._base(str(ground.base), store, Hashes(ground.folder))
    (ground.folder / "store" / target.removeprefix(f"{store}/") / "config.json").write_text("{}")
    return error_of(lambda: staging._fetched(target, ground.folder / "elsewhere"))


def lacks_host(ground: Ground) -> str:
    folder = ground.folder / "tls"
    bus_certs.make(folder, hosts=["a.example"], now=datetime.now(UTC))
    return error_of(lambda: bus_certs.make(folder, hosts=["b.example"], now=datetime.now(UTC)))


def conductor(ground: Ground) -> ConductorAgent:
    return ConductorAgent(Wiring("conductor-1", ground.folder, ground.broker.address))


def unknown_job(ground: Ground) -> str:
    agent = conductor(ground)
    try:
        with agent.transaction() as tx:
            return error_of(lambda: agent.known("sleep-9", tx))
    finally:
        agent.store.close()


def conflict(ground: Ground) -> str:
    agent = conductor(ground)
    answers: list[str] = []
    agent._inbox._answer_error = lambda incoming, identity, error, tx, out, named=None: answers.append(str(error))  # type: ignore[assignment,method-assign]
    try:
        for job in ("a", "b"):
            asyncio.run(agent.handle_message(MCPMessage(id="sleep-1", type="job.get", data={"job": job})))
    finally:
        agent.store.close()
    return answers[-1]


def too_dear(ground: Ground) -> str:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.executescript("".join(LEDGER))
    budget = Budget(
        monthly_usd=50.0, weekly_usd=25.0, daily_usd=5.0, alert_percents=(50, 80), optimise_percent=80, freeze_percent=95
    )
    return error_of(lambda: Ledger(connection, budget).reserve("r", "sleep-1", 6_000_000, "local", "sleep", AT))


def ledger() -> Ledger:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.executescript("".join(LEDGER))
    return Ledger(connection, lab_configs.load(Settings.read()).budget)


def paid_work_frozen(ground: Ground) -> str:
    book = ledger()
    book.reserve("a", "a", 4_800_000, "local", "sleep", AT)
    book.settle("a", "a", 4_800_000, AT)
    return error_of(lambda: book.reserve("r", "sleep-1", 100_000, "vast", "sleep", AT))


def provider_frozen(ground: Ground) -> str:
    book = ledger()
    bill = BillRequest(provider="vast", rental="r-1", jobs={"a": 500_000}, billed_micros=4_000_000, since=AT, until=AT)
    Bills(book._connection, book).bill(bill, AT)
    return error_of(lambda: book.reserve("r", "sleep-1", 100_000, "vast", "sleep", AT))


def budget_too_low(ground: Ground) -> str:
    book = ledger()
    for name, settled in (("a", 1_000_000), ("b", None)):
        book.reserve(name, name, 1_000_000 if settled else 2_000_000, "local", "sleep", AT)
        if settled:
            book.settle(name, name, settled, AT)
    caps = Caps(book._connection, lab_configs.load(Settings.read()).budget)
    return error_of(lambda: caps.set(CapRequest(name="daily_usd", usd=2), None, AT))


def signed_otherwise(ground: Ground) -> str:
    signature = bus_keys.make(ground.folder).sign(submission("lab", "sleep-1", "0" * 64))
    return error_of(lambda: bus_keys.check(signature, submission("lab", "sleep-1", "1" * 64)))


def key_not_trusted(ground: Ground) -> str:
    text = submission("lab", "sleep-1", "0" * 64)
    signature = bus_keys.make(ground.folder).sign(text)
    return error_of(lambda: bus_keys.signer(ground.folder, signature, text))


def key_open_to_others(ground: Ground) -> str:
    bus_keys.make(ground.folder / "keys")
    (ground.folder / "keys" / bus_keys.PRIVATE).chmod(0o644)
    return error_of(lambda: bus_keys.own(ground.folder / "keys"))


def approved_too_late(ground: Ground) -> str:
    key = bus_keys.make(ground.folder / "keys")
    bus_keys.trust(ground.folder / "keys", "me", key.public)
    agent = ConductorAgent(Wiring("conductor-1", ground.folder, BrokerAddress("127.0.0.1", 1)))
    route = Route(
        domain="sleep", category="health", tier="starter", base="b", voice="v", empathy="e", quality_floor=101.0,
        safety_critical=False,
    )  # fmt: skip
    record = JobRecord(
        job="sleep-1", digest="0" * 64, request=TrainRequest(domain="sleep", dataset="x"), route=route, submitted_at=AT,
        updated_at=AT, state=State.TRAINING,
    )  # fmt: skip
    signature = key.sign(signed_text("lab", "job.approve", "sleep-1", 1))
    params = {"job": "sleep-1", "amount_micros": 1, "signature": signature.model_dump()}

    def ask() -> None:
        with agent.transaction() as tx:
            tx.connection.execute("INSERT INTO jobs VALUES (?, ?, ?, ?)", ("sleep-1", record.model_dump_json(), "", 0))
            agent.approve(MCPMessage(type="job.approve", data=params), tx)

    try:
        return error_of(ask)
    finally:
        agent.store.close()


def stop_file_damaged(ground: Ground) -> str:
    (ground.folder / "freeze.json").write_text("{")
    found = read_freeze(ground.folder)
    assert found is not None
    return found.note


def gate_missed(ground: Ground) -> str:
    rules = {"quality_percent": GateRule(level="fail", threshold=101.0)}
    error = verdict(judge({"quality_percent": Measured(99.4, "")}, rules))
    final = JobSnapshot(
        job="sleep-1", state=State.FAILED, stage=None, attempt=1, domain="sleep", tier="starter", profile="edge", cost_usd=0.0,
        quality_percent=99.4, artefacts=[], gates=judge({"quality_percent": Measured(99.4, "")}, rules), reason=str(error), at=AT,
    )  # fmt: skip
    return error_of(lambda: check(final))


def damaged(ground: Ground) -> str:
    path = ground.folder / "agents" / "conductor-1.db"
    Store(path).close()
    path.write_bytes(b"x" * 4096)
    return error_of(lambda: Store(path))


def store_in_use(ground: Ground) -> str:
    with Store(ground.folder / "agents" / "conductor-1.db"):
        return error_of(lambda: Store(ground.folder / "agents" / "conductor-1.db"))


def newer_store(ground: Ground) -> str:
    path = ground.folder / "agents" / "conductor-1.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE)
        connection.execute("INSERT INTO versions VALUES ('bus', 9)")
    connection.close()
    return error_of(lambda: Store(path))


def half_file(ground: Ground) -> str:
    path = ground.folder / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return error_of(lambda: read_header(path))


def no_template(ground: Ground) -> str:
    base = ground.folder / "base"
    shutil.copytree(ground.base, base)
    (base / "chat_template.jinja").unlink()
    return planned(ground, base=base)


def unknown_architecture(ground: Ground) -> str:
    base = shutil.copytree(ground.base, ground.folder / "base")
    config = base / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForCausalLN"))
    return planned(ground, base=base)


def unknown_cuts(ground: Ground) -> str:
    base = shutil.copytree(ground.base, ground.folder / "base")
    (base / "tokenizer.model").unlink()
    byte_level(["some text"], "[a-z]+", size=257).save(str(base / "tokenizer.json"))
    return planned(ground, base=base)


def refused_rows(ground: Ground) -> str:
    base = shutil.copytree(ground.base, ground.folder / "base")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template = base / "chat_template.jinja"
    template.write_text(refusal + template.read_text())
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(40)]
    rows[25].insert(0, {"role": "system", "content": "Be brief."})
    data = ground.folder / "sleep.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return planned(ground, base=base, dataset=str(data))


def no_space(ground: Ground) -> str:
    ground.patch.setenv(machine.DISK_LIMIT, "1000000")
    return planned(ground)


def stray_model(ground: Ground) -> str:
    path = ground.folder / "other.gguf"
    path.write_bytes(b"GGUF")
    return error_of(lambda: models.named(str(path), ground.folder / "home"))


def without_base(ground: Ground) -> str:
    path = ground.folder / "adapter.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    add_values(path, {"general.type": "adapter", BASE_NAME: "starter", BASE_SHA256: "0" * 64, BASE_QUANTISATION: "Q4_K_M"})
    return error_of(lambda: talk.base_of(path, ground.folder))


def full_room(ground: Ground) -> str:
    (ground.folder / "storage.yaml").write_text(
        "artefacts_bytes: 1000\nmodels_bytes: null\njobs_bytes: null\ncache_models: 10\ncache_bytes: null\n"
    )
    ground.patch.setenv("MEETARA_CONFIGS", str(ground.folder))
    return planned(ground)


def no_memory(ground: Ground) -> str:
    ground.patch.setattr(machine, "memory_bytes", lambda: 1_000_000)
    return planned(ground)


def wrong_request(ground: Ground) -> str:
    answer = make_plan(json.dumps({"job": "sleep-1"}), ground.folder)
    return str(answer["error"]["message"])


async def huge(ground: Ground) -> None:
    async with Client(ground.broker.address) as client:
        await client.call("train.submit", TrainRequest(domain="sleep", dataset="x", parameters={"x": "y" * 300_000}))


def no_mosquitto(ground: Ground) -> str:
    ground.patch.setattr("shutil.which", lambda *_, **__: None)
    return error_of(lambda: find_mosquitto({}))


def too_large(ground: Ground) -> str:
    ground.patch.setenv(place.LIMIT, "100")
    return error_of(lambda: dataset.read(str(rows(ground, gzip.compress(ROW.encode() * 99), "sleep.jsonl.gz"))))


def several(ground: Ground) -> Path:
    path = ground.folder / "sleep.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("one.jsonl", "two.jsonl"):
            file.writestr(name, ROW)
    return path


def changed(ground: Ground) -> str:
    path = rows(ground, ROW)

    def read() -> None:
        with dataset.scan(str(path)):
            path.write_text(ROW * 2, encoding="utf-8")

    return error_of(read)


def no_package(ground: Ground) -> str:
    return error_of(lambda: dataset.read("gs://bucket/sleep.jsonl"))


def no_hub(ground: Ground) -> str:
    import huggingface_hub.constants

    ground.patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    ground.patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(ground.folder))
    return error_of(lambda: dataset.read("someone/sleep"))


def no_parquet(ground: Ground) -> str:
    ground.patch.setitem(sys.modules, "pyarrow", None)
    return error_of(lambda: dataset.read(str(rows(ground, b"PAR1", "sleep.parquet"))))


def training(ground: Ground) -> Loop:
    data = rows_of_tokens(3)
    schedule = Schedule([[0, 1, 2]], 1, 0, "constant")
    return Loop(network(), data, data, schedule, TrainingSettings(0.01, 0.0, 1, 1, 1), ground.folder)


def diverged(ground: Ground) -> str:
    run = training(ground)
    run.network.loss = lambda batch: torch.tensor(float("nan"), requires_grad=True)  # type: ignore[method-assign]
    return error_of(lambda: run.run(set()))


def too_long(ground: Ground) -> str:
    run = training(ground)
    run.network.loss = lambda batch: torch.empty(1 << 58)  # type: ignore[method-assign]
    return error_of(lambda: run.run(set()))


def wrong_variable(ground: Ground) -> str:
    ground.patch.setenv("MEETARA_PORT", "many")
    return error_of(lambda: Settings.read(home=ground.folder))


def unmeasured_gate(ground: Ground) -> str:
    rules = {"forgetting_percent": GateRule(level="fail", threshold=10)}
    missing = Measured(None, f"no general text at {ground.folder / 'general.txt'}")
    return str(verdict(judge({"forgetting_percent": missing}, rules)))


def gate_that_is_off(ground: Ground) -> str:
    request = proof.Request(ground.folder / "model.gguf", "base", "rows.jsonl", tier="fast", only=("load_ms",))
    return error_of(lambda: proof.rules(request, ground.base, "edge"))


def trained_held_out(ground: Ground) -> str:
    rows = ground.folder / "rows.jsonl"
    rows.write_text(ROW + "\n")
    return error_of(lambda: proof.conversations(str(rows), str(rows)))


def quantised_file(ground: Ground, kind: int, *types: str, imatrix: bool = True) -> str:
    """Write a GGUF of one small tensor and ask for other types of it."""
    path = ground.folder / "model.gguf"
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor
    path.write_bytes(head.ljust(96, b"\0") + b"\0" * 64)
    request = compare.Request(path, types=types, imatrix=imatrix)
    return error_of(lambda: compare.produce(request, ground.folder / "out.gguf", ground.folder))


PROVOCATIONS: dict[str, Callable[[Ground], str]] = {
    "The port is taken": taken_port,
    "The home is in use": home_in_use,
    "Mosquitto is missing": no_mosquitto,
    "MEETARA_MOSQUITTO is wrong": lambda ground: error_of(lambda: find_mosquitto({"MEETARA_MOSQUITTO": "/opt/mosquitto"})),
    "An environment variable is wrong": wrong_variable,
    "A value in configs is wrong": lambda ground: config(
        ground, "budget_settings.json",
        (SHIPPED / "budget_settings.json").read_text(encoding="utf-8").replace('"monthly_usd"', '"monthy_usd"'),
    ),
    "A file in configs is broken": lambda ground: config(ground, "lab.yaml", "lab: lab\n  port: 1883\n"),
    "The folder of configs is missing": lambda ground: error_of(lambda: lab_configs.load(Settings.read(configs=ground.folder / "mine"))),
    "The form of the logs is unknown": lambda ground: error_of(lambda: wanted({"MEETARA_LOG": "xml"})),
    "No broker answers": lambda ground: error_of(lambda: connected(ground, port=free_port())),
    "The lab is still starting": no_users,
    "The login is refused": wrong_login,
    "An agent does not answer": lambda ground: error_of(lambda: silent(ground)),
    "No factory is online": lambda ground: str(desk.nobody_online(10.0)),
    "No machine fits the budget": lambda ground: market(ground, "lightning", budget_usd=0.1, providers=["lambda"]),
    "No machine is fast enough": lambda ground: market(ground, "lightning", deadline_hours=0.5, providers=["lambda"]),
    "No machine fits the job": lambda ground: market(ground, "lightning", providers=["runpod"]),
    "A provider is unknown": lambda ground: market(ground, "lightning", providers=["lamda"]),
    "A GPU is unknown": lambda ground: error_of(lambda: desk.Desk(lab_configs.load(Settings.read())).page(ListingQuery(gpu="A1000"), [], AT)),
    "The catalogue's folder is missing": lambda ground: catalogue(ground, None),
    "A catalogue cannot be read": lambda ground: catalogue(ground, b"\xff\xfe"),
    "Two agents have one name": lambda ground: str(taken_over("127.0.0.1:1883", "lab-router-1")),
    "The port speaks no TLS": speaks_no_tls,
    "The authority cannot be read": wrong_ca,
    "The certificate lacks a host": lacks_host,
    "The certificate is refused": foreign_certificate,
    "There are no certificates": lambda ground: supervised(ground, listen="0.0.0.0:8883"),
    "A lab on another broker cannot listen": lambda ground: supervised(ground, listen="0.0.0.0:8883", broker="broker.example"),
    "A container's agent has no such name": lambda ground: error_of(lambda: role_of("worker")),
    "The token is incomplete": lambda ground: error_of(lambda: workers.Token.read("mtw1.abc")),
    "The token is not taken": lambda ground: worker_fails(ground, MqttConnectError(ReasonCode(PacketTypes.CONNACK, identifier=0x87))),
    "The worker is of another version": lambda ground: error_of(token(ground, version="9.9.9", words="0" * 64).check),
    "The lab does not answer a worker": worker_fails,
    "A token is not sent in the open": lambda ground: error_of(
        lambda: started_worker(ground, token(ground), broker="lab.example:1883")
    ),
    "The store cannot be written": lambda ground: error_of(lambda: staging.put(rows(ground, ROW), "nosuch://bucket/lab/rows.jsonl")),
    "A base in the store was changed": changed_base,
    "A login cannot have this name": lambda ground: error_of(lambda: add(ground.folder, "my name", {})),
    "The domain is unknown": lambda ground: routed(domain="slep"),
    "The tier is unknown": lambda ground: routed(tier="golden"),
    "A parameter is unknown": lambda ground: routed(parameters={"batch_sise": 2}),
    "A parameter has the wrong type": lambda ground: routed(parameters={"batch_size": "many"}),
    "A parameter is not name=value": lambda ground: error_of(lambda: parameters(["lora_r"])),
    "A field is missing or unknown": wrong_request,
    "The request is too large": lambda ground: error_of(lambda: huge(ground)),
    "The id was used before": conflict,
    "There is no such job": unknown_job,
    "The data set is not there": lambda ground: error_of(lambda: dataset.read(str(ground.folder / "sleep.jsonl"))),
    "The data set has a relative path": lambda ground: error_of(lambda: dataset.read("sleep.jsonl")),
    "The data set has a Windows path": lambda ground: error_of(lambda: dataset.read("C:\\data\\sleep.jsonl")),
    "The data set is a folder": lambda ground: error_of(lambda: dataset.read(str(ground.folder))),
    "The data set is empty": lambda ground: error_of(lambda: dataset.read(str(rows(ground, "\n")))),
    "The data set is not UTF-8": lambda ground: error_of(lambda: dataset.read(str(rows(ground, ROW.encode() + b"\n\xff\xfe")))),
    "Rows cannot be used": lambda ground: error_of(lambda: dataset.read(str(rows(ground, f"{ROW}\n{{cut\n{ROW}\n")))),
    "A row has an unknown form": lambda ground: error_of(lambda: dataset.read(str(rows(ground, '{"ask": "Why?", "say": "So."}\n')))),
    "Rows are running text": lambda ground: error_of(lambda: dataset.read(str(rows(ground, '{"text": "Sleep well."}\n')))),
    "Rows call tools": lambda ground: error_of(lambda: dataset.read(str(rows(ground, TOOL)))),
    "A file is one object": lambda ground: error_of(lambda: dataset.read(str(rows(ground, '{"data": [{"question": "Why?"}]}', "sleep.json")))),
    "The data set is UTF-16": lambda ground: error_of(lambda: dataset.read(str(rows(ground, ROW.encode("utf-16"))))),
    "A compressed data set is cut": lambda ground: error_of(lambda: dataset.read(str(rows(ground, gzip.compress(ROW.encode())[:-9], "sleep.jsonl.gz")))),
    "A data set is too large": lambda ground: too_large(ground),
    "An archive holds several files": lambda ground: error_of(lambda: dataset.read(str(several(ground)))),
    "The data set changed meanwhile": changed,
    "A package for an address is missing": no_package,
    "A hub does not answer": no_hub,
    "Parquet cannot be read": no_parquet,
    "A data set is of no known form": lambda ground: error_of(lambda: dataset.read(str(rows(ground, "Why? So.\n", "sleep.txt")))),
    "There are too few rows": lambda ground: planned(ground, dataset=str(rows(ground, f"{ROW}\n"))),
    "No adapter is small enough": lambda ground: error_of(
        lambda: targets.choose([targets.Module("model.layers.0.self_attn.q_proj", 60_000, 60_000)], "attention", 8, 100_000)
    ),
    "A layer cannot learn": lambda ground: planned(ground, parameters={"lora_targets": "qkv_proj"}),
    "The base is not there": lambda ground: planned(ground, base=ground.folder / "my-model"),
    "The base is in no cache": lambda ground: planned(ground, base="Qwen/Qwen3-0.6B-none"),
    "The base has no chat template": no_template,
    "The base's architecture is not known": unknown_architecture,
    "The base's tokenizer cuts text in an unknown way": unknown_cuts,
    "The base's chat template refuses rows": refused_rows,
    "A vendor's key cannot be read": lambda ground: error_of(lambda: accounts.read({"VAST_API_KEY_FILE": str(ground.folder / "key")})),
    "A vendor's key is damaged": lambda ground: error_of(lambda: accounts.read({"RUNPOD_API_KEY": "two words"})),
    "A vendor's key is there twice": lambda ground: error_of(lambda: accounts.read({"LAMBDA_API_KEY": "k", "LAMBDA_API_KEY_FILE": "f"})),
    "A vendor's address is not encrypted": lambda ground: error_of(
        lambda: accounts.read({"VAST_API_KEY": "k", "VAST_API_URL": "http://proxy.example"})
    ),
    "A vendor's key is of another account": another_account,
    "A fingerprint is none": lambda ground: error_of(lambda: replaced({REPLACED: "a-secret-key"})),
    "The disk is too small": no_space,
    "A part of the home is full": full_room,
    "The memory is too small": no_memory,
    "A row does not fit into memory": too_long,
    "The artefact store cannot be read": lambda ground: error_of(
        lambda: CheckpointStore("nosuch://bucket/lab/checkpoints", mtbf_s=3600.0).pull(ground.folder)
    ),
    "The budget does not hold the job": too_dear,
    "Paid work is frozen": paid_work_frozen,
    "A provider is frozen": provider_frozen,
    "The budget cannot be so low": budget_too_low,
    "A budget is negative": lambda ground: error_of(lambda: checked(CapRequest, {"name": "daily_usd", "usd": -1})),
    "The home has no key": lambda ground: error_of(lambda: Lab(home=ground.folder, port=1).signed("job.approve", "sleep-1", 1)),
    "The lab does not trust the key": key_not_trusted,
    "The signature is of something else": signed_otherwise,
    "The key can be read by others": key_open_to_others,
    "The job does not wait for approval": approved_too_late,
    "The stop file is damaged": stop_file_damaged,
    "The training diverged": diverged,
    "A stage failed": lambda ground: str(
        recovery.explain(KeyError("lm_head"), stage="merge", log=str(ground.folder / "log.txt"), free_bytes=10**9)
    ),
    "A gate was missed": gate_missed,
    "The store is in use": store_in_use,
    "The store is damaged": damaged,
    "The home is of a newer version": newer_store,
    "A file is of a newer version": lambda ground: error_of(lambda: check_format({"format": FORMAT + 1}, ground.folder / "manifest.json")),
    "A gate could not be measured": unmeasured_gate,
    "A gate was asked for that is not measured": gate_that_is_off,
    "Every held-out row was trained on": trained_held_out,
    "A file is quantised already": lambda ground: quantised_file(ground, 8, "Q4_K_M"),
    "A type needs an importance matrix": lambda ground: quantised_file(ground, 1, "IQ2_XXS", imatrix=False),
    "There is no text for the importance matrix": lambda ground: quantised_file(ground, 1, "Q4_K_M"),
    "The GGUF is not whole": half_file,
    "Nothing is known of a model file": stray_model,
    "There is no model to talk with": lambda ground: error_of(lambda: models.find("sleep", ground.folder)),
    "The base of an adapter is not here": without_base,
    "The GGUF file is not there": lambda ground: error_of(lambda: models.find("sleep.gguf", ground.folder)),
}  # fmt: skip
