"""The written schemas are those of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.methods import METHODS
from protocol.schema import TOPIC_PAYLOADS, documents, drifted, main

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "docs" / "schemas"
    assert main([str(folder)]) == 0
    return folder


def test_the_projects_schemas_have_not_drifted(capsys):
    assert main([str(SCHEMAS), "--check"]) == 0, capsys.readouterr().err


def test_every_method_and_every_payload_has_a_document():
    assert set(documents()) == {f"{name}.json" for name in METHODS} | {f"{m.__name__}.json" for m in TOPIC_PAYLOADS}


def test_what_was_written_has_not_drifted(written):
    assert main([str(written), "--check"]) == 0
    assert json.loads((written / "train.submit.json").read_text())["params"]["required"] == ["dataset"]


def test_changed_missing_and_foreign_files_are_named(written, capsys):
    (written / "train.submit.json").write_text("{}")
    (written / "Card.json").unlink()
    (written / "old.method.json").write_text("{}")
    assert drifted(written) == ["Card.json", "old.method.json", "train.submit.json"]
    assert main([str(written), "--check"]) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ("Card.json", "old.method.json", "train.submit.json"))
    assert "Reply.json" not in told and "python -m protocol.schema" in told


def test_writing_again_mends_all_and_removes_what_is_no_more(written):
    (written / "train.submit.json").write_text("{}")
    (written / "old.method.json").write_text("{}")
    assert main([str(written)]) == 0
    assert drifted(written) == []
    assert not (written / "old.method.json").exists()


def test_checking_changes_nothing(written):
    (written / "Reply.json").write_text("{}")
    main([str(written), "--check"])
    assert (written / "Reply.json").read_text() == "{}"
