"""A vendor's OpenAPI document, and whether an exchange follows it."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from openapi_schema_validator import OAS30Validator, OAS31Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4, DRAFT202012

from tests.clouds.http import Exchange
from tests.conftest import PROJECT

PLACE = "urn:specification"


def folder() -> Path | None:
    """Return the folder with the vendors' documents, which are no part of the project; None: it is not here."""
    shared = Path(os.environ.get("MEETARA_SHARED_DATA") or PROJECT.parent / "shared" / "data")
    return shared / "openapi" if (shared / "openapi").is_dir() else None


class Specification:
    """One document.

    Args:
        prefix: what stands before its paths in a request.
        silent: statuses that the vendor sends though the document does not tell them; their bodies are not checked.
        loose: whether fields that the document does not know are let through, since it is older than the API.
    """

    def __init__(self, path: Path, *, prefix: str = "", silent: frozenset[int] = frozenset(), loose: bool = False) -> None:
        text = path.read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._document: dict[str, Any] = json.loads(text) if path.suffix == ".json" else yaml.load(text, loader)
        self._prefix, self._silent = prefix, silent
        if loose:
            _open(self._document)
        old = self._document["openapi"].startswith("3.0")
        self._validator = OAS30Validator if old else OAS31Validator
        self._registry: Registry[Any] = Registry().with_resource(PLACE, (DRAFT4 if old else DRAFT202012).create_resource(self._document))

    def knows(self, exchange: Exchange) -> bool:
        """Tell whether the path is one of this document."""
        return self._find(exchange) is not None

    def problems(self, exchange: Exchange) -> list[str]:
        """Return what is wrong with a request and its answer."""
        return [f"{exchange.request.method} {exchange.request.path}: {problem}" for problem in self._problems(exchange)]

    def _problems(self, exchange: Exchange) -> Iterator[str]:
        request, response = exchange.request, exchange.response
        found = self._find(exchange)
        if found is None:
            yield "the document has no such path"
            return
        path, values = found
        at = ("paths", path, request.method.lower())
        operation = self._document["paths"][path].get(request.method.lower())
        if operation is None:
            yield "the document has no such method"
            return
        yield from self._query(at, operation, request.query, values)
        if "requestBody" in operation:
            body_at, body = self._follow((*at, "requestBody"))
            if request.body is not None:
                yield from self._valid((*body_at, "content", "application/json", "schema"), request.body, "request")
            elif body.get("required"):
                yield "request: the body is missing"
        elif request.body is not None:
            yield "request: a body where none belongs"
        yield from self._answer(at, operation, response)

    def _query(
        self, at: tuple[str, ...], operation: dict[str, Any], query: dict[str, str], values: dict[str, str]
    ) -> Iterator[str]:
        known = {}
        shared = self._document["paths"][at[1]].get("parameters", [])
        for where, several in (((*at, "parameters"), operation.get("parameters", [])), ((*at[:2], "parameters"), shared)):
            for index in range(len(several)):
                parameter_at, parameter = self._follow((*where, str(index)))
                known[parameter["name"]] = parameter
                given = {"query": query, "path": values}.get(parameter["in"], {})
                if parameter["name"] in given:
                    schema_at = (*parameter_at, "schema")
                    yield from self._valid(schema_at, self._typed(schema_at, given[parameter["name"]]), f"parameter {parameter['name']}")
                elif parameter.get("required"):
                    yield f"parameter {parameter['name']} is missing"
        yield from (f"parameter {name} is unknown" for name in query if name not in known)

    def _answer(self, at: tuple[str, ...], operation: dict[str, Any], response: Any) -> Iterator[str]:
        status = str(response.status)
        if status not in operation["responses"]:
            if response.status in self._silent:
                return
            if "default" not in operation["responses"]:
                yield f"answer: status {status} is not in the document"
                return
            status = "default"
        answer_at, answer = self._follow((*at, "responses", status))
        content = answer.get("content")
        if content is None:
            if response.body is not None and response.status not in self._silent and 200 <= response.status < 300:
                yield "answer: a body where none belongs"
        elif response.kind not in content:
            yield f"answer: its type is {response.kind}, not {', '.join(content)}"
        elif "schema" in content[response.kind]:
            yield from self._valid((*answer_at, "content", response.kind, "schema"), response.body, f"answer {status}")

    def _valid(self, at: tuple[str, ...], value: object, what: str) -> Iterator[str]:
        for error in self._checker(at).iter_errors(value):
            yield f"{what}: {'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message[:200]}"

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a session has four documents
    def _checker(self, at: tuple[str, ...]) -> Any:
        pointer = "".join("/" + quote(part.replace("~", "~0").replace("/", "~1"), safe="~") for part in at)
        return self._validator({"$ref": f"{PLACE}#{pointer}"}, registry=self._registry)

    def _follow(self, at: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
        """Return where something stands, behind a reference, and what it is."""
        node: Any = self._document
        for part in at:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if isinstance(node, dict) and "$ref" in node:
            return self._follow(tuple(node["$ref"].removeprefix("#/").split("/")))
        return at, node

    def _typed(self, at: tuple[str, ...], text: str) -> object:
        """Return a parameter as what its schema says that it is."""
        _, schema = self._follow(at)
        kind = schema.get("type")
        if kind == "integer" and re.fullmatch(r"-?\d+", text):
            return int(text)
        if kind == "boolean" and text in ("true", "false"):
            return text == "true"
        return text.split(",") if kind == "array" else text

    def _find(self, exchange: Exchange) -> tuple[str, dict[str, str]] | None:
        if not exchange.request.path.startswith(self._prefix):
            return None
        path = exchange.request.path.removeprefix(self._prefix)
        if path in self._document["paths"]:
            return path, {}
        for template in self._document["paths"]:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
            if match := re.fullmatch(pattern, path):
                return template, match.groupdict()
        return None


def _open(node: Any) -> None:
    """Let every object have further fields, and every enumeration of a string further words."""
    if isinstance(node, dict):
        if node.get("additionalProperties") is False:
            del node["additionalProperties"]
        if node.get("type") == "string":
            node.pop("enum", None)
        for value in node.values():
            _open(value)
    elif isinstance(node, list):
        for value in node:
            _open(value)
