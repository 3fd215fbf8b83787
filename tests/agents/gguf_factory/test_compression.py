"""Compressed streams: equal bytes, bounded memory, and a cut, damaged or hostile file is told with the byte."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable

import pytest
import zstandard

from agents.gguf_factory import compression
from agents.gguf_factory.compression import CompressionError, Inflated, kind

TEXT = b"".join(b'{"question": "why %d?", "answer": "so %d."}\n' % (n * n % 9973, n) for n in range(3000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress, "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
}  # fmt: skip
BIG = 2**40


def inflated(data: bytes, limit: int = BIG) -> bytes:
    return io.BufferedReader(Inflated(io.BytesIO(data), limit)).read()


@pytest.mark.parametrize("name", PACK)
def test_one_or_more_frames_with_or_without_padding_give_the_same_bytes(name: str) -> None:
    packed = PACK[name](TEXT)
    assert kind(packed) == name and kind(TEXT) is None
    assert inflated(packed) == TEXT
    assert inflated(packed + PACK[name](b"more")) == TEXT + b"more"
    assert inflated(packed + b"\0" * 5000) == TEXT


@pytest.mark.parametrize("name", PACK)
def test_a_cut_damaged_or_continued_file_is_told_with_the_byte(name: str) -> None:
    packed = PACK[name](TEXT)
    middle = len(packed) // 2
    for bad, said in (
        (packed[:middle], f"middle of its compressed data, at byte {middle}"),
        (packed[:-3], f"middle of its compressed data, at byte {len(packed) - 3}"),
        (packed[:middle] + bytes(255 - byte for byte in packed[middle : middle + 40]) + packed[middle + 40 :], "damaged"),
        (packed + b"garbage!", f"goes on after its compressed data, at byte {len(packed)}"),
    ):
        with pytest.raises(CompressionError) as caught:
            inflated(bad)
        assert said in caught.value.reason and "copy it again" in caught.value.advice


def test_a_limit_in_bytes_holds() -> None:
    assert inflated(PACK["gz"](TEXT), len(TEXT)) == TEXT
    with pytest.raises(CompressionError, match=r"more than 1,000 bytes when it is unpacked"):
        inflated(PACK["gz"](TEXT), 1000)


@pytest.mark.parametrize("name", ["gz", "zst"])
def test_a_decompression_bomb_is_refused_in_little_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "BOMB_FROM", 4 * 2**20)
    packer = zlib.compressobj(9, wbits=31) if name == "gz" else zstandard.ZstdCompressor().compressobj()
    zeros = bytes(2**20)
    bomb = b"".join(packer.compress(zeros) for _ in range(32)) + packer.flush()
    stream = io.BufferedReader(Inflated(io.BytesIO(bomb), BIG))
    with pytest.raises(CompressionError, match="decompression bombs"):
        while stream.read(2**16):
            pass


def test_what_a_few_bytes_can_become_at_once_is_bounded() -> None:
    densest = zstandard.ZstdCompressor(level=19).compress(bytes(2**27))
    assert len(densest) > compression.CHUNK_BYTES, "so 128 MiB never come at once"
