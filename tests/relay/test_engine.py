"""The engine: what is wanted runs, what is not stops, and one station's trouble is its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator

import av
import numpy as np
import pytest

from broadcast_server.audio.feed import FeedLimits, FeedState
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.errors import NotFound, Unavailable
from broadcast_server.fetch import Fetcher, FetchLimits
from broadcast_server.mqtt.bus import LoopbackBus
from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec, StreamStatus
from broadcast_server.relay.ingest import Ingest
from broadcast_server.relay.monitor import EngineMonitor
from broadcast_server.signer.keys import FileSigner
from broadcast_server.store.words import ListenAt
from broadcast_server.supervise import SystemClock, ThreadExecutor
from simulation.radio import Faults, Station
from simulation.samples import sample
from tests.relay.ear import Listener, pair_of
from tests.support.clock import FakeChance
from tests.support.until import until


class Province:
    """An engine and two stations."""

    def __init__(self, sandbox: Sandbox, bus: LoopbackBus, signer: FileSigner, *, pushed: Ingest | None = None) -> None:
        self.pushed = pushed
        self.good = Station.of_sample("station_pull", faults=Faults(burst_s=1.0))
        self.bad = Station.of_sample("station_reserve", faults=Faults(burst_s=1.0))
        self.told: list[StreamStatus] = []
        self.executor = ThreadExecutor(2, name="test.encode")
        self._parts = (sandbox, bus, signer)

    async def open(self) -> None:
        sandbox, bus, signer = self._parts
        await self.good.start()
        await self.bad.start()
        self.engine = Engine(
            bus=bus,
            signer=signer,
            fetcher=Fetcher(
                clock=SystemClock(),
                allow_private=frozenset({self.good.authority, self.bad.authority}),
                limits=FetchLimits(silence_s=0.6),
            ),
            sandbox=sandbox,
            clock=SystemClock(),
            chance=FakeChance(),
            executor=self.executor,
            pushed=self.pushed,
            limits=FeedLimits(retry_first_s=0.1, retry_longest_s=0.3),
            on_status=self.told.append,
        )

    async def close(self) -> None:
        await self.engine.close()
        await self.good.close()
        await self.bad.close()
        self.executor.close()

    def spec(self, stream_id: str, station: Station, **changed: int) -> StreamSpec:
        wanted = {"epoch": 1, "listeners": 45} | changed
        return StreamSpec(stream_id, f"feed-{stream_id}", FeedKind.PULL, url=station.url, **wanted)


@pytest.fixture
async def province(sandbox: Sandbox, bus: LoopbackBus, signer: FileSigner) -> AsyncIterator[Province]:
    made = Province(sandbox, bus, signer)
    await made.open()
    yield made
    await made.close()


async def test_a_dead_station_is_told_and_its_neighbour_sounds_on(province: Province, bus: LoopbackBus):
    listener, other = Listener(bus, "a"), Listener(bus, "b")
    await province.engine.reconcile({"a": province.spec("a", province.good), "b": province.spec("b", province.bad)})
    await until(lambda: other.batches and listener.batches)
    province.bad.faults = Faults(status=404)
    province.bad.cut()
    await until(lambda: province.engine.status()["b"].reason == "http_404")
    assert province.engine.status()["b"].state is FeedState.DEAD
    assert any(status.stream_id == "b" and status.reason == "http_404" for status in province.told)
    before = len(listener.batches)
    await until(lambda: len(listener.batches) >= before + 2)
    status = province.engine.status()["a"]
    assert (status.state, status.reason, status.listeners) == (FeedState.HEALTHY, None, 45)
    assert status.counters.gaps == 0
    assert status.bytes_in > 0
    assert listener.heard() == sample("station_pull").tones
    assert other.heard() == sample("station_reserve").tones


async def test_only_what_changed_is_touched(province: Province, bus: LoopbackBus):
    listener, other = Listener(bus, "a"), Listener(bus, "b")
    specs = {"a": province.spec("a", province.good), "b": province.spec("b", province.bad)}
    await province.engine.reconcile(specs)
    await until(lambda: other.batches and listener.batches)
    # The same again, and more listeners: nothing happens.
    await province.engine.reconcile(dict(specs))
    await province.engine.reconcile(specs | {"a": province.spec("a", province.good, listeners=90)})
    assert province.engine.status()["a"].listeners == 90
    # The feed's address changes: that stream has a new head, the other has not.
    await province.engine.reconcile(specs | {"a": province.spec("a", province.bad)})
    await until(lambda: len({head.public_key for head in listener.heads}) == 2)
    await until(lambda: listener.batches[-1].sequence >= 1 and listener.heads[-1] != listener.heads[0])
    assert len({head.public_key for head in other.heads}) == 1
    # A new leader's epoch is a new head as well.
    await province.engine.reconcile({"b": province.spec("b", province.bad, epoch=2)})
    await until(lambda: other.envelopes[-1].epoch == 2)
    assert set(province.engine.status()) == {"b"}
    ended = [envelope for envelope in listener.envelopes if envelope.expires_ms == envelope.issued_ms]
    assert ended[-1] is listener.envelopes[-1]


async def test_stopping_all_ends_every_lease_and_lets_the_stations_go(province: Province, bus: LoopbackBus):
    listener = Listener(bus, "a")
    await province.engine.reconcile({"a": province.spec("a", province.good)})
    await until(lambda: listener.batches)
    await province.engine.reconcile({})
    assert province.engine.status() == {}
    await until(lambda: listener.envelopes[-1].expires_ms == listener.envelopes[-1].issued_ms)
    await until(lambda: province.good.listeners == 0)


async def test_a_pushed_feed_without_a_listener_for_it_is_not_found(province: Province):
    with pytest.raises(NotFound):
        await province.engine.reconcile({"p": StreamSpec("p", "feed-p", FeedKind.PUSH, 1, 45, mount="x")})


async def test_who_listens_in_hears_what_is_relayed_and_few_may(province: Province):
    monitor = EngineMonitor(province.engine, executor=province.executor, most=1)
    with pytest.raises(Unavailable) as elsewhere:
        await anext(monitor.listen("feed-a", ListenAt.RELAY))
    assert elsewhere.value.code == "monitor_not_here"
    await province.engine.reconcile({"a": province.spec("a", province.good)})
    await until(lambda: province.engine.status()["a"].state is FeedState.HEALTHY)
    heard = b""
    async with contextlib.aclosing(monitor.listen("feed-a", ListenAt.RELAY)) as pages:
        async for page in pages:
            heard += page
            if len(heard) > 12_000:
                break
        with pytest.raises(Unavailable) as full:
            await anext(monitor.listen("feed-a", ListenAt.SOURCE))
        assert full.value.code == "monitor_full"
    assert monitor.listeners == 0
    with av.open(io.BytesIO(heard)) as container:
        sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    assert pair_of(sound[-48_000:]) == sample("station_pull").tones


async def test_a_listener_is_let_go_when_the_stream_ends(province: Province):
    monitor = EngineMonitor(province.engine, executor=province.executor)
    await province.engine.reconcile({"a": province.spec("a", province.good)})
    await until(lambda: province.engine.status()["a"].state is FeedState.HEALTHY)
    listening = asyncio.create_task(listen_to_the_end(monitor), name="test.listening")
    await until(lambda: monitor.listeners == 1)
    await province.engine.reconcile({})
    async with asyncio.timeout(5):
        await listening
    assert monitor.listeners == 0


async def listen_to_the_end(monitor: EngineMonitor) -> None:
    async for _ in monitor.listen("feed-a", ListenAt.SOURCE):
        pass


async def test_a_station_that_nobody_relays_is_metered(sandbox: Sandbox, bus: LoopbackBus, signer: FileSigner):
    ingest = Ingest(authenticate=admit, sandbox=sandbox, clock=SystemClock(), chance=FakeChance())
    province = Province(sandbox, bus, signer, pushed=ingest)
    await province.open()
    port = await ingest.start(port=0)
    sound = sample("station_push")
    async with pushing_by_hand(port, sound.path.read_bytes(), sound.duration_s):
        await until(ingest.connected)
        await province.engine.meter(ingest.connected())
        await until(lambda: "feed-huyen" in province.engine.metered())
        await until(lambda: province.engine.metered()["feed-huyen"].level_dbfs > -30)
        assert province.engine.status() == {}
    await province.engine.meter(())
    assert province.engine.metered() == {}
    await province.close()
    await ingest.close()


async def admit(mount: str, _user: str, _password: str) -> str:
    return f"feed-{mount}"


@contextlib.asynccontextmanager
async def pushing_by_hand(port: int, sound: bytes, duration_s: float) -> AsyncIterator[None]:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    token = base64.b64encode(b"source:x").decode()
    writer.write(f"PUT /huyen HTTP/1.1\r\nContent-Type: audio/mpeg\r\nAuthorization: Basic {token}\r\n\r\n".encode())

    station = SystemClock()

    async def push() -> None:
        size = round(len(sound) / duration_s / 10)
        for start in range(0, len(sound), size):
            writer.write(sound[start : start + size])
            await writer.drain()
            await station.sleep(0.1)

    task = asyncio.create_task(push(), name="test.push")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.close()
