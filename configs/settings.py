"""Where the lab lives and listens: flags, then the environment, then lab.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from configs.source import Source
from protocol import Code, LabError
from protocol.address import PLAIN_PORT, Endpoint

FILE = "lab.yaml"
PREFIX = "MEETARA_"
IN_FILE = ("lab", "port", "broker", "listen", "public", "worker_image", "default_tier", "store")
"""Settings that lab.yaml may hold."""


def _default_home() -> Path:
    return Path(platformdirs.user_data_dir("meetara", appauthor=False))


class Settings(BaseSettings):
    """The settings of one process, found in the order flags, environment (MEETARA_...), lab.yaml.

    Attributes:
        home: state of the lab (MEETARA_HOME); default: the user's data directory.
        lab: the lab's name, a level of every topic (MEETARA_LAB).
        broker: a broker that is already there, as HOST, HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT
            (MEETARA_BROKER); None: `meetara up` starts a private one.
        port: the broker's port (MEETARA_PORT), where `broker` names none; 0: any free one, for a private broker.
        listen: HOST or HOST:PORT where a private broker takes people from elsewhere, over TLS and with a login
            (MEETARA_LISTEN); None: it listens on loopback only.
        public: where workers on rented machines reach the lab's broker, e.g. mqtts://lab.example.org:8883 (MEETARA_PUBLIC);
            None: nothing is rented.
        worker_image: container image of the worker, which the providers can pull (MEETARA_WORKER_IMAGE); None: nothing is rented.
        store: URI of the artefact store that all machines of the lab reach, for fsspec (MEETARA_STORE), e.g. s3://bucket/lab;
            None: the home.
        configs: folder whose files replace the shipped ones of the same name (MEETARA_CONFIGS).
        local_usd_per_hour: price of this machine (MEETARA_LOCAL_USD_PER_HOUR); None: as in provider_configs.json.
        slots: jobs a local factory trains at once (MEETARA_SLOTS); None: as in provider_configs.json.
        default_tier: tier of requests that name none (MEETARA_DEFAULT_TIER, empty for none); None: the domain's tier.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(default_factory=_default_home)
    lab: str = Field(default="lab", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    broker: str | None = None
    port: int = Field(default=1883, ge=0, le=65535)
    listen: str | None = None
    public: str | None = None
    worker_image: str | None = None
    store: str | None = None
    configs: Path | None = None
    local_usd_per_hour: float | None = Field(default=None, ge=0, lt=10_000)
    slots: int | None = Field(default=None, ge=1, le=1024)
    default_tier: str | None = None

    @field_validator("home", "configs")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("broker", "listen", "public", "worker_image", "default_tier", "store", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("broker", "listen", "public")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            Endpoint.parse(value)
        return value

    @property
    def endpoint(self) -> Endpoint:
        """Where the broker is; the loopback address where a private one is started."""
        found = Endpoint.parse(self.broker or "127.0.0.1")
        named = None if self.port == PLAIN_PORT else self.port  # the default is no reason to speak TLS on port 1883
        return Endpoint(found.host, found.port_or(named), found.tls)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags and environment only; lab.yaml comes in `read`, because its folder is itself a setting."""
        return init_settings, env_settings

    @classmethod
    def read(cls, **flags: Any) -> Settings:
        """Find every setting; a flag that is None was not given.

        Raises:
            LabError: CONFIGURATION, naming the flag, the environment variable, or file and key, and the reason.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        folder = given.get("configs") or os.environ.get(f"{PREFIX}CONFIGS") or None
        source = Source.read(FILE, Path(folder).expanduser().absolute() if folder else None)
        for name in source.content:
            if name not in IN_FILE:
                raise source.wrong(name, f"no such setting; known are {', '.join(IN_FILE[:-1])} and {IN_FILE[-1]}")
        environment = {name for name in cls.model_fields if f"{PREFIX}{name.upper()}" in {key.upper() for key in os.environ}}
        below = {name: value for name, value in source.content.items() if name not in environment}
        if folder:
            given["configs"] = folder
        elif "configs" in environment:
            environment.discard("configs")  # an empty variable means no folder
            given["configs"] = None
        try:
            return cls(**{**below, **given})
        except ValidationError as error:
            item = error.errors()[0]
            name = str(item["loc"][0]) if item["loc"] else ""
            reason = f"{item['msg'].removeprefix('Value error, ')} (it is {item['input']!r})"
            if name in given:
                where, advice = f"--{name.replace('_', '-')}", "Correct the flag."
            elif name in environment:
                where, advice = f"{PREFIX}{name.upper()}", "Correct the environment variable."
            else:
                raise source.wrong(name, reason) from error
            raise LabError(Code.CONFIGURATION, f"{where}: {reason}.", advice=advice, field=name) from error
