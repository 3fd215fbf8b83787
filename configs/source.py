"""A configuration file: where it was found, its content, and errors that name file, key and place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from protocol import Code, LabError

SHIPPED = Path(__file__).resolve().parent
"""The folder of the files that come with the lab."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class _OnceLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error; PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Source:
    """The parsed content of one configuration file."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, name: str, folder: Path | None = None) -> Source:
        """Read `name` from `folder`, or the shipped file where the folder has none.

        Raises:
            LabError: CONFIGURATION; the folder or file cannot be read, or is not YAML or JSON (with line and column).
        """
        if folder is not None and not folder.is_dir():
            raise LabError(
                Code.CONFIGURATION, f"the configuration folder {folder} does not exist.",
                advice="Correct MEETARA_CONFIGS or the flag that named it.", file=str(folder),
            )  # fmt: skip
        path = SHIPPED / name
        if folder is not None and (folder / name).exists():
            path = folder / name
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a BOM
        except UnicodeDecodeError as error:
            raise LabError(
                Code.CONFIGURATION, f"{path} is not UTF-8: {error.reason} at byte {error.start}.",
                advice="Save it as UTF-8.", file=str(path),
            ) from error  # fmt: skip
        except OSError as error:
            raise LabError(
                Code.CONFIGURATION, f"{path} cannot be read: {error.strerror}.",
                advice="Restore the file or make it readable.", file=str(path),
            ) from error  # fmt: skip
        return cls.parse(path, text)

    @classmethod
    def parse(cls, path: Path, text: str) -> Source:
        """Parse a file's text by the ending of its name.

        Raises:
            LabError: CONFIGURATION, with line and column.
        """
        try:
            content = _json(text) if path.suffix == ".json" else yaml.load(text, _OnceLoader)
        except json.JSONDecodeError as error:
            raise _syntax(path, "JSON", error.msg, error.lineno, error.colno) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise _syntax(path, "YAML", error.problem or "unreadable", line, column) from error
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            raise _syntax(path, "YAML", error.reason, line, column) from error
        if not isinstance(content, dict):
            raise LabError(
                Code.CONFIGURATION, f"{path} holds no keys at its top level.",
                advice=f"Compare it with the shipped {path.name}.", file=str(path),
            )  # fmt: skip
        return cls(path, content)

    def wrong(self, key: str, reason: str, advice: str = "") -> LabError:
        """Return the error for a bad value; `key` is its dotted path."""
        return LabError(
            Code.CONFIGURATION, f"{self.path}: {key}: {reason}.",
            advice=advice or f"Correct the value in {self.path.name}.", file=str(self.path), field=key,
        )  # fmt: skip

    def check(self, model: type[ModelT], content: Any = None, at: str = "") -> ModelT:
        """Validate the content, or a part of it that stands at the dotted path `at`.

        Raises:
            LabError: CONFIGURATION, naming the first bad key and listing all.
        """
        try:
            return model.model_validate(self.content if content is None else content)
        except ValidationError as error:
            reasons = []
            for item in error.errors():
                key = ".".join(part for part in (at, *map(str, item["loc"])) if part) or "(top level)"
                given = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" (it is {item['input']!r})"
                reasons.append((key, item["msg"].removeprefix("Value error, ") + given))
            more = "".join(f"; {key}: {reason}" for key, reason in reasons[1:])
            raise self.wrong(reasons[0][0], reasons[0][1] + more) from error


def _syntax(path: Path, form: str, problem: str, line: int, column: int) -> LabError:
    return LabError(
        Code.CONFIGURATION, f"{path} is not {form}: {problem} at line {line}, column {column}.",
        advice="Correct that line.", file=str(path), line=line, column=column,
    )  # fmt: skip


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                place = text.rfind(json.dumps(key))
                raise json.JSONDecodeError(f"the key {key!r} stands twice", text, max(place, 0))
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=once)
