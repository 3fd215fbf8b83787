"""Personal data and secrets in text: found by form, and covered before anything is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

COVER = "▮▮▮"

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@(?P<domain>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})\b")
_EXAMPLE = re.compile(r"(?:^|\.)(?:example|test|invalid|localhost)(?:\.(?:com|org|net|edu))?$|^(?:domain|email|company)\.com$", re.IGNORECASE)
"""Addresses that belong to nobody (RFC 2606), and the ones that texts use for such."""

_PHONE = re.compile(  # not within a word, a sum, a price, a version or a longer number
    r"(?<![\w.,/=$€£*+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{3}[ .-])\d{3,4}[ .-]\d{3,4}(?![\w=*/+-]|[.,]\d| ?[=*/+])"
    r"|(?<![\w.])\+\d{1,3}(?:[ .-]?\d{2,4}){3,4}(?![\w-])"
)
_NOBODYS = re.compile(r"^\+?1?(?:800|888|877|866|855|844|833)|^\+?1?\d{3}555|^(\d)\1{5}|^\+?1?(?:\d{3})?0?123456")
"""Numbers of companies' free lines, those that films use, and made up ones."""

_SECRETS = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{50,}"
    r"|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"
    r"|\bAIza[A-Za-z0-9_-]{35}\b"  # Google
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # a JSON web token
)
_SECRET_PARTS = ("-----BEGIN", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "sk-", "AIza", "xox", "eyJ")
_NUMBER = re.compile(r"\d[\d ().-]{7,}\d")  # most texts have none, and the exact patterns are slow
_CARD = re.compile(r"(?<![\d.-])(?:(?:\d{4}[ -]){3}\d{4}|[3-6]\d{15})(?!\d|[.-]\d)")


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and kind of each piece of personal data or secret, in no order."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _EXAMPLE.search(match["domain"]):
                yield *match.span(), "e-mail address"
    if any(part in text for part in _SECRET_PARTS):
        for match in _SECRETS.finditer(text):
            yield *match.span(), "key"
    for number in _NUMBER.finditer(text):
        begin, end = max(0, number.start() - 2), number.end() + 2
        for match in _CARD.finditer(text, begin, end):
            if _luhn(match[0]):
                yield *match.span(), "card number"
        for match in _PHONE.finditer(text, begin, end):
            digits = re.sub(r"[^\d+]", "", match[0])
            if 9 <= len(digits.lstrip("+")) <= 14 and not _NOBODYS.match(digits):
                yield *match.span(), "phone number"


def covered(text: str) -> str:
    """Return a text with all personal data covered."""
    result, at = "", 0
    for start, end, _ in sorted(spans(text)):
        if start >= at:
            result += text[at:start] + COVER
        at = max(at, end)
    return result + text[at:]


def _luhn(text: str) -> bool:
    """Whether a card number's check digit is right (ISO/IEC 7812-1)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
