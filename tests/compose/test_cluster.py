"""The lab in containers, for real: used from outside, hurt, stopped and started. Run by `make compose-test`, in this order."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.compose.cluster import HOME, ROLES, ROOT, TOPICS, Cluster
from tests.compose.engine import run

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

JOB = "compose-1"
SERVICES = ("broker", *ROLES, "door")
NETWORKS: dict[str, set[str]] = {"broker": {"inside"}, "door": {"inside", "outside"}, **{role: {"inside"} for role in ROLES}}


def test_users_reach_the_lab_on_loopback_and_nowhere_else(cluster: Cluster) -> None:
    published = {
        (service, binding["HostIp"], binding["HostPort"])
        for service in SERVICES
        for bindings in (cluster.inspect(service)["NetworkSettings"]["Ports"] or {}).values()
        for binding in bindings or []
    }
    assert published == {("door", "127.0.0.1", str(cluster.port))}
    listeners = [found.laddr for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    listening = {place.ip for place in listeners if place and place.port == cluster.port}
    assert listening == {"127.0.0.1"}
    own = {address.address for found in psutil.net_if_addrs().values() for address in found if address.family == socket.AF_INET}
    for address in own - {"127.0.0.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, cluster.port)) != 0, address


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_nobody_s_root(cluster: Cluster, service: str) -> None:
    words = cluster.inside(service, "sh", "-c", "cat /proc/[0-9]*/status")
    facts = [line.split() for line in words.splitlines()]
    users = {fact[1] for fact in facts if fact[0] == "Uid:"}
    assert users == {"1883" if service == "broker" else "10001"}
    assert {int(fact[1], 16) for fact in facts if fact[0] in ("CapPrm:", "CapEff:", "CapBnd:")} == {0}
    assert {fact[1] for fact in facts if fact[0] == "NoNewPrivs:"} == {"1"}
    refused = cluster.inside(service, "sh", "-c", "echo x >/probe && echo written || echo refused", check=False)
    assert refused.strip() == "refused", "the root file system is read-only"


def test_services_are_on_the_networks_that_they_need(cluster: Cluster) -> None:
    for service in SERVICES:
        networks = cluster.inspect(service)["NetworkSettings"]["Networks"]
        assert {name.removeprefix(f"{cluster.project}_") for name in networks} == NETWORKS[service]
    inside = json.loads(cluster.engine.docker("network", "inspect", f"{cluster.project}_inside"))[0]
    assert inside["Internal"] is True


def test_no_service_reaches_a_host_outside(cluster: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("a host outside can only be made as root")
    with stranger() as (address, port):
        connect = f"import socket; socket.create_connection(('{address}', {port}), 3)"
        cluster.engine.docker("run", "--rm", cluster.image, "python", "-c", connect)  # any other container does
        for service in (*ROLES, "door"):
            said = cluster.inside(service, "python", "-c", f"try:\n {connect}\nexcept OSError: print('nobody')", check=False)
            assert said.strip() == "nobody", service


@contextmanager
def stranger() -> Iterator[tuple[str, int]]:
    """A host outside of all Docker networks: a network namespace with a listener, and no way back but to this machine."""
    name, port = f"mt{os.getpid()}", 7777
    address, ours = "203.0.113.2", "203.0.113.1"  # of TEST-NET-3 (RFC 5737), which is nobody's
    listen = f"import socket, time; s = socket.create_server(('{address}', {port})); print('ready', flush=True); time.sleep(600)"
    try:
        for command in (
            f"ip netns add {name}", f"ip link add {name} type veth peer name {name}p",
            f"ip link set {name}p netns {name}", f"ip addr add {ours}/30 dev {name}", f"ip link set {name} up",
            f"ip -n {name} addr add {address}/30 dev {name}p", f"ip -n {name} link set {name}p up",
        ):  # fmt: skip
            run(*command.split())
        program = ["ip", "netns", "exec", name, sys.executable, "-c", listen]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
            try:
                yield address, port
            finally:
                listener.kill()
    finally:
        run("ip", "netns", "delete", name, check=False)
        run("ip", "link", "delete", name, check=False)


def test_each_agent_has_its_own_password_and_sees_no_other_s(cluster: Cluster) -> None:
    passwords = set()
    for role in ROLES:
        assert {"ca.pem", "password"} <= set(cluster.inside(role, "ls", HOME).split())
        passwords.add(cluster.inside(role, "cat", f"{HOME}/password").strip())
        assert cluster.inside(role, "ls", f"{HOME}/agents").split()[0] == f"{role}-1.db"
        mounts = {mount["Destination"]: mount["RW"] for mount in cluster.inspect(role)["Mounts"]}
        writable = {place for place, writes in mounts.items() if writes}
        assert writable == {HOME}
    assert len(passwords) == len(ROLES)
    settings = json.dumps([cluster.inspect(service)["Config"] for service in SERVICES])
    assert not [password for password in passwords if password in settings], "no password in an environment"
    broker = cluster.inside("broker", "sh", "-c", "cat /mosquitto/config/*")
    assert not [password for password in passwords if password in broker], "the broker knows hashes only"


def test_meetara_sees_every_agent_from_outside(cluster: Cluster) -> None:
    agents = cluster.meetara("agents")["agents"]
    assert {agent["role"]: agent["online"] for agent in agents} == dict.fromkeys(ROLES, True)


def test_a_text_is_felt_and_spoken_in_containers(cluster: Cluster) -> None:
    file = cluster.folder / "said.wav"
    said = cluster.meetara("say", "I am so afraid of the dark.", "--out", str(file))
    assert said["emotion"]["primary_emotion"] == "fear" and said["speech"]["seconds"] > 0
    assert file.read_bytes()[:4] == b"RIFF"


def test_a_published_request_ends_once_although_processes_are_killed(cluster: Cluster) -> None:
    body = {"id": JOB, "domain": "time_management", "dataset": "file:///data/small.jsonl"}
    with cluster.clock.phase("from mosquitto_pub to the first training step"):
        cluster.publish("train.submit", body)
        cluster.listen(f"job/{JOB}/progress", lambda said: said["stage"] == "train" and bool(said["step"]))
    with cluster.clock.phase("factory killed, until it trains again"):
        cluster.kill("gguf_factory")
        cluster.listen(f"job/{JOB}/progress", lambda said: said["stage"] == "train" and said["step"] > 3)
    with cluster.clock.phase("conductor and broker killed, until the door is open again"):
        cluster.kill("conductor")
        cluster.kill("broker")
        cluster.wait_until_healthy()
    with cluster.clock.phase("until the job has ended"):
        final = cluster.listen(f"job/{JOB}/state", lambda said: said["state"] in ("done", "failed", "refused", "cancelled"))
    assert final["state"] == "done", final["reason"]
    seen = cluster.meetara("job", JOB)
    assert [event["seq"] for event in seen["events"]] == list(range(1, len(seen["events"]) + 1))
    assert [event["type"] for event in seen["events"]].count("done") == 1
    cluster.publish("train.submit", body)
    [job] = cluster.meetara("jobs")["jobs"]
    assert (job["job"], job["state"]) == (JOB, "done"), "the same request again is the same job"


def test_the_file_can_be_taken_out_is_whole_and_answers(cluster: Cluster) -> None:
    from llama_cpp import Llama

    artefacts = cluster.meetara("job", JOB)["job"]["artefacts"]
    target = cluster.folder / "artefacts"
    with cluster.clock.phase("take the artefacts out, load and ask the model"):
        cluster.engine.docker("cp", f"{cluster.container('gguf_factory')}:{HOME}/artefacts", str(target))
        for artefact in artefacts:
            path = target / Path(artefact["uri"]).relative_to(Path(f"file:{HOME}/artefacts"))
            content = path.read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (artefact["bytes"], artefact["sha256"])
        [gguf] = [path for path in target.rglob("*.gguf")]
        model = Llama(str(gguf), n_ctx=256, verbose=False)
        answer = model.create_chat_completion([{"role": "user", "content": "How long should a break be?"}], max_tokens=16)
    assert answer["choices"][0]["message"]["content"]  # type: ignore[index]


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    before = {service: cluster.inspect(service)["Id"] for service in SERVICES}
    password = cluster.inside("router", "cat", f"{HOME}/password")
    with cluster.clock.phase("up again"):
        cluster.compose("up", "--detach")
        cluster.wait_until_healthy()
    assert {service: cluster.inspect(service)["Id"] for service in SERVICES} == before
    assert cluster.inside("router", "cat", f"{HOME}/password") == password


def test_jobs_outlive_down_and_up(cluster: Cluster) -> None:
    with cluster.clock.phase("down (volumes kept)"):
        cluster.compose("down", "--timeout", "20")
    with cluster.clock.phase("up, until every service is healthy"):
        cluster.compose("up", "--detach")
        cluster.wait_until_healthy()
    [job] = cluster.meetara("jobs")["jobs"]
    assert (job["job"], job["state"]) == (JOB, "done")


def test_requests_of_the_readme_reach_the_router_through_the_door(cluster: Cluster) -> None:
    said = run(
        "mosquitto_rr", "-h", "127.0.0.1", "-p", str(cluster.port), "-V", "5", "-q", "1", "-W", "30",
        "-t", f"{TOPICS}/call/router/train.submit", "-e", f"{TOPICS}/reply/me",
        "-m", json.dumps({"domain": "sleep", "dataset": "file:///data/missing.jsonl"}),
    )  # fmt: skip
    assert "/data/missing.jsonl does not exist" in json.loads(said)["error"]["message"]


def test_no_secret_and_no_machine_is_in_the_image(cluster: Cluster) -> None:
    history = cluster.engine.docker("history", "--no-trunc", cluster.image)
    files = cluster.inside("router", "sh", "-c", "ls -A /opt/meetara /opt/meetara/data")
    assert str(ROOT) not in history
    assert not {".env", ".git", "tests", "docker"} & set(files.split())
    compilers = cluster.inside("router", "sh", "-c", "command -v gcc cc g++ cmake make || true")
    assert compilers == ""
