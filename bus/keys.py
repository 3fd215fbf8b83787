"""Ed25519 keys: one that signs, of whoever uses a home, and those whose signatures the lab of a home trusts.

The private key never leaves `<home>/keys/key.pem`. Who can write `<home>/keys/trusted.json` decides who may spend: the file is
read at each signature, so that adding and removing a key works at once.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bus.files import read_json, write_private
from protocol.errors import Code, LabError
from protocol.signature import Signature

FOLDER = "keys"
"""Where a home keeps them."""
PRIVATE, TRUSTED = "key.pem", "trusted.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
"""Whose key it is; it stands in logs and in the ledger."""


class Key:
    """A private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public(self) -> str:
        """The public key: 32 bytes in base64."""
        raw = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def sign(self, text: bytes) -> Signature:
        """Sign what `protocol.signature.signed_text` gives; the same text has the same signature."""
        return Signature(key=self.public, value=base64.b64encode(self._private.sign(text)).decode())


def make(folder: Path) -> Key:
    """Make the key of a home.

    Raises:
        LabError: CONFLICT, there is one.
    """
    path = folder / PRIVATE
    if path.exists():
        raise LabError(
            Code.CONFLICT, f"{path} is there already.", advice="`meetara keys list` shows its public part; delete it for a new one.",
            file=str(path),
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    private = Ed25519PrivateKey.generate()
    write_private(
        path,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    return Key(private)


def own(folder: Path) -> Key | None:
    """Return the key of a home; None: it has none.

    Raises:
        LabError: CONFIGURATION, the file is damaged, of another kind, or others can read it.
    """
    path = folder / PRIVATE
    try:
        if path.stat().st_mode & 0o077:
            raise LabError(
                Code.CONFIGURATION, f"{path} can be read by others.",
                advice=f"chmod 600 {path}; if somebody may have seen it, make a new one and remove this one from the lab.",
                file=str(path),
            )  # fmt: skip
        private = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LabError(
            Code.CONFIGURATION, f"{path} is damaged: {error}.", advice="Restore it, or delete it and make a new one.",
            file=str(path),
        ) from error  # fmt: skip
    if not isinstance(private, Ed25519PrivateKey):
        raise LabError(
            Code.CONFIGURATION, f"{path} is no Ed25519 key.", advice="Delete it and make a new one.", file=str(path)
        )
    return Key(private)


def trusted(folder: Path) -> dict[str, str]:
    """Return the public keys that the lab trusts, by name.

    Raises:
        LabError: CONFIGURATION, the file is damaged.
    """
    try:
        return {str(name): str(public) for name, public in read_json(folder / TRUSTED).items()}
    except LabError as error:
        error.advice = "Restore it, or delete it and add the keys again: meetara keys add."
        raise


def trust(folder: Path, name: str, public: str) -> None:
    """Let a key spend the lab's money.

    Raises:
        LabError: INVALID_PARAMS, a name or key that cannot be one; CONFLICT, the name or the key is known.
    """
    if not NAME.fullmatch(name):
        raise LabError(
            Code.INVALID_PARAMS, f"{name!r} cannot be a key's name.",
            advice="Use at most 64 letters, digits and _ . @ -, beginning with a letter or a digit.", field="name",
        )  # fmt: skip
    _public(public)
    known = trusted(folder)
    for other, key in known.items():
        if other == name or key == public:
            raise LabError(
                Code.CONFLICT, f"the key {other!r} is trusted already.", advice=f"First: meetara keys remove {other}.",
                field="name",
            )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_private(folder / TRUSTED, json.dumps({**known, name: public}, indent=1) + "\n")


def distrust(folder: Path, name: str) -> None:
    """Take a key's right to spend; what it has signed before goes on.

    Raises:
        LabError: NOT_FOUND.
    """
    known = trusted(folder)
    if name not in known:
        listed = ", ".join(known) or "none"
        raise LabError(Code.NOT_FOUND, f"there is no key {name!r}.", advice=f"There are: {listed}.", field="name")
    del known[name]
    write_private(folder / TRUSTED, json.dumps(known, indent=1) + "\n")


def check(signature: Signature, text: bytes) -> None:
    """Check that a signature is of this text, by the key that it names, whoever's that is.

    Raises:
        LabError: INVALID_PARAMS.
    """
    try:
        _public(signature.key).verify(base64.b64decode(signature.value, validate=True), text)
    except (InvalidSignature, ValueError) as error:
        raise LabError(
            Code.INVALID_PARAMS, "signature: it is not of this request.",
            advice="Sign the request as it is sent, with its id and for this lab: meetara keys sign.", field="signature",
        ) from error  # fmt: skip


def who(folder: Path, signature: Signature, text: bytes) -> str | None:
    """Return the name of the trusted key that has signed a text; None: the lab does not know the key.

    Raises:
        LabError: INVALID_PARAMS, the signature is not of this text.
    """
    check(signature, text)
    return next((name for name, public in trusted(folder).items() if public == signature.key), None)


def signer(folder: Path, signature: Signature, text: bytes) -> str:
    """Return the name of the trusted key that has signed a text.

    Raises:
        LabError: INVALID_PARAMS, the signature is not of this text, or by a key that the lab does not trust.
    """
    name = who(folder, signature, text)
    if name is None:
        raise LabError(
            Code.INVALID_PARAMS, f"signature: the lab does not trust the key {signature.key}.",
            advice=f"Who owns the lab's home adds it there: meetara keys add NAME {signature.key}", field="signature",
        )  # fmt: skip
    return name


def _public(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise LabError(
            Code.INVALID_PARAMS, f"{text!r} is no public key.", advice="It is what `meetara keys list` shows as yours: 44 characters.",
            field="key",
        ) from error  # fmt: skip
