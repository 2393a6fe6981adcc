"""Every setting, read once at the top and handed down as values; nobody but `app` and `cli` imports this.

From the environment (`LOA_…`, sections by `__`: `LOA_HTTP__PORT`) and one optional file of the same names,
named by `LOA_SETTINGS_FILE`. Every field has a unit in its name or its text and a safe
default.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_serializer, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or to connect to, is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Role(StrEnum):
    """What this process does; one process does all of it until a province outgrows a machine."""

    API = "api"
    CONDUCTOR = "conductor"
    RELAY = "relay"
    INBOX = "inbox"


class HttpSettings(_Section):
    """The front door for people and programs."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 picks a free one")
    public_url: str | None = Field(
        default=None, description="URL under which nodes reach this server; default http://host:port"
    )
    tls: Literal["auto", "on", "off"] = Field(
        default="auto", description="HTTPS; auto: beyond this machine, and wherever a certificate is named"
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain, with `tls_key`; default: signed by the local authority"
    )
    tls_key: Path | None = Field(default=None, description="PEM private key")
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="addresses of reverse proxies whose X-Forwarded-For and -Proto are believed"
    )
    trusted_hosts: tuple[str, ...] = Field(
        default=("127.0.0.1", "localhost"), description="Host headers that are answered"
    )

    @property
    def is_tls(self) -> bool:
        """Whether it is HTTPS."""
        return self.tls == "on" or (self.tls == "auto" and (self.tls_cert is not None or not is_loopback(self.host)))


class AuditSettings(_Section):
    """Witnesses of the audit log."""

    anchor_file: Path | None = Field(
        default=None,
        description="a second file for the hourly anchors, on another disk or share; one is always in `data_dir`",
    )


class BrokerSettings(_Section):
    """The MQTT broker: ours (embedded) or a given one."""

    kind: Literal["auto", "mosquitto", "amqtt", "external"] = Field(
        default="auto", description="auto: mosquitto, else amqtt"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on, or of the external broker")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port; 0 picks a free one; default 8883 with TLS, 1883 without"
    )
    tls: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: embedded: always, by the local authority; external: when `ca_file` is named",
    )
    allow_plain: bool = Field(default=False, description="without TLS beyond this machine too")
    ca_file: Path | None = Field(
        default=None, description="external: PEM of the authorities its certificate must be signed by"
    )
    certificate: Path | None = Field(default=None, description="external: PEM of our client certificate, with `key`")
    key: Path | None = Field(default=None, description="external: PEM of its private key")
    canaries: tuple[SecretStr, ...] = Field(
        default=(),
        description="external: two users with a node's rights, `name:password` each, that test at start and hourly "
        "whether nodes are kept apart",
    )
    public_host: str | None = Field(default=None, description="host that nodes are told; default `host`")
    user: str = Field(default="server", description="our own user at the broker")
    password: SecretStr | None = Field(
        default=None, description="our password at an external broker; embedded: generated"
    )

    @property
    def is_tls(self) -> bool:
        """Whether the connection to it, ours and the nodes', is TLS."""
        return self.tls == "auto" and (self.kind != "external" or self.ca_file is not None)

    @property
    def tcp_port(self) -> int:
        """The port, or the usual one."""
        return self.port if self.port is not None else 8883 if self.is_tls else 1883

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if not self.is_tls and not self.allow_plain and not is_loopback(self.host):
            need = "LOA_BROKER__CA_FILE" if self.kind == "external" else "LOA_BROKER__TLS=auto"
            raise ValueError(f"MQTT without TLS beyond this machine: set {need}, or say LOA_BROKER__ALLOW_PLAIN=true")
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("LOA_BROKER__CERTIFICATE and LOA_BROKER__KEY go together")
        if self.canaries and (
            len(self.canaries) != 2 or not all(":" in one.get_secret_value() for one in self.canaries)
        ):
            raise ValueError('LOA_BROKER__CANARIES needs two users, as ["name:password", "name:password"]')
        return self


class IngestSettings(_Section):
    """Where stations push their feeds (Icecast source protocol)."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8010, ge=0, le=65535, description="TCP port; 0 picks a free one")
    tls: Literal["auto", "only", "off"] = Field(
        default="auto", description="auto: TLS, and from this machine also without; only: TLS; off: never"
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain, with `tls_key`; default: signed by the local authority"
    )
    tls_key: Path | None = Field(default=None, description="PEM private key")
    allow_plain: bool = Field(
        default=False, description="sources beyond this machine may come without TLS; needs `networks`"
    )
    networks: tuple[str, ...] = Field(
        default=(), description="networks (CIDR) whose sources are answered, this machine always; default: all"
    )

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        for network in self.networks:
            ipaddress.ip_network(network)  # says itself what is wrong
        is_plain = self.tls == "off" and not is_loopback(self.host)
        if is_plain and not self.allow_plain:
            raise ValueError(
                "a push listener without TLS beyond this machine: set LOA_INGEST__TLS=auto, "
                "or say LOA_INGEST__ALLOW_PLAIN=true and name LOA_INGEST__NETWORKS"
            )
        if self.allow_plain and not self.networks:
            raise ValueError("LOA_INGEST__ALLOW_PLAIN=true needs LOA_INGEST__NETWORKS, the sources' networks")
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ValueError("LOA_INGEST__TLS_CERT and LOA_INGEST__TLS_KEY go together")
        return self


class RelaySettings(_Section):
    """Live relay."""

    allow_private: tuple[str, ...] = Field(default=(), description="host:port pairs of feeds inside private networks")


class PlayoutSettings(_Section):
    """Plans and proof."""

    plan_days: int = Field(default=8, ge=7, le=31, description="days of plan that nodes hold, today included")
    lease_s: float = Field(default=5.0, gt=0, description="leader lease, seconds")
    status_interval_s: int = Field(default=30, ge=1, le=3600, description="how often a node tells how it is, seconds")
    grace_s: float = Field(
        default=20.0, gt=0, description="how long after a segment's end a missing report is waited for"
    )


class SignerSettings(_Section):
    """The signing process, which alone holds the keys."""

    run: Literal["child", "external"] = Field(
        default="child", description="child: `serve` starts it; external: `broadcast-server signer` is a service"
    )
    user: str | None = Field(default=None, description="user it becomes when it is started as root")
    allow_users: tuple[str, ...] = Field(default=(), description="users that may ask for signatures, beside its own")
    socket: Path | None = Field(default=None, description="its unix socket; default signer.sock in data_dir")
    keys_dir: Path | None = Field(default=None, description="its keys, mode 0700; default keys in data_dir")


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="LOA_", env_nested_delimiter="__", frozen=True, extra="ignore", env_file_encoding="utf-8"
    )

    data_dir: Path = Field(default=Path("data"), description="everything that must be backed up")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; default SQLite in data_dir")
    environment: Literal["trial", "production", "demo"] = Field(
        default="trial", description="production refuses unsafe settings; demo marks its database, no other runs on it"
    )
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reserve_bytes: int = Field(default=200_000_000, ge=0, description="free disk below which uploads are refused")
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()
    ingest: IngestSettings = IngestSettings()
    relay: RelaySettings = RelaySettings()
    playout: PlayoutSettings = PlayoutSettings()
    audit: AuditSettings = AuditSettings()
    signer: SignerSettings = SignerSettings()

    @field_serializer("database_url")
    def _without_password(self, value: str | None) -> str | None:
        """What is shown of it."""
        password = None if value is None else urlsplit(value).password
        return value if value is None or not password else value.replace(f":{password}@", ":**********@", 1)

    @model_validator(mode="after")
    def _production_is_safe(self) -> Self:
        if self.environment == "production":
            if self.broker.kind == "amqtt":
                raise ValueError("LOA_BROKER__KIND=amqtt is for trials of up to 50 nodes, not for production")
            if not self.http.is_tls and not is_loopback(self.http.host):
                raise ValueError("production beyond this machine needs HTTPS: LOA_HTTP__TLS=auto, or a proxy here")
            if self.broker.kind == "external" and not self.broker.canaries:
                raise ValueError("production with an external broker needs LOA_BROKER__CANARIES, to test it")
        if (self.http.tls_cert is None) is not (self.http.tls_key is None):
            raise ValueError("LOA_HTTP__TLS_CERT and LOA_HTTP__TLS_KEY go together")
        return self

    @property
    def signer_socket(self) -> Path:
        """Where signatures are asked for."""
        return (self.signer.socket or self.data_dir / "signer.sock").absolute()

    @property
    def keys_dir(self) -> Path:
        """Where the signing keys lie."""
        return (self.signer.keys_dir or self.data_dir / "keys").absolute()

    @property
    def store_url(self) -> str:
        """Where the truth is kept."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'loa.sqlite').absolute()}"


class _Where(BaseSettings):
    """Where the file is; asked of the environment alone, and a file that is named must be there."""

    model_config = SettingsConfigDict(env_prefix="LOA_", extra="ignore")

    settings_file: FilePath | None = None


def load() -> Settings:
    """Settings from the environment and, where that is silent, the file of `LOA_SETTINGS_FILE`.

    Raises `ValidationError` naming the field.
    """
    return Settings(_env_file=_Where().settings_file)  # type: ignore[call-arg]  # pydantic-settings' own
