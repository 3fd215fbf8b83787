from datetime import UTC, datetime
from pathlib import Path

import pytest

from bus.freeze import FILE, read_freeze, write_freeze
from protocol.money import Freeze

AT = datetime(2026, 3, 4, 12, tzinfo=UTC)
FREEZE = Freeze(
    period="day", since=AT, until=AT, spent_micros=4_800_000, reserved_micros=0, cap_micros=5_000_000, at=AT
)


def test_a_home_without_the_file_is_not_frozen(tmp_path: Path):
    assert read_freeze(tmp_path) is None


def test_the_file_is_there_while_paid_work_is_frozen(tmp_path: Path):
    write_freeze(tmp_path, FREEZE)
    assert read_freeze(tmp_path) == FREEZE
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "written in one step, nothing else is left"
    for _ in range(2):
        write_freeze(tmp_path, None)
        assert read_freeze(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"period": "day"}', b"\xff"])
def test_a_damaged_file_is_a_freeze_that_names_it(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    found = read_freeze(tmp_path)
    assert found is not None and found.period is None and str(tmp_path / FILE) in found.note
