"""The embedded broker: mosquitto as a supervised child, or amqtt in this process for a trial without one.

With `identities` mosquitto speaks TLS alone and asks every client for a certificate of ours: the name in it is user
name and client id at once, so nobody can take over another's session. 2.0.11 looks at no password then; without TLS
(loopback, benchmarks) passwords are asked for, and the user name is the client id all the same. amqtt always asks for
passwords.

A maintainer must not break: (1) nobody gets in as nobody: after every start an anonymous CONNECT is tried and must be
refused, else the server does not start; (2) rights come from the caller's ACL lines alone, in mosquitto's own form, and
both brokers obey them; (3) killed, it is back within two seconds on the same port, and empty: whoever published
retained state fills it again (`Bus.on_connected`); (4) when we are root the configuration says `user root`, because
mosquitto would drop its rights and could not read its 0600 files again on SIGHUP; (5) who is struck off is out when
`set_users` returns: the list of revocations is in force (a certificate that it names is tried, and refused), and a
session that was open is ended by taking it over.

Passwords here are random tokens, so few PBKDF2 rounds cost no safety; people's passwords never come near this file.
Configuration: mosquitto.conf(5) of 2.0.11. A forbidden SUBSCRIBE is granted there, and nothing is delivered.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import hashlib
import hmac
import importlib.util
import os
import resource
import shutil
import signal
import socket
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Invalid, Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Right, covers, matches
from broadcast_server.mqtt.probe import Login, Probe, try_connect
from broadcast_server.supervise import Child, RestartPolicy, Supervisor

log = get_logger()

PASSWORD_ROUNDS = 101
SALT_BYTES = 12
MESSAGE_LIMIT_BYTES = 300_000  # the bus sends at most 272 KiB
CONNECTIONS_MAX = 25_000
TRIAL_NODES = 50
CANARIES = ("canary", "canary-2")
"""Users that watch over the broker, with a node's rights; no node has such a name."""
_START_TIMEOUT_S = 5.0
_RELOAD_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.02
_DEBOUNCE_S = 0.1


# ------------------------------------------------------------------------------------------------ passwords, rights


def password_line(user: str, password: str, salt: bytes, *, rounds: int = PASSWORD_ROUNDS) -> str:
    """One line of mosquitto's password file, `user:$7$rounds$salt$hash` (PBKDF2-HMAC-SHA512).

    `salt`: exactly 12 bytes, the only length mosquitto reads. Raises `Invalid("user_name_invalid")` on a name that
    would mean something in a topic, a pattern or the file.
    """
    check_user(user)
    if len(salt) != SALT_BYTES:
        raise Invalid("salt_invalid", field="salt", size_bytes=len(salt), needed_bytes=SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"{user}:$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def check_user(user: str) -> None:
    """Raise `Invalid` unless the name is plain: a `+`, `#` or `/` in it would widen every pattern right."""
    if not user or len(user) > 64 or not all(sign.isascii() and (sign.isalnum() or sign in "._-") for sign in user):
        raise Invalid("user_name_invalid", field="user", user=user[:80])


def password_is_right(line: str, password: str) -> bool:
    """Whether a password belongs to a line that `password_line` made."""
    _, _, told = line.rpartition(":")
    try:
        _, kind, rounds, salt, digest = told.split("$")
    except ValueError:
        return False
    if kind != "7":
        return False
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), int(rounds))
    return hmac.compare_digest(made, base64.b64decode(digest))


class AccessRules:
    """mosquitto's ACL lines (`user`, `topic [read|write|readwrite] T`, `pattern … T` with %u), for brokers without."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._by_user: dict[str, list[tuple[str, str]]] = {}
        self._patterns: list[tuple[str, str]] = []
        user: str | None = None
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if not word or word.startswith("#"):
                continue
            if word == "user":
                user = rest.strip()
                continue
            right, _, topic = rest.strip().partition(" ")
            if right not in {"read", "write", "readwrite", "deny"}:
                right, topic = "readwrite", rest.strip()
            if word == "pattern":
                self._patterns.append((right, topic))
            elif word == "topic" and user is not None:
                self._by_user.setdefault(user, []).append((right, topic))
            else:
                raise Invalid("acl_line_invalid", field="acl", line=line)

    def may(self, user: str, right: Right, topic: str) -> bool:
        """Whether `user` may read from or write to a topic."""
        found = [given for given, topic_filter in self._of(user) if matches(topic_filter, topic)]
        return "deny" not in found and any(given in {right, "readwrite"} for given in found)

    def may_subscribe(self, user: str, topic_filter: str) -> bool:
        """Whether `user` may read everything a filter can bring."""
        rules = self._of(user)
        return not any(given == "deny" for given, _ in rules) and any(
            given in {"read", "readwrite"} and covers(topic, topic_filter) for given, topic in rules
        )

    def _of(self, user: str) -> list[tuple[str, str]]:
        return [*self._by_user.get(user, ()), *((given, topic.replace("%u", user)) for given, topic in self._patterns)]


# --------------------------------------------------------------------------------------------------------- the port


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients connect."""

    host: str
    port: int
    tls: bool = False


class Identities(Protocol):
    """Who is who on TLS: the local authority, as far as a broker needs it (`signer.certificates`)."""

    def server_files(self) -> tuple[Path, Path]:
        """Our certificate chain and its key, PEM; made anew when they are near their end."""
        ...

    def authority_pem(self) -> bytes:
        """What peers' certificates must be signed by."""
        ...

    def context(self, name: str | None) -> ssl.SSLContext:
        """A client's side of TLS, with a certificate of this name (None: without) and our authority pinned."""
        ...

    def is_list_due(self, in_service: Collection[str]) -> bool:
        """Whether the list of revocations made last says something else than it should, or is old."""
        ...

    def next_list(self, in_service: Collection[str]) -> tuple[bytes, ssl.SSLContext]:
        """A new list, PEM, and a client's side whose certificate it revokes: refused once the list is in force."""
        ...


class Broker(Protocol):
    """A broker whose life is ours."""

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        ...

    async def start(self) -> Address:
        """Start and check it. Raises `Unavailable("broker_failed")` and `Refused("broker_open")`."""
        ...

    async def close(self) -> None:
        """Stop it. Idempotent."""
        ...

    def login(self, user: str) -> Login:
        """How one of our own users (`CANARIES`) gets in."""
        ...

    async def refresh(self) -> None:
        """Renew what comes near its end: certificates, the list of revocations."""
        ...

    async def set_users(self, users: Mapping[str, str]) -> None:
        """Replace all users: name → line of `password_line`. Returns once the new ones get in and the old do not; their
        sessions are over by then.

        While the broker is down it returns at once: its next life begins with them.
        """
        ...


class BrokerKind(enum.StrEnum):
    """Which broker is embedded."""

    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


@dataclass(frozen=True, slots=True)
class BrokerChoice:
    """Which broker and why: `code` is a message of the catalogue, `nodes_max` a limit to tell (None: none)."""

    kind: BrokerKind
    code: str
    program: str | None = None
    nodes_max: int | None = None


def choose_broker(wanted: BrokerKind | None = None) -> BrokerChoice:
    """Take mosquitto if it is installed, else amqtt. Raises `Unavailable("broker_missing")` when there is none."""
    program = find_mosquitto()
    if wanted is not BrokerKind.AMQTT and program is not None:
        return BrokerChoice(BrokerKind.MOSQUITTO, "broker_mosquitto", program=program)
    if wanted is not BrokerKind.MOSQUITTO and importlib.util.find_spec("amqtt") is not None:
        code = "broker_amqtt_wanted" if wanted is BrokerKind.AMQTT else "broker_amqtt_trial"
        return BrokerChoice(BrokerKind.AMQTT, code, nodes_max=TRIAL_NODES)
    raise Unavailable("broker_missing", fix="install_mosquitto", wanted=wanted.value if wanted else None)


def find_mosquitto() -> str | None:
    """Its path; Debian keeps it in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/opt/homebrew/sbin")


# -------------------------------------------------------------------------------------------------------- mosquitto


class MosquittoBroker:
    """mosquitto as a child process with a configuration, password file and ACL file written by us."""

    def __init__(
        self,
        *,
        data_dir: Path,
        acl: Sequence[str],
        supervisor: Supervisor,
        clock: Clock,
        chance: Chance,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        identities: Identities | None = None,
        program: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """`port` 0 picks a free one at the first start and keeps it. `extra`: configuration lines, for benchmarks.

        `identities`: TLS with client certificates; None: passwords, and no TLS.
        """
        self._dir, self._acl, self._extra = data_dir, tuple(acl), tuple(extra)
        self._supervisor, self._clock, self._chance = supervisor, clock, chance
        self._host, self._port, self._picks_port = host, port, port == 0
        self._users = dict(users or {})
        self._identities = identities
        self._program = program
        self._canaries: dict[str, Login] = {}
        self._child: Child | None = None
        self._ready: asyncio.Future[None] | None = None
        self._starts = 0
        self._turn = asyncio.Lock()
        self._wanted_generation = 0
        self._applied_generation = 0

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        return max(0, self._starts - 1)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def start(self) -> Address:
        """Start and check it."""
        self._program = self._program or find_mosquitto()
        if self._program is None:
            raise Unavailable("broker_missing", fix="install_mosquitto")
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._end_orphan()
        attempts = 3 if self._picks_port else 1
        for attempt in range(1, attempts + 1):
            if self._picks_port:
                self._port = _free_port(self._host)
            self._ready = asyncio.get_running_loop().create_future()
            self._supervisor.keep(
                "mqtt.broker",
                self._run,
                RestartPolicy(first_delay_s=0.1, longest_delay_s=1.0, budget=30, window_s=60.0, healthy_after_s=5.0),
            )
            try:
                await asyncio.shield(self._ready)
            except (Unavailable, Refused):
                await self._supervisor.drop("mqtt.broker")
                if attempt == attempts:
                    raise
            else:
                return Address(self._host, self._port, self._identities is not None)
        raise Unavailable("broker_failed")

    async def close(self) -> None:
        """Stop it."""
        await self._supervisor.drop("mqtt.broker")
        self._pid_file.unlink(missing_ok=True)

    def login(self, user: str) -> Login:
        """How a canary gets in, as of the last reload."""
        return self._canaries[user]

    async def set_users(self, users: Mapping[str, str]) -> None:
        """Replace all users; many calls in a moment become one reload."""
        for user in users:
            check_user(user)
        gone = self._users.keys() - users.keys()
        self._users = dict(users)
        self._wanted_generation += 1
        mine = self._wanted_generation
        if self._child is None:
            return  # written at the next start
        await self._clock.sleep(_DEBOUNCE_S)
        async with self._turn:
            if self._applied_generation < mine and (
                self._identities is None or self._identities.is_list_due(self._users)
            ):
                await self._reload()
            self._applied_generation = max(self._applied_generation, mine)
            await self._end_sessions(gone - self._users.keys())

    async def refresh(self) -> None:
        """Read certificates and list again, if they are due; sessions go on."""
        if self._identities is None:
            return
        async with self._turn:
            before = self._certificate_file.read_bytes() if self._certificate_file.exists() else b""
            self._write_identity()
            if self._certificate_file.read_bytes() != before or self._identities.is_list_due(self._users):
                await self._reload()

    # -- inside

    @property
    def _certificate_file(self) -> Path:
        return self._dir / "server.pem"

    @property
    def _pid_file(self) -> Path:
        return self._dir / "mosquitto.pid"

    async def _run(self) -> None:
        """One life of the child: returns never, raises when it ends."""
        self._write_private(self._dir / "acl", "\n".join(self._acl) + "\n")
        self._write_private(self._dir / "mosquitto.conf", "\n".join(self._configuration()) + "\n")
        generation = self._wanted_generation
        self._write_identity()
        self._write_users()
        self._starts += 1
        async with Child(
            [*_many_files(), str(self._program), "-c", self._dir / "mosquitto.conf"],
            name="mqtt.broker",
            stdout=False,
            on_stderr=_note_line,
        ) as child:
            self._pid_file.write_text(f"{child.pid}\n", encoding="ascii")
            try:
                await self._check(child)
            except (Unavailable, Refused) as error:
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(error)
                raise
            self._child, self._applied_generation = child, max(self._applied_generation, generation)
            log.info("broker.ready", kind="mosquitto", host=self._host, port=self._port, restarts=self.restarts)
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            if self._wanted_generation != self._applied_generation:
                await self._reload()
            try:
                code = await child.wait()
            finally:
                self._child = None
        raise Unavailable("broker_ended", exit_code=code, said=list(child.stderr_tail[-5:]))

    async def _check(self, child: Child) -> None:
        """Wait until it lets the canary in; a stranger must be refused then."""
        deadline_s = self._clock.monotonic() + _START_TIMEOUT_S
        while await try_connect(self._host, self._port, self._canaries[CANARIES[0]]) != 0:
            # Somebody else's broker on our port answers as well: only ours knows this canary.
            if child.returncode is not None or self._clock.monotonic() > deadline_s:
                raise Unavailable("broker_failed", exit_code=child.returncode, said=list(child.stderr_tail[-5:]))
            await self._clock.sleep(_LOOK_EVERY_S)
        strangers = [Login()]
        if self._identities is not None:
            strangers.append(Login(tls=self._identities.context(None)))
        for stranger in strangers:
            if await try_connect(self._host, self._port, stranger) == 0:
                raise Refused("broker_open", host=self._host, port=self._port)

    async def _reload(self) -> None:
        """Write users and list, ask for a reload and see that it happened.

        The canary's password changes every time; on TLS a certificate that only the new list revokes is refused.
        """
        child = self._child
        generation = self._wanted_generation
        fallen = self._write_users()
        if child is None or child.returncode is not None:
            return  # the next life reads the files
        child.send_signal(signal.SIGHUP)
        deadline_s = self._clock.monotonic() + _RELOAD_TIMEOUT_S
        while not await self._is_reloaded(fallen):
            if self._child is not child:
                return
            if self._clock.monotonic() > deadline_s:
                raise Unavailable("broker_reload_failed")
            await self._clock.sleep(_LOOK_EVERY_S)
        self._applied_generation = max(self._applied_generation, generation)

    async def _is_reloaded(self, fallen: Login | None) -> bool:
        if fallen is not None and await try_connect(self._host, self._port, fallen) in {0, None}:
            return False
        return await try_connect(self._host, self._port, self._canaries[CANARIES[0]]) == 0

    async def _end_sessions(self, users: Collection[str]) -> None:
        """End what struck-off users still have open: whoever shows their name takes their session over.

        Passwords: mosquitto ends them itself when it reads the file.
        """
        if self._identities is None:
            return
        for user in users:
            with contextlib.suppress(Unavailable, Refused):
                heir = await Probe.open(self._host, self._port, Login(tls=self._identities.context(user)))
                await heir.close()

    def _write_identity(self) -> None:
        """Certificates, for the broker alone."""
        if self._identities is None:
            return
        certificate, key = self._identities.server_files()
        self._write_private(self._dir / "server.key", key.read_text("ascii"))
        self._write_private(self._certificate_file, certificate.read_text("ascii"))
        self._write_private(self._dir / "authority.pem", self._identities.authority_pem().decode("ascii"))

    def _write_users(self) -> Login | None:
        """Passwords, or the list of revocations; with the latter, a login that is refused once it is in force."""
        if self._identities is None:
            passwords = {name: self._chance.token_bytes(18).hex() for name in CANARIES}
            lines = [
                password_line(name, password, self._chance.token_bytes(SALT_BYTES))
                for name, password in passwords.items()
            ]
            self._write_private(self._dir / "passwords", "\n".join([*self._users.values(), *lines]) + "\n")
            self._canaries = {name: Login(name, password, name) for name, password in passwords.items()}
            return None
        listed, fallen = self._identities.next_list([*self._users, *CANARIES])
        self._write_private(self._dir / "revoked.pem", listed.decode("ascii"))
        if not self._canaries:
            self._canaries = {name: Login(tls=self._identities.context(name)) for name in CANARIES}
        return Login(tls=fallen)

    def _write_private(self, path: Path, text: str) -> None:
        """Replace a file in one step; nobody else may read it, not even for a moment."""
        fresh = path.with_name(path.name + ".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
        fresh.replace(path)

    def _configuration(self) -> list[str]:
        lines = [
            "# Written at every start; do not edit.",
            "per_listener_settings false",
            f"listener {self._port} {self._host}",
        ]
        if self._identities is not None:
            lines += [
                f"cafile {self._dir / 'authority.pem'}",
                f"certfile {self._certificate_file}",
                f"keyfile {self._dir / 'server.key'}",
                f"crlfile {self._dir / 'revoked.pem'}",
                "tls_version tlsv1.2",  # at least
                "require_certificate true",
                "use_identity_as_username true",  # the name in the certificate; passwords are not looked at
            ]
        lines += [
            "use_username_as_clientid true",  # whatever id a client asks for: nobody takes over another's session
            f"max_connections {CONNECTIONS_MAX}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        if self._identities is None:
            lines.append(f"password_file {self._dir / 'passwords'}")
        return [
            *lines,
            "allow_anonymous false",
            f"acl_file {self._dir / 'acl'}",
            "persistence false",  # retained state is ours to fill again
            "persistent_client_expiration 1d",  # nodes' sessions are clean; what others leave is forgotten
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "connection_messages false",
            "set_tcp_nodelay true",
            f"message_size_limit {MESSAGE_LIMIT_BYTES}",
            "max_inflight_messages 200",
            # What may wait for one slow reader; the server itself gets 10 000 statuses at once when it subscribes.
            "max_queued_messages 20000",
            "max_queued_bytes 16777216",
            "sys_interval 0",
            # Nobody subscribes to overlapping filters; looking for doubles is quadratic in the listeners of a topic.
            "allow_duplicate_messages true",
            *self._extra,
        ]

    async def _end_orphan(self) -> None:
        """End a mosquitto that outlived an earlier server of this data directory (without `setpriv` it can)."""
        pid = self._orphan()
        if pid is None:
            return
        log.warning("broker.orphan_ended", pid=pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        deadline_s = self._clock.monotonic() + 2.0
        while self._orphan() is not None and self._clock.monotonic() < deadline_s:
            await self._clock.sleep(_LOOK_EVERY_S)

    def _orphan(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # The number may belong to somebody else by now: only one that runs our configuration is ours.
        return pid if os.fsencode(self._dir / "mosquitto.conf") in command else None


def _note_line(line: str) -> None:
    """Errors are worth a look; its notes and warnings repeat what our configuration decided."""
    level = "warning" if " Error: " in f" {line}" else "debug"
    getattr(log, level)("broker.said", line=line)


def _many_files() -> list[str]:
    """A prefix that lifts the soft limit of open files: one connection is one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    prlimit = shutil.which("prlimit")
    if prlimit is None or soft == hard:
        return []
    return [prlimit, f"--nofile={hard}:{hard}", "--"]


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------------------------------------------------ amqtt


class AmqttBroker:
    """amqtt in this process and this loop: no program to install, and enough for a trial of 50 nodes."""

    def __init__(
        self,
        *,
        acl: Sequence[str],
        clock: Clock,
        host: str = "127.0.0.1",
        port: int = 0,
        chance: Chance,
        users: Mapping[str, str] | None = None,
        identities: Identities | None = None,
    ) -> None:
        """`identities`: TLS with our certificate; users show their passwords all the same."""
        self._rules = AccessRules(acl)
        self._clock = clock
        self._host, self._port = host, port
        self._users = dict(users or {})
        self._identities = identities
        passwords = {name: chance.token_bytes(18).hex() for name in CANARIES}
        tls = None if identities is None else identities.context(None)
        self._canaries = {name: Login(name, password, name, tls) for name, password in passwords.items()}
        self._broker: Any = None
        self._starts = 0

    @property
    def restarts(self) -> int:
        """How often it had to be started again: it lives and dies with this process."""
        return max(0, self._starts - 1)

    async def start(self) -> Address:
        """Start and check it."""
        if importlib.util.find_spec("amqtt") is None:
            raise Unavailable("broker_missing", fix="install_mosquitto")
        from broadcast_server.mqtt import amqtt_gate  # noqa: PLC0415  an extra that need not be installed

        if self._port == 0:
            self._port = _free_port(self._host)
        certificate, key = (None, None) if self._identities is None else self._identities.server_files()
        self._broker = amqtt_gate.make_broker(
            bind=f"{self._host}:{self._port}",
            lets_in=self._lets_in,
            rules=self._rules,
            certificate=certificate,
            key=key,
            connections_max=TRIAL_NODES + 20,
        )
        self._starts += 1
        try:
            await self._broker.start()
        except OSError as error:
            raise Unavailable("broker_failed", said=[str(error)]) from error
        stranger = Login(tls=None if self._identities is None else self._identities.context(None))
        if await try_connect(self._host, self._port, stranger) == 0:
            await self.close()
            raise Refused("broker_open", host=self._host, port=self._port)
        log.info("broker.ready", kind="amqtt", host=self._host, port=self._port, nodes_max=TRIAL_NODES)
        return Address(self._host, self._port, self._identities is not None)

    async def close(self) -> None:
        """Stop it."""
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.shutdown()

    def login(self, user: str) -> Login:
        """How a canary gets in."""
        return self._canaries[user]

    async def refresh(self) -> None:
        """Nothing: it reads its certificate when it starts, and is for trials."""

    async def set_users(self, users: Mapping[str, str]) -> None:
        """Replace all users; sessions of those who are gone are ended."""
        for user in users:
            check_user(user)
        gone = self._users.keys() - users.keys()
        self._users = dict(users)
        if self._broker is not None and gone:
            await self._broker.end_sessions(gone)

    def _lets_in(self, user: str | None, password: str | None, client_id: str | None) -> bool:
        """Whether it is who it says, under its own client id: another's would end that one's session."""
        if user is None or password is None:
            return False
        if user in self._canaries:
            told = self._canaries[user].password or ""
            return client_id == user and hmac.compare_digest(password.encode(), told.encode())
        line = self._users.get(user)
        return client_id == user and line is not None and password_is_right(line, password)
