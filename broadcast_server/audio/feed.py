"""Sound of somebody else, as PCM: pulled from an HTTP or HLS address, or pushed to us by a station's source client.

A maintainer must not break: (1) a feed never raises to its listener; whatever the far side does becomes a state with
a reason and, after a jittered wait, another attempt; (2) the format is taken from the Content-Type *and* must be borne
out by the first bytes, and ffmpeg is told it, never left to guess; ffmpeg has no network, bytes reach it on its stdin;
(3) nothing here paces: back-pressure from the listener reaches the sender through bounded buffers, and a source that
nobody listens to is emptied by whoever holds its socket; (4) one feed is one decoder child: no feed can touch another.

Source: RFC 8216 (HLS) for the playlist; RFC 3533 (Ogg pages); ISO 11172-3 and 14496-3 for frame headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol
from urllib.parse import urljoin

from broadcast_server.audio.ffmpeg import LIVE, Sandbox, StreamFormat, decode_stream_argv
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, Invalid, Refused, Unavailable
from broadcast_server.fetch import Fetcher, media_type, parse_target
from broadcast_server.logs import get_logger
from broadcast_server.supervise import Backoff, Child

log = get_logger()

# ------------------------------------------------------------------------------------------------ what a feed says


class FeedState(StrEnum):
    """How a feed is."""

    CONNECTING = "connecting"
    HEALTHY = "healthy"
    STALLED = "stalled"
    """It was there and went silent; being tried again."""
    DEAD = "dead"
    """Refused, or away for long; still tried, rarely."""


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """A feed's state with the reason (the code of the last failure) and what it counted since it was opened."""

    state: FeedState
    reason: str | None
    since: datetime
    bytes_in: int = 0
    connects: int = 0
    failures: int = 0
    format_changes: int = 0
    """How often the source changed its codec, sampling rate or channels in mid-stream."""


class FrameSource(Protocol):
    """Where a stream's sound comes from."""

    @property
    def status(self) -> FeedStatus:
        """How it is now."""
        ...

    def blocks(self) -> AsyncGenerator[bytes, None]:
        """PCM (48 kHz, mono, s16le) in blocks of any whole number of samples, as it comes; never ends by itself.

        Close it with `aclose`. A listener that does not ask holds the sender back.
        """
        ...


OnState = Callable[[FeedStatus], None]


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """When a feed is called bad, and how it is tried again, as data."""

    sound_silence_s: float = 5.0
    """No sound for so long although at least `soundless_bytes` came: undecodable."""
    soundless_bytes: int = 8 * 1024
    gather_s: float = 0.3
    """Once it sounds, bytes are let gather for so long: a relay has a second in hand, and every turn costs CPU."""
    dead_after_s: float = 60.0
    retry_first_s: float = 0.5
    retry_longest_s: float = 30.0
    healthy_after_s: float = 15.0
    """The back-off starts anew only after so long a healthy time."""
    playlist_bytes: int = 64 * 1024
    segment_bytes: int = 8 * 1024 * 1024


USUAL_LIMITS: Final = FeedLimits()


DEAD_AT_ONCE: Final = frozenset(
    {
        "private_address",
        "redirect_refused",
        "content_type",
        "undecodable",
        "header_too_large",
        "url_malformed",
        "url_scheme",
        "url_port",
        "url_credentials",
        "hls_unsupported",
        "hls_cross_origin",
        "http_401",
        "http_403",
        "http_404",
        "http_410",
    }
)
"""Reasons that a second attempt rarely mends: shown as dead from the first."""

TAKEN_AWAY: Final = frozenset({"revoked", "window_over"})
"""Why a pushed source is ended by us: it may not sound, so what it sent and was not heard yet does not."""

# ---------------------------------------------------------------------------------------------------------- formats


FORMATS: Final[Mapping[str, StreamFormat]] = {
    "audio/mpeg": StreamFormat.MP3,
    "audio/mp3": StreamFormat.MP3,
    "audio/x-mpeg": StreamFormat.MP3,
    "audio/aac": StreamFormat.AAC,
    "audio/aacp": StreamFormat.AAC,
    "audio/x-aac": StreamFormat.AAC,
    "audio/ogg": StreamFormat.OGG,
    "application/ogg": StreamFormat.OGG,
    "video/ogg": StreamFormat.OGG,
}
HLS_TYPES: Final = frozenset(
    {"application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl"}
)
SNIFF_BYTES: Final = 16 * 1024


def format_of(content_type: str) -> StreamFormat:
    """The format a media type names. Raises `Refused("content_type")`."""
    found = FORMATS.get(media_type(content_type))
    if found is None:
        raise Refused("content_type", content_type=content_type[:80])
    return found


def sniff(head: bytes) -> StreamFormat | None:
    """What the first bytes are, None while they may still become something (or are nothing we know).

    Icecast lets a listener in between two frames, so MPEG audio is believed after two frame headers that agree.
    """
    if head.startswith(b"OggS"):
        return StreamFormat.OGG
    if head[:1] == b"\x47" and len(head) > 376 and head[188] == head[376] == 0x47:
        return StreamFormat.MPEGTS
    at = _after_id3(head)
    if at is None:
        return None
    while (at := head.find(b"\xff", at)) >= 0 and at + 4 <= len(head):
        for fmt, length_of in ((StreamFormat.MP3, _mp3_frame_bytes), (StreamFormat.AAC, _adts_frame_bytes)):
            length = length_of(head, at)
            follow = length_of(head, at + length) if length else 0
            if length and follow and head[at + 1] == head[at + length + 1]:
                return fmt
        at += 1
    return None


def _after_id3(head: bytes) -> int | None:
    if not head.startswith(b"ID3"):
        return 0
    if len(head) < 10:
        return None
    size = (head[6] & 0x7F) << 21 | (head[7] & 0x7F) << 14 | (head[8] & 0x7F) << 7 | (head[9] & 0x7F)
    # A tag longer than what is sniffed (a cover picture) is vouched for by its own magic: MP3 and ADTS both carry it.
    return 10 + size


_MP3_KBPS: Final = {
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0),
    (2, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_HZ: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mp3_frame_bytes(head: bytes, at: int) -> int:
    """Length of the MPEG audio layer II or III frame whose header stands at `at`; 0 if there is none."""
    if at + 4 > len(head) or head[at] != 0xFF or head[at + 1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[at + 1] >> 3 & 3, head[at + 1] >> 1 & 3
    rate, pad = head[at + 2] >> 2 & 3, head[at + 2] >> 1 & 1
    if version == 1 or layer not in {1, 2} or rate == 3:
        return 0
    kbps = _MP3_KBPS[(3 if version == 3 else 2, layer)][head[at + 2] >> 4]
    samples = 72 if version != 3 and layer == 1 else 144
    return kbps * 1000 * samples // _MP3_HZ[version][rate] + pad if kbps else 0


def _adts_frame_bytes(head: bytes, at: int) -> int:
    """Length of the ADTS frame whose header stands at `at`; 0 if there is none."""
    if at + 6 > len(head) or head[at] != 0xFF or head[at + 1] & 0xF6 != 0xF0:
        return 0
    length = (head[at + 3] & 3) << 11 | head[at + 4] << 3 | head[at + 5] >> 5
    return length if length > 7 else 0


class FormatWatch:
    """Notices a change of codec, sampling rate or channel count in the bytes that pass by; a bit rate may vary.

    MPEG audio: frame headers, one after the other; ADTS likewise; Ogg: the first page of a new logical stream.
    """

    LOST_BYTES: Final = 4 * 1024
    AGREE: Final = 3

    def __init__(self, fmt: StreamFormat) -> None:
        self.since_change = b""
        """The bytes from the change on, once there was one."""
        self._fmt = fmt
        self._pending = b""
        self._key: tuple[int, ...] | None = None
        self._others: list[tuple[int, ...]] = []
        self._other_at = 0
        self._magic: bytes | None = None

    def pass_by(self, chunk: bytes) -> int | None:
        """Look at the next bytes. How many of them still belong to the old format if it changed, else None."""
        before = len(self._pending)
        data = self._pending + chunk
        match self._fmt:
            case StreamFormat.MP3:
                at = self._frames(data, _mp3_frame_bytes, _mp3_key)
            case StreamFormat.AAC:
                at = self._frames(data, _adts_frame_bytes, _adts_key)
            case StreamFormat.OGG:
                at = self._pages(data)
            case _:
                return None
        if at is None:
            return None
        self.since_change = data[at:]
        return max(0, at - before)

    def _frames(
        self,
        data: bytes,
        length_of: Callable[[bytes, int], int],
        key_of: Callable[[bytes, int], tuple[int, ...]],
    ) -> int | None:
        at, lost_from = 0, None
        self._others.clear()
        while at + 6 <= len(data):
            length = length_of(data, at)
            if length and at + length + 6 > len(data):
                break
            if length and (lost_from is None or length_of(data, at + length)):
                lost_from = None
                key = key_of(data, at)
                self._key = self._key or key
                if key == self._key:
                    self._others.clear()
                else:
                    self._other_at = self._other_at if self._others else at
                    self._others.append(key)
                    if len(self._others) >= self.AGREE and len(set(self._others)) == 1:
                        return self._other_at
                at += length
                continue
            lost_from = at if lost_from is None else lost_from
            at = data.find(b"\xff", at + 1)
            at = len(data) if at < 0 else at
            if at - lost_from >= self.LOST_BYTES:
                found = sniff(data[lost_from:])
                if found is not None and found is not self._fmt:
                    return lost_from
        keep_from = self._other_at if self._others else at if lost_from is None else lost_from
        self._pending = data[max(keep_from, len(data) - 2 * self.LOST_BYTES) :]
        return None

    def _pages(self, data: bytes) -> int | None:
        at = data.find(b"OggS")
        while at >= 0 and at + 27 <= len(data):
            start = at + 27 + data[at + 26]
            if data[at + 5] & 2 and start + 8 <= len(data):
                magic = bytes(data[start : start + 5])
                if self._magic is not None and magic != self._magic:
                    return at
                self._magic = magic
            at = data.find(b"OggS", at + 4)
        self._pending = data[-300:] if at < 0 else data[at:]
        return None


def _mp3_key(data: bytes, at: int) -> tuple[int, ...]:
    """Version and layer, sampling rate, one channel or two."""
    return data[at + 1] & 0x1E, data[at + 2] & 0x0C, data[at + 3] >> 6 == 3


def _adts_key(data: bytes, at: int) -> tuple[int, ...]:
    return data[at + 1] & 0x08, data[at + 2] & 0xFD, data[at + 3] & 0xC0


# -------------------------------------------------------------------------------------------------------------- HLS


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of an HLS stream."""

    number: int
    url: str
    duration_s: float
    init_url: str | None


@dataclass(frozen=True, slots=True)
class Playlist:
    """A media playlist, or (with `variants`) a master: addresses with their bandwidth, in order of the file."""

    segments: tuple[Segment, ...] = ()
    target_s: float = 6.0
    ended: bool = False
    variants: tuple[tuple[int, str], ...] = ()


_ATTRIBUTE: Final = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')


def parse_playlist(text: str, url: str) -> Playlist:
    """Read a playlist fetched from `url`.

    Raises `Invalid("undecodable")` when it is none, `Refused("hls_cross_origin")` for an address elsewhere, and
    `Refused("hls_unsupported", tag=…)` for encryption and byte ranges.
    """
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    if not lines or lines[0] != "#EXTM3U":
        raise Invalid("undecodable", field="playlist")
    segments: list[Segment] = []
    variants: list[tuple[int, str]] = []
    number, target_s, ended, init = 0, 6.0, False, None
    duration_s, bandwidth = 0.0, None
    for line in lines[1:]:
        tag, _, value = line.partition(":")
        try:
            match tag:
                case "#EXT-X-TARGETDURATION":
                    target_s = min(60.0, max(1.0, float(value)))
                case "#EXT-X-MEDIA-SEQUENCE":
                    number = int(value)
                case "#EXTINF":
                    duration_s = float(value.split(",")[0])
                case "#EXT-X-ENDLIST":
                    ended = True
                case "#EXT-X-KEY" if _attributes(value).get("METHOD") != "NONE":
                    raise Refused("hls_unsupported", tag="EXT-X-KEY")
                case "#EXT-X-BYTERANGE":
                    raise Refused("hls_unsupported", tag="EXT-X-BYTERANGE")
                case "#EXT-X-MAP":
                    attributes = _attributes(value)
                    if "BYTERANGE" in attributes:
                        raise Refused("hls_unsupported", tag="EXT-X-MAP")
                    init = _same_origin(url, attributes["URI"])
                case "#EXT-X-STREAM-INF":
                    bandwidth = int(_attributes(value)["BANDWIDTH"])
                case _ if line and not line.startswith("#"):
                    if bandwidth is not None:
                        variants.append((bandwidth, _same_origin(url, line)))
                        bandwidth = None
                    else:
                        segments.append(Segment(number, _same_origin(url, line), duration_s, init))
                        number += 1
        except (ValueError, KeyError) as error:
            raise Invalid("undecodable", field="playlist") from error
    return Playlist(tuple(segments), target_s, ended, tuple(variants))


def _attributes(value: str) -> dict[str, str]:
    return {name: text.strip('"') for name, text in _ATTRIBUTE.findall(value)}


def _same_origin(url: str, reference: str) -> str:
    try:
        joined = urljoin(url, reference)
        same = parse_target(joined).origin == parse_target(url).origin
    except (Invalid, ValueError):
        same = False
        joined = ""
    if not same:
        raise Refused("hls_cross_origin")
    return joined


# ----------------------------------------------------------------------------------------------------- shared parts


class _Feed:
    """State keeping, decoding and trying again: what pulled and pushed feeds have in common."""

    def __init__(
        self,
        feed_id: str,
        *,
        sandbox: Sandbox,
        clock: Clock,
        chance: Chance,
        limits: FeedLimits,
        on_state: OnState | None,
    ) -> None:
        self.feed_id = feed_id
        self._sandbox, self._clock, self._limits = sandbox, clock, limits
        self._backoff = Backoff(chance, first_s=limits.retry_first_s, longest_s=limits.retry_longest_s)
        self._on_state = on_state
        self._status = FeedStatus(FeedState.CONNECTING, None, clock.now())
        self._sounding_since_s: float | None = None
        self._silent_since_s = clock.monotonic()
        self._bytes_in = 0

    @property
    def status(self) -> FeedStatus:
        """How it is now."""
        return replace(self._status, bytes_in=self._bytes_in)

    def on_state(self, callback: OnState | None) -> None:
        """Who is told of every change of state or reason."""
        self._on_state = callback

    def _enter(self, state: FeedState, reason: str | None = None) -> None:
        known = self._status
        connects = known.connects + (state is FeedState.HEALTHY and known.state is not FeedState.HEALTHY)
        if (known.state, known.reason) == (state, reason):
            return
        self._status = replace(
            known, state=state, reason=reason, since=self._clock.now(), bytes_in=self._bytes_in, connects=connects
        )
        if self._on_state is not None:
            self._on_state(self.status)

    def _sounds(self) -> None:
        if self._sounding_since_s is None:
            self._sounding_since_s = self._clock.monotonic()
            self._enter(FeedState.HEALTHY)

    def _fails(self, reason: str) -> None:
        """Note a failure: what it is called now depends on the reason and on how long there was no sound."""
        now_s = self._clock.monotonic()
        if self._sounding_since_s is not None:
            self._silent_since_s = now_s
            if now_s - self._sounding_since_s >= self._limits.healthy_after_s:
                self._backoff.reset()
        self._sounding_since_s = None
        self._status = replace(self._status, failures=self._status.failures + 1)
        is_dead = reason in DEAD_AT_ONCE or now_s - self._silent_since_s >= self._limits.dead_after_s
        self._enter(FeedState.DEAD if is_dead else FeedState.STALLED, reason)
        log.warning("feed.failed", feed_id=self.feed_id, reason=reason, state=self._status.state.value)

    async def _decode(self, fmt: StreamFormat, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """PCM of `chunks` by a child of its own. Ends when they end; raises what they raise, or `undecodable`."""
        argv = decode_stream_argv(fmt, prompt=False)  # as it is: whoever reads judges it, then levels it
        name = f"feed.decode[{self.feed_id}]"
        async with self._sandbox.child(argv, name=name, limits=LIVE, keep_stdin=True) as child:
            meter = _Meter()
            pump = asyncio.create_task(self._pump(chunks, child, meter), name=f"feed.pump[{self.feed_id}]")
            heard, odd = False, b""
            try:
                while True:
                    try:
                        async with asyncio.timeout(self._limits.sound_silence_s):
                            block = await child.stdout.read(1 << 16)
                    except TimeoutError as error:
                        if meter.bytes_since_sound < self._limits.soundless_bytes:
                            continue  # nothing to decode: whoever waits for bytes judges that
                        raise Unavailable("undecodable") from error
                    if not block:
                        break
                    block = odd + block
                    whole = len(block) & ~1
                    block, odd = block[:whole], block[whole:]
                    heard, meter.bytes_since_sound = True, 0
                    self._sounds()
                    yield block
            finally:
                pump.cancel()
                await asyncio.wait([pump])
            failure = None if pump.cancelled() else pump.exception()
            if failure is not None and not (isinstance(failure, Unavailable) and failure.code == "child_ended"):
                raise failure
            if failure is not None or pump.cancelled() or not heard:
                raise Unavailable("undecodable")

    async def _pump(self, chunks: AsyncIterator[bytes], child: Child, meter: _Meter) -> None:
        try:
            async for chunk in chunks:
                await child.write(chunk)
                meter.bytes_since_sound += len(chunk)
                if self._sounding_since_s is not None:
                    await self._clock.sleep(self._limits.gather_s)
        finally:
            await child.end_input()

    async def _sniffed(
        self, chunks: AsyncIterator[bytes], declared: StreamFormat | None
    ) -> tuple[StreamFormat, AsyncGenerator[bytes, None]]:
        """The format that the declaration and the first bytes agree on, and all the bytes, those included.

        Raises `Refused("content_type")` when they contradict each other, `Unavailable("undecodable")` for no sound.
        """
        head = b""
        found: StreamFormat | None = None
        while found is None and len(head) < SNIFF_BYTES:
            chunk = await anext(chunks, None)
            if chunk is None:
                break
            head += chunk
            found = sniff(head)
        if found is None and head.startswith(b"ID3") and len(head) >= SNIFF_BYTES:
            found = declared  # a tag longer than what is sniffed (a cover picture); both MP3 and AAC may open with one
        if found is None:
            raise Unavailable("undecodable")
        if declared is not None and found is not declared:
            raise Refused("content_type", content_type=declared.value, found=found.value)
        return found, _joined(head, chunks)

    async def _sound(self, chunks: AsyncIterator[bytes], declared: StreamFormat | None) -> AsyncGenerator[bytes, None]:
        """PCM of `chunks`; where the format changes on the way, a fresh decoder takes over."""
        fmt, whole = await self._sniffed(chunks, declared)
        while True:
            turn = _Turn(FormatWatch(fmt))
            async with (
                contextlib.aclosing(_until_change(whole, turn)) as same,
                contextlib.aclosing(self._decode(fmt, same)) as blocks,
            ):
                async for block in blocks:
                    yield block
            if turn.rest is None:
                await whole.aclose()
                return
            self._status = replace(self._status, format_changes=self._status.format_changes + 1)
            was = fmt
            fmt, whole = await self._sniffed(_joined(turn.rest, whole), None)
            log.warning("feed.format_changed", feed_id=self.feed_id, was=was.value, now=fmt.value)


@dataclass(slots=True)
class _Turn:
    watch: FormatWatch
    rest: bytes | None = None
    """What begins with the new format."""


async def _until_change(chunks: AsyncIterator[bytes], turn: _Turn) -> AsyncGenerator[bytes, None]:
    async for chunk in chunks:
        at = turn.watch.pass_by(chunk)
        if at is None:
            yield chunk
            continue
        turn.rest = turn.watch.since_change
        if at > 0:
            yield chunk[:at]
        return


@dataclass(slots=True)
class _Meter:
    bytes_since_sound: int = 0


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield head
    async for chunk in rest:
        yield chunk


# ------------------------------------------------------------------------------------------------------------- pull


class PullFeed(_Feed):
    """A feed we ask for: an endless HTTP answer (MP3, AAC, Ogg), or HLS."""

    def __init__(
        self,
        feed_id: str,
        url: str,
        *,
        fetcher: Fetcher,
        sandbox: Sandbox,
        clock: Clock,
        chance: Chance,
        limits: FeedLimits = USUAL_LIMITS,
        on_state: OnState | None = None,
    ) -> None:
        super().__init__(feed_id, sandbox=sandbox, clock=clock, chance=chance, limits=limits, on_state=on_state)
        self._url, self._fetcher = url, fetcher

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """See `FrameSource.blocks`."""
        while True:
            try:
                async with contextlib.aclosing(self._attempt()) as blocks:
                    async for block in blocks:
                        yield block
                reason = "ended"
            except BroadcastError as error:
                reason = error.code
            self._fails(reason)
            await self._clock.sleep(self._backoff.next_s())

    async def _attempt(self) -> AsyncGenerator[bytes, None]:
        async with self._fetcher.open_stream(self._url, accept=frozenset(FORMATS) | HLS_TYPES) as response:
            if response.content_type not in HLS_TYPES:
                declared = format_of(response.content_type)
                async with (
                    contextlib.aclosing(response.chunks()) as chunks,
                    contextlib.aclosing(self._counted(chunks)) as counted,
                    contextlib.aclosing(self._sound(counted, declared)) as blocks,
                ):
                    async for block in blocks:
                        yield block
                return
        async with (
            contextlib.aclosing(self._hls_chunks(response.url)) as chunks,
            contextlib.aclosing(self._sound(chunks, None)) as blocks,
        ):
            async for block in blocks:
                yield block

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            self._bytes_in += len(chunk)
            yield chunk

    async def _playlist(self, url: str) -> tuple[Playlist, str]:
        fetched = await self._fetcher.get(url, limit_bytes=self._limits.playlist_bytes, accept=HLS_TYPES)
        return parse_playlist(fetched.body.decode("utf-8", "replace"), fetched.url), fetched.url

    async def _hls_chunks(self, url: str) -> AsyncGenerator[bytes, None]:
        """The segments' bytes in order, from three before the live edge on. Raises `Unavailable("stalled")`."""
        playlist, url = await self._playlist(url)
        if playlist.variants:
            # The smallest: the relay is 24 kbit/s mono, whatever the source can do.
            playlist, url = await self._playlist(min(playlist.variants)[1])
        after, init = -1, None
        fresh_s = self._clock.monotonic()
        while True:
            if playlist.segments and playlist.segments[-1].number < after:
                after = -1  # the server began to count anew
            todo = [segment for segment in playlist.segments if segment.number > after]
            if after < 0 and not playlist.ended:
                todo = todo[-3:]
            for segment in todo:
                if segment.init_url is not None and segment.init_url != init:
                    init = segment.init_url
                    yield await self._segment(init)
                yield await self._segment(segment.url)
                after = segment.number
                fresh_s = self._clock.monotonic()
            if playlist.ended:
                return
            if self._clock.monotonic() - fresh_s > 3 * playlist.target_s:
                raise Unavailable("stalled")
            await self._clock.sleep(playlist.target_s / 2)
            playlist, url = await self._playlist(url)

    async def _segment(self, url: str) -> bytes:
        fetched = await self._fetcher.get(url, limit_bytes=self._limits.segment_bytes)
        self._bytes_in += len(fetched.body)
        after_tag = _after_id3(fetched.body)
        return fetched.body[after_tag or 0 :]


# ------------------------------------------------------------------------------------------------------------- push


class OggHeaders:
    """Keeps the header pages of the Ogg stream passing by, so that a listener may join in the middle (RFC 3533)."""

    LIMIT_BYTES: Final = 256 * 1024

    def __init__(self) -> None:
        self.pages = b""
        self._pending = bytearray()
        self._skip = 0
        self._in_headers = False

    def pass_by(self, chunk: bytes) -> None:
        """Look at the next bytes."""
        if self._skip >= len(chunk):
            self._skip -= len(chunk)
            return
        self._pending += chunk[self._skip :]
        self._skip = 0
        while len(self._pending) >= 27:
            if not self._pending.startswith(b"OggS"):
                start = self._pending.find(b"OggS", 1)
                del self._pending[: start if start > 0 else len(self._pending) - 3]
                continue
            table_end = 27 + self._pending[26]
            if len(self._pending) < table_end:
                return
            length = table_end + sum(self._pending[27:table_end])
            is_first, granule = bool(self._pending[5] & 2), bytes(self._pending[6:14])
            if is_first or (self._in_headers and granule in {b"\0" * 8, b"\xff" * 8}):
                if len(self._pending) < length:
                    return
                opens_anew = is_first and not self._in_headers
                self.pages = (b"" if opens_anew else self.pages) + bytes(self._pending[:length])
                self._in_headers = len(self.pages) < self.LIMIT_BYTES
                del self._pending[:length]
            else:
                self._in_headers = False
                self._skip = max(0, length - len(self._pending))
                del self._pending[:length]


class PushConnection:
    """One connected source: its bytes on their way to the decoder, or, unheard, to nowhere."""

    RING_BYTES: Final = 16 * 1024
    HEARD_BYTES: Final = 64 * 1024

    def __init__(self, content_type: str) -> None:
        """Raises `Refused("content_type")` for a format that is not relayed."""
        self.format = format_of(content_type)
        self.bytes_in = self.bytes_dropped = 0
        self.end_reason: str | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._heard = False
        self._changed = asyncio.Event()
        self._ogg = OggHeaders() if self.format is StreamFormat.OGG else None

    async def write(self, chunk: bytes) -> None:
        """Take bytes. With a listener this waits while it is behind; without one the oldest fall out of the ring."""
        self.bytes_in += len(chunk)
        if self._ogg is not None:
            self._ogg.pass_by(chunk)
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._changed.set()
        while self._heard and self._size > self.HEARD_BYTES and self.end_reason is None:
            self._changed.clear()
            await self._changed.wait()
        if not self._heard:
            self._trim()

    def end(self, reason: str) -> None:
        """There will be no more bytes; what a revoked source left is not listened to either."""
        if self.end_reason is None:
            self.end_reason = reason
        if self.end_reason in TAKEN_AWAY:
            self._chunks.clear()
            self._size = 0
        self._changed.set()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Listen: the headers if the format needs them, what is in the ring, then all that comes."""
        self._heard = True
        try:
            if self._ogg is not None and self.bytes_dropped:
                yield self._ogg.pages
            while True:
                if self._chunks:
                    waiting = b"".join(self._chunks)  # all at once: a source may send frame by frame
                    self._chunks.clear()
                    self._size = 0
                    self._changed.set()
                    yield waiting
                    continue
                if self.end_reason is not None:
                    if self.end_reason == "clean":
                        return
                    raise Unavailable(f"source_{self.end_reason}")
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._heard = False
            self._changed.set()
            self._trim()

    def _trim(self) -> None:
        while self._size > self.RING_BYTES and len(self._chunks) > 1:
            dropped = self._chunks.popleft()
            self._size -= len(dropped)
            self.bytes_dropped += len(dropped)


class PushFeed(_Feed):
    """A feed that is brought to us. It outlives its connections; `attach` is what the ingest does with each."""

    def __init__(
        self,
        feed_id: str,
        *,
        sandbox: Sandbox,
        clock: Clock,
        chance: Chance,
        limits: FeedLimits = USUAL_LIMITS,
        on_state: OnState | None = None,
    ) -> None:
        super().__init__(feed_id, sandbox=sandbox, clock=clock, chance=chance, limits=limits, on_state=on_state)
        self._connection: PushConnection | None = None
        self._heard: PushConnection | None = None
        """The connection that is decoded now."""
        self._attached = asyncio.Event()
        self._listening = asyncio.Lock()

    @property
    def connection(self) -> PushConnection | None:
        """The source that is connected now."""
        return self._connection

    def attach(self, connection: PushConnection) -> None:
        """A source has come. Raises `Refused("mount_busy")` while another is there."""
        if self._connection is not None:
            raise Refused("mount_busy")
        self._connection = connection
        self._attached.set()

    def detach(self, connection: PushConnection) -> None:
        """The source has gone; `connection.end` was called with the reason."""
        if self._connection is connection:
            self._bytes_in += connection.bytes_in
            self._connection = None
            self._attached.clear()
        if connection is self._heard and connection.end_reason in TAKEN_AWAY:
            # Now, not when the decoder has ended: whoever sounds it must stop at once.
            self._fails(f"source_{connection.end_reason}")

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """See `FrameSource.blocks`. One listener at a time: a second waits until the first has closed."""
        async with self._listening:
            self._sounding_since_s, self._silent_since_s = None, self._clock.monotonic()
            self._enter(FeedState.CONNECTING)
            while True:
                if self._connection is None:
                    self._enter_waiting()
                    await self._attached.wait()
                connection = self._connection
                if connection is None:
                    continue
                self._heard = connection
                try:
                    async with (
                        contextlib.aclosing(connection.chunks()) as chunks,
                        contextlib.aclosing(self._sound(chunks, connection.format)) as blocks,
                    ):
                        async for block in blocks:
                            if connection.end_reason in TAKEN_AWAY:
                                break
                            yield block
                    reason = "ended" if connection.end_reason is None else f"source_{connection.end_reason}"
                except BroadcastError as error:
                    ended = connection.end_reason  # what was left of it could not be decoded: that is not why it ended
                    reason = error.code if ended is None else f"source_{ended}"
                finally:
                    self._heard = None
                if connection.end_reason not in TAKEN_AWAY:  # else it was told when it happened
                    self._fails(reason)
                if self._connection is connection:  # it is there and no good: do not spin on it
                    await self._clock.sleep(self._backoff.next_s())

    def _sounds(self) -> None:
        if self._heard is None or self._heard.end_reason not in TAKEN_AWAY:
            super()._sounds()

    def _enter_waiting(self) -> None:
        if self._status.state is FeedState.CONNECTING:
            self._enter(FeedState.CONNECTING, "no_source")
