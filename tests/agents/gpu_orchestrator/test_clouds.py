"""What must be set before anything is rented, and what workers are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import configs
from agents.gpu_orchestrator.clouds import GIVEN, Clouds, given, open_clouds, replaced
from bus import BrokerAddress, Wiring
from configs import Settings
from protocol import LabError

KEY = {"VAST_API_KEY": "k" * 40}


def opened(home: Path, environment: Mapping[str, str], **settings: str) -> Clouds | None:
    wiring = Wiring("gpu_orchestrator-1", home, BrokerAddress("127.0.0.1", 1))
    return open_clouds(wiring, configs.load(Settings.read(home=home, **settings)), environment)


def test_nothing_is_rented_that_could_not_reach_the_lab_or_its_data(tmp_path: Path) -> None:
    whole = {"public": "mqtts://lab.example:8883", "worker_image": "image", "store": "s3://bucket/lab"}
    assert opened(tmp_path, {}, **whole) is None, "without a key"
    for name in whole:
        closed = opened(tmp_path, KEY, **{other: value for other, value in whole.items() if other != name})
        assert closed is not None and f"MEETARA_{name.upper()}" in closed.closed, "what is rented already is still looked after"
    found = opened(tmp_path, KEY, **whole)
    assert found is not None and set(found.providers) == {"vast"} and found.closed == ""
    near = opened(tmp_path, KEY, public="mqtts://127.0.0.1:8883", worker_image="image")
    assert near is not None and near.closed == "", "a worker on this machine sees its files"


def test_workers_get_what_is_meant_for_them_and_never_a_vendors_key() -> None:
    store = {f"{GIVEN}AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "mine", **KEY}
    assert given(store) == {"AWS_ACCESS_KEY_ID": "id"}
    with pytest.raises(LabError, match=f"{GIVEN}VAST_API_KEY would give a vendor's key") as caught:
        given({f"{GIVEN}VAST_API_KEY": "secret"})
    assert "secret" not in str(caught.value)


def test_only_fingerprints_are_taken_as_keys_that_were_replaced() -> None:
    assert replaced({"MEETARA_REPLACED_KEYS": "0123456789abcdef, fedcba9876543210"}) == {"0123456789abcdef", "fedcba9876543210"}
    assert replaced({}) == frozenset()
    with pytest.raises(LabError, match="no fingerprint") as caught:
        replaced({"MEETARA_REPLACED_KEYS": "the-secret-key-itself"})
    assert "secret" not in str(caught.value)
