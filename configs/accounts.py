"""Accounts at vendors of machines: keys from the environment only, never from a file of the lab or a flag."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from protocol import Code, LabError

KEYS: Mapping[str, str] = {"lambda": "LAMBDA_API_KEY", "runpod": "RUNPOD_API_KEY", "vast": "VAST_API_KEY"}
"""Vendor to the variable of its key, the vendors' own names; with `_FILE` behind it the variable names a file instead."""
URLS: Mapping[str, str] = {
    "LAMBDA_API_URL": "https://cloud.lambda.ai/api/v1",
    "RUNPOD_API_URL": "https://api.runpod.io",
    "RUNPOD_SPOT_URL": "https://rest.runpod.io/v1",
    "VAST_API_URL": "https://console.vast.ai",
}
"""Where the vendors answer, from their specifications; a variable of the same name replaces one."""
LAMBDA_SSH_KEY = "LAMBDA_SSH_KEY_NAME"

SECRETS: frozenset[str] = frozenset(name + ending for name in KEYS.values() for ending in ("", "_FILE"))
"""Variables that only the orchestrator may have: no other agent, no worker, no training."""
PRINTABLE = re.compile(r"[\x21-\x7e]{1,4096}")
LARGEST_FILE = 65_536


@dataclass(frozen=True)
class Account:
    """What one needs to use a vendor.

    Attributes:
        urls: addresses by their variable's name.
        ssh_key: name of the SSH key at Lambda; None: the account's first one.
    """

    vendor: str
    key: SecretStr = field(repr=False)
    urls: Mapping[str, str]
    ssh_key: str | None = None


def read(environment: Mapping[str, str] | None = None) -> dict[str, Account]:
    """Return the accounts for which there is a key, by vendor.

    Raises:
        LabError: CONFIGURATION, naming the variable and never its value; a key that cannot be one, a file that cannot be read, an
            address that is none.
    """
    environment = os.environ if environment is None else environment
    found = {}
    for vendor, variable in KEYS.items():
        key = _key(variable, environment)
        if key is None:
            continue
        urls = {name: _url(name, environment) for name in URLS if name.startswith(f"{vendor.upper()}_")}
        ssh_key = environment.get(LAMBDA_SSH_KEY) or None if vendor == "lambda" else None
        found[vendor] = Account(vendor, SecretStr(key), urls, ssh_key)
    return found


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a process that must not have the keys."""
    return {name: value for name, value in environment.items() if name.upper() not in SECRETS}


def _key(variable: str, environment: Mapping[str, str]) -> str | None:
    key, file = environment.get(variable, "").strip(), environment.get(f"{variable}_FILE", "")
    if key and file:
        raise _wrong(variable, f"{variable} and {variable}_FILE are both set", "Unset one of them.")
    if file:
        variable = f"{variable}_FILE"
        try:
            with Path(file).expanduser().open(encoding="ascii") as opened:
                key = opened.read(LARGEST_FILE).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise _wrong(variable, f"{variable}: {file} cannot be read: {reason}", "Correct the path or the file.") from None
        if not key:
            raise _wrong(variable, f"{variable}: {file} is empty", "Put the key into it.")
    if not key:
        return None
    if not PRINTABLE.fullmatch(key):
        raise _wrong(variable, f"{variable} holds blanks or signs that no key has", "Copy the key again, in one line.")
    return key


def _url(variable: str, environment: Mapping[str, str]) -> str:
    url = environment.get(variable) or URLS[variable]
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.username is None
    except ValueError:
        parts, good = urlsplit(""), False
    if not good:
        raise _wrong(variable, f"{variable} is no address like {URLS[variable]}", "Correct or unset it.")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise _wrong(variable, f"{variable} would send the key unencrypted to {parts.hostname}", "Use https://.")
    return url


def _wrong(variable: str, reason: str, advice: str) -> LabError:
    return LabError(Code.CONFIGURATION, f"{reason}.", advice=advice, field=variable)
