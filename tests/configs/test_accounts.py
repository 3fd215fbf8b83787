"""Keys come from the environment, are never shown, and belong to the orchestrator alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import accounts
from protocol import Code, LabError

KEY = "vk-0123456789abcdef"


def test_only_vendors_with_a_key_have_an_account() -> None:
    assert accounts.read({}) == {}
    assert accounts.read({"VAST_API_KEY": "", "RUNPOD_API_KEY": "  "}) == {}
    found = accounts.read({"VAST_API_KEY": KEY, "LAMBDA_API_KEY": KEY, "LAMBDA_SSH_KEY_NAME": "laptop"})
    assert set(found) == {"vast", "lambda"}
    assert found["vast"].urls == {"VAST_API_URL": "https://console.vast.ai"}
    assert (found["lambda"].ssh_key, found["vast"].ssh_key) == ("laptop", None)


def test_a_key_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (account,) = accounts.read({"RUNPOD_API_KEY_FILE": str(tmp_path / "key")}).values()
    assert account.key.get_secret_value() == KEY and set(account.urls) == {"RUNPOD_API_URL", "RUNPOD_SPOT_URL"}


def test_a_key_is_never_shown() -> None:
    found = accounts.read({"VAST_API_KEY": KEY})
    assert KEY not in repr(found) and KEY not in str(found["vast"].key)


def test_a_file_that_gives_no_key_is_refused_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in (("empty", "is empty"), ("binary", "not ASCII"), ("absent", "No such file"), (".", "directory")):
        with pytest.raises(LabError, match=f"VAST_API_KEY_FILE.*{reason}") as caught:
            accounts.read({"VAST_API_KEY_FILE": str(tmp_path / name)})
        assert (caught.value.code, caught.value.data["field"]) == (Code.CONFIGURATION, "VAST_API_KEY_FILE")


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel", "x" * 5000, "tab\tbed"])
def test_what_cannot_be_a_key_is_refused_without_being_told(key: str) -> None:
    with pytest.raises(LabError, match="VAST_API_KEY holds") as caught:
        accounts.read({"VAST_API_KEY": key})
    assert key not in str(caught.value) and key not in repr(caught.value.data)


def test_a_key_and_a_file_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="both set"):
        accounts.read({"VAST_API_KEY": KEY, "VAST_API_KEY_FILE": str(tmp_path)})


def test_an_address_may_be_replaced_but_takes_no_key_unencrypted() -> None:
    found = accounts.read({"VAST_API_KEY": KEY, "VAST_API_URL": "http://127.0.0.1:8080/x"})
    assert found["vast"].urls["VAST_API_URL"] == "http://127.0.0.1:8080/x"
    with pytest.raises(LabError, match=r"VAST_API_URL would send the key unencrypted to proxy\.example"):
        accounts.read({"VAST_API_KEY": KEY, "VAST_API_URL": "http://proxy.example"})
    for url in ("ftp://x", "vast", "https://", "https://u:p@x", "https://x?key=1", "http://[::1"):
        with pytest.raises(LabError, match="VAST_API_URL is no address"):
            accounts.read({"VAST_API_KEY": KEY, "VAST_API_URL": url})


def test_other_processes_get_an_environment_without_keys() -> None:
    whole = {"PATH": "/bin", "VAST_API_KEY": KEY, "runpod_api_key_file": "/k", "LAMBDA_API_URL": "https://x", "LAMBDA_API_KEY": KEY}
    assert accounts.without_secrets(whole) == {"PATH": "/bin", "LAMBDA_API_URL": "https://x"}
