from __future__ import annotations

import ctypes
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import llama_cpp
import pytest

from agents.gguf_factory import doctor, toolchain
from protocol import Code, LabError
from tests.agents.gguf_factory.bases import ROOT


def sdist(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/vendor/llama.cpp/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_installed_converter_is_the_pinned_one() -> None:
    assert toolchain.converter().name == "convert_hf_to_gguf.py"
    assert (toolchain.folder() / toolchain.HASH_LIST).read_text() == toolchain.hash_list(toolchain.folder())


def test_a_missing_converter_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="make setup") as caught:
        toolchain.check(tmp_path / "nothing")
    assert caught.value.code is Code.TOOLCHAIN


@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_a_changed_converter_is_refused(tmp_path: Path, change: str) -> None:
    copy = tmp_path / "llama.cpp"
    shutil.copytree(toolchain.folder(), copy)
    assert toolchain.check(copy) == copy
    module = copy / "conversion" / "llama.py"
    if change == "edit":
        module.write_text(module.read_text().replace("permute", "permute ", 1))
    elif change == "remove":
        module.unlink()
    else:
        (copy / "conversion" / "own.py").write_text("")
    with pytest.raises(LabError, match="is not the one of llama-cpp-python"):
        toolchain.check(copy)


def test_another_source_package_is_refused_and_leaves_the_installed_converter_alone(tmp_path: Path) -> None:
    target = tmp_path / "share" / "llama.cpp"
    target.mkdir(parents=True)
    (target / "convert_hf_to_gguf.py").write_text("old")
    other = sdist(tmp_path / "other.tar.gz", {"convert_hf_to_gguf.py": b"print()", "../../escape.py": b"x"})
    with pytest.raises(LabError, match="is not the one of llama-cpp-python"):
        toolchain.install(other, target)
    assert [path.name for path in target.parent.iterdir()] == ["llama.cpp"]
    assert (target / "convert_hf_to_gguf.py").read_text() == "old"


def test_what_is_no_source_package_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"not a package")
    with pytest.raises(LabError, match="cannot be read as a source package"):
        toolchain.install(broken, tmp_path / "llama.cpp")


def test_the_doctor_finds_a_working_toolchain() -> None:
    command = [sys.executable, "-m", "agents.gguf_factory.toolchain", "doctor", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    checks = json.loads(done.stdout)
    assert [check["name"] for check in checks] == ["llama_cpp", "structures", "quantiser", "converter", "round_trip"]
    assert done.returncode == 0 and all(check["ok"] for check in checks), checks


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the size of a structure is measured on x86-64")
def test_the_doctor_measures_the_structures_sizes_in_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ctypes.Structure):
        _fields_: ClassVar = [("before", ctypes.c_int64), *llama_cpp.llama_model_quantize_params._fields_]

    assert doctor._structures().ok
    monkeypatch.setattr(llama_cpp, "llama_model_quantize_params", Shifted)
    found = doctor._structures()
    assert not found.ok and found.value == "llama_model_quantize_params 72, really 64 bytes" and "reinstall" in found.advice


def test_the_doctor_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "folder", lambda: tmp_path / "nothing")
    checks = {check.name: check for check in doctor.doctor()}
    assert not checks["converter"].ok and "make setup" in checks["converter"].advice
    assert not checks["round_trip"].ok
    assert checks["quantiser"].ok
