"""Words in which people say that they are in danger. Patterns, not a model: they must be readable, and miss rather little.

A match is no diagnosis. It only keeps such a text from being treated as an ordinary one. English only.
"""

from __future__ import annotations

import re
from typing import Literal

Crisis = Literal["self_harm", "medical_emergency", "abuse"]

NOTICES: dict[Crisis, str] = {
    "self_harm": "You do not have to face this alone. If you might hurt yourself, call your emergency number now (112 in Europe, 911 "
    "in North America, 999 in the United Kingdom), or a crisis line: 988 in the United States and Canada, 116 123 in the "
    "United Kingdom and Ireland.",
    "medical_emergency": "This may be an emergency. Call your emergency number now: 112 in Europe, 911 in North America, 999 in the "
    "United Kingdom.",
    "abuse": "You deserve to be safe. If you are in danger now, call your emergency number (112 in Europe, 911 in North America, 999 "
    "in the United Kingdom).",
}
"""What a person in danger should read first. Numbers of other countries are not known here."""

_I = r"\b(i|i'm|im|i've|me|my)\b"
_PERSON = (
    r"(he|she|they|(my|our) (husband|wife|partner|boyfriend|girlfriend|ex|father|dad|mother|mom|mum|stepfather|stepdad|uncle|"
    r"brother|coach|teacher|boss))"
)
_SOMEBODY = r"(i|he|she|they|somebody|someone|(my|the|our) \w+)"
PATTERNS: dict[Crisis, tuple[str, ...]] = {
    "self_harm": (
        r"\b(kill(ing)?|hurt(ing)?|harm(ing)?|cut(ting)?|hang(ing)?) (myself|my self)\b",
        r"\b(end(ing)?|tak(e|ing)) my (own )?life\b",
        rf"{_I}.{{0,40}}\bsuicidal\b",
        r"\bi\b.{0,30}\b(commit|attempt|thinking (of|about)|think about|considering) suicide\b",
        r"\bi (really |just |only )?(want|wish|plan|am going|'m going) to (die|be dead)\b",
        r"\bi (don't|dont|do not|no longer) want to (live|be alive|be here any ?more|wake up any ?more)\b",
        r"\b(no reason|nothing left) to live( for)?\b",
        r"\bbetter off (dead|without me)\b",
    ),
    "medical_emergency": (
        r"\b(can't|cant|cannot|can not|unable to|struggling to) breathe?\b",
        r"\b(isn't|isnt|is not|not|stopped) breathing\b",
        rf"\b{_SOMEBODY}('s|'m| is| am| are)? (having|suffering) (a |an )?(heart attack|stroke|seizure|severe allergic reaction)\b",
        rf"\b{_SOMEBODY}('s|'m| is| am)? (collapsed|unconscious|unresponsive|choking|overdosed|overdosing)\b",
        r"\bbleeding (heavily|badly|a lot)\b|\bbleeding (won't|wont|does not|doesn't|will not) stop\b",
        rf"\b{_SOMEBODY} (just )?(swallowed|drank|took) (poison|bleach|a battery|too many pills|all (his|her|my|the) pills)\b",
        r"\b(crushing|sudden|severe) (chest pain|pain in my chest)\b",
    ),
    "abuse": (
        rf"\b{_PERSON} (keeps? |is |started )?(hits?|hitting|beats?|beating|raped?|raping|abuses?|abusing|chokes?|choking|strangles?|"
        r"molests?|molested) (me|us|my (kids|children|son|daughter))\b",
        rf"\b{_PERSON} (says|said) (he|she|they)('ll| will|'s going to| is going to) (kill|hurt) (me|us)\b",
        r"\bi (was|am|'m|am being|was being) (being )?(raped|molested|beaten|abused|sexually assaulted)\b",
    ),
}  # fmt: skip
_COMPILED = {kind: re.compile("|".join(patterns)) for kind, patterns in PATTERNS.items()}


def crisis(text: str) -> Crisis | None:
    """Return which danger the words of a text speak of, or None."""
    plain = text.lower().replace("\u2019", "'")
    return next((kind for kind, pattern in _COMPILED.items() if pattern.search(plain)), None)
