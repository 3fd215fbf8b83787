"""Reading data sets: every form gives the same rows, and every fault is named with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.gguf_factory import dataset
from protocol import Code, LabError

PAIR = [{"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "A drink."}]


def write(path: Path, *rows: object, end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return path


def refused(path: str | Path) -> LabError:
    with pytest.raises(LabError) as caught:
        dataset.read(str(path))
    assert caught.value.code == Code.BAD_DATA
    assert caught.value.advice and caught.value.data["field"] == "dataset"
    return caught.value


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PAIR},
        {"conversations": [{"from": "human", "value": "What is tea?"}, {"from": "gpt", "value": "A drink."}]},
        {"instruction": "What is tea?", "input": "", "output": "A drink."},
        {"instruction": "What is tea?", "output": "A drink."},
        {"prompt": "What is tea?", "completion": " A drink. "},
        {"question": "What is tea?", "answer": "A drink.", "source": "ignored"},
        {"messages": [PAIR[0], {"role": "assistant", "content": [{"type": "text", "text": "A drink."}]}]},
    ],
)
def test_every_known_form_becomes_the_same_messages(tmp_path: Path, row: object) -> None:
    assert dataset.read(str(write(tmp_path / "rows.jsonl", row))).rows[0].messages == PAIR


def test_alpaca_input_belongs_to_the_question(tmp_path: Path) -> None:
    row = {"instruction": "Sum up.", "input": "Long text", "output": "Short"}
    assert dataset.read(str(write(tmp_path / "a.jsonl", row))).rows[0].question == "Sum up.\n\nLong text"


def test_containers_and_compressions_give_equal_rows(tmp_path: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": f"Because\nof {n}; \"so\""} for n in range(3)]
    plain = write(tmp_path / "rows.jsonl", *rows)
    csv_text = "question,answer\r\n" + "".join(
        '"{}","{}"\r\n'.format(row["question"], row["answer"].replace('"', '""')) for row in rows
    )
    files = {
        "windows.jsonl": write(tmp_path / "w.jsonl", *rows, end="\r\n").read_bytes(),
        "bom.jsonl": b"\xef\xbb\xbf" + plain.read_bytes(),
        "rows.jsonl.gz": gzip.compress(plain.read_bytes()),
        "rows.jsonl.zst": zstandard.compress(plain.read_bytes()),
        "rows.json": json.dumps(rows, indent=2).encode(),
        "rows.csv": csv_text.encode(),
        "with space and ü.csv": csv_text.encode("utf-8-sig"),
    }
    wanted = [row.messages for row in dataset.read(str(plain)).rows]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert [row.messages for row in dataset.read(str(tmp_path / name)).rows] == wanted, name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row.messages for row in dataset.read(str(tmp_path / "rows.parquet")).rows] == wanted
    for uri in (f"file://{tmp_path}/with space and ü.csv", (tmp_path / "with space and ü.csv").as_uri()):
        assert len(dataset.read(uri).rows) == 3


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rows.jsonl", {"messages": PAIR})
    monkeypatch.chdir(tmp_path)
    assert dataset.read("rows.jsonl").uri == str(tmp_path / "rows.jsonl")
    assert "absolute" in refused("elsewhere.jsonl").advice


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"question": "a  b", "answer": "c"}, {"question": "a b", "answer": "c\n"}, {"question": "a b", "answer": "d"}]
    found = dataset.read(str(write(tmp_path / "r.jsonl", *rows)))
    assert (len(found.rows), found.duplicates) == (2, 1)


def test_a_broken_line_is_named_with_its_column(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"messages": PAIR}, {"messages": PAIR})
    path.write_text(path.read_text() + '\n{"messages": [}\n')
    error = refused(path)
    assert error.data["line"] == 4 and "line 4 is not JSON" in error.message and "column 15" in error.message
    assert error.data["file"] == str(path)


def test_all_bad_rows_are_counted_and_the_first_five_listed(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": " "}] * 7 + [{"question": "q", "answer": "a"}]
    error = refused(write(tmp_path / "r.jsonl", *rows))
    assert "7 of 8 rows" in error.message and "line 5" in error.message and "line 6" not in error.message
    assert "2 more" in error.message and "no text in field answer" in error.message
    assert error.data["bad_rows"] == 7 and error.data["column"] == "answer"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ask": "x", "id": 1}, "its fields are: ask, id"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant turn"),
        ({"messages": []}, "no turns"),
        ({"messages": [{"role": "judge", "content": "q"}]}, "messages[0].role is 'judge'"),
        ({"messages": [PAIR[0], PAIR[0], PAIR[1]]}, "must alternate"),
        ({"messages": [PAIR[0], {"role": "assistant", "content": None}]}, "messages[1].content is missing"),
        ({"instruction": "q", "output": 5}, "field output is a number"),
        ({"question": "q", "answer": "\ud800"}, "half a character"),
        ([1, 2], "is a list"),
    ],
)
def test_unusable_rows_say_why(tmp_path: Path, row: object, said: str) -> None:
    error = refused(write(tmp_path / "r.jsonl", {"messages": PAIR}, row))
    assert said in error.message and error.data["line"] == 2


def test_broken_json_lists_and_csv_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[\n {"question": "q", "answer": "a"},\n {"question" "q"}\n]')
    error = refused(tmp_path / "r.json")
    assert error.data["line"] == 3 and "column" in error.message
    (tmp_path / "r.json").write_text('[{"question": "q", "answer": "a"}')
    assert refused(tmp_path / "r.json").data["line"] == 1
    (tmp_path / "r.csv").write_text('question,answer\nq,a\n"q\nq",a,b\n')
    error = refused(tmp_path / "r.csv")
    assert error.data["line"] == 3 and "3 cells" in error.message


def test_files_that_cannot_be_rows_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.jsonl").message
    assert "folder" in refused(tmp_path).message
    for name, content, said in (
        ("empty.jsonl", b"", "is empty"), ("blank.jsonl", b"\n \n", "is empty"), ("none.json", b"[]", "no rows"),
        ("head.csv", b"question,answer\n", "no rows"), ("cut.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], "compressed"),
        ("cut.jsonl.zst", zstandard.compress(b"{}" * 99)[:-3], "compressed"), ("bad.parquet", b"PAR1xxxx", "parquet"),
        ("x.txt", b"Why? So.", "no known form"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert said in refused(tmp_path / name).message, name
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "caf\xe9"}\n')
    error = refused(tmp_path / "latin.jsonl")
    assert "not UTF-8" in error.message and error.data["line"] == 2
    assert "cannot be read" in refused("nosuch://bucket/rows.jsonl").message


@pytest.mark.parametrize(
    "text",
    ["كيف أنام مبكرًا؟", "怎么早点睡？", "👩‍👩‍👧‍👦 🇩🇪 👍🏽", "Zoe\u0308 cafe\u0301 o\u0337", "a\u2028b\u2029c\u00a0d", "שלום \u200f123", "\U00020000𝒳", "q\u0000\ufffd"],
)  # fmt: skip
def test_text_of_every_script_is_kept_character_by_character(tmp_path: Path, text: str) -> None:
    rows = [{"question": text, "answer": f"{text}\n{text}"}]
    lines = json.dumps(rows[0], ensure_ascii=False)
    csv_text = 'question,answer\r\n"{}","{}"\r\n'.format(text, rows[0]["answer"])
    for name, content in {
        "rows.jsonl": lines + "\n", "bom.jsonl": f"\ufeff{lines}\r\n", "escaped.jsonl": json.dumps(rows[0]),
        "rows.json": json.dumps(rows, ensure_ascii=False), "rows ü '1'.csv": f"\ufeff{csv_text}",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content.encode())
        [row] = dataset.read(str(tmp_path / name)).rows
        assert (row.question, row.answer) == (text, rows[0]["answer"]), name


def test_broken_lines_are_counted_alike_with_windows_line_ends_and_a_bom(tmp_path: Path) -> None:
    good = json.dumps({"question": "Why?", "answer": "So."})
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([good, "", good, "{cut", good]).encode())
    error = refused(path)
    assert error.data["line"] == 4 and "line 4 is not JSON" in error.message


@pytest.mark.parametrize(
    "name", ["C:\\data\\sleep.jsonl", "c:/data/sleep.jsonl", "\\\\server\\share\\sleep.jsonl", "file:///C:/data/sleep.jsonl"]
)
def test_a_windows_path_is_told_to_be_one(name: str) -> None:
    error = refused(name)
    assert "Windows path" in error.message and name in error.message and "/mnt/c" in error.advice


SEEDS = [json.dumps({"messages": PAIR}) + "\n", json.dumps([{"question": "q\n1", "answer": "é"}] * 3, indent=1), 'question,answer\n"q, x","a\nb"\nq,a\n']


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SEEDS), st.sampled_from(["", "gz", "zst"]), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 9)), max_size=4))
def test_no_damage_to_a_file_is_anything_but_an_error_with_its_name(
    tmp_path: Path, text: str, packed: str, damages: list[tuple[float, bytes, int]]
) -> None:
    pack = {"gz": gzip.compress, "zst": zstandard.compress, "": bytes}[packed]
    content = bytearray(pack(text.encode()))
    for place, new, lost in damages:
        at = int(place * len(content))
        content[at : at + lost] = new
    path = tmp_path / "rows.data"
    path.write_bytes(content)
    try:
        assert dataset.read(str(path)).rows
    except LabError as error:
        assert error.code == Code.BAD_DATA and str(path) in error.message and error.advice
