"""Personal data is found by form and covered; numbers that belong to nobody are left."""

from __future__ import annotations

import pytest

from agents.gguf_factory.personal import COVER, covered, spans

TOKEN = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to zoe.k+tea@mail.co.uk today.", "e-mail address"),
        ("Call +49 170 1234 567 now", "phone number"), ("Call (713) 234-8899.", "phone number"), ("Tel. 020 7946 0958", "phone number"),
        ("My card is 4111 1111 1111 1111.", "card number"), (f"export GH={TOKEN}", "key"),
        ("AKIAIOSFODNN7ABCDEFG", "key"), ("-----BEGIN RSA PRIVATE KEY-----", "key"), ("sk-proj-" + "x" * 40, "key"),
    ],
)  # fmt: skip
def test_personal_data_is_found_and_covered(text: str, kind: str) -> None:
    assert kind in {found for _, _, found in spans(text)}
    assert COVER in covered(text)
    for start, end, found in spans(text):
        assert text[start:end] not in covered(text), found


@pytest.mark.parametrize(
    "text",
    ["Mail me@example.com", "user@mail.test", "Call 1-800-273-8255 or 555-0199", "(212) 555-1234", "On 2024-03-15 at 10:30", "1,234,567,890",
     "ISBN 978-3-16-148410-0", "3.14159 26535 89793", "There are 500-250-170=80 of them", "100-200-300 = -400", "192.168.100.200", "1 2 3 4 5 6 7 8 9 10", "4111 1111 1111 1112", "$100-$200 or 2019-2023",
     "version 10.0.19041.1234", "task-management and risk-averse people", "@decorator and a@b"],
)  # fmt: skip
def test_ordinary_numbers_and_addresses_are_left(text: str) -> None:
    assert list(spans(text)) == []
    assert covered(text) == text
