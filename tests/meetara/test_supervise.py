"""A supervised lab of real processes: ready, restarts, order, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from bus.broker import check_port
from configs import Settings
from meetara.home import running
from meetara.lab import Lab
from meetara.supervise import Supervisor, supervised
from protocol import Code, LabError

ROLES = ("cost_monitor", "router")  # two are enough for every question here, and start in a second
LIMIT = 60

UP = """
import asyncio, sys
from pathlib import Path
from configs import Settings
from meetara.supervise import supervised
async def main():
    settings = Settings.read(home=Path(sys.argv[1]))
    async with supervised(settings, port=0, tell=print, roles=("cost_monitor", "router")) as lab:
        pids = [child.process.pid for child in lab.children.values()]
        print("ready", lab.address.port, lab.broker.process.pid, *pids, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


def lab_on(home: Path, told: list[str] | None = None, **options):
    tell = told.append if told is not None else lambda _: None
    return supervised(Settings.read(home=home), port=0, tell=tell, **{"roles": ROLES, **options})


def pids_of(lab: Supervisor) -> list[int]:
    assert lab.broker is not None and lab.broker.process is not None
    processes = [lab.broker.process, *(child.process for child in lab.children.values())]
    return [process.pid for process in processes if process is not None]


async def gone(pids: list[int]) -> None:
    async with asyncio.timeout(LIMIT):
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            await asyncio.sleep(0.05)


async def test_ready_means_that_every_agent_is_present_and_users_are_served(tmp_path, monkeypatch):
    monkeypatch.setenv("VAST_API_KEY", "a-vendors-key")
    async with lab_on(tmp_path) as lab:
        up = running(tmp_path)
        assert up is not None and up.ready and up.pid == os.getpid() and up.port == lab.address.port
        async with Lab(home=tmp_path) as user:
            assert user.address.port == lab.address.port, "found by the home alone"
            assert {agent.id: agent.online for agent in await user.agents()} == {
                "cost_monitor-1": True, "router-1": True,
            }  # fmt: skip
            assert len((await user.budget()).periods) == 3
        pids = pids_of(lab)
        with_key = [pid for pid in pids if "a-vendors-key" in psutil.Process(pid).environ().values()]
        assert with_key == [], "only the orchestrator, which does not run here, may have a vendor's key"
    await gone(pids)
    assert running(tmp_path) is None and list((tmp_path / "run").iterdir()) == []
    check_port(lab.address.port)


def test_the_orchestrator_gets_the_vendors_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("VAST_API_KEY_FILE", "/run/secrets/vast")
    settings = Settings.read(home=tmp_path, broker="127.0.0.1:1883")
    lab = Supervisor(settings, tell=print, roles=("gpu_orchestrator", "gguf_factory"))
    assert lab._environment("gpu_orchestrator-1")["VAST_API_KEY_FILE"] == "/run/secrets/vast"
    assert "VAST_API_KEY_FILE" not in lab._environment("gguf_factory-1")


async def test_a_killed_agent_is_started_again(tmp_path):
    told: list[str] = []
    async with lab_on(tmp_path, told) as lab:
        child = lab.children["cost_monitor-1"]
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        async with Lab(home=tmp_path) as user, asyncio.timeout(LIMIT):
            await user.budget()
            while child.process.pid == first:
                await asyncio.sleep(0.05)
            assert len((await user.budget()).periods) == 3
        assert child.restarts == 1
        assert any("cost_monitor-1 was ended by SIGKILL" in sentence for sentence in told)


async def test_a_killed_broker_is_started_again_and_lets_users_in_when_the_agents_are_back(tmp_path):
    async with lab_on(tmp_path) as lab:
        first = lab.broker.process
        async with Lab(home=tmp_path) as user:
            first.send_signal(signal.SIGKILL)
            await first.wait()
            async with asyncio.timeout(LIMIT):
                while lab.ready.is_set():
                    await asyncio.sleep(0.01)
                await lab.ready.wait()
                assert len((await user.budget()).periods) == 3, "the user's client came back by itself"
        assert lab.broker.process.pid != first.pid
        assert all(child.restarts == 0 for child in lab.children.values()), "the agents only reconnected"


async def test_an_agent_that_refuses_its_configuration_stops_everything_with_its_message(tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "budget_settings.json").write_text('{"monthly_usd": "plenty"}')
    settings = Settings.read(home=tmp_path / "home", configs=configs)
    with pytest.raises(LabError, match=r"budget_settings\.json") as caught:
        async with supervised(settings, port=0, tell=lambda _: None, roles=ROLES):
            pass
    assert caught.value.code is Code.CONFIGURATION
    assert list((tmp_path / "home" / "run").iterdir()) == []


async def test_an_agent_that_never_comes_up_is_named_with_its_last_words(tmp_path):
    with pytest.raises(LabError, match=r"nobody-1 does not stay up.*No module named"):
        async with lab_on(tmp_path, roles=("nobody",)):
            pass


async def test_two_labs_on_two_homes_do_not_meet(tmp_path):
    async with lab_on(tmp_path / "a") as one, lab_on(tmp_path / "b") as two:
        assert one.address.port != two.address.port
        async with Lab(home=tmp_path / "a") as user:
            assert user.address.port == one.address.port
            assert len(await user.agents()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_kill_9_of_the_supervisor_leaves_no_process_and_a_home_to_start_on(tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UP, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT):
        while not (line := await process.stdout.readline()).startswith(b"ready"):
            assert line, "it ended"
    _, port, *pids = line.decode().split()
    process.kill()
    await process.wait()
    await gone([int(pid) for pid in pids])
    check_port(int(port))
    async with lab_on(tmp_path) as lab:
        assert lab.ready.is_set()


async def test_a_foreign_broker_is_used_and_left_alone(broker, tmp_path):
    address = broker.address
    settings = Settings.read(home=tmp_path / "guest", broker=address.host, port=address.port, lab="guest")
    async with supervised(settings, tell=lambda _: None, roles=("cost_monitor",)) as guest:
        assert guest.broker is None and not (tmp_path / "guest" / "broker").exists()
        async with Lab(host=address.host, port=address.port, lab="guest", home=tmp_path / "guest") as user:
            assert len((await user.budget()).periods) == 3
    assert broker.process.poll() is None
