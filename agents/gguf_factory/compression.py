"""Compressed files as streams: bounded in memory, honest about a cut end, and refusing what would fill the machine."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

CHUNK_BYTES = 2048  # compressed bytes at once: zstd can make 128 KiB of four of them, so at most 64 MiB at a time
LZMA_MEMORY = 256 * 2**20  # of a .xz: `xz -9` needs 65 MB, what asks for more is no data set
WINDOW_BYTES = 2**27  # of a .zst: the most that `zstd` itself takes without --long=31
BOMB_RATIO = 200  # text shrinks to a tenth, the same row a million times to a hundredth; bombs reach 1,000 and more
BOMB_FROM = 64 * 2**20  # bytes from which the ratio counts: a small file may well be all alike


class CompressionError(Exception):
    """Compressed data that cannot be used; `reason` goes on after the file's name."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


def _zstandard() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()


KINDS: tuple[tuple[bytes, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", "gz", lambda: zlib.decompressobj(wbits=31)),  # 31: gzip's header and checksum (zlib.h, inflateInit2)
    (b"\x28\xb5\x2f\xfd", "zst", _zstandard),
    (b"BZh", "bz2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "xz", lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY)),
)
"""Magic number, file ending, and what decompresses one frame."""


def kind(head: bytes) -> str | None:
    """Return the compression that a file's first bytes tell, or None."""
    return next((name for magic, name, _ in KINDS if head.startswith(magic)), None)


class Inflated(io.RawIOBase):
    """The uncompressed bytes of a file of one or more frames.

    Args:
        file: the compressed file, at its beginning.
        limit: most uncompressed bytes.

    Reading raises CompressionError: the data is damaged, cut, followed by something else, or too much.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._in = 0  # compressed bytes that were used up
        self._out = 0
        self._ready = memoryview(b"")
        self._left = b""  # compressed bytes read ahead
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._fill():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _fill(self) -> bool:
        """Decompress the next bit; false at the end."""
        compressed = self._left or self._file.read(CHUNK_BYTES)
        self._left = b""
        if not compressed:
            if self._frame is not None:
                raise CompressionError(
                    f"ends in the middle of its compressed data, at byte {self._in}", "Compress or copy it again."
                )
            return False
        if self._frame is None and not self._begin(compressed):
            return True
        try:
            made = self._frame.decompress(compressed)
        except Exception as error:  # each library has its own, and they share no base
            if isinstance(error, MemoryError):
                raise
            raise CompressionError(
                f"has damaged compressed data near byte {self._in} ({error})", "Compress or copy it again."
            ) from error
        self._in += len(compressed)
        if self._frame.eof:
            self._left = self._frame.unused_data
            self._in -= len(self._left)
            self._frame = None
        self._out += len(made)
        self._check()
        self._ready = memoryview(made)
        return True

    def _begin(self, compressed: bytes) -> bool:
        """Start the next frame; false where only padding follows."""
        if self._in and not compressed.strip(b"\0"):
            self._in += len(compressed)
            return False
        while len(compressed) < 8 and (more := self._file.read(8 - len(compressed))):  # a magic number cut by a chunk's end
            compressed += more
        for magic, _, begin in KINDS:
            if compressed.startswith(magic):
                self._frame = begin()
                self._left = compressed
                return False
        raise CompressionError(f"goes on after its compressed data, at byte {self._in}", "Compress or copy it again.")

    def _check(self) -> None:
        if self._out > self._limit:
            raise CompressionError(
                f"is more than {self._limit:,} bytes when it is unpacked",
                "Split it, or allow more with MEETARA_DATA_LIMIT_BYTES.",
            )
        if self._out > BOMB_FROM and self._out > BOMB_RATIO * self._in:
            raise CompressionError(
                f"unpacks to more than {BOMB_RATIO} times its size, as decompression bombs do",
                "If it really is so repetitive, unpack it yourself and give the plain file.",
            )
