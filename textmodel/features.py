"""What a text is made of: word and character n-grams, each known by a 32-bit hash instead of a vocabulary of strings.

A sorted array of 100,000 hashes takes 0.4 MB; a dictionary of as many Python strings takes 15 MB in every agent. Two n-grams
with one hash share a weight, at fitting and later alike: of 100,000 about one pair does.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|_+|[^\w\s]+")
"""A word with its apostrophes, or a run of signs: `!!!`, `:(` and emoji carry feeling."""
LOUD = re.compile(r"[^\W\d_]*[A-Z]{2,}")
LONG = re.compile(r"([^\W\d_])\1{2,}")
"""A letter three times or more: `sooo`. English spells nothing so."""
LONGEST_SIGNS = 3
"""`!!!!!!` is `!!!`: longer runs are too rare to have weights of their own."""

Hashes = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Grams:
    """Which n-grams are counted: lengths from, to (inclusive) of word and of character n-grams; 0, 0 for none.

    `style` adds marks for words in capitals and for drawn-out letters, which lower-casing would hide.
    """

    words: tuple[int, int] = (1, 2)
    chars: tuple[int, int] = (2, 5)
    style: bool = False


def tokens(text: str) -> list[str]:
    """Return a text's lower-case words and signs in order."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    return [token if token[0].isalnum() else token[:LONGEST_SIGNS] for token in TOKEN.findall(plain)]


def grams(text: str, which: Grams) -> tuple[list[str], list[str]]:
    """Return the word and the character n-grams of a text, with repeats.

    Character n-grams stay within a token that has a space on either side, so they know where words begin and end.
    """
    found = tokens(text)
    shortest, longest = which.words
    words = [
        " ".join(found[at : at + size])
        for size in range(max(1, shortest), longest + 1)
        for at in range(len(found) - size + 1)
    ]
    if which.style:
        words += ["\t" + token.lower() for token in LOUD.findall(text)]
        words += ["\tLOUD"] * len(LOUD.findall(text)) + ["\tLONG"] * len(LONG.findall(text))
    shortest, longest = which.chars
    characters = [
        padded[at : at + size]
        for padded in (f" {token} " for token in found)
        for size in range(max(1, shortest), longest + 1)
        for at in range(len(padded) - size + 1)
    ]
    return words, characters


def count(text: str, which: Grams) -> list[tuple[Hashes, npt.NDArray[np.float32]]]:
    """Return hashes and how often each occurs, of the word and of the character n-grams."""
    blocks = []
    for kind, found in zip(("w", "c"), grams(text, which), strict=True):
        hashes = np.fromiter((crc32((kind + gram).encode()) for gram in found), np.uint32, len(found))
        unique, often = np.unique(hashes, return_counts=True)
        blocks.append((unique, often.astype(np.float32)))
    return blocks
