"""An external broker: TLS with its pinned authority, tried by the operator's two canaries, refused where it is open."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broadcast_server.app import running
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.mqtt.broker import find_mosquitto, password_line
from broadcast_server.mqtt.probe import Login, try_connect
from broadcast_server.playout import wire
from broadcast_server.settings import BrokerSettings, HttpSettings, IngestSettings, Role, Settings
from broadcast_server.signer.certificates import LocalAuthority, client_context
from broadcast_server.supervise import Child, SystemChance, SystemClock
from simulation.village import free_port
from tests.support.broker import mosquitto_is_missing
from tests.support.until import until

pytestmark = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")
CANARIES = ("thu-1", "thu-2")


class External:
    """A mosquitto of somebody else's, on TLS with passwords."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.authority = LocalAuthority(folder / "ca", clock=SystemClock(), chance=SystemChance())
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.authority.authority_pem())

    @asynccontextmanager
    async def running(self, *lines: str, acl: tuple[str, ...] = ()) -> AsyncIterator[None]:
        files = self.authority.server_files(self.folder / "tls", ["127.0.0.1"])
        users = ("server", *CANARIES)
        salt = b"0123456789ab"
        written = {
            "passwords": "\n".join(password_line(user, f"{user}-mk", salt) for user in users),
            "acl": "\n".join((*wire.broker_acl("server"), *acl)),
            "mosquitto.conf": "\n".join(
                (
                    f"listener {self.port} 127.0.0.1",
                    f"certfile {files.certificate}",
                    f"keyfile {files.key}",
                    f"password_file {self.folder / 'passwords'}",
                    f"acl_file {self.folder / 'acl'}",
                    *(("user root",) if os.geteuid() == 0 else ()),
                    *lines,
                )
            ),
        }
        for name, text in written.items():
            (self.folder / name).write_text(text + "\n", encoding="ascii")
            (self.folder / name).chmod(0o600)
        program = find_mosquitto()
        assert program is not None
        async with Child([program, "-c", self.folder / "mosquitto.conf"], name="external", stdout=False):
            login = Login("server", "server-mk", "look", client_context(self.authority.authority_pem()))

            async def answers() -> bool:
                return await try_connect("127.0.0.1", self.port, login) == 0

            await until(answers)
            yield

    def settings(self, data: Path) -> Settings:
        canaries = tuple(f"{name}:{name}-mk" for name in CANARIES)
        broker = {
            "kind": "external",
            "port": self.port,
            "ca_file": self.ca_file,
            "password": "server-mk",
            "canaries": canaries,
        }
        return Settings(
            data_dir=data,
            reserve_bytes=0,
            http=HttpSettings(port=0),
            ingest=IngestSettings(port=0),
            broker=BrokerSettings.model_validate(broker),
        )


async def told_at_start(external: External, data: Path) -> str:
    """`ready`, or why the server did not start."""
    try:
        async with running(external.settings(data), {Role.CONDUCTOR, Role.RELAY, Role.INBOX}) as server:
            assert server.broker_code == "broker_external"
            return "ready" if server.parts()["broker_isolation"] else "not isolated"
    except BroadcastError as error:
        return f"{error.code}: {error.facts.get('leaks')}"


async def test_a_broker_that_keeps_nodes_apart_is_started_on(tmp_path: Path):
    external = External(tmp_path)
    async with external.running("allow_anonymous false", "use_username_as_clientid true"):
        assert await told_at_start(external, tmp_path / "data") == "ready"


@pytest.mark.parametrize(
    ("lines", "acl", "leaks"),
    [
        (("allow_anonymous true",), (), "anonymous, take_over"),
        (("allow_anonymous false",), (), "take_over"),
        (("allow_anonymous false", "use_username_as_clientid true"), ("pattern read #",), "read_across"),
    ],
    ids=["anonymous", "client ids", "hash"],
)
async def test_an_open_one_is_not(tmp_path: Path, lines: tuple[str, ...], acl: tuple[str, ...], leaks: str):
    external = External(tmp_path)
    async with external.running(*lines, acl=acl):
        assert await told_at_start(external, tmp_path / "data") == f"broker_leaks: {leaks}"
