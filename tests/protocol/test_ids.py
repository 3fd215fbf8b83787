"""Ids that sort by time, and ids that can be a topic level and a folder."""

from __future__ import annotations

import time
import uuid
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import uuid7, valid_job_id


def test_the_example_of_the_rfc():
    random = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert uuid7(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # RFC 9562, appendix A.6


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_version_variant_and_time_are_where_the_rfc_puts_them(milliseconds, random):
    made = uuid.UUID(uuid7(milliseconds, random))
    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, milliseconds)
    bits = (made.int >> 64 & 0xFFF) << 62 | made.int & (2**62 - 1)
    assert bits == random


@given(st.integers(0, 2**48 - 2), st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_a_later_id_sorts_behind(milliseconds, first, second):
    assert uuid7(milliseconds, first) < uuid7(milliseconds + 1, second)


def test_without_arguments_it_holds_the_clock_and_never_repeats():
    before = time.time_ns() // 1_000_000
    made = [uuid7() for _ in range(100)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 100
    assert all(before <= uuid.UUID(text).int >> 80 <= after for text in made)


@pytest.mark.parametrize("text", ["a", "7", "Sleep-2026_03.v1", "x" * 64, uuid7()])
def test_ids_that_can_be_a_jobs(text):
    assert valid_job_id(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a/b", "a+", "#", ".hidden", "-flag", "a..b", "..", "a b", "ä", "a\n", "\na", "a\0", "C:"]
)
def test_ids_that_cannot(text):
    assert not valid_job_id(text)


@given(st.text(max_size=70) | st.from_regex(r"[A-Za-z0-9._+#/\n-]{1,66}", fullmatch=True))
def test_a_valid_id_is_one_topic_level_and_one_plain_folder(text):
    if valid_job_id(text):
        assert not set(text) & set("+#/\0\n\\")
        assert PurePosixPath("jobs", text).parts == ("jobs", text)
