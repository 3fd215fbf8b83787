"""The guides cannot drift from the code: snippets run or at least parse, commands and options exist, links resolve."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from configs import GATES, Parameters, Settings
from meetara.cli import app
from protocol import METHODS, Code, TrainRequest
from protocol.envelope import decode_call
from protocol.topics import TABLE, Topics

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SECONDS = 120.0
"""For one executed snippet: imports on a loaded machine take most of it."""


@dataclass(frozen=True)
class Snippet:
    place: str
    language: str
    run: bool
    text: str


def snippets(path: Path) -> list[Snippet]:
    text = path.read_text(encoding="utf-8")
    return [
        Snippet(
            f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[1],
            "run" in match[2].split(), match[3],
        )
        for match in FENCE.finditer(text)
    ]  # fmt: skip


ALL = [snippet for path in GUIDES for snippet in snippets(path)]
BASH = [snippet for snippet in ALL if snippet.language == "bash"]
PYTHON = [snippet for snippet in ALL if snippet.language == "python"]


def place(snippet: Snippet) -> str:
    return snippet.place


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Return place and arguments of every call of a program in the bash snippets."""
    found = []
    for snippet in BASH:
        for line in snippet.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words = words[1:]
            if words and words[0] == program:
                found.append((f"{snippet.place}: {line}", words[1:]))
    return found


def published(program: str) -> list[tuple[str, str, str | None]]:
    """Return place, topic and body of every call of a Mosquitto tool."""
    found = []
    for where, words in commands(program):
        body = words[words.index("-m") + 1] if "-m" in words else None
        found.append((where, words[words.index("-t") + 1], body))
    return found


def test_guides_hold_snippets_of_each_kind() -> None:
    assert len(BASH) >= 8
    assert sum(snippet.run for snippet in PYTHON) >= 2
    assert {words[0] for _, words in commands("meetara")} >= {"up", "down", "train", "watch", "jobs", "job", "cancel", "budget"}


@pytest.mark.parametrize("snippet", BASH, ids=place)
def test_shell_snippets_are_syntactically_right(snippet: Snippet) -> None:
    done = subprocess.run(["bash", "-n"], input=snippet.text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", PYTHON, ids=place)
def test_python_snippets_compile(snippet: Snippet) -> None:
    compile(snippet.text, snippet.place, "exec")


@pytest.mark.parametrize("snippet", [snippet for snippet in [*PYTHON, *BASH] if snippet.run], ids=place)
def test_marked_snippets_run(snippet: Snippet, tmp_path: Path) -> None:
    program = [sys.executable, "-c"] if snippet.language == "python" else ["bash", "-euc"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "MEETARA_HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(
        [*program, snippet.text], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_in_the_guides_exists() -> None:
    group = typer.main.get_command(app)
    for where, words in commands("meetara"):
        if words[0].startswith("-"):
            assert words[0] in {"--help", *(name for option in group.params for name in option.opts)}, where
            continue
        assert words[0] in group.commands, where  # type: ignore[attr-defined]
        command, rest = group.commands[words[0]], list(words[1:])  # type: ignore[attr-defined]
        if isinstance(command, typer.core.TyperGroup) and not (command.invoke_without_command and (rest or ["-"])[0].startswith("-")):
            assert rest[0] in command.commands, where
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)  # raises for an unknown option, a wrong value, a missing one


@pytest.mark.parametrize("program", ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"])
def test_every_topic_in_the_guides_is_in_the_table(program: str) -> None:
    calls = published(program)
    assert calls
    patterns = [re.sub(r"\{\w+\}", "[^/]+", topic.template) for topic in TABLE]
    for where, topic, _ in calls:
        rest = "/".join(Topics("lab").levels(topic))
        assert any(re.fullmatch(pattern, rest) for pattern in patterns), where


def test_every_published_body_is_what_its_method_takes() -> None:
    bodies = [call for program in ("mosquitto_pub", "mosquitto_rr") for call in published(program)]
    for where, topic, body in bodies:
        assert body is not None, where
        *_, role, method = Topics("lab").levels(topic)
        assert METHODS[method].role == role, where
        METHODS[method].params.model_validate(decode_call(method, body.encode()).data)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert ROOT in [linked, *linked.parents], target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Return a document's heading anchors as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_configuration_names_every_setting_and_environment_variable() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    used = {f"MEETARA_{name.upper()}" for name in Settings.model_fields}
    for folder in ("protocol", "bus", "agents", "configs", "meetara", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r"\bMEETARA_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
    missing = sorted(name for name in used if name not in text)
    assert not missing
    assert not [name for name in Parameters.model_fields if f"`{name}`" not in text]
    for name in ("provider_configs.json", "budget_settings.json", "proven_parameters.json"):
        keys = json.loads((ROOT / "configs" / name).read_text(encoding="utf-8"))
        for key in keys.get("local", keys):
            assert f"`{key}`" in text, key


def test_factory_defines_every_gate() -> None:
    text = (ROOT / "docs/factory.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (at least|at most|below) \|", text, re.MULTILINE))
    assert rows.keys() == GATES.keys()
    for name, side in GATES.items():
        assert (rows[name] == "at least") is (side == "at least"), name


def test_bus_lists_every_topic_method_and_error() -> None:
    text = (ROOT / "docs/bus.md").read_text(encoding="utf-8")
    assert not [topic.template for topic in TABLE if f"| `{topic.template}` |" not in text]
    assert not [name for name in METHODS if f"`{name}`" not in text]
    codes = dict(re.findall(r"^\| (-\d+) \| (\w+) \|", text, re.MULTILINE))
    assert codes == {str(code.value): code.name for code in Code}


def test_constraints_pin_every_direct_package_exactly_and_name_no_index() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    extra = re.search(r"^dev = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert wanted and extra
    names = re.findall(r'"([A-Za-z0-9_.-]+)', wanted[1] + extra[1])
    assert len(names) > 20
    assert not [name for name in names if name.lower().replace("_", "-") not in pinned]


def test_request_of_the_readme_needs_only_domain_and_data() -> None:
    (where, _, body), *_ = [call for call in published("mosquitto_pub") if call[0].startswith("README")]
    request = TrainRequest.model_validate(json.loads(body or ""))
    assert request.domain == "sleep", where
