"""A part of the fault matrix in every run of the tests: each day of the week another seed. All of it: `make faults`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.faults.__main__ import SHORT, run
from tests.faults.scenario import MATRIX

pytestmark = pytest.mark.timeout(900)


async def test_nothing_is_lost_doubled_or_stuck() -> None:
    seed = datetime.now(UTC).isoweekday()
    rows = await run([MATRIX[name] for name in SHORT], seed, 1)
    assert [(row.scenario.name, seed, row.tally.notes) for row in rows if not row.tally.clean] == []


def test_the_matrix_has_a_row_for_every_fault_that_is_promised() -> None:
    assert {"kill-1", "broker-forgets", "twin-name", "cut-up", "duplicates", "slow-consumer", "disk-full", "store-locked",
            "poison", "oversize", "expired", "factory-stopped", "clock-all-back", "asleep", "data-changed-plan",
            "artefact-deleted", "supervisor-killed"} <= MATRIX.keys()  # fmt: skip
