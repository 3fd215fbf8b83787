"""Certificates of a lab: an authority of its own, one for the broker, and one for each agent that is asked for.

Only `ca.pem` leaves this machine: whoever connects checks the broker's certificate by it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bus.files import write_private
from protocol.errors import Code, LabError

AUTHORITY, BROKER = "ca", "broker"
"""Names of the authority's and the broker's files: NAME.pem is the certificate, NAME.key its private key."""
AUTHORITY_DAYS = 3650
"""Every client has to be given a new authority, so it lives long."""
DAYS = 397
"""Life of all other certificates: the most that browsers and Apple's systems accept."""
RENEW_DAYS = 30
"""A certificate that ends sooner is made anew."""
SKEW = timedelta(hours=1)
"""A certificate is valid from an hour ago: clocks differ."""
ALWAYS = ("localhost", "127.0.0.1", "::1")
"""Names of the broker for whoever is on its own machine."""


@dataclass(frozen=True)
class Certificate:
    """What `make` says about a file: where it is, until when it is valid, and what was done."""

    name: str
    path: Path
    expires: datetime
    done: Literal["made", "kept", "renewed"]


def make(
    folder: Path, *, hosts: Iterable[str], agents: Iterable[str] = (), now: datetime, force: bool = False
) -> list[Certificate]:
    """Make what is missing and renew what ends within RENEW_DAYS; nothing else is touched.

    Args:
        folder: where the files are; private keys can be read by their owner only.
        hosts: DNS names and IP addresses by which the broker is reached from elsewhere.
        agents: ids of agents that get a certificate (CN is the id).
        now: the time.
        force: make everything anew, the authority too.

    Raises:
        LabError: CONFLICT when the broker's certificate lacks a host and `force` is not given; CONFIGURATION when a
            file is damaged or the authority has ended.
    """
    hosts = list(hosts)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = [_authority(folder, now, force=force)]
    missing = [] if force else [host for host in hosts if host not in known_hosts(folder)]
    if (folder / f"{BROKER}.pem").exists() and missing:
        raise LabError(
            Code.CONFLICT, f"the certificate {folder / BROKER}.pem is not for {', '.join(missing)}.",
            advice="Give --force to make all certificates anew; who connects from elsewhere then needs the new ca.pem.",
            field="host",
        )  # fmt: skip
    names = _names([*(known_hosts(folder) if not force else []), *hosts, *ALWAYS])
    found.append(_issued(folder, BROKER, names, ExtendedKeyUsageOID.SERVER_AUTH, now, force=force))
    for agent in agents:
        found.append(_issued(folder, agent, [], ExtendedKeyUsageOID.CLIENT_AUTH, now, force=force))
    return found


def known_hosts(folder: Path) -> list[str]:
    """Return the names and addresses in the broker's certificate; none where there is no certificate."""
    path = folder / f"{BROKER}.pem"
    if not path.exists():
        return []
    names = _read(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))]


def expiry(path: Path) -> datetime:
    """Return until when a certificate is valid.

    Raises:
        LabError: CONFIGURATION when it cannot be read.
    """
    return _read(path).not_valid_after_utc


def _authority(folder: Path, now: datetime, *, force: bool) -> Certificate:
    path = folder / f"{AUTHORITY}.pem"
    if path.exists() and not force:
        end = expiry(path)
        if end < now + timedelta(days=DAYS):
            raise LabError(
                Code.CONFIGURATION, f"the authority {path} ends on {end:%Y-%m-%d}, too soon to sign with it.",
                advice="Give --force to make all certificates anew; everybody then needs the new ca.pem.", file=str(path),
            )  # fmt: skip
        return Certificate(AUTHORITY, path, end, "kept")
    key = ec.generate_private_key(ec.SECP256R1())
    end = now + timedelta(days=AUTHORITY_DAYS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MeeTARA Lab authority")])
    builder = (
        _builder(name, name, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    _write(path, builder.sign(key, hashes.SHA256()), key)
    return Certificate(AUTHORITY, path, end, "made")


def _issued(
    folder: Path, name: str, names: list[x509.GeneralName], purpose: x509.ObjectIdentifier, now: datetime, *, force: bool
) -> Certificate:
    path = folder / f"{name}.pem"
    there = path.exists()
    if there and not force and (end := expiry(path)) > now + timedelta(days=RENEW_DAYS):
        return Certificate(name, path, end, "kept")
    authority, signer = _read(folder / f"{AUTHORITY}.pem"), _read_key(folder / f"{AUTHORITY}.key")
    key = ec.generate_private_key(ec.SECP256R1())
    end = now + timedelta(days=DAYS)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, authority.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(path, builder.sign(signer, hashes.SHA256()), key)
    return Certificate(name, path, end, "renewed" if there and not force else "made")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError as error:
                raise LabError(
                    Code.CONFIGURATION, f"{host!r} is neither a DNS name nor an IP address.",
                    advice="Write an international name in its xn-- form.", field="host",
                ) from error  # fmt: skip
    return names


def _write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(path.with_suffix(".key"), private)
    write_private(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(path, "it is not an elliptic-curve key")
    return key


def _damaged(path: Path, reason: object) -> LabError:
    return LabError(
        Code.CONFIGURATION, f"{path} cannot be read: {reason}.",
        advice="Restore it, or make all certificates anew with `meetara certs --force`.", file=str(path),
    )  # fmt: skip
