"""Where data sets lie: paths, archives, URIs and hubs; what is not reachable says how to get it."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from agents.gguf_factory import dataset, place
from protocol import Code, LabError

PAIR = b'{"question": "What is tea?", "answer": "A drink."}\n'


def refused(uri: str | Path) -> LabError:
    with pytest.raises(LabError) as caught:
        dataset.read(str(uri))
    assert caught.value.code == Code.BAD_DATA and caught.value.data["field"] == "dataset" and caught.value.data["file"]
    return caught.value


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_md", ".md"), content)
    return path


def test_the_only_file_of_rows_in_a_zip_is_read_and_errors_name_it_inside(tmp_path: Path) -> None:
    path = archive(tmp_path / "rows.zip", README_md=b"hi", data__rows_jsonl=PAIR * 2)
    found = dataset.read(str(path))
    assert len(found.rows) == 1 and found.duplicates == 1 and found.uri == f"zip://data/rows.jsonl::{path}"
    assert found.sha256 == dataset.digest(str(path)), "of the file as it lies there"
    error = refused(archive(tmp_path / "bad.zip", rows_jsonl=PAIR + b"{cut\n"))
    assert f"zip://rows.jsonl::{tmp_path}/bad.zip has 1 of 2 rows" in error.message and error.data["line"] == 2
    two = archive(tmp_path / "two.zip", a_jsonl=PAIR, b_jsonl=PAIR)
    error = refused(two)
    assert "2 files of rows" in error.message and f"zip://b.jsonl::{two}" in error.advice
    assert len(dataset.read(f"zip://b.jsonl::{two}").rows) == 1
    assert len(dataset.read(str(archive(tmp_path / "t.zip", train_jsonl=PAIR, test_jsonl=PAIR))).rows) == 1, "the training split"


def test_archives_that_are_something_else_or_damaged_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as file:
        file.writestr("[Content_Types].xml", "x")
    assert "Excel" in refused(tmp_path / "book.xlsx").message
    assert "no jsonl" in refused(archive(tmp_path / "none.zip", README_md=b"x")).message
    whole = archive(tmp_path / "cut.zip", rows_jsonl=PAIR).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert "not a whole zip" in refused(tmp_path / "cut.zip").message
    locked = bytearray(whole)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(magic) + offset] |= 1  # the flag of an encrypted member
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "is encrypted" in refused(tmp_path / "locked.zip").message
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz") as tar:
        (tmp_path / "rows.jsonl").write_bytes(PAIR)
        tar.add(tmp_path / "rows.jsonl", "rows.jsonl")
    assert "tar archive" in refused(tmp_path / "rows.tar.gz").message
    assert len(dataset.read(f"tar://rows.jsonl::{tmp_path}/rows.tar.gz").rows) == 1


def test_uris_are_read_through_fsspec(tmp_path: Path) -> None:
    with fsspec.open("memory://rows.jsonl.gz", "wb") as file:
        file.write(gzip.compress(PAIR))
    found = dataset.read("memory://rows.jsonl.gz")
    assert len(found.rows) == 1 and found.uri == "memory://rows.jsonl.gz"
    rows = pyarrow.Table.from_pylist([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}])
    with fsspec.open("memory://rows.parquet", "wb") as file:
        pyarrow.parquet.write_table(rows, file)
    error = refused("memory://rows.parquet")
    assert "row 1 field messages[0]" not in error.message and "row 1 field messages[1].content is missing" in error.message
    assert error.data["row"] == 1


def test_what_is_not_reachable_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install gcsfs" in refused("gs://bucket/rows.jsonl").advice
    assert "network" in refused("ftp://127.0.0.1:1/rows.jsonl").advice
    assert "not known" in refused("nosuch://bucket/rows.jsonl").message


def test_parquet_without_its_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "q", "answer": "a"}]), tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = refused(tmp_path / "rows.parquet")
    assert "pyarrow is not installed" in error.message and "pip install 'meetara-lab[parquet]'" in error.advice


def test_sizes_are_bounded_by_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(PAIR * 100))
    monkeypatch.setenv(place.LIMIT, "1000")
    error = refused(tmp_path / "rows.jsonl.gz")
    assert "more than 1,000 bytes when it is unpacked" in error.message and place.LIMIT in error.advice
    with fsspec.open("memory://big.jsonl", "wb") as file:
        file.write(PAIR * 100)
    assert "is more than 1,000 bytes" in refused("memory://big.jsonl").message
    (tmp_path / "rows.jsonl").write_bytes(PAIR * 100)
    assert "is more than 1,000 bytes" in refused(tmp_path / "rows.jsonl").message
    monkeypatch.setenv(place.LIMIT, "much")
    with pytest.raises(LabError) as caught:
        dataset.read("memory://big.jsonl")
    assert caught.value.code == Code.CONFIGURATION


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(PAIR)
    with pytest.raises(LabError, match="changed while it was read"), dataset.scan(str(path)) as found:
        list(found)
        path.write_bytes(PAIR * 2)
        os.utime(path, ns=(1, 1))


def test_a_data_set_of_the_hubs_cache_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--someone--rows"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    snapshot = folder / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "README.md").write_text("x")
    (snapshot / "dataset_infos.json").write_text("{}")
    (snapshot / "data" / "train.jsonl").write_bytes(PAIR)
    (snapshot / "data" / "test.jsonl").write_bytes(PAIR)
    assert dataset.read("someone/rows").uri == str(snapshot / "data" / "train.jsonl")


class Hub(http.server.BaseHTTPRequestHandler):
    """What a hub answers about one data set."""

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = ["README.md", "data/train.jsonl", "data/test.jsonl"]
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": name, "size": len(PAIR), "oid": "a" * 40} for name in files]
            self._answer(json.dumps(entries).encode())
        elif self.path.startswith("/api/datasets/someone/rows"):
            self._answer(json.dumps({"id": "someone/rows", "sha": "b" * 40, "siblings": [{"rfilename": name} for name in files]}).encode())
        elif "/resolve/" in self.path and "train" in self.path:
            self._answer(PAIR, ETag='"x"', X_Repo_Commit="b" * 40)
        else:
            self.send_error(404)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import huggingface_hub.constants as constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    yield address
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_of_a_hub_is_read_by_its_name(hub: str) -> None:
    found = dataset.read("someone/rows")
    assert found.uri == "hf://datasets/someone/rows/data/train.jsonl" and len(found.rows) == 1


def test_a_hub_that_has_it_not_or_is_away_says_how_to_fetch_it(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    for _ in range(2):
        error = refused("someone/else")
        assert "cannot be asked of the hub" in error.message and "hf download someone/else --repo-type dataset" in error.advice
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
