"""Write the JSON Schemas of all messages to a folder, or tell which of them have drifted.

    python -m protocol.schema docs/schemas          # write
    python -m protocol.schema docs/schemas --check  # exit 1 and name the files that differ
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from protocol.envelope import MCPMessage, Reply
from protocol.job import JobEvent, JobSnapshot, Progress
from protocol.machine import Card, Presence, ProviderStatus
from protocol.methods import TABLE
from protocol.money import BudgetAlert, BudgetMode, EmergencyReport, Freeze

TOPIC_PAYLOADS: tuple[type[BaseModel], ...] = (
    MCPMessage, Reply, JobSnapshot, JobEvent, Progress, Card, Presence, ProviderStatus, BudgetAlert,
    BudgetMode, EmergencyReport, Freeze,
)  # fmt: skip


def documents() -> dict[str, str]:
    """Return file name to text of every schema document."""
    files = {f"{model.__name__}.json": model.model_json_schema() for model in TOPIC_PAYLOADS}
    for method in TABLE:
        files[f"{method.name}.json"] = {
            "title": method.name,
            "description": f"params and result of {method.name}, served by {method.role}",
            "params": method.params.model_json_schema(),
            "result": method.result.model_json_schema(),
        }
    return {name: json.dumps(schema, indent=1, sort_keys=True) + "\n" for name, schema in sorted(files.items())}


def drifted(folder: Path) -> list[str]:
    """Return the names of files that are missing, different, or not made by `documents`."""
    wanted = documents()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    if "--check" in arguments:
        names = drifted(folder)
        for name in names:
            print(f"{folder / name} has drifted; run: python -m protocol.schema {folder}", file=sys.stderr)
        return 1 if names else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in drifted(folder):
        (folder / name).unlink(missing_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
