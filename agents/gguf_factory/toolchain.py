"""llama.cpp's converter: taken out of the pinned source package, checked by hash, found again. Also the doctor.

    python -m agents.gguf_factory.toolchain install [SDIST]   # without SDIST: pip downloads the pinned one
    python -m agents.gguf_factory.toolchain check
    python -m agents.gguf_factory.toolchain doctor [--json]

The wheel of llama-cpp-python lacks the converter, and PyPI's gguf does not fit it though it has the same version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path, PurePosixPath

from protocol import Code, LabError

VERSION = "0.3.36"
"""The llama-cpp-python whose converter this is; the same pin stands in pyproject.toml."""

LIST_SHA256 = "cca3e5eb1d9c1440092304b3e334417e7ee7b8904552071712597f1da0e600fc"
"""Sha256 of the hash list of VERSION's converter. Another value means another, untested converter."""

HASH_LIST = "SHA256SUMS"
WANTED = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "LICENSE",
    "conversion/",
    "gguf-py/gguf/",
    "gguf-py/LICENSE",
)
ADVICE = "Run `make setup`, which takes it out of the pinned source package."


def folder() -> Path:
    """Return where the converter belongs: with the environment whose llama-cpp-python it fits."""
    return Path(sys.prefix) / "share" / "meetara" / "llama.cpp"


def install(sdist: Path, target: Path | None = None) -> Path:
    """Take the converter out of llama-cpp-python's source package.

    Args:
        sdist: llama_cpp_python-<VERSION>.tar.gz.
        target: folder to write, default `folder()`; replaced as a whole, or left alone on an error.

    Raises:
        LabError: TOOLCHAIN, the package cannot be read or holds another converter than the pinned one.
    """
    target = target or folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llama.cpp-") as temporary:
        fresh = Path(temporary) / "llama.cpp"
        try:
            _extract(sdist, fresh)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise LabError(
                Code.TOOLCHAIN, f"{sdist} cannot be read as a source package: {error}.",
                advice=f"Give llama_cpp_python-{VERSION}.tar.gz as `pip download --no-binary` leaves it.", file=str(sdist),
            ) from error  # fmt: skip
        listing = hash_list(fresh)
        (fresh / HASH_LIST).write_text(listing, encoding="ascii")
        _compare(listing, sdist)
        if target.exists():
            target.rename(Path(temporary) / "old")
        fresh.rename(target)
    return target


def download(target: Path) -> Path:
    """Let pip fetch the pinned source package into a folder, from whatever index pip is set up for.

    Raises:
        LabError: TOOLCHAIN with pip's last lines.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
        "--dest", str(target), f"llama-cpp-python=={VERSION}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(target.glob("*.tar.gz"))
    if done.returncode != 0 or not found:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LabError(
            Code.TOOLCHAIN, f"pip did not fetch llama-cpp-python {VERSION}: {tail}",
            advice="Fetch the source package by other means and run `python -m agents.gguf_factory.toolchain install FILE`.",
        )  # fmt: skip
    return found[0]


def check(target: Path | None = None) -> Path:
    """Return the converter's folder after hashing every file in it.

    Raises:
        LabError: TOOLCHAIN, it is missing, incomplete or changed.
    """
    target = target or folder()
    if not (target / "convert_hf_to_gguf.py").is_file():
        raise LabError(Code.TOOLCHAIN, f"llama.cpp's converter is not in {target}.", advice=ADVICE, file=str(target))
    _compare(hash_list(target), target)
    return target


def converter() -> Path:
    """Return the checked convert_hf_to_gguf.py.

    Raises:
        LabError: TOOLCHAIN, as `check`.
    """
    return check() / "convert_hf_to_gguf.py"


def environment(target: Path) -> dict[str, str]:
    """Return the variables under which the converter's own gguf package comes first."""
    return {
        "PYTHONPATH": os.pathsep.join([str(target / "gguf-py"), str(target)]),
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": "1",  # it copies tensors; torch's spinning threads would only be in the way
    }


def hash_list(target: Path) -> str:
    """Return `sha256  path` lines of all files, sorted by path; compiled files and the list itself are left out."""
    lines = []
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and name != HASH_LIST:
            lines.append((name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(lines))


def _extract(sdist: Path, target: Path) -> None:
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "llama.cpp") or not member.isfile():
                continue
            name = "/".join(parts[3:])
            if ".." in parts or not name.startswith(WANTED):
                continue
            content = archive.extractfile(member)
            if content is None:
                continue
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


def _compare(listing: str, place: Path) -> None:
    if (found := hashlib.sha256(listing.encode("ascii")).hexdigest()) != LIST_SHA256:
        raise LabError(
            Code.TOOLCHAIN,
            f"the converter in {place} is not the one of llama-cpp-python {VERSION} "
            f"(hash list {found[:16]}, wanted {LIST_SHA256[:16]}).",
            advice=ADVICE, file=str(place),
        )  # fmt: skip


def installed_version() -> str | None:
    """Return the installed llama-cpp-python's version, or None."""
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="toolchain", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install").add_argument("sdist", nargs="?", type=Path)
    commands.add_parser("check")
    commands.add_parser("doctor").add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.command == "install" and options.sdist:
            print(install(options.sdist))
        elif options.command == "install":
            with tempfile.TemporaryDirectory() as temporary:
                print(install(download(Path(temporary))))
        elif options.command == "check":
            print(check())
        else:
            from agents.gguf_factory.doctor import doctor

            checks = doctor()
            if options.json:
                print(json.dumps([asdict(item) for item in checks], indent=1))
            else:
                for item in checks:
                    print(f"{'ok  ' if item.ok else 'BAD '} {item.name}: {item.value} {item.advice}".rstrip())
            return 0 if all(item.ok for item in checks) else 1
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
