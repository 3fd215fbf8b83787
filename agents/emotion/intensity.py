"""How strong a feeling is, from 0 to 1: what the words say, then what the way of writing adds.

The words: half the probability that the text carries any feeling, and half the probability that it carries one of full
strength (STRONG). So a neutral text has 0, one that is surely annoyed 0.5, one that is surely furious 1. Both probabilities are
outputs of the model, calibrated on GoEmotions, whose 27 finer labels tell annoyance from anger and nervousness from fear.

The writing: intensifiers, exclamation marks and capitals raise the odds, softeners lower them. They cannot make a feeling where
the words have none, because odds are multiplied.
"""

from __future__ import annotations

import math
import re

STRONG = ("anger", "disgust", "fear", "grief", "sadness", "joy", "love", "excitement", "surprise")
"""Labels of GoEmotions that count as full strength: Ekman's six, and those of the same groups that exceed them. The others
(annoyance, disapproval, nervousness, disappointment, approval ...) are weaker forms or attitudes, and count half."""

_MORE = """
absolutely amazingly awfully completely deeply deathly downright enormously entirely especially exceptionally extremely fucking
fully greatly hella highly horribly hugely incredibly insanely intensely literally particularly purely quite really remarkably
seriously so such terribly thoroughly too totally tremendously truly unbelievably utterly very
"""
_LESS = "almost barely hardly kinda marginally mildly occasionally partly scarcely slightly somewhat sorta"
INTENSIFIERS = frozenset(_MORE.split())
SOFTENERS = frozenset(_LESS.split())
SOFT_PHRASES = re.compile(r"\b(a (little|bit)|kind of|sort of)\b")
WORD = 0.293
"""What one intensifier adds (a softener takes) in VADER, measured on people's ratings (Hutto & Gilbert 2014). There it is added
to a word's valence; here to the logarithm of the odds."""
EXCLAMATION = 0.292
"""Per exclamation mark, at most four, from the same measurement."""
CAPITALS = 0.733
"""For words in capitals within a text that is not all capitals, from the same measurement."""
WORDS_COUNTED = 3
"""VADER looks at the three words before a feeling; a longer text has no more than so many in effect either."""
SHOUTED = re.compile(r"\b[A-Z]{3,}\b")
"""Two capitals are mostly an abbreviation (US, OK)."""


def emphasis(text: str) -> float:
    """Return what the way of writing adds to the log-odds of a feeling's strength; negative where it softens."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    more = min(WORDS_COUNTED, sum(word in INTENSIFIERS for word in words))
    less = min(WORDS_COUNTED, sum(word in SOFTENERS for word in words) + len(SOFT_PHRASES.findall(text.lower())))
    shouted = bool(SHOUTED.search(text)) and text != text.upper()
    return WORD * (more - less) + EXCLAMATION * min(4, text.count("!")) + CAPITALS * shouted


def intensity(felt: float, strong: float, text: str) -> float:
    """Return how strong the feeling of a text is.

    Args:
        felt: calibrated probability that the text carries any feeling.
        strong: calibrated probability that it carries one of full strength.
        text: as written.
    """
    level = min(max((felt + min(strong, felt)) / 2, 1e-6), 1 - 1e-6)
    return 1 / (1 + math.exp(-(math.log(level / (1 - level)) + emphasis(text))))
