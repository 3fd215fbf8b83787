"""The converter's process: llama.cpp's own convert_hf_to_gguf.py, told the name of a pre-tokenizer that it cannot hash.

    python converter.py PROGRAM (PRE SOURCE TARGET)…   # PRE: a name, or "-" where the converter has to know it itself

The program is run unmodified. Only where it finds a pre-tokenizer's hash in no row of its table does it take the name
that `pretokenizer` read from the structure of tokenizer.json. A script, not a module: its path holds the converter's
own gguf package first, and nothing of the project.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNKNOWN = "-"


def main(arguments: list[str]) -> None:
    program, *rest = arguments
    sys.path.insert(0, str(Path(program).parent))
    from conversion.base import TextModel

    by_hash = TextModel.get_vocab_base_pre
    for pre, source, target in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        TextModel.get_vocab_base_pre = by_hash if pre == UNKNOWN else _named(by_hash, pre)
        sys.argv = [program, source, "--outfile", target, "--outtype", "f16"]
        runpy.run_path(program, run_name="__main__")


def _named(by_hash: Callable[[Any, Any], str], pre: str) -> Callable[[Any, Any], str]:
    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return by_hash(self, tokenizer)
        except NotImplementedError:
            print(f"the structure of tokenizer.json is that of {pre}")
            return pre

    return get_vocab_base_pre


if __name__ == "__main__":
    main(sys.argv[1:])
