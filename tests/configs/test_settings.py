"""Flags come before the environment, the environment before the files."""

from pathlib import Path

import pytest

import configs
from configs import Settings
from protocol import Code, LabError
from protocol.address import Endpoint


def test_flags_then_environment_then_file(tmp_path, monkeypatch):
    (tmp_path / "lab.yaml").write_text("lab: filed\nport: 1111\n")
    assert Settings.read(configs=tmp_path).port == 1111
    monkeypatch.setenv("MEETARA_PORT", "2222")
    assert Settings.read(configs=tmp_path).port == 2222
    found = Settings.read(configs=tmp_path, port=3333, lab=None)
    assert (found.port, found.lab) == (3333, "filed")


def test_the_folder_may_come_from_the_environment_and_holds_only_what_differs(tmp_path, monkeypatch):
    (tmp_path / "budget_settings.json").write_text(
        '{"monthly_usd": 1, "weekly_usd": 1, "daily_usd": 0.1, "alert_percents": [], "optimise_percent": 80,'
        ' "freeze_percent": 95}'
    )
    monkeypatch.setenv("MEETARA_CONFIGS", str(tmp_path))
    lab = configs.load()
    assert lab.budget.caps()["day"] == 100_000
    assert len(lab.domains) == 62


def test_the_local_rate_and_slots_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MEETARA_LOCAL_USD_PER_HOUR", "0.3")
    monkeypatch.setenv("MEETARA_SLOTS", "3")
    local = configs.load().providers.local
    assert (local.price_micros_per_hour, local.slots_for(2)) == (300_000, 3)


def test_a_bad_variable_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("MEETARA_PORT", "mqtt")
    with pytest.raises(LabError, match=r"MEETARA_PORT.*'mqtt'") as caught:
        Settings.read()
    assert (caught.value.code, caught.value.data["field"]) == (Code.CONFIGURATION, "port")


def test_a_bad_flag_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("MEETARA_PORT", "1883")
    with pytest.raises(LabError, match=r"--port.*65535"):
        Settings.read(port=70000)


def test_no_default_tier_leaves_it_to_the_domain(tmp_path):
    (tmp_path / "lab.yaml").write_text("default_tier: null\n")
    assert configs.load(Settings.read(configs=tmp_path)).default_tier is None


def test_home_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEETARA_HOME", "state")
    assert Settings.read().home == tmp_path / "state"
    monkeypatch.delenv("MEETARA_HOME")
    assert Settings.read().home.is_absolute()


@pytest.mark.parametrize(
    ("broker", "address"),
    [(None, ("127.0.0.1", 1883, False)), ("bus.example", ("bus.example", 1883, False)),
     ("bus.example:1884", ("bus.example", 1884, False)), ("[::1]", ("::1", 1883, False)),
     ("[::1]:1885", ("::1", 1885, False)), ("mqtt://bus.example", ("bus.example", 1883, False)),
     ("mqtts://bus.example", ("bus.example", 8883, True)), ("mqtts://bus.example:1", ("bus.example", 1, True))],
)  # fmt: skip
def test_a_broker_is_a_host_with_or_without_scheme_and_port(broker, address):
    assert Settings.read(broker=broker).endpoint == Endpoint(*address)


@pytest.mark.parametrize("broker", ["http://bus.example", "bus.example:mqtt", "bus.example:70000", "a b", "mqtts://"])
def test_another_form_of_address_is_refused_by_its_flag(broker):
    with pytest.raises(LabError, match=r"--broker.*mqtts://HOST:PORT"):
        Settings.read(broker=broker)


def test_custom_domains_are_added(tmp_path):
    name = "cloud-optimized-domain-mapping.yaml"
    text = (Path(configs.__file__).parent / name).read_text(encoding="utf-8")
    own = "custom:\n  gardening: {category: daily_life, tier: starter, voice: educational}\n"
    (tmp_path / name).write_text(text.replace("custom: {}", own))
    garden = configs.load(Settings.read(configs=tmp_path)).domains["gardening"]
    assert (garden.category, garden.tier, garden.voice, garden.quality_floor) == ("daily_life", "starter", "educational", 85)
    (tmp_path / name).write_text(text.replace("custom: {}", "custom:"))
    assert len(configs.load(Settings.read(configs=tmp_path)).domains) == 62


@pytest.mark.parametrize("name", ["budget_settings.json", "tiers.yaml", "lab.yaml", "cloud-optimized-domain-mapping.yaml"])
def test_files_from_a_windows_editor_are_read_alike(tmp_path, name):
    folder = tmp_path / "my configs ü'1"
    folder.mkdir()
    text = (configs.source.SHIPPED / name).read_text(encoding="utf-8")
    (folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    mine, shipped = configs.load(Settings.read(configs=folder)), configs.load(Settings.read())
    assert (mine.budget, mine.tiers, dict(mine.domains)) == (shipped.budget, shipped.tiers, dict(shipped.domains))
    (folder / "budget_settings.json").write_bytes(b"\xef\xbb\xbf{\r\n \"monthly_usd\": }\r\n")
    with pytest.raises(LabError, match="line 2"):
        configs.load(Settings.read(configs=folder))
