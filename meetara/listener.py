"""People from elsewhere: a listener beside the private broker, which takes nobody without TLS and a login."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta
from pathlib import Path

from bus import certs, users
from bus.address import is_loopback
from bus.broker import Broker
from bus.door import Door
from protocol import Code, LabError
from protocol.address import TLS_PORT, Endpoint


def certs_folder(home: Path) -> Path:
    """Where `meetara certs` keeps a lab's certificates."""
    return home / "certs"


def listener(listen: Endpoint, home: Path, broker: Broker, now: datetime) -> Door:
    """Return the door through which people and workers come in; on loopback it asks for nothing, unless TLS is asked for.

    Raises:
        LabError: CONFIGURATION when the address is not loopback and a certificate or a login is missing.
    """
    if is_loopback(listen.host) and not listen.tls:
        return Door(Endpoint(listen.host, listen.port_or(broker.port)), broker.address(), guests=True)
    return Door(Endpoint(listen.host, listen.port or TLS_PORT, tls=True), broker.address(), tls=_tls(listen, home, broker, now))


def ends_soon(home: Path, now: datetime) -> datetime | None:
    """Return when the listener's certificate ends, if that is soon."""
    path = certs_folder(home) / f"{certs.BROKER}.pem"
    end = certs.expiry(path) if path.exists() else None
    return end if end is not None and end < now + timedelta(days=certs.RENEW_DAYS) else None


def _tls(listen: Endpoint, home: Path, broker: Broker, now: datetime) -> ssl.SSLContext:
    certificate = certs_folder(home) / f"{certs.BROKER}.pem"
    if not certificate.exists():
        raise LabError(
            Code.CONFIGURATION, f"a lab that listens on {listen.host} needs TLS, and there is no {certificate}.",
            advice="Make it with `meetara certs --host NAME`, where NAME is how others reach this machine; "
            "or listen on loopback only.",
            field="listen", file=str(certificate),
        )  # fmt: skip
    if (end := certs.expiry(certificate)) <= now:
        raise LabError(
            Code.CONFIGURATION, f"the certificate {certificate} ended on {end:%Y-%m-%d}.",
            advice="Renew it with `meetara certs`.", field="listen", file=str(certificate),
        )  # fmt: skip
    if not users.known(broker.folder):
        raise LabError(
            Code.CONFIGURATION, f"a lab that listens on {listen.host} needs logins, and there is none.",
            advice="Make one with `meetara user add NAME`.", field="listen",
        )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise LabError(
            Code.CONFIGURATION, f"{certificate} and its key cannot be used: {error}.",
            advice="Make them anew with `meetara certs --force`.", field="listen", file=str(certificate),
        ) from error  # fmt: skip
    return context
