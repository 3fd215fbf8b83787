"""Read the pre-training text and the instruction rows, and write them as token files.

Knows which parts of the corpus shipped weights may be trained on; does not know the network.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import numpy as np
import sentencepiece
import zstandard

from agents.gguf_factory.data import runs

DOCUMENT = "<|doc|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

# The permissive parts, all of them. howto_recipes is not here: its licence column says that shipped weights may not be
# trained on it.
PARTS = (
    "encyclopedic_wikipedia_passages", "textbooks_openstax", "health_medquad", "tech_owasp_tldr",
    "speeches_us_presidents", "dialogue_sgd_taskmaster", "stories_classic_books",
)  # fmt: skip

# Domains whose rows may not shape shipped weights (data README, licence column), and the six user-defined ones.
WITHHELD_DOMAINS = {
    "mental_health", "stress_management", "relationships", "parenting", "conflict_resolution", "communication",
    "cooking",
}
ROWS_PER_DOMAIN = 600  # so that the largest domains do not drown the small ones in the instruction share
ANSWER_CHARACTERS = (24, 900)  # shorter answers teach nothing but the marker, longer ones fill the context


def documents(folder: Path, part: str) -> Iterator[str]:
    """Yield the documents of one part of the corpus, plain or zstd-compressed."""
    plain = folder / f"{part}.txt"
    if plain.exists():
        text = plain.read_text(encoding="utf-8")
    else:
        with (folder / f"{part}.txt.zst").open("rb") as file:
            text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    for document in text.split(DOCUMENT):
        if stripped := document.strip():
            yield stripped


def evaluated(files: Iterable[Path]) -> set[tuple[str, ...]]:
    """Return all runs of words in the answers of evaluation files."""
    found: set[tuple[str, ...]] = set()
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.update(runs(json.loads(line)["output"]))
    return found


def chat_rows(folder: Path, seed: int, avoid: Set[tuple[str, ...]] = frozenset()) -> list[list[tuple[str, str]]]:
    """Return instruction rows of the permissive domains as lists of (marker, text) turns.

    Args:
        folder: the domains' training files.
        seed: of the choice where a domain has more rows than it may give.
        avoid: runs of words that no answer may share.
    """
    rows: list[list[tuple[str, str]]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem in WITHHELD_DOMAINS:
            continue
        of_domain = []
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answer = row["output"].strip()
            if ANSWER_CHARACTERS[0] <= len(answer) <= ANSWER_CHARACTERS[1] and avoid.isdisjoint(runs(answer)):
                question = row["instruction"].strip()
                if row["input"]:
                    question = f"{row['input'].strip()}\n{question}"
                of_domain.append([(USER, question), (ASSISTANT, answer)])
        random.Random(f"{seed}:{path.stem}").shuffle(of_domain)
        rows += of_domain[:ROWS_PER_DOMAIN]
    return rows


def encode(
    tokenizer: sentencepiece.SentencePieceProcessor, data: Path, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Tokenise everything; returns the tokens of the text and of the chat rows, and how many each part has.

    Each document starts with BOS. A chat row is BOS, then marker, text and END for each turn, exactly as the chat
    template renders it.
    """
    bos = tokenizer.bos_id()
    marker = {name: tokenizer.piece_to_id(name) for name in (SYSTEM, USER, ASSISTANT, END)}
    text: list[np.ndarray] = []
    counts: dict[str, int] = {}
    for part in PARTS:
        of_part = [np.array([bos, *ids], np.uint16) for ids in tokenizer.encode([*documents(data / "general/pretrain", part)], num_threads=2)]
        counts[part] = sum(map(len, of_part))
        text += of_part
    chat: list[np.ndarray] = []
    for turns in chat_rows(data / "domains", seed, evaluated((data / "domains_heldout").glob("*.jsonl"))):
        ids = [bos]
        for role, words in turns:
            ids += [marker[role], *tokenizer.encode(words), marker[END]]
        chat.append(np.array(ids, np.uint16))
    counts["chat"] = sum(map(len, chat))
    return {"text": np.concatenate(text), "chat": np.concatenate(chat)}, counts


class Stream:
    """Endless tokens of a file's documents, in another order each time around.

    A place in it is a number of tokens, so a run can go on from a place with rows of another length.

    Args:
        tokens: ids of the documents, each of which begins with `bos`.
        bos: the id that begins a document.
        seed: of the orders.
    """

    def __init__(self, tokens: np.ndarray, bos: int, seed: int) -> None:
        self.tokens, self.seed = tokens, seed
        self.edges = np.append(np.flatnonzero(tokens == bos), len(tokens))
        self.round = -1
        self.ordered = tokens

    def take(self, place: int, count: int) -> np.ndarray:
        """Return `count` tokens from a place on, and the one after them."""
        parts, missing = [], count + 1
        while missing:
            round_, at = divmod(place, len(self.tokens))
            part = self.order(round_)[at : at + missing]
            parts.append(part)
            place, missing = place + len(part), missing - len(part)
        return np.concatenate(parts)

    def order(self, number: int) -> np.ndarray:
        """Return all tokens in the order of one round."""
        if number != self.round:
            chosen = np.random.default_rng((self.seed, number)).permutation(len(self.edges) - 1)
            self.ordered = np.concatenate([self.tokens[self.edges[i] : self.edges[i + 1]] for i in chosen])
            self.round = number
        return self.ordered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain and domains")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/starter/tokenizer.model"))
    parser.add_argument("--out", type=Path, default=Path("starter/run"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.tokenizer))
    tokens, counts = encode(tokenizer, options.data, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, ids in tokens.items():
        np.save(options.out / f"{name}.npy", ids)
    (options.out / "corpus.json").write_text(json.dumps({"seed": options.seed, "tokens": counts}, indent=1))
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
