"""A broker's address as people write it: `HOST`, `HOST:PORT`, `mqtt://HOST:PORT` or `mqtts://HOST:PORT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLAIN_PORT, TLS_PORT = 1883, 8883
"""IANA's ports of MQTT and of MQTT over TLS."""

_FORM = re.compile(
    r"((?P<scheme>mqtts?)://)?(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True)
class Endpoint:
    """Where a broker listens. `port` None: not said; `tls`: `mqtts` was said."""

    host: str
    port: int | None = None
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts://' if self.tls else ''}{host}{'' if self.port is None else f':{self.port}'}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read an address.

        Raises:
            ValueError: it has none of the forms, or the port is above 65535.
        """
        found = _FORM.fullmatch(text.strip())
        port = found.group("port") if found else None
        if found is None or (port and int(port) > 65535):
            raise ValueError(f"{text!r} is not HOST, HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT")
        return cls(found.group("host").strip("[]"), int(port) if port else None, found.group("scheme") == "mqtts")

    def port_or(self, named: int | None = None) -> int:
        """Return the port: the address's own, then the one named elsewhere, then the usual one."""
        if self.port is not None:
            return self.port
        return named if named is not None else TLS_PORT if self.tls else PLAIN_PORT
