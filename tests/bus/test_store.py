"""The store's file when somebody else has it, or the disk is full."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus import store as module
from bus.store import Store, passing
from protocol.errors import Code, LabError, Retry


def test_a_locked_file_is_not_called_damaged_and_may_be_tried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    path = tmp_path / "a.db"
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LabError, match="locked") as caught:
        Store(path)
    assert (caught.value.code, caught.value.retry) == (Code.BUSY, Retry.LATER) and "Free some space" in caught.value.advice
    other.close()
    Store(path).close()


def test_a_damaged_file_is_refused_for_good(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(LabError, match="is damaged") as caught:
        Store(path)
    assert caught.value.retry is Retry.NEVER


def test_a_transaction_that_fails_in_its_commit_or_by_sqlites_own_rollback_leaves_none_open(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db", migrations=("CREATE TABLE t (x BLOB)",)) as store:
        store.connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError, match="full") as caught, store.transaction() as connection:  # noqa: SIM117
            with store.savepoint():
                connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
        assert passing(caught.value) and not store.connection.in_transaction
        with store.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")


def test_a_store_keeps_its_identity_and_no_other_has_it(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as first, Store(tmp_path / "b.db") as other:
        identity = first.identity
        assert identity > 0 and identity != other.identity
    with Store(tmp_path / "a.db") as again:
        assert again.identity == identity


def test_a_wrong_statement_does_not_pass_by_itself(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store, pytest.raises(sqlite3.OperationalError) as caught:
        store.connection.execute("SELECT * FROM nowhere")
    assert not passing(caught.value) and not passing(ValueError())


def test_a_call_that_is_made_to_wait_again_after_the_clock_was_set_back_waits_no_hour(tmp_path: Path) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with Store(tmp_path / "a.db") as store:
        store.take_in("call", "digest", '{"type": "job.plan"}', 1, (None, None), noon)
        store.mark("call", "open")
        store.shift(-3600)
        store.reopen(["job.plan"])
        assert [row["id"] for row in store.pending(noon - timedelta(hours=1), 10)] == ["call"]
