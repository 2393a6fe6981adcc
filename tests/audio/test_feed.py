"""Feeds: what their first bytes say, how HLS is read, and how each way of failing is told, retried and survived."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator

import numpy as np
import pytest

from broadcast_server.audio.feed import (
    FeedLimits,
    FeedState,
    FeedStatus,
    OggHeaders,
    PullFeed,
    PushConnection,
    PushFeed,
    format_of,
    parse_playlist,
    sniff,
)
from broadcast_server.audio.ffmpeg import Sandbox, StreamFormat, encode_pcm_argv, find_ffmpeg
from broadcast_server.domain.errors import Invalid, Refused, Unavailable
from broadcast_server.fetch import Fetcher, FetchLimits
from broadcast_server.supervise import SystemClock
from simulation.radio import Faults, Station
from simulation.samples import sample, tone_pcm
from tests.relay.ear import pair_of
from tests.support.clock import FakeChance
from tests.support.until import until

QUICK_FETCH = FetchLimits(connect_s=2.0, header_s=1.0, silence_s=0.5, floor_window_s=1.0)
QUICK = FeedLimits(sound_silence_s=0.6, retry_first_s=0.1, retry_longest_s=0.3, gather_s=0.05)
PULL_TONES = sample("station_pull").tones


def encoded(codec: str, container: str, *, seconds: float = 4.0) -> bytes:
    """A tone pair as another encoder would send it."""
    argv = encode_pcm_argv("out", codec=codec, kbps=48)
    argv = [part for part in argv if part not in {"out", "-y"}]
    pcm = tone_pcm((700, 2300), seconds)
    done = subprocess.run([find_ffmpeg(), *argv[1:], "-f", container, "-"], input=pcm, stdout=-1, check=True)
    return done.stdout


def feed_of(station: Station, sandbox: Sandbox, *, url: str | None = None, heard: list[FeedStatus] | None = None):
    fetcher = Fetcher(clock=SystemClock(), allow_private=frozenset({station.authority}), limits=QUICK_FETCH)
    return PullFeed(
        "vov-mo-phong",
        url or station.url,
        fetcher=fetcher,
        sandbox=sandbox,
        clock=SystemClock(),
        chance=FakeChance(),
        limits=QUICK,
        on_state=None if heard is None else heard.append,
    )


async def listened(feed: PullFeed | PushFeed, seconds: float) -> bytes:
    """So much PCM of the feed."""
    pcm = b""
    async with asyncio.timeout(15), contextlib.aclosing(feed.blocks()) as blocks:
        async for block in blocks:
            pcm += block
            if len(pcm) >= seconds * 96_000:
                break
    return pcm


def pair_in(pcm: bytes) -> tuple[int, int]:
    return pair_of(np.frombuffer(pcm[-48_000:], "<i2").astype(float))


@contextlib.asynccontextmanager
async def listening(feed: PullFeed | PushFeed) -> AsyncIterator[list[int]]:
    """Somebody listens all the time; the list grows by each block's size."""
    sizes: list[int] = []

    async def listen() -> None:
        async with contextlib.aclosing(feed.blocks()) as blocks:
            async for block in blocks:
                sizes.append(len(block))  # noqa: PERF401  it must be seen while it grows

    task = asyncio.create_task(listen(), name="test.listener")
    try:
        yield sizes
    finally:
        task.cancel()
        await asyncio.wait([task])


# -- formats


def test_first_bytes_tell_the_format_also_from_the_middle_of_a_stream():
    mp3 = sample("station_pull").path.read_bytes()
    aac = encoded("aac", "adts")
    for start in (0, 1, 333, 5_000):
        assert sniff(mp3[start : start + 4_000]) is StreamFormat.MP3
        assert sniff(aac[start : start + 4_000]) is StreamFormat.AAC
    assert sniff(encoded("libopus", "ogg")[:100]) is StreamFormat.OGG
    assert sniff(encoded("aac", "mpegts")[:1000]) is StreamFormat.MPEGTS
    assert sniff(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + mp3[:4_000]) is StreamFormat.MP3


@pytest.mark.parametrize(
    "head", [b"", b"\xff", b"#EXTM3U\n", b"ffconcat version 1.0", b"<html>" * 100, bytes(4_000), b"\xff" * 4_000]
)
def test_what_is_no_sound_has_no_format(head: bytes):
    assert sniff(head) is None


def test_a_label_names_a_format_or_is_refused():
    assert format_of("audio/mpeg; charset=utf-8") is StreamFormat.MP3
    assert format_of("Application/OGG") is StreamFormat.OGG
    for label in ("text/html", "video/mp4", "", "application/octet-stream"):
        with pytest.raises(Refused):
            format_of(label)


# -- HLS


MEDIA = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:6
#EXT-X-MEDIA-SEQUENCE:41
#EXTINF:5.995,Bản tin
seg41.aac
#EXTINF:6,
/hls/seg42.aac?x=1

#EXTINF:6.0
http://radio.example:8000/hls/seg43.aac
"""


def test_a_media_playlist_is_read_with_numbers_and_whole_addresses():
    playlist = parse_playlist(MEDIA, "http://radio.example:8000/hls/live.m3u8")
    assert [(one.number, one.url, one.duration_s) for one in playlist.segments] == [
        (41, "http://radio.example:8000/hls/seg41.aac", 5.995),
        (42, "http://radio.example:8000/hls/seg42.aac?x=1", 6.0),
        (43, "http://radio.example:8000/hls/seg43.aac", 6.0),
    ]
    assert (playlist.target_s, playlist.ended, playlist.variants) == (6.0, False, ())


def test_a_master_playlist_gives_its_variants():
    text = """#EXTM3U
#EXT-X-STREAM-INF:BANDWIDTH=128000,CODECS="mp4a.40.2,x"
hi.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=48000
lo.m3u8"""
    playlist = parse_playlist(text, "https://radio.example/a/m.m3u8")
    assert min(playlist.variants) == (48_000, "https://radio.example/a/lo.m3u8")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("http://127.0.0.1/x.aac", "hls_cross_origin"),
        ("https://radio.example:8000/x.aac", "hls_cross_origin"),
        ("//evil.example/x.aac", "hls_cross_origin"),
        ("file:///etc/passwd", "hls_cross_origin"),
        ("http://radio.example/x.aac", "hls_cross_origin"),
        ('#EXT-X-KEY:METHOD=AES-128,URI="k"', "hls_unsupported"),
        ("#EXT-X-BYTERANGE:100@0", "hls_unsupported"),
        ('#EXT-X-MAP:URI="http://127.0.0.1/init.mp4"', "hls_cross_origin"),
        ("#EXTINF:abc,", "undecodable"),
        ("#EXT-X-MEDIA-SEQUENCE:x", "undecodable"),
    ],
)
def test_a_playlist_leads_nowhere_else(line: str, code: str):
    with pytest.raises((Refused, Invalid)) as caught:
        parse_playlist(f"#EXTM3U\n{line}\n", "http://radio.example:8000/live.m3u8")
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "<html>", "ffconcat version 1.0", "#EXTINF:1,\nx.aac"])
def test_what_is_no_playlist_is_refused(text: str):
    with pytest.raises(Invalid):
        parse_playlist(text, "http://radio.example/live.m3u8")


# -- pulled


async def test_an_mp3_station_is_heard(sandbox: Sandbox):
    heard: list[FeedStatus] = []
    async with Station.of_sample("station_pull") as station:
        feed = feed_of(station, sandbox, heard=heard)
        pcm = await listened(feed, 1.5)
    assert pair_in(pcm) == PULL_TONES
    assert [status.state for status in heard] == [FeedState.HEALTHY]
    assert feed.status.bytes_in > 8_000


async def test_a_shoutcast_station_with_titles_is_heard(sandbox: Sandbox):
    async with Station.of_sample("station_pull", faults=Faults(icy=True, metaint=800)) as station:
        assert pair_in(await listened(feed_of(station, sandbox), 1.5)) == PULL_TONES


@pytest.mark.parametrize(
    ("codec", "container", "label"),
    [
        ("aac", "adts", "audio/aacp"),
        ("libopus", "ogg", "application/ogg"),
        ("libvorbis", "ogg", "audio/ogg"),
    ],
)
async def test_aac_and_ogg_stations_are_heard(sandbox: Sandbox, codec: str, container: str, label: str):
    sound = encoded(codec, container)
    async with Station(sound, len(sound) / 4, content_type=label, faults=Faults(burst_s=1.0)) as station:
        assert pair_in(await listened(feed_of(station, sandbox), 1.5)) == (700, 2300)


async def test_hls_is_heard_over_many_segments(sandbox: Sandbox):
    async with Station.of_sample("station_pull") as station:
        feed = feed_of(station, sandbox, url=station.hls_url)
        assert pair_in(await listened(feed, 4.5)) == PULL_TONES
        assert sum(count for path, count in station.asked.items() if path.endswith(".mp3")) >= 4
        assert max(count for path, count in station.asked.items() if path.endswith(".mp3")) == 1


@pytest.mark.parametrize(
    ("faults", "reason", "state"),
    [
        (Faults(status=404), "http_404", FeedState.DEAD),
        (Faults(status=503), "http_503", FeedState.STALLED),
        (Faults(redirect_to="http://192.168.1.1/live"), "redirect_refused", FeedState.DEAD),
        (Faults(content_type="text/html"), "content_type", FeedState.DEAD),
        (Faults(content_type="audio/aac"), "content_type", FeedState.DEAD),
        (Faults(garbage=True), "undecodable", FeedState.DEAD),
        (Faults(stall_after_s=1.2), "stalled", FeedState.STALLED),
        (Faults(die_after_s=1.2), "ended", FeedState.STALLED),
        (Faults(drip=True), "stalled", FeedState.STALLED),
    ],
    ids=["404", "503", "redirect", "html", "not-what-it-says", "garbage", "stall", "die", "drip"],
)
async def test_a_bad_feed_is_named_and_tried_again_until_it_is_well(
    sandbox: Sandbox, faults: Faults, reason: str, state: FeedState
):
    heard: list[FeedStatus] = []
    async with Station.of_sample("station_pull", faults=faults) as station:
        feed = feed_of(station, sandbox, heard=heard)
        async with listening(feed) as sizes:
            await until(lambda: any(status.reason == reason for status in heard), timeout_s=8)
            assert next(status for status in heard if status.reason == reason).state is state
            station.faults = Faults()
            station.cut()
            before = len(sizes)
            await until(lambda: feed.status.state is FeedState.HEALTHY and len(sizes) > before, timeout_s=8)
        assert feed.status.failures >= 1


async def test_a_drip_that_never_pauses_is_too_slow(sandbox: Sandbox):
    station = Station.of_sample("station_pull", faults=Faults(speed=0.05))
    station.piece_s = 0.02
    heard: list[FeedStatus] = []
    async with station, listening(feed_of(station, sandbox, heard=heard)):
        await until(lambda: any(status.reason == "too_slow" for status in heard), timeout_s=8)


async def test_retries_are_spaced_and_do_not_spin(sandbox: Sandbox):
    async with Station.of_sample("station_pull", faults=Faults(status=404)) as station:
        began_s = asyncio.get_running_loop().time()
        async with listening(feed_of(station, sandbox)):
            await until(lambda: station.asked["/live"] >= 5, timeout_s=8)
        # The waits are at least half of 0.1, 0.2, 0.3 and 0.3 s.
        assert asyncio.get_running_loop().time() - began_s >= 0.45


# -- pushed


def push_feed(sandbox: Sandbox) -> PushFeed:
    return PushFeed("push", sandbox=sandbox, clock=SystemClock(), chance=FakeChance(), limits=QUICK)


async def test_a_pushed_feed_waits_sounds_and_waits_again(sandbox: Sandbox):
    sound = sample("station_push").path.read_bytes()
    feed = push_feed(sandbox)
    async with listening(feed) as sizes:
        await until(lambda: feed.status.reason == "no_source")
        for _ in range(2):
            connection = PushConnection("audio/mpeg")
            feed.attach(connection)
            before = len(sizes)
            for at in range(0, 32_000, 1_000):
                await connection.write(sound[at : at + 1_000])
            await until(lambda before=before: len(sizes) > before)
            assert feed.status.state is FeedState.HEALTHY
            connection.end("cut")
            feed.detach(connection)
            await until(lambda: feed.status.reason == "source_cut")
    assert feed.status.bytes_in == 64_000


async def test_a_second_source_is_refused_and_the_first_untouched(sandbox: Sandbox):
    feed = push_feed(sandbox)
    first = PushConnection("audio/mpeg")
    feed.attach(first)
    with pytest.raises(Refused):
        feed.attach(PushConnection("audio/mpeg"))
    assert feed.connection is first


async def test_what_nobody_hears_falls_out_of_a_small_ring():
    connection = PushConnection("audio/mpeg")
    for _ in range(1_000):
        await connection.write(bytes(1_000))
    assert connection.bytes_in == 1_000_000
    assert connection.bytes_in - connection.bytes_dropped <= PushConnection.RING_BYTES


async def test_a_listener_that_is_behind_holds_the_source_and_its_leaving_lets_it_go():
    connection = PushConnection("audio/mpeg")
    chunks = connection.chunks()
    await connection.write(b"first")
    assert await anext(chunks) == b"first"
    flood = asyncio.create_task(connection.write(bytes(PushConnection.HEARD_BYTES + 1)), name="test.flood")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(flood), 0.05)
    await chunks.aclose()
    await flood


async def test_the_end_of_a_connection_reaches_its_listener():
    connection = PushConnection("audio/mpeg")
    await connection.write(b"x")
    connection.end("cut")
    chunks = connection.chunks()
    assert await anext(chunks) == b"x"
    with pytest.raises(Unavailable) as caught:
        await anext(chunks)
    assert caught.value.code == "source_cut"


async def test_what_a_revoked_source_left_is_not_listened_to():
    connection = PushConnection("audio/mpeg")
    await connection.write(b"x")
    connection.end("revoked")
    with pytest.raises(Unavailable) as caught:
        await anext(connection.chunks())
    assert caught.value.code == "source_revoked"


@pytest.mark.parametrize("size", [100, 777, 50_000])
def test_the_headers_of_an_ogg_stream_are_kept_however_it_is_cut(size: int):
    stream = encoded("libvorbis", "ogg")
    headers = OggHeaders()
    for at in range(0, len(stream), size):
        headers.pass_by(stream[at : at + size])
    assert headers.pages.startswith(b"OggS")
    assert headers.pages == stream[: len(headers.pages)]
    assert b"vorbis" in headers.pages
    assert 100 < len(headers.pages) < 10_000


async def test_one_may_join_an_ogg_stream_in_the_middle(sandbox: Sandbox):
    stream = encoded("libvorbis", "ogg", seconds=30.0)
    feed, connection = push_feed(sandbox), PushConnection("application/ogg")
    feed.attach(connection)
    for at in range(0, len(stream) // 2, 1_000):
        await connection.write(stream[at : at + 1_000])
    assert connection.bytes_dropped > 0

    listening = asyncio.create_task(listened(feed, 2.0), name="test.listening")
    for _ in range(10):
        await asyncio.sleep(0)  # it listens before the rest comes: what comes unheard falls out of the ring

    for at in range(len(stream) // 2, len(stream), 1_000):
        await connection.write(stream[at : at + 1_000])
    assert pair_in(await listening) == (700, 2300)
