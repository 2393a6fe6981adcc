"""The composition root: settings in, a running server out; the one place where all parts meet.

Start order: store → signer → broker → bus → inbox → relay → conductor → HTTP; stop is the mirror, by one exit stack.
Every argument is handed down as a value; there is no hot reload, a restart is the reload. `office` builds the small
set that the command line works with.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import pwd
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import uvicorn

from broadcast_server.api.router import create_api
from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.prepare import decode_pcm
from broadcast_server.audio.speech import EspeakSpeaker
from broadcast_server.control import auditing, sending, ties, timekeeping
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import AudioRoom, Desk
from broadcast_server.control.herald import Herald
from broadcast_server.control.live import LiveKeeper
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Conflict, Unavailable
from broadcast_server.fetch import Fetcher
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.broker import (
    CANARIES,
    SALT_BYTES,
    Address,
    AmqttBroker,
    Broker,
    BrokerKind,
    MosquittoBroker,
    choose_broker,
    password_line,
)
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.mqtt.canary import Ground
from broadcast_server.mqtt.paho_bus import PahoBus
from broadcast_server.mqtt.probe import Login
from broadcast_server.playout import bundles, wire
from broadcast_server.playout.alarms import Alarms, Job
from broadcast_server.playout.anchoring import EVERY as ANCHOR_EVERY
from broadcast_server.playout.anchoring import NAME as ANCHORS_NAME
from broadcast_server.playout.anchoring import Anchoring
from broadcast_server.playout.broker_watch import BrokerWatch
from broadcast_server.playout.clock_watch import ClockWatch, GuardedSigner
from broadcast_server.playout.conductor import Conductor
from broadcast_server.playout.configs import StationFacts
from broadcast_server.playout.deliveries import Deliveries
from broadcast_server.playout.housekeeping import Housekeeping
from broadcast_server.playout.inbox import Heard, Inbox
from broadcast_server.playout.judge import Judge
from broadcast_server.playout.keeper import BrokerKeeper, FeedKeeper
from broadcast_server.playout.planner import Desired, Planner
from broadcast_server.relay.engine import Engine
from broadcast_server.relay.entrance import HERE, Network, Rules
from broadcast_server.relay.ingest import Ingest
from broadcast_server.relay.monitor import EngineMonitor
from broadcast_server.relay.voice import VoiceRoom
from broadcast_server.settings import Role, Settings
from broadcast_server.signer.certificates import (
    BrokerIdentities,
    DeviceCertifier,
    KeyPair,
    KeyPairFiles,
    LocalAuthority,
    ServerSide,
    client_context,
)
from broadcast_server.signer.child import POLICY as SIGNER_POLICY
from broadcast_server.signer.child import START_S as SIGNER_START_S
from broadcast_server.signer.child import SignerChild, for_an_errand, make_room_for
from broadcast_server.signer.config import Config
from broadcast_server.signer.door import SignerDoor
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.store import audit, facts, people
from broadcast_server.store.backup import back_up
from broadcast_server.store.journal import NAME as JOURNAL_NAME
from broadcast_server.store.journal import Journal
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store, engine_url
from broadcast_server.supervise import (
    FOREVER,
    SteadyClock,
    Supervisor,
    SystemChance,
    SystemClock,
    ThreadExecutor,
    kernel_is_synchronised,
)

log = get_logger()

STORE_THREADS: Final = 3
WORK_THREADS: Final = 3
FILLER_LONGEST_S: Final = 300
"""A filler is held in memory as PCM: 5 minutes are 29 MB."""
RENEW_EVERY_S: Final = 6 * 3_600.0
FIRST_STEPS: Final = "broadcast-server place add NAME; broadcast-server user first-administrator LOGIN"
SOCKET_FRAME_BYTES: Final = 128 * 1024
"""A microphone's chunk is 64 KiB at most; a longer frame closes its socket before it is in memory."""


@dataclass(slots=True)
class Server:
    """What runs in this process, for whoever started it."""

    settings: Settings
    http_url: str
    authority: LocalAuthority
    http_tls: ServerSide | None = None
    ingest_tls: ServerSide | None = None
    ingest_port: int | None = None
    broker_code: str = ""
    parts: Callable[[], Mapping[str, bool]] = dict
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    voices: VoiceRoom | None = None
    """Where live voices go; None where the engine room is another process."""
    monitor: EngineMonitor | None = None
    """Who lets people listen in; None where nothing is relayed."""


@contextlib.asynccontextmanager
async def office(settings: Settings) -> AsyncIterator[Desk]:
    """A desk for one errand of the command line, on the same store and files as the server."""
    clock, chance = SystemClock(), SystemChance()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        threads = ThreadExecutor(2, name="store")
        stack.callback(threads.close)
        await threads.run(migrate, settings.store_url)
        store = Store(settings.store_url, clock=clock, chance=chance, executor=threads)
        stack.push_async_callback(store.close)
        if settings.environment == "demo":
            await _check_demo(store, settings)
        work = ThreadExecutor(2, name="work")
        stack.callback(work.close)
        certifier = DeviceCertifier(_authority(settings, clock, chance), work)
        audio = await _audio_room(settings)
        journal = Journal(settings.data_dir / JOURNAL_NAME)
        yield Desk(
            store=store, clock=clock, chance=chance, executor=work, audio=audio, certifier=certifier, journal=journal
        )


@contextlib.asynccontextmanager
async def running(settings: Settings, roles: Iterable[Role] = tuple(Role)) -> AsyncIterator[Server]:
    """A server of these roles, ready when entered, stopped in the mirror order when left.

    Raises `Unavailable` naming the part that could not start.
    """
    mine = frozenset(roles)
    clock, chance = SteadyClock(SystemClock()), SystemChance()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        door = _bind(settings.http.host, settings.http.port)
        stack.callback(door.close)
        authority = _authority(settings, clock, chance)
        server = Server(settings, _origin(settings, door.getsockname()[1]), authority)
        store_threads = ThreadExecutor(STORE_THREADS, name="store")
        stack.callback(store_threads.close)
        work = ThreadExecutor(WORK_THREADS, name="work")
        stack.callback(work.close)
        needs_keys = bool(mine & {Role.CONDUCTOR, Role.RELAY, Role.INBOX})
        signing = await _signing(server, stack, clock, chance) if needs_keys else None
        await store_threads.run(migrate, settings.store_url)
        make_room_for_signer(settings)
        store = Store(settings.store_url, clock=clock, chance=chance, executor=store_threads)
        stack.push_async_callback(store.close)
        await _check_demo(store, settings)
        supervisor = Supervisor(clock=clock, chance=chance, on_give_up=lambda *_: server.given_up.set())
        stack.push_async_callback(supervisor.close)
        supervisor.keep("store.doorbell", store.doorbell.watch, FOREVER)
        watch = _clock_watch(clock, chance.new_id(), store)
        await watch.look()  # nothing is said before the clock was held against what the store remembers
        supervisor.keep("playout.clock_watch", watch.run, FOREVER)
        certifier = DeviceCertifier(_authority(settings, clock, chance), work)
        audio = await _audio_room(settings)
        journal = Journal(settings.data_dir / JOURNAL_NAME)
        desk = Desk(
            store=store, clock=clock, chance=chance, executor=work, audio=audio, certifier=certifier, journal=journal
        )
        if signing is not None:
            await _engine_room(server, stack, supervisor, desk, watch, signing)
        if Role.API in mine:
            if await store.read(people.is_empty):
                log.warning("server.nobody_yet", how=FIRST_STEPS)
            supervisor.keep("control.herald", Herald(desk).run, FOREVER)
            await _front_door(server, stack, desk, door)
        supervisor.keep("app.certificates", lambda: _keep_certificates(server, clock), FOREVER)
        log.info("server.ready", url=server.http_url, roles=sorted(mine), broker=server.broker_code)
        yield server
        log.info("server.stopping")


async def serve(settings: Settings, roles: Iterable[Role] = tuple(Role)) -> None:
    """Run until SIGINT or SIGTERM. Raises `Unavailable` if a part could not start or was given up."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, roles) as server:
        waiting = [
            asyncio.create_task(stop.wait(), name="app.stop"),
            asyncio.create_task(server.given_up.wait(), name="app.given_up"),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if server.given_up.is_set():
            raise Unavailable("part_given_up")


async def _check_demo(store: Store, settings: Settings) -> None:
    """Demo users, whose passwords stand in a script, never serve the field; nor does the demo enter a real database.

    Raises `Conflict`: `store_is_demo`, `store_is_not_demo`.
    """
    is_marked, has_users = await store.read(
        lambda session: (facts.find(session, facts.DEMO) is not None, not people.is_empty(session))
    )
    if settings.environment != "demo":
        if is_marked:
            raise Conflict("store_is_demo", fix="use_own_data_dir")
        return
    if has_users and not is_marked:
        raise Conflict("store_is_not_demo", fix="use_own_data_dir")
    if not is_marked:
        now = store.clock.now()
        await store.begin(lambda session: facts.put(session, facts.DEMO, {}, now=now), ring=False)


def _clock_watch(clock: SteadyClock, process: str, store: Store) -> ClockWatch:
    return ClockWatch(
        process=process,
        host=os.uname().nodename,
        store=store,
        clock=clock,
        kernel=kernel_is_synchronised,
        is_database_elsewhere=store.url.host not in {None, "", "localhost", "127.0.0.1", "::1"},
    )


# -- what is carried by hand ------------------------------------------------------------------------------------------


async def export_bundle(desk: Desk, settings: Settings, unit_id: str, target: Path, *, days: int) -> bundles.Bundle:
    """Write what the nodes under a unit need for `days` days; the server may run meanwhile.

    Raises as `bundles.export`, and `Unavailable("clock_doubtful")`: no plan is signed by a clock that is in doubt.
    """
    watch = _clock_watch(SteadyClock(SystemClock()), desk.chance.new_id(), desk.store)
    await watch.look()
    watch.check()
    doubtful = [one for one in await desk.store.read(timekeeping.process_clocks) if not one.is_trusted]
    if doubtful:
        raise Unavailable("clock_doubtful", doubts=sorted(doubtful[0].doubts))
    known = await desk.store.read(lambda session: facts.find(session, facts.PUBLIC_URL))
    origin = _origin(settings, settings.http.port) if known is None else known["url"]
    async with for_an_errand(signer_config(settings), desk.clock) as door:
        parts = bundles.Parts(
            store=desk.store,
            signer=GuardedSigner(door, watch),
            answers=_time_key(settings, desk.chance),
            planner=Planner(plan_days=days),
            clock=desk.clock,
            executor=desk.executor,
            sound=desk.audio.assets.path,
            facts=StationFacts(
                assets_url=f"{origin}/api/v1/assets", status_interval_s=settings.playout.status_interval_s
            ),
        )
        return await bundles.export(parts, unit_id, target)


async def take_reports(desk: Desk, settings: Settings, file: Path) -> bundles.Returned:
    """Take in reports that were carried here, by the inbox and the judge that the network's go through."""
    bus = LoopbackBus(LoopbackHub(), clock=desk.clock)
    await bus.start()
    judge = Judge(
        store=desk.store, clock=desk.clock, chance=desk.chance, grace=timedelta(seconds=settings.playout.grace_s)
    )
    inbox = Inbox(
        bus=bus,
        store=desk.store,
        answers=_time_key(settings, desk.chance),
        clock=desk.clock,
        chance=desk.chance,
        epoch=lambda: 0,
        on_heard=judge.heard,
    )
    try:
        return await bundles.take_reports(desk.store, inbox, judge, file)
    finally:
        await bus.close()


# -- the authority ------------------------------------------------------------------------------------------------


async def authority_pem(desk: Desk, settings: Settings) -> str:
    """What peers trust."""
    return _authority(settings, desk.clock, desk.chance).authority_pem().decode("ascii")


async def certificates(desk: Desk, settings: Settings) -> list[dict[str, str]]:
    """Every certificate there is: `{role, name, until}`."""
    own = settings.data_dir / "tls" / "server.pem"
    return _authority(settings, desk.clock, desk.chance).overview(own)


async def rotate_authority(desk: Desk, settings: Settings, *, is_stolen: bool) -> int:
    """Let the backup sign; the audit row's number."""
    _authority(settings, desk.clock, desk.chance).rotate(keep=not is_stolen)
    now = desk.clock.now()
    return await desk.store.begin(
        lambda session: audit.append(
            session,
            now=now,
            actor=OPERATOR.login,
            verb="authority.rotate",
            unit_id=None,
            subject="authority/local",
            detail={"stolen": is_stolen},
        )
    )


# -- the parts ----------------------------------------------------------------------------------------------------


def _authority(settings: Settings, clock: Clock, chance: Chance) -> LocalAuthority:
    return LocalAuthority(
        settings.data_dir / "authority", clock=clock, chance=chance, reserved={settings.broker.user, *CANARIES}
    )


def _hosts(settings: Settings) -> tuple[str, ...]:
    """What our certificates call this machine: every name and address that the settings know of it."""
    public_url = settings.http.public_url
    known = (
        *("localhost", "127.0.0.1", "::1", os.uname().nodename),
        *(settings.http.host, settings.ingest.host, settings.broker.host, settings.broker.public_host),
        None if public_url is None else urlsplit(public_url).hostname,
        *settings.http.trusted_hosts,
    )
    return tuple(dict.fromkeys(host.lower() for host in known if host and host not in {"0.0.0.0", "::", "*"}))  # noqa: S104


def _server_side(server: Server, cert: Path | None, key: Path | None) -> ServerSide:
    given = None if cert is None or key is None else KeyPairFiles(cert, key)
    return ServerSide(server.authority, server.settings.data_dir / "tls", _hosts(server.settings), given)


def _ingest_rules(server: Server) -> Rules:
    """Who may push, and how."""
    settings = server.settings.ingest
    networks = tuple(ipaddress.ip_network(network) for network in settings.networks)
    if settings.tls != "off":
        server.ingest_tls = _server_side(server, settings.tls_cert, settings.tls_key)
    plain_from: tuple[Network, ...] = () if settings.tls == "only" else HERE
    return Rules(
        tls=None if server.ingest_tls is None else server.ingest_tls.context,
        plain_from=(*plain_from, *networks) if settings.allow_plain else plain_from,
        networks=networks,
    )


async def _keep_certificates(server: Server, clock: Clock) -> None:
    """Renew ours before they end, and see the operator's when they were replaced."""
    while True:
        await clock.sleep(RENEW_EVERY_S)
        for side in (server.http_tls, server.ingest_tls):
            if side is not None:
                side.renew()


async def _audio_room(settings: Settings) -> AudioRoom:
    quarantine = settings.data_dir / "quarantine"
    shutil.rmtree(quarantine, ignore_errors=True)  # what was not judged before a crash is not kept
    quarantine.mkdir(parents=True)
    return AudioRoom(
        assets=AssetStore(settings.data_dir / "assets", reserve_bytes=settings.reserve_bytes),
        sandbox=await Sandbox.probe(),
        speaker=EspeakSpeaker(),
        quarantine=quarantine,
    )


def _time_key(settings: Settings, chance: Chance) -> TimeKey:
    return TimeKey(time_folder(settings.data_dir / "keys"), chance=chance)


# -- the signing process ----------------------------------------------------------------------------------------------


def signer_config(settings: Settings) -> Config:
    """What the signing process of these settings is told. Raises `Unavailable("signer_user_unknown")`."""
    asking = {_uid(user) for user in settings.signer.allow_users} | {os.geteuid()}
    is_own = settings.signer.user is None and not settings.signer.allow_users
    return Config(
        store_url=settings.store_url,
        keys=settings.keys_dir,
        answering=time_folder(settings.data_dir / "keys"),
        socket=settings.signer_socket,
        mode=0o600 if is_own else 0o660,
        user=settings.signer.user,
        allowed=tuple(sorted(asking)),
        until_eof=False,
        log_json=is_json_log(settings),
        log_level=settings.log_level,
    )


def is_json_log(settings: Settings) -> bool:
    """Whether log lines are for machines."""
    return settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())


def make_room_for_signer(settings: Settings) -> None:
    """Where this is root and the signer has a user of its own: what it needs is that user's, or its group's."""
    if os.geteuid() != 0 or settings.signer.user is None:
        return
    file = engine_url(settings.store_url).database if settings.store_url.startswith("sqlite") else None
    make_room_for(
        settings.signer.user,
        keys=settings.keys_dir,
        shared=settings.data_dir,
        store_file=None if file is None else Path(file),
    )


def _uid(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Unavailable("signer_user_unknown", user=user) from None


async def _signing(server: Server, stack: contextlib.AsyncExitStack, clock: Clock, chance: Chance) -> SignerDoor:
    """A door to the signing process, which begins while the store is made ready."""
    settings = server.settings
    door = SignerDoor(settings.signer_socket, clock)
    stack.push_async_callback(door.close)
    supervisor = Supervisor(clock=clock, chance=chance)
    stack.push_async_callback(supervisor.close)
    if settings.signer.run == "child":
        make_room_for_signer(settings)
        child = SignerChild(signer_config(settings), door, clock)
        supervisor.keep("signer.process", child.run, SIGNER_POLICY)
    supervisor.keep("signer.watch", door.watch, FOREVER)
    return door


async def _engine_room(
    server: Server,
    stack: contextlib.AsyncExitStack,
    supervisor: Supervisor,
    desk: Desk,
    watch: ClockWatch,
    signing: SignerDoor,
) -> None:
    settings, store, clock, chance = server.settings, desk.store, desk.clock, desk.chance
    signer = GuardedSigner(signing, watch)
    link = await _broker(server, stack, supervisor, desk)
    bus = PahoBus(
        _near(link.address.host),
        link.address.port,
        clock=clock,
        chance=chance,
        user=link.user,
        password=link.password,
        client_id=None if link.embedded is None else link.user,
        tls=link.tls,
    )
    stack.push_async_callback(bus.close)
    broker_watch = BrokerWatch(
        ground=lambda: _canary_ground(server, link, clock, bus),
        broker=link.embedded,
        store=store,
        clock=clock,
        chance=chance,
    )
    feeds = FeedKeeper(store=store, clock=clock, chance=chance)
    ingest = Ingest(
        authenticate=feeds.authenticate,
        sandbox=desk.audio.sandbox,
        clock=clock,
        chance=chance,
        on_event=feeds.heard,
        rules=_ingest_rules(server),
    )
    stack.push_async_callback(ingest.close)
    fetcher = Fetcher(clock=clock, allow_private=frozenset(settings.relay.allow_private))
    engine = Engine(
        bus=bus,
        signer=signer,
        fetcher=fetcher,
        sandbox=desk.audio.sandbox,
        clock=clock,
        chance=chance,
        executor=desk.executor,
        pushed=ingest,
        load_filler=lambda sha256: decode_pcm(
            desk.audio.assets.path(sha256),
            assets=desk.audio.assets,
            sandbox=desk.audio.sandbox,
            executor=desk.executor,
            longest_s=FILLER_LONGEST_S,
        ),
    )
    server.monitor = EngineMonitor(engine, executor=desk.executor)
    conductor = Conductor(
        name=f"{os.uname().nodename}-{os.getpid()}-{chance.new_id()[-8:]}",
        store=store,
        bus=bus,
        signer=signer,
        engine=engine,
        planner=Planner(plan_days=settings.playout.plan_days),
        clock=clock,
        chance=chance,
        facts=StationFacts(
            assets_url=f"{server.http_url}/api/v1/assets", status_interval_s=settings.playout.status_interval_s
        ),
        lease_s=settings.playout.lease_s,
        is_clock_trusted=lambda: watch.is_trusted,
        is_alone=_is_alone(settings, store, stack),
    )
    server.voices = voices = VoiceRoom(
        bus=bus,
        signer=signer,
        clock=clock,
        chance=chance,
        executor=desk.executor,
        sandbox=desk.audio.sandbox,
        folder=settings.data_dir / "voices",
        require_space=desk.audio.assets.require_space,
        epoch=lambda: conductor.epoch,
    )
    judge = Judge(store=store, clock=clock, chance=chance, grace=timedelta(seconds=settings.playout.grace_s))

    deliveries = Deliveries(store=store, clock=clock, chance=chance, grace=timedelta(seconds=settings.playout.grace_s))

    def heard(what: Heard) -> None:
        conductor.heard(what)
        judge.heard(what)
        deliveries.heard(what)

    own_file = settings.data_dir / ANCHORS_NAME
    witnesses = tuple(file for file in (own_file, settings.audit.anchor_file) if file is not None)
    anchoring = Anchoring(store=store, clock=clock, executor=desk.executor, files=witnesses)
    inbox = Inbox(
        bus=bus,
        store=store,
        answers=_time_key(settings, chance),
        clock=clock,
        chance=chance,
        epoch=lambda: conductor.epoch,
        on_heard=heard,
        floors=conductor.floors,
        watch=watch,
        anchoring=anchoring,
    )
    housekeeping = Housekeeping(
        store=store,
        clock=clock,
        chance=chance,
        executor=desk.executor,
        assets=desk.audio.assets,
        engine=engine,
        fetcher=fetcher,
        backup=lambda: back_up(desk, settings.data_dir),
    )
    attending = (
        Job("bulletins_sent_down", lambda: sending.attend(desk), every=timedelta(seconds=10)),
        Job("priority_ties", ties.Watch(desk).attend, every=timedelta(seconds=15)),
        Job("broker_canary", broker_watch.attend, every=timedelta(hours=1)),
        Job("audit_anchor", anchoring.anchor, every=ANCHOR_EVERY),
        Job("audit_journal", lambda: auditing.take_over(desk), every=timedelta(minutes=1)),
    )
    alarms = Alarms(store=store, clock=clock, bell=conductor, housekeeping=(*housekeeping.jobs(), *attending))

    def planned(desired: Desired) -> None:
        judge.planned(desired)
        alarms.set_edge(desired.next_edge(clock.now()))

    conductor.on_planned = planned
    server.parts = lambda: {
        "broker": bus.connected,
        "conductor": conductor.is_in_office,
        "clock": watch.is_trusted,
        "broker_isolation": broker_watch.is_isolated,
        "signer": signing.is_up,
    }
    await bus.start()
    await broker_watch.check()
    server.ingest_port = await ingest.start(settings.ingest.host, settings.ingest.port)
    await signing.reached(SIGNER_START_S)
    await _tell(server, desk, link, signing)
    await alarms.start()
    stack.callback(alarms.close)
    stack.push_async_callback(engine.close)
    stack.push_async_callback(conductor.close)
    stack.push_async_callback(voices.close)
    tasks = Supervisor(clock=clock, chance=chance, on_give_up=lambda *_: server.given_up.set())
    stack.push_async_callback(tasks.close)
    if link.users is not None:
        tasks.keep("playout.broker_users", link.users.run, FOREVER)
    tasks.keep("playout.inbox", inbox.run, FOREVER)
    tasks.keep("playout.clock_answers", inbox.answer, FOREVER)
    tasks.keep("playout.anchoring", anchoring.run, FOREVER)
    tasks.keep("playout.judge", judge.run, FOREVER)
    tasks.keep("playout.deliveries", deliveries.run, FOREVER)
    tasks.keep("playout.urgent", conductor.run_urgent, FOREVER)
    tasks.keep("playout.feeds", lambda: feeds.run(engine, ingest), FOREVER)
    tasks.keep("playout.conductor", conductor.run, FOREVER)
    live = LiveKeeper(desk, voices)
    tasks.keep("control.live", live.run, FOREVER)
    tasks.keep("control.live_recordings", live.run_recordings, FOREVER)


def _is_alone(settings: Settings, store: Store, stack: contextlib.AsyncExitStack) -> bool:
    """Whether no other process can lead on this store: it is a file of our data directory, whose lock is ours.

    The kernel lets a lock go with its process, so after a SIGKILL the next process need not wait for the lease's end.
    """
    path = store.url.database
    if store.dialect != "sqlite" or path is None or Path(path).resolve().parent != settings.data_dir.resolve():
        return False
    lock = (settings.data_dir / "conductor.lock").open("ab")
    stack.callback(lock.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        log.warning("leader.another_process", data_dir=str(settings.data_dir))
        return False
    return True


@dataclass(frozen=True, slots=True)
class _BrokerLink:
    """How this process reaches the broker; `embedded` and `users` if it is ours."""

    address: Address
    user: str
    password: str
    tls: ssl.SSLContext | None
    authority_pem: bytes
    """What nodes pin; empty without TLS."""
    embedded: Broker | None = None
    users: BrokerKeeper | None = None


async def _broker(server: Server, stack: contextlib.AsyncExitStack, supervisor: Supervisor, desk: Desk) -> _BrokerLink:
    settings = server.settings.broker
    if settings.kind == "external":
        return _external_broker(server)
    choice = choose_broker(None if settings.kind == "auto" else BrokerKind(settings.kind))
    server.broker_code = choice.code
    if choice.nodes_max is not None:
        log.warning("broker.trial_only", code=choice.code, nodes_max=choice.nodes_max, unbounded="packets and queues")
    password = desk.chance.token_bytes(24).hex()
    line = password_line(settings.user, password, desk.chance.token_bytes(SALT_BYTES))
    identities = None
    if settings.is_tls:
        folder = server.settings.data_dir / "tls"
        identities = BrokerIdentities(server.authority, folder, _hosts(server.settings), desk.clock)
    broker: Broker
    if choice.kind is BrokerKind.MOSQUITTO:
        broker = MosquittoBroker(
            data_dir=server.settings.data_dir / "broker",
            acl=wire.broker_acl(settings.user),
            supervisor=supervisor,
            clock=desk.clock,
            chance=desk.chance,
            host=settings.host,
            port=settings.tcp_port,
            users={settings.user: line},
            program=choice.program,
            identities=identities,
        )
    else:
        broker = AmqttBroker(
            acl=wire.broker_acl(settings.user),
            clock=desk.clock,
            chance=desk.chance,
            host=settings.host,
            port=settings.tcp_port,
            users={settings.user: line},
            identities=identities,
        )
    users = BrokerKeeper(store=desk.store, broker=broker, server_line=(settings.user, line))
    await users.look()
    address = await broker.start()
    stack.push_async_callback(broker.close)
    return _BrokerLink(
        address,
        settings.user,
        password,
        tls=None if identities is None else identities.context(settings.user),
        authority_pem=b"" if identities is None else identities.authority_pem(),
        embedded=broker,
        users=users,
    )


def _external_broker(server: Server) -> _BrokerLink:
    """Raises `Unavailable("certificate_unreadable")`."""
    settings = server.settings.broker
    server.broker_code = "broker_external"
    tls, pinned = None, b""
    if settings.ca_file is not None and settings.is_tls:
        own = None
        file = settings.ca_file
        try:
            pinned = file.read_bytes()
            if settings.certificate is not None and settings.key is not None:
                file = settings.certificate
                own = KeyPair(settings.certificate.read_bytes(), settings.key.read_bytes())
            tls = client_context(pinned, own)
        except (OSError, ValueError) as error:
            raise Unavailable("certificate_unreadable", file=str(file)) from error
    password = "" if settings.password is None else settings.password.get_secret_value()
    address = Address(settings.host, settings.tcp_port, tls is not None)
    return _BrokerLink(address, settings.user, password, tls, pinned)


def _canary_ground(server: Server, link: _BrokerLink, clock: Clock, bus: PahoBus) -> Ground:
    """Who tries the broker: our canaries, or the operator's two users of an external one."""
    settings = server.settings.broker
    logins = None
    stranger = Login(tls=None if not link.authority_pem else client_context(link.authority_pem))
    if link.embedded is not None:
        first, second = CANARIES
        logins = ((first, link.embedded.login(first)), (second, link.embedded.login(second)))
    elif settings.canaries:
        (first, one), (second, two) = (each.get_secret_value().split(":", 1) for each in settings.canaries)
        logins = (
            (first, Login(first, one, first, stranger.tls)),
            (second, Login(second, two, second, stranger.tls)),
        )
    return Ground(_near(link.address.host), link.address.port, clock, logins, stranger, bus.publish)


def _near(host: str) -> str:
    """How this machine reaches what listens on `host`: everywhere is here, too."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


async def _tell(server: Server, desk: Desk, link: _BrokerLink, signer: SignerDoor) -> None:
    """Write down what the front doors must know of the engine room."""
    host = server.settings.broker.public_host or link.address.host
    if _near(host) != host and server.settings.http.public_url is not None:  # nodes reach both at one machine
        host = urlsplit(server.settings.http.public_url).hostname or host
    now = desk.clock.now()

    def write(session: Session) -> None:
        pinned = link.authority_pem.decode("ascii") or None
        broker = {"host": host, "port": link.address.port, "tls": link.address.tls, "ca_pem": pinned}
        facts.put(session, facts.BROKER, broker, now=now)
        facts.put(session, facts.ROOT_PUBLIC_KEY, {"hex": signer.root_public().hex()}, now=now)
        facts.put(session, facts.PUBLIC_URL, {"url": server.http_url}, now=now)
        ingest = {
            "host": server.settings.ingest.host,
            "port": server.ingest_port,
            "tls": server.settings.ingest.tls != "off",
        }
        facts.put(session, facts.INGEST, ingest, now=now)

    await desk.store.begin(write)


def _bind(host: str, port: int) -> socket.socket:
    """The HTTP port, taken before anything else starts. Raises `Unavailable` naming it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise Unavailable("port_taken", host=host, port=port) from error
    return door


def _origin(settings: Settings, port: int) -> str:
    if settings.http.public_url is not None:
        return settings.http.public_url.rstrip("/")
    scheme = "https" if settings.http.is_tls else "http"
    return f"{scheme}://{settings.http.host}:{port}"


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: signals are the composition root's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _front_door(server: Server, stack: contextlib.AsyncExitStack, desk: Desk, door: socket.socket) -> None:
    settings = server.settings.http
    api = create_api(
        desk,
        ingest=server.voices,
        monitor=server.monitor,
        allowed_hosts=settings.trusted_hosts,
        parts=lambda: server.parts(),  # noqa: PLW0108  set later, by the engine room
    )
    http = _HttpServer(
        uvicorn.Config(
            api,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            lifespan="off",
            timeout_graceful_shutdown=5,
            ws_max_size=SOCKET_FRAME_BYTES,
        )
    )
    if settings.is_tls:
        server.http_tls = _server_side(server, settings.tls_cert, settings.tls_key)
        http.config.load()
        http.config.ssl = server.http_tls.context
    serving = asyncio.create_task(http.serve(sockets=[door]), name="app.http")

    async def stop() -> None:
        http.should_exit = True
        await asyncio.wait([serving])

    stack.push_async_callback(stop)
    while not http.started:
        if serving.done():
            raise Unavailable("http_failed")
        await desk.clock.sleep(0.01)
