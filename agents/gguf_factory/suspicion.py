"""What makes a row suspicious. One table of rules; each looks at all rows and says which it means, and why.

A suspicion is no verdict: a rule that is right about one row in three is worth a look at three rows.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from agents.gguf_factory import personal
from agents.gguf_factory.dataset import Row
from agents.gguf_factory.split import normalise

EXAMPLES = 5  # rows that are shown of each rule
EXCERPT = 90  # characters that are shown of a row


@dataclass
class Facts:
    """A row with what several rules need of it."""

    number: int
    row: Row

    @cached_property
    def answers(self) -> list[str]:
        return [turn["content"] for turn in self.row.messages if turn["role"] == "assistant"]

    @cached_property
    def questions(self) -> list[str]:
        return [turn["content"] for turn in self.row.messages if turn["role"] == "user"]

    @cached_property
    def text(self) -> str:
        """All questions and answers; a system turn is often the same in each row."""
        return "\n".join(turn["content"] for turn in self.row.messages if turn["role"] != "system")

    @cached_property
    def words(self) -> list[str]:
        return normalise(self.text).split()


@dataclass(frozen=True)
class Finding:
    """What a rule has found: numbers of rows from 0, and what to show of each."""

    rows: list[int]
    excerpts: dict[int, str]
    detail: str = ""
    note: bool = False


@dataclass(frozen=True)
class Rule:
    """One kind of suspicion.

    Args:
        name: for programs.
        what: what its rows have, after a number of rows.
        advice: what to do about them.
        find: makes a finder for one data set.
        note: it may well be meant so, and is never a warning.
    """

    name: str
    what: str
    advice: str
    find: Callable[[], Finder]
    note: bool = False


Look = Callable[["Facts"], "Callable[[], str] | None"]
"""Returns None, or what makes the piece of text that is shown of a suspicious row; only few are shown."""


class Finder:
    """Looks at rows one after another."""

    def __init__(self, look: Look | None = None) -> None:
        self._look = look
        self.rows: list[int] = []
        self.excerpts: dict[int, str] = {}

    def see(self, facts: Facts) -> None:
        assert self._look is not None
        piece = self._look(facts)
        if piece is not None:
            self.take(facts.number, piece)

    def take(self, number: int, piece: Callable[[], str]) -> None:
        self.rows.append(number)
        if len(self.excerpts) < EXAMPLES:
            self.excerpts[number] = piece()

    def finding(self, rows: Sequence[Row]) -> Finding:
        """Return what was found once all rows were seen."""
        return Finding(self.rows, self.excerpts)


def search(
    rows: Sequence[Row], rules: Iterable[Rule] | None = None, also: Callable[[Facts], None] | None = None
) -> dict[str, Finding]:
    """Apply rules to the rows of one data set and return what those have found that have found anything.

    Args:
        rows: without exact duplicates.
        rules: RULES where None.
        also: sees the facts of each row too; what they hold is gone after it.
    """
    finders = {rule.name: rule.find() for rule in (RULES if rules is None else rules)}
    for number, row in enumerate(rows):
        facts = Facts(number, row)
        for finder in finders.values():
            finder.see(facts)
        if also is not None:
            also(facts)
    found = {name: finder.finding(rows) for name, finder in finders.items()}
    return {name: finding for name, finding in found.items() if finding.rows}


def excerpt(text: str, start: int = 0, end: int = 0) -> str:
    """Return the piece of a text around a place in one line, personal data covered."""
    room = max(0, EXCERPT - (end - start))
    begin = max(0, start - room // 3)
    if begin:  # not within a word: half an address would not be seen as one
        begin = text.rfind(" ", 0, begin) + 1
    piece = personal.covered(text[begin : begin + 4 * EXCERPT])
    line = " ".join(piece.split())
    shown = line[:EXCERPT].rstrip() + ("…" if len(line) > EXCERPT or begin + 4 * EXCERPT < len(text) else "")
    return ("…" if begin else "") + shown


def pattern(
    expression: re.Pattern[str], needs: Sequence[str], *, answers: bool = False, code: bool = True
) -> Callable[[], Finder]:
    """Return a finder for a pattern.

    Args:
        expression: what to find.
        needs: of these lower-case pieces a text must have one; most texts have none, and are done with at once.
        answers: only in answers.
        code: whether pieces in backticks are looked at too.
    """

    def look(facts: Facts) -> Callable[[], str] | None:
        for text in facts.answers if answers else (facts.text,):
            lower = text.lower()
            if not any(piece in lower for piece in needs):
                continue
            plain = text if code or "`" not in text else CODE.sub(lambda match: " " * len(match[0]), text)
            if match := expression.search(plain):
                return partial(excerpt, text, *match.span())
        return None

    return lambda: Finder(look)


CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
NOTHING = frozenset({"n/a", "na", "nan", "none", "null", "todo", "tbd", "-", "?", "...", "…", "empty", "unknown", "undefined", "[deleted]", "[removed]"})

REFUSAL = re.compile(
    r"\bas an? (?:large |helpful )?(?:ai|artificial intelligence)(?: language)?(?: model| assistant| system)?\b(?=,| i\b)"
    r"|\bas a (?:large )?language model\b|\bi(?:'|’)?a?m (?:just |only )?an ai\b|\bi am (?:just |only )?an ai\b"
    r"|\bi (?:do not|don(?:'|’)t) have (?:personal|real[- ]time|the ability to browse)\b|\bmy (?:knowledge|training) (?:cut-?off|data)\b"
    r"|\bi(?:(?:'|’)m| am) (?:sorry|unable|not able)\b.{0,30}\b(?:can(?:'|’)?t|cannot|can not|unable to|not able to) (?:assist|help|provide|fulfil|comply|answer|generate|create)"
    r"|\bi (?:can(?:'|’)?t|cannot) (?:assist|help|comply) with (?:that|this)\b|\b(?:openai|chatgpt|anthropic)(?:'s|’s)? (?:polic|guideline|language model)",
    re.IGNORECASE,
)
REFUSAL_NEEDS = ("as an ai", "as a ai", "artificial intell", "language model", "an ai", "have personal", "have real", "ability to browse",
                 "knowledge cut", "training data", "training cut", "my knowledge", "sorry", "unable", "not able", "with that", "with this",
                 "openai", "chatgpt", "anthropic")  # fmt: skip
MARKER_NEEDS = ("<|", "<s>", "</s>", "inst]", "<sys>", "</sys>", "_of_turn>", "<im_", "<unk>", "<pad>", "[pad]", "[sep]", "[cls]", "[unk]",
                "##", "human", "assistant", "user", "ai:", "bot")  # fmt: skip
MARKERS = re.compile(
    r"<\|[a-z0-9_]+\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\|?(?:im_start|im_end)\|?>|<unk>|<pad>|\[(?:PAD|SEP|CLS|UNK)\]"
    r"|^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant)\s*:|^(?:Human|Assistant|USER|ASSISTANT|AI|Bot)\s*:(?=\s)",
    re.MULTILINE,
)
TAGS = "div|p|br|span|a|table|tr|td|th|ul|ol|li|font|script|style|img|h[1-6]|strong|em|b|i|u|iframe|blockquote|html|body"
HTML = re.compile(  # an opening tag without attributes may be a placeholder, as in `mysqlcheck <table>`
    rf"</(?:{TAGS})\s*>|<(?:{TAGS})\s+[a-z-]+\s*=\s*[\"'][^>]*>|<(?:br|p|div|hr)\s*/?>"
    r"|&(?:amp|lt|gt|nbsp|quot|apos|rsquo|lsquo|ldquo|rdquo|mdash|ndash|hellip|#\d{2,5}|#x[0-9a-f]{2,5});",
    re.IGNORECASE,
)
MOJIBAKE = re.compile(r"[ÃÅÄ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u2018-\u203a](?![A-Za-zÀ-ÿ]*\s[ÃÅÄ]\s)|â(?:€|\u0080)[\u0080-\u00bf\u0152-\u203a™œ]|Â[\u00a0-\u00bf]|Ð[\u0080-\u00bf][ÐÑ]|ï»¿|\ufffd")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u2028\u2029\ufeff\ue000-\uf8ff]")
LOOP_WORDS, LOOP_LETTERS, LOOP_SIGNS, LOOP_LINES = 6, 8, 20, 4
"""So many in a row are a loop. Emphasis ("noooo", "no no no") has less; rulers of signs in ASCII tables are none."""
RULERS = frozenset("-=_.*#~+|`·•─━═<>0123456789 \n\t…")


def _repetition(facts: Facts) -> Callable[[], str] | None:
    text = facts.text if "`" not in facts.text else CODE.sub(" ", facts.text)
    for letter in set(text) - RULERS:
        if (run := letter * (LOOP_LETTERS if letter.isalpha() or letter in "!?" else LOOP_SIGNS)) in text:
            return partial(excerpt, text, text.index(run), text.index(run) + len(run))
    for parts, least in ((facts.words, LOOP_WORDS), (text.split("\n"), LOOP_LINES)):
        if len(parts) >= least and (part := _loop(parts, least)) is not None:
            at = max(0, facts.text.lower().find(part.lower()))
            return partial(excerpt, facts.text, at, at + len(part))
    return None


def _loop(parts: Sequence[str], least: int) -> str | None:
    """Return what stands `least` times in a row, digits and empty parts apart."""
    run = 1
    for part, following in itertools.pairwise(parts):
        run = run + 1 if part == following else 1
        if run >= least and part.strip() and not part.isdigit():
            return part
    return None


def _no_answer(facts: Facts) -> Callable[[], str] | None:
    for question, text in zip(facts.questions, facts.answers, strict=True):
        if text.lower() in NOTHING or not any(map(str.isalnum, text)):
            return partial(_both, question, text)
    return None


def _both(question: str, answer: str) -> str:
    return f"{excerpt(question)[:60]} → {excerpt(answer)}"


class _OneWord(Finder):
    """Answers of one word; where many answers are such, it is meant so."""

    MEANT = 0.2

    def __init__(self) -> None:
        super().__init__(self._one)
        self._seen = 0

    def _one(self, facts: Facts) -> Callable[[], str] | None:
        self._seen += 1
        for question, text in zip(facts.questions, facts.answers, strict=True):
            if len(text) < 40 and not any(map(str.isspace, text)) and any(map(str.isalnum, text)) and text.lower() not in NOTHING:
                return partial(_both, question, text)
        return None

    def finding(self, rows: Sequence[Row]) -> Finding:
        meant = len(self.rows) > self.MEANT * self._seen
        return Finding(self.rows, self.excerpts, "so many that it seems to be meant" if meant else "", meant)


def _echo(facts: Facts) -> Callable[[], str] | None:
    for question, answer in zip(facts.questions, facts.answers, strict=True):
        if abs(len(question) - len(answer)) <= 8 and normalise(question) == normalise(answer):
            return partial(excerpt, answer)
    return None


def _personal(facts: Facts) -> Callable[[], str] | None:
    found = sorted(personal.spans(facts.text))
    if not found:
        return None
    kinds = ", ".join(dict.fromkeys(kind for _, _, kind in found))
    return lambda: f"{kinds}: {excerpt(facts.text, *found[0][:2])}"


SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Latin", re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")), ("Cyrillic", re.compile(r"[\u0400-\u052f]")),
    ("Greek", re.compile(r"[\u0370-\u03ff]")), ("Arabic", re.compile(r"[\u0600-\u06ff\u0750-\u077f]")),
    ("Hebrew", re.compile(r"[\u0590-\u05ff]")), ("Devanagari", re.compile(r"[\u0900-\u097f]")),
    ("Thai", re.compile(r"[\u0e00-\u0e7f]")), ("Korean", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("Japanese", re.compile(r"[\u3040-\u30ff]")), ("Chinese", re.compile(r"[\u4e00-\u9fff]")),
)  # fmt: skip
STOPWORDS = {
    "English": "the and is are of to in that it you for with this was have not be from they what",
    "German": "der die und das ist nicht ein eine sie ich mit für auf den dem wird auch sich oder",
    "French": "le les des est une vous pour dans que pas sur avec qui au sont nous ce il du",
    "Spanish": "el los las una es por para con como pero más su del al está son hay muy usted",
    "Italian": "il che di per una non con sono della gli come anche più questo alla nel ha ma",
    "Portuguese": "o os não uma para com por como mais são você do da em isso ao também foi ele",
    "Dutch": "de het een van niet zijn dat met voor ook maar aan wordt je naar ze bij dit nog",
    "Polish": "nie się na jest to że do jak ale czy przez od po tak jego był może co dla tym",
}  # fmt: skip
"""The commonest words of a language that are rare in the others'."""

_STOP = {
    word: [language for language, listed in STOPWORDS.items() if word in listed.split()]
    for words in STOPWORDS.values() for word in words.split()
}  # fmt: skip
MANY_WORDS = 200  # of a text are enough to tell
SURE_HITS = 5  # common words of a language that a text must have at least


def language(text: str, words: Sequence[str]) -> str | None:
    """Return what language a text is in, by its script and its commonest words; None where that is not clear."""
    if not text.isascii():
        counts = {name: len(expression.findall(text)) for name, expression in SCRIPTS}
        name, count = max(counts.items(), key=lambda item: item[1])
        if name != "Latin":
            return ("Japanese" if counts["Japanese"] else name) if 2 * count > sum(counts.values()) else None
    hits = Counter(language for word in words[:MANY_WORDS] if word in _STOP for language in _STOP[word])
    ranked = hits.most_common(2)
    if not ranked or ranked[0][1] < SURE_HITS or (len(ranked) > 1 and ranked[1][1] * 2 > ranked[0][1]):
        return None
    return ranked[0][0]


class _Foreign(Finder):
    """Rows of another language than nine in ten rows are in."""

    def __init__(self) -> None:
        super().__init__()
        self._languages: dict[str, list[int]] = defaultdict(list)

    def see(self, facts: Facts) -> None:
        found = language(facts.text, facts.words)
        if found is not None:
            self._languages[found].append(facts.number)

    def finding(self, rows: Sequence[Row]) -> Finding:
        total = sum(map(len, self._languages.values()))
        ranked = sorted(self._languages, key=lambda name: -len(self._languages[name]))
        if not ranked or len(self._languages[ranked[0]]) < 0.9 * total:
            return Finding([], {})
        others = {number: name for name in ranked[1:] for number in self._languages[name]}
        numbers = sorted(others)
        shown = {number: f"{others[number]}: {excerpt(rows[number].question)}" for number in numbers[:EXAMPLES]}
        return Finding(numbers, shown, f"most rows are {ranked[0]}")


class _Lengths(Finder):
    """Rows whose length is far from all others': more than ten times the median, and beyond the usual spread."""

    TIMES = 10
    SPREAD = 4.0  # robust standard deviations of the logarithm; lengths of text are about log-normal

    def __init__(self) -> None:
        super().__init__()
        self._lengths: list[int] = []

    def see(self, facts: Facts) -> None:
        self._lengths.append(len(facts.text))

    def finding(self, rows: Sequence[Row]) -> Finding:
        if len(self._lengths) < 20:
            return Finding([], {})
        logs = [math.log(length) for length in self._lengths]
        quarter, median, third = statistics.quantiles(logs, n=4)
        high = median + max(math.log(self.TIMES), self.SPREAD * (third - quarter) / 1.35)
        numbers = [number for number, log in enumerate(logs) if log > high]
        shown = {number: f"{self._lengths[number]:,} characters: {excerpt(rows[number].question)}" for number in numbers[:EXAMPLES]}
        return Finding(numbers, shown, f"the median is {math.exp(median):,.0f} characters")


class _OneAnswer(Finder):
    """One and the same answer in more than a fifth of the rows."""

    SHARE = 0.2
    LEAST = 10  # rows: in a few rows the same answer twice is chance

    def __init__(self) -> None:
        super().__init__()
        self._answers: Counter[bytes] = Counter()
        self._rows: list[bytes] = []

    def see(self, facts: Facts) -> None:
        key = hashlib.blake2b(facts.row.answer.lower().encode(), digest_size=8).digest()
        self._answers[key] += 1
        self._rows.append(key)

    def finding(self, rows: Sequence[Row]) -> Finding:
        common = [key for key, count in self._answers.items() if count >= self.LEAST and count > self.SHARE * len(self._rows)]
        numbers = [number for number, key in enumerate(self._rows) if key in common]
        first = {key: self._rows.index(key) for key in common}
        shown = {
            number: f"{self._answers[key] / len(self._rows):.0%} of the rows: {excerpt(rows[number].answer)}"
            for key, number in sorted(first.items(), key=lambda item: -self._answers[item[0]])[:EXAMPLES]
        }
        return Finding(numbers, shown, f"{len(self._answers):,} different answers in all")


class _Disagreeing(Finder):
    """The same single question with different answers."""

    def __init__(self) -> None:
        super().__init__()
        self._questions: dict[bytes, list[int]] = defaultdict(list)

    def see(self, facts: Facts) -> None:
        if len(facts.questions) == 1:
            key = hashlib.blake2b(normalise(facts.questions[0]).encode(), digest_size=12).digest()
            self._questions[key].append(facts.number)

    def finding(self, rows: Sequence[Row]) -> Finding:
        groups = [group for group in self._questions.values() if len(group) > 1]
        numbers = sorted(number for group in groups for number in group)
        largest = sorted(groups, key=lambda group: -len(group))[:EXAMPLES]
        shown = {group[0]: f"{len(group)} times: {excerpt(rows[group[0]].question)}" for group in largest}
        return Finding(numbers, shown, f"{len(groups):,} questions")


RULES: tuple[Rule, ...] = (
    Rule("no_answer", "no real answer", "Answer the question or remove the row.", lambda: Finder(_no_answer)),
    Rule("one_word", "an answer of one word", "Write a sentence, if the model shall talk in sentences.", _OneWord),
    Rule("echo", "an answer that only repeats the question", "Answer it or remove the row.", lambda: Finder(_echo)),
    Rule("refusal", "a refusal or another assistant's phrases", "Remove them, or the model will refuse and call itself so.",
         pattern(REFUSAL, REFUSAL_NEEDS, answers=True)),
    Rule("chat_markers", "chat markers in the text", "Take rendered chats apart into messages; the factory writes the markers.",
         pattern(MARKERS, MARKER_NEEDS, code=False)),
    Rule("html", "remains of HTML", "Convert them to plain text.", pattern(HTML, ("<", "&"), code=False)),
    Rule("mojibake", "text in the wrong encoding (mojibake)", "Read the source as UTF-8 and write it again.",
         pattern(MOJIBAKE, "ãåäâðï\ufffd")),
    Rule("control", "invisible control characters", "Remove them; they become tokens of their own.", pattern(CONTROL, ("",))),
    Rule("repetition", "the same character, word or line over and over", "Shorten it; the model learns to loop.",
         lambda: Finder(_repetition)),
    Rule("foreign", "another language than the other rows", "Remove it, or train one model per language.", _Foreign),
    Rule("personal", "personal data or keys", "Remove or replace them: a model can say them to anybody.", lambda: Finder(_personal)),
    Rule("length", "an extreme length", "Split or shorten it.", _Lengths),
    Rule("one_answer", "one of few answers that most rows share", "Balance the rows: always the same answer is the easiest lesson.",
         _OneAnswer),
    Rule("disagreeing", "the same question as another row with a different answer", "Keep one, if they contradict each other.",
         _Disagreeing, note=True),
)  # fmt: skip
"""All rules. They see rows in order, without exact duplicates."""
