from pathlib import Path

import pytest

from bus import keys
from protocol import LabError
from protocol.signature import Signature, signed_text

TEXT = signed_text("lab", "job.approve", "sleep-1", 250_000)


def test_a_key_signs_what_its_public_part_proves(tmp_path: Path):
    key = keys.make(tmp_path / "keys")
    found = keys.own(tmp_path / "keys")
    assert found is not None and found.public == key.public and len(key.public) == 44
    assert found.sign(TEXT) == key.sign(TEXT), "the same request again is the same request"
    keys.check(key.sign(TEXT), TEXT)


def test_the_private_key_is_its_owners_alone(tmp_path: Path):
    folder = tmp_path / "keys"
    keys.make(folder)
    path = folder / keys.PRIVATE
    assert path.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(LabError, match="is there already"):
        keys.make(folder)
    path.chmod(0o640)
    with pytest.raises(LabError, match="can be read by others") as caught:
        keys.own(folder)
    assert f"chmod 600 {path}" in caught.value.advice


def test_a_home_without_a_key_has_none_and_a_damaged_one_is_named(tmp_path: Path):
    assert keys.own(tmp_path) is None and keys.trusted(tmp_path) == {}
    for name, read in ((keys.PRIVATE, keys.own), (keys.TRUSTED, keys.trusted)):
        (tmp_path / name).write_text("nonsense")
        (tmp_path / name).chmod(0o600)
        with pytest.raises(LabError, match=f"{tmp_path / name} is damaged"):
            read(tmp_path)


@pytest.mark.parametrize("other", [
    signed_text("lab", "job.approve", "sleep-1", 250_001), signed_text("lab", "job.approve", "sleep-2", 250_000),
    signed_text("other", "job.approve", "sleep-1", 250_000), signed_text("lab", "train.submit", "sleep-1", 250_000),
])  # fmt: skip
def test_a_signature_is_of_one_text_only(tmp_path: Path, other: bytes):
    signature = keys.make(tmp_path).sign(TEXT)
    with pytest.raises(LabError, match="it is not of this request"):
        keys.check(signature, other)


def test_parts_of_what_is_signed_cannot_run_into_one_another():
    with pytest.raises(ValueError, match="one part a line"):
        signed_text("lab", "job.approve", "sleep-1\n5", 1)


def test_only_keys_that_the_lab_trusts_may_spend(tmp_path: Path):
    mine, other = keys.make(tmp_path / "a"), keys.make(tmp_path / "b")
    lab = tmp_path / "lab"
    keys.trust(lab, "me", mine.public)
    assert (lab / keys.TRUSTED).stat().st_mode & 0o777 == 0o600
    assert keys.signer(lab, mine.sign(TEXT), TEXT) == "me" and keys.who(lab, other.sign(TEXT), TEXT) is None
    with pytest.raises(LabError, match="does not trust the key") as caught:
        keys.signer(lab, other.sign(TEXT), TEXT)
    assert f"meetara keys add NAME {other.public}" in caught.value.advice
    forged = Signature(key=mine.public, value=other.sign(TEXT).value)
    with pytest.raises(LabError, match="it is not of this request"):
        keys.signer(lab, forged, TEXT)
    keys.distrust(lab, "me")
    assert keys.trusted(lab) == {}


def test_a_name_or_a_key_stands_once(tmp_path: Path):
    mine, other = keys.make(tmp_path / "a"), keys.make(tmp_path / "b")
    keys.trust(tmp_path, "me", mine.public)
    for name, public in (("me", other.public), ("again", mine.public)):
        with pytest.raises(LabError, match="the key 'me' is trusted already"):
            keys.trust(tmp_path, name, public)
    for name, public, told in (("a b", other.public, "cannot be a key's name"), ("you", "abc", "is no public key")):
        with pytest.raises(LabError, match=told):
            keys.trust(tmp_path, name, public)
    with pytest.raises(LabError, match="there is no key 'you'"):
        keys.distrust(tmp_path, "you")
    assert keys.trusted(tmp_path) == {"me": mine.public}
