"""Records out of bytes: what a file is told by, and that every record knows its real line."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest

from agents.gguf_factory import records
from agents.gguf_factory.formats import RowError
from agents.gguf_factory.records import HEAD_BYTES, FileError, Record

ROWS = [{"question": f"Why\n{n}?", "answer": "So " + "word " * (n % 50)} for n in range(200)]


def read(content: bytes, name: str = "rows.jsonl") -> list[Record]:
    _, reader = records.reader(content[:HEAD_BYTES], name)
    return list(reader(io.BytesIO(content)))


def told(content: bytes, name: str = "rows.jsonl") -> str:
    return records.reader(content[:HEAD_BYTES], name)[0]


def refused(content: bytes, name: str = "rows.jsonl") -> FileError:
    with pytest.raises(FileError) as caught:
        read(content, name)
    return caught.value


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_wrong_ending_does_not_matter() -> None:
    pair = '{"question": "q", "answer": "a"}'
    for content, name, kind in (
        (f"{pair}\n{pair}\n", "rows.json", "jsonl"), (f"{pair}\n{pair}\n", "rows.csv", "jsonl"), (f"[{pair}]", "rows.jsonl", "json"),
        ("question,answer\nq,a\n", "rows.jsonl", "csv"), ("question\tanswer\nq\ta\n", "rows", "tsv"),
        ("question;answer\nq, r;a, b\n", "rows.csv", "csv"), ('"question"|"answer"\nq|a\n', "rows.txt", "csv"),
        (f"\ufeff\n {pair}", "rows", "json"), (json.dumps(json.loads(pair), indent=2), "rows.jsonl", "json"),
        ('[1, 2]\n[3]\n', "rows.jsonl", "jsonl"), ("sep=;\nquestion;answer\nq;a", "rows.csv", "csv"),
    ):  # fmt: skip
        assert told(content.encode(), name) == kind, content
        assert read(content.encode(), name)


def test_pretty_printed_values_and_lists_longer_than_the_window_have_their_lines() -> None:
    printed = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    listed = json.dumps(ROWS, indent=1)
    assert len(listed) < HEAD_BYTES * 2
    big = [{**row, "extra": "x" * 5000} for row in ROWS]
    for content, rows, lines in (
        (printed, ROWS, 4), (listed, ROWS, 4), (json.dumps(big, indent=1), big, 5), ("\n".join(json.dumps(row, indent=2) for row in big), big, 5),
    ):  # fmt: skip
        found = read(content.encode())
        assert [record.value for record in found] == rows
        first = 2 if content[0] == "[" else 1
        assert [record.line for record in found] == [first + lines * n for n in range(len(rows))]
    assert [record.value for record in read(json.dumps(big).encode())] == big, "all in one line"


def test_a_list_is_read_in_the_memory_of_its_rows() -> None:
    row = json.dumps({"q": "x" * 1000})
    listed, lines = (separator.join([row] * 5000).encode() for separator in (",\n", "\n"))
    for reader, content in ((records.listed, b"[" + listed + b"]"), (records.lines, lines)):
        file = io.BytesIO(content)
        tracemalloc.start()
        try:
            assert sum(1 for _ in reader(file)) == 5000
            assert tracemalloc.get_traced_memory()[1] < 1_000_000 < len(content)
        finally:
            tracemalloc.stop()


def test_quoted_line_ends_in_csv_count_as_lines_of_the_file() -> None:
    content = '\r\nquestion,answer\r\n"two\r\nlines","a"\r\n\r\nq,b\r\n"three\n\nlines",c\r\nshort\r\n'
    found = read(content.encode(), "rows.csv")
    assert [record.line for record in found] == [3, 6, 7, 10]
    assert found[0].value == {"question": "two\r\nlines", "answer": "a"}
    assert isinstance(found[3].value, RowError) and "1 cells" in found[3].value.reason
    bad = read(b'question,answer\nq,a\nq,"never closed\n' + b"x,y\n" * 50, "rows.csv")[-1]
    assert bad.line == 3 and isinstance(bad.value, RowError) and "quotation marks" in bad.value.advice


def test_bad_lines_are_told_and_the_rest_goes_on() -> None:
    content = b'{"q": 1}\n\n{"q": "\0"}\n' + b"\0" * 512 + b'\n{"q": ' + b"9" * 5000 + b"}\n" + b"[" * 100_000 + b'\n{"q": 2}\n'
    found = read(content)
    reasons = {record.line: record.value.reason for record in found if isinstance(record.value, RowError)}
    assert "control character" in reasons[3] and "NUL bytes" in reasons[4] and "digit" in reasons[5] and "nested" in reasons[6]
    assert [record.value for record in found if record.line in (1, 7)] == [{"q": 1}, {"q": 2}]


@pytest.mark.parametrize(
    ("content", "said", "advice"),
    [
        ('{"q": "é"}'.encode("utf-16"), "UTF-16 text", "iconv -f UTF-16"),
        ('{"question": "q", "answer": "a"}'.encode("utf-16-le"), "UTF-16 text without a mark", "UTF-16LE"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:x", "Git LFS pointer", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page", "Download"), (b"Salted__xxxxxxxx", "encrypted (openssl)", "Decrypt"),
        (b"-----BEGIN PGP MESSAGE-----\n", "encrypted (PGP)", "Decrypt"), (b"PARE....", "encrypted parquet", "without"),
        (b"x" * 257 + b"ustar\x0000", "tar archive", "tar://"), (b"\x80\x04\x95", "pickle", "jsonl"),
        (b'{"data": [{"question": "q", "answer": "a"}]}', "whose field data seems to hold the rows", "jq"),
        (b'{"question": {"0": "q"}, "answer": {"0": "a"}}', "pandas", 'orient="records"'),
    ],
)  # fmt: skip
def test_files_that_are_something_else_say_what_and_what_to_do(content: bytes, said: str, advice: str) -> None:
    error = refused(content)
    assert said in error.reason and advice in error.advice


def test_broken_json_says_line_and_column() -> None:
    for content, line, column in (
        (b'[\n {"q": 1},\n {"q" 2}\n]', 3, 7), (b'[{"q": 1}\n {"q": 2}]', 2, 2), (b'[{"q": 1}]\n{"q": 2}', 2, 1),
        (b'{\n "q": 1\n}\n{\n "q" 2\n}', 5, 6), (b'[{"q": 1},\n{"q": "never closed', 2, 7),
    ):  # fmt: skip
        error = refused(content)
        assert f"line {line}, column {column}:" in error.reason and error.line == line, error.reason
    broken = json.dumps(ROWS, indent=1)[:-1] + "," + "[" * 50_000
    assert "nested too deeply" in refused(broken.encode()).reason


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROW_BYTES", 100_000)
    for content, line in ((b'{"q": 1}\n{"q": "' + b"x" * 300_000, 2), (b'[{"q": 1},\n{"q": "' + b"x" * 300_000, 2)):
        error = refused(content)
        assert error.line == line and "100,000" in error.reason


def test_text_that_is_not_utf8_names_its_line_in_every_container() -> None:
    for content, name in ((b'{"q": 1}\n{"q": "caf\xe9"}\n', "x.jsonl"), (b'[{"q": 1},\n{"q": "caf\xe9"}]', "x.json"), (b"question,answer\nq,caf\xe9\n", "x.csv")):
        error = refused(content, name)
        assert error.line == 2 and "byte 0xe9 in line 2" in error.reason and "iconv" in error.advice


def test_jsonl_is_read_while_it_arrives() -> None:
    class Pipe(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            line = b'{"q": %d}\n' % self.given
            self.given += 1
            buffer[: len(line)] = line
            return len(line)

    pipe = Pipe()
    found: Iterator[Record] = records.lines(io.BufferedReader(pipe, 16))
    assert next(found).value == {"q": 0} and pipe.given < 5
