"""Read the pre-training text and the instruction rows, and write them as one shuffled token file.

Knows which parts of the corpus shipped weights may be trained on; does not know the network.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import zstandard

DOCUMENT = "<|doc|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

# Share of each part's documents that goes into the file. howto_recipes is not here: its licence column says that
# shipped weights may not be trained on it. The old prose and the slot-filling dialogues are thinned, because a run
# on two cores sees a few million tokens and should see all kinds of text in them.
MIX = {
    "encyclopedic_wikipedia_passages": 1.0,
    "textbooks_openstax": 1.0,
    "health_medquad": 0.6,
    "tech_owasp_tldr": 0.8,
    "speeches_us_presidents": 0.5,
    "dialogue_sgd_taskmaster": 0.25,
    "stories_classic_books": 0.2,
}

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


def sample(folder: Path, part: str, share: float, seed: int) -> list[str]:
    """Return a seeded share (0..1) of a part's documents."""
    chosen = list(documents(folder, part))
    random.Random(f"{seed}:{part}").shuffle(chosen)
    return chosen[: max(1, round(share * len(chosen)))]


def chat_rows(folder: Path, seed: int) -> list[list[tuple[str, str]]]:
    """Return instruction rows of the permissive domains as lists of (marker, text) turns."""
    rows: list[list[tuple[str, str]]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem in WITHHELD_DOMAINS:
            continue
        of_domain = []
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answer = row["output"].strip()
            if ANSWER_CHARACTERS[0] <= len(answer) <= ANSWER_CHARACTERS[1]:
                question = row["instruction"].strip()
                if row["input"]:
                    question = f"{row['input'].strip()}\n{question}"
                of_domain.append([(USER, question), (ASSISTANT, answer)])
        random.Random(f"{seed}:{path.stem}").shuffle(of_domain)
        rows += of_domain[:ROWS_PER_DOMAIN]
    return rows


def encode(tokenizer: sentencepiece.SentencePieceProcessor, pretrain: Path, domains: Path, seed: int) -> dict[str, object]:
    """Tokenise everything; returns the shuffled tokens and what they are made of.

    Each document starts with BOS. A chat row is BOS, then marker, text and END for each turn, exactly as the chat
    template renders it.
    """
    bos = tokenizer.bos_id()
    marker = {name: tokenizer.piece_to_id(name) for name in (SYSTEM, USER, ASSISTANT, END)}
    pieces: list[np.ndarray] = []
    counts: dict[str, int] = {}
    for part, share in MIX.items():
        for ids in tokenizer.encode(sample(pretrain, part, share, seed), num_threads=2):
            pieces.append(np.array([bos, *ids], dtype=np.uint16))
            counts[part] = counts.get(part, 0) + len(ids) + 1
    for turns in chat_rows(domains, seed):
        ids = [bos]
        for role, text in turns:
            ids += [marker[role], *tokenizer.encode(text), marker[END]]
        pieces.append(np.array(ids, dtype=np.uint16))
        counts["chat"] = counts.get("chat", 0) + len(ids)
    random.Random(seed).shuffle(pieces)
    return {"tokens": np.concatenate(pieces), "counts": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with general/pretrain and domains")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/starter/tokenizer.model"))
    parser.add_argument("--out", type=Path, default=Path("starter/run"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.tokenizer))
    encoded = encode(tokenizer, options.data / "general/pretrain", options.data / "domains", options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    np.save(options.out / "tokens.npy", np.asarray(encoded["tokens"]))
    (options.out / "corpus.json").write_text(json.dumps({"seed": options.seed, "tokens": encoded["counts"]}, indent=1))
    print(json.dumps(encoded["counts"], indent=1))


if __name__ == "__main__":
    main()
