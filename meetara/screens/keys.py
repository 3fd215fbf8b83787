"""`meetara keys`: who may spend. A private key signs, and a lab trusts public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bus import keys
from configs import Settings
from meetara.door import OK, emit
from meetara.request import checked
from protocol import Code, LabError, TrainRequest, uuid7
from protocol.job import digest
from protocol.signature import submission


def make(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """Make the home's key, and let the lab of this home trust it.

    Raises:
        LabError: CONFLICT, there is a key, or the name is taken; INVALID_PARAMS, the name cannot be one.
    """
    folder = _folder(flags)
    if name in keys.trusted(folder):
        raise LabError(
            Code.CONFLICT, f"the key {name!r} is trusted already.", advice="Choose another --name.", field="name"
        )
    if not keys.NAME.fullmatch(name):
        raise LabError(Code.INVALID_PARAMS, f"{name!r} cannot be a key's name.", advice="Choose another --name.", field="name")
    key = keys.make(folder)
    keys.trust(folder, name, key.public)
    if as_json:
        emit({"name": name, "key": key.public, "file": str(folder / keys.PRIVATE)})
        return OK
    print(f"{key.public}\nThe lab of this home trusts it as {name}; requests from this home are signed from now on.")
    print(f"For a lab elsewhere its owner says there: meetara keys add {name} {key.public}")
    return OK


def add(flags: dict[str, Any], name: str, public: str, *, as_json: bool) -> int:
    """Let the lab trust a key that was made elsewhere."""
    keys.trust(_folder(flags), name, public)
    if as_json:
        emit({"name": name, "key": public})
    else:
        print(f"{name} may spend the lab's money.")
    return OK


def remove(flags: dict[str, Any], name: str, *, as_json: bool) -> int:
    """Let the lab trust a key no more; what it has signed goes on."""
    keys.distrust(_folder(flags), name)
    if as_json:
        emit({"removed": name})
    else:
        print(f"{name} may not spend the lab's money any more.")
    return OK


def list_keys(flags: dict[str, Any], *, as_json: bool) -> int:
    """List the keys that the lab trusts, and the home's own."""
    folder = _folder(flags)
    own, trusted = keys.own(folder), keys.trusted(folder)
    if as_json:
        emit({"own": own.public if own else None, "trusted": trusted})
        return OK
    for name, public in trusted.items():
        print(f"{public}  {name}{'  (this home)' if own is not None and own.public == public else ''}")
    if own is not None and own.public not in trusted.values():
        print(f"{own.public}  (this home; its lab does not trust it)")
    if own is None and not trusted:
        print("No keys: what costs money waits, and nobody can approve it. Make one: meetara keys make")
    return OK


def sign(flags: dict[str, Any], file: Path, id: str | None) -> int:
    """Print a request with its id and signature, as it can be published with any MQTT client.

    Raises:
        LabError: CONFIGURATION, the home has no key; INVALID_PARAMS, the file is no request.
    """
    settings = Settings.read(**flags)
    key = keys.own(settings.home / keys.FOLDER)
    if key is None:
        raise LabError(
            Code.CONFIGURATION, f"the home {settings.home} has no key to sign with.", advice="Make one: meetara keys make.",
            file=str(settings.home / keys.FOLDER),
        )  # fmt: skip
    try:
        fields = dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError) as error:
        raise LabError(
            Code.INVALID_PARAMS, f"{file} is no request: {error}.",
            advice='It holds an object such as {"domain": "sleep", "dataset": "file:///data/sleep.jsonl"}.', field="file",
        ) from error  # fmt: skip
    job = id or fields.pop("id", None) or uuid7()
    fields.pop("id", None)
    request = checked(TrainRequest, {**fields, "signature": None})
    signature = key.sign(submission(settings.lab, str(job), digest(request)))
    emit({**fields, "id": str(job), "signature": signature})
    return OK


def _folder(flags: dict[str, Any]) -> Path:
    return Settings.read(**flags).home / keys.FOLDER
