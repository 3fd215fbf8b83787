"""Where a broker is, who one is there, and by which certificate it is known."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.address import PLAIN_PORT, Endpoint
from protocol.errors import Code, LabError


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who one is there.

    Attributes:
        tls: speak TLS, and insist on a certificate that names the host.
        ca: file of the authority that signed it; None: those that the system trusts.
        certificate: file of one's own certificate, for a broker that asks for one; its key is beside it, as NAME.key.
    """

    host: str = "127.0.0.1"
    port: int = PLAIN_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None

    def __str__(self) -> str:
        return str(Endpoint(self.host, self.port, self.tls))

    @classmethod
    def of(cls, endpoint: Endpoint, environment: Mapping[str, str], *, port: int | None = None) -> BrokerAddress:
        """Return an endpoint as an address, with who one is there.

        Args:
            endpoint: where the broker listens.
            environment: MEETARA_BROKER_USER, MEETARA_BROKER_PASSWORD or MEETARA_BROKER_PASSWORD_FILE, MEETARA_BROKER_CA,
                MEETARA_BROKER_CERT.
            port: where the endpoint names none; default: the usual one.

        Raises:
            LabError: CONFIGURATION when the password's file cannot be read.
        """
        ca, certificate = environment.get("MEETARA_BROKER_CA"), environment.get("MEETARA_BROKER_CERT")
        return cls(
            endpoint.host, endpoint.port_or(port), environment.get("MEETARA_BROKER_USER") or None,
            _password(environment), endpoint.tls, Path(ca) if ca else None, Path(certificate) if certificate else None,
        )  # fmt: skip

    @classmethod
    def read(cls, environment: Mapping[str, str], *, broker: str | None = None, port: int | None = None) -> BrokerAddress:
        """Find the broker of a process that reads no files: arguments, then MEETARA_BROKER and MEETARA_PORT.

        Raises:
            LabError: CONFIGURATION, naming what is wrong.
        """
        try:
            endpoint = Endpoint.parse(broker or environment.get("MEETARA_BROKER") or "127.0.0.1")
            named = int(environment["MEETARA_PORT"]) if port is None and environment.get("MEETARA_PORT") else port
        except ValueError as error:
            raise LabError(
                Code.CONFIGURATION, f"the broker's address is wrong: {error}.",
                advice="Correct --host and --port, or MEETARA_BROKER and MEETARA_PORT.", field="broker",
            ) from error  # fmt: skip
        return cls.of(endpoint, environment, port=named)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can be meant."""
        return is_loopback(self.host)

    def client(self, name: str) -> str:
        """Return the name under which `name` is a client of the broker, in its client id and its reply topic.

        A client id is a key: who connects with it takes over the session, with its queue; and who knows a reply topic
        can have replies sent there. So the name of a client with a password ends in what only the password gives.
        """
        if not self.password:
            return name
        return f"{name}-{hmac.digest(self.password.encode(), name.encode(), 'sha256').hex()[:32]}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the context of a TLS connection, or None where none is wanted.

        Raises:
            LabError: CONFIGURATION when a file is missing or no certificate.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise LabError(
                Code.CONFIGURATION, f"{self.ca} cannot be read as a certificate: {error}.",
                advice="MEETARA_BROKER_CA names the ca.pem that `meetara certs` has made.", file=str(self.ca),
            ) from error  # fmt: skip
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.certificate.with_suffix(".key"))
            except (OSError, ssl.SSLError) as error:
                raise LabError(
                    Code.CONFIGURATION, f"{self.certificate} and its key cannot be used: {error}.",
                    advice="MEETARA_BROKER_CERT names NAME.pem of `meetara certs --agent NAME`, with NAME.key beside it.",
                    file=str(self.certificate),
                ) from error  # fmt: skip
        return context


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_failure(error: BaseException, address: BrokerAddress) -> LabError | None:
    """Return what a failed connection means, where trying again cannot help; None where it can."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if found is None or (found.reason != "WRONG_VERSION_NUMBER" and not isinstance(found, ssl.SSLCertVerificationError)):
        return None
    if not isinstance(found, ssl.SSLCertVerificationError):
        return LabError(
            Code.CONFIGURATION, f"what listens at {address} does not speak TLS.",
            advice="An address without TLS is written mqtt://HOST:PORT.", field="broker",
        )  # fmt: skip
    reason = found.verify_message
    if found.verify_code in (9, 10):  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
        advice = "Renew it where the broker runs: meetara certs; and check both clocks."
    elif found.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        advice = f"Name the host as the certificate does, or make one for it: meetara certs --host {address.host}."
    else:
        advice = "MEETARA_BROKER_CA must name the ca.pem of that very lab."
    return LabError(
        Code.CONFIGURATION, f"the certificate of {address} is refused: {reason}.", advice=advice, field="broker_ca"
    )


def _password(environment: Mapping[str, str]) -> str | None:
    named = environment.get("MEETARA_BROKER_PASSWORD_FILE")
    if not named:
        return environment.get("MEETARA_BROKER_PASSWORD") or None
    try:
        return Path(named).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise LabError(
            Code.CONFIGURATION, f"MEETARA_BROKER_PASSWORD_FILE names {named}, which cannot be read: {error.strerror}.",
            advice="Correct the variable, or the file's permissions.", file=named,
        ) from error  # fmt: skip
