"""What to sound in a block of time: pure, around `rules.decide`, for a block of the node's estimate of server time.

A block is cut into stretches at every instant at which the decision changes, and each stretch is rendered from its
source at its exact position: a recorded item at `offset + (now - start)`, a stream at its media time. Every rendered
chunk says which segment it belongs to and whether it is sound, a hole, or silence by decision, so that what is
reported is what was played and never what was planned. Cuts are ramped over 5 ms; a programme's own first and last
sample are left as they are.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from firmware_sim.alarm_sound import attention, pattern_for
from firmware_sim.clock import MS
from speaker_protocol.hazards import CLIPS
from speaker_protocol.messages import AlertBody, NodeConfigBody, VolumeStep
from speaker_protocol.rounds import PartKind, Turn
from speaker_protocol.rules import (
    BulletinClass,
    Decision,
    DecisionKind,
    Heard,
    Limits,
    NodeState,
    PlanView,
    SegmentView,
    SourceKind,
    Why,
    decide,
)

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE_HZ: Final = 48_000
RAMP_SAMPLES: Final = 240
_RAMP: Final = np.linspace(0.0, 1.0, RAMP_SAMPLES)
_GENTLE: Final = 1e-3
_GRID: Final = np.arange(4 * SAMPLE_RATE_HZ + 16, dtype=np.float64)
_GRID32: Final = np.arange(SAMPLE_RATE_HZ * 4, dtype=np.float32)


class Sounding(StrEnum):
    """What a chunk is."""

    SOUND = "sound"
    HOLE = "hole"
    """Something should sound here and could not: a lost batch, a stretch not decoded."""
    SILENCE = "silence"
    """By decision, or past the end of the source."""


@dataclass(frozen=True, slots=True)
class Tag:
    """The segment (or round of an alert) a chunk belongs to."""

    entry_id: str
    start_ms: int
    end_ms: int
    source: SourceKind | None = None
    asset: str | None = None
    stream: str | None = None
    alert_id: str | None = None
    klass: BulletinClass = BulletinClass.NORMAL
    is_limited: bool = False
    """Whether it may begin only within a time, so that its beginning must be remembered."""

    @property
    def key(self) -> tuple[str, int]:
        """What makes it one segment."""
        return (self.entry_id, self.start_ms)


@dataclass(frozen=True, slots=True)
class Stretch:
    """One decision, `[start_ns, end_ns)` of server time."""

    start_ns: int
    end_ns: int
    decision: Decision
    tag: Tag | None


@dataclass(slots=True)
class Chunk:
    """Rendered samples, all of one kind. `pcm` None: zeros."""

    samples: int
    server_ns: int
    kind: Sounding
    why: Why
    tag: Tag | None = None
    pcm: Pcm | None = None
    ends_softly: bool = True
    """False where the source goes on after it: what follows must ramp it down if it is something else."""
    is_inside: bool = True
    """False where it opens with the first sample of its source, which no ramp may touch."""


class AssetPcm(Protocol):
    """Decoded sound of an asset."""

    @property
    def length(self) -> int | None: ...  # noqa: D102
    def read(self, low: int, high: int) -> Pcm | None: ...  # noqa: D102
    def is_ready(self, low: int, high: int) -> bool: ...  # noqa: D102


class StreamPcm(Protocol):
    """A stream's jitter buffer."""

    @property
    def lease_ms(self) -> int: ...  # noqa: D102
    def read(  # noqa: D102
        self, server_ns: int, samples: int, *, step: float, is_final: bool
    ) -> tuple[Pcm, int, npt.NDArray[np.bool_] | None, float]: ...


class Sources(Protocol):
    """Where a player gets sound from."""

    def asset(self, sha256: str) -> AssetPcm | None:
        """The sound of an asset that is ready."""
        ...

    def stream(self, stream: str) -> StreamPcm | None:
        """The buffer of a stream."""
        ...

    def clip(self, code: str) -> Pcm | None:
        """A phrase of the firmware's own, whole; None if it is broken."""
        ...


@dataclass(frozen=True, slots=True)
class AlertsInForce:
    """The alerts of all units of the node's path (a `rules.AlertsView`)."""

    alerts: tuple[AlertBody, ...] = ()
    stop_all: bool = False


@dataclass(slots=True)
class Situation:
    """All a decision rests on."""

    plan: PlanView | None = None
    alerts: AlertsInForce = field(default_factory=AlertsInForce)
    ready_assets: frozenset[str] = frozenset()
    asset_ms: Mapping[str, int] = field(default_factory=dict)
    live_streams: frozenset[str] = frozenset()
    max_class: BulletinClass = BulletinClass.NORMAL
    config: NodeConfigBody | None = None
    is_clock_trusted: bool = False
    muted: Why | None = None
    held: Why | None = None
    given_up: frozenset[tuple[str, int]] = frozenset()
    uncertainty_ms: float = 0.0
    turns: Mapping[str, Turn] = field(default_factory=dict)
    alert_assets: Mapping[str, int] = field(default_factory=dict)
    """Recordings of alerts that are held and decoded, and since when."""
    clips: frozenset[str] = frozenset(CLIPS)
    heard: Heard | None = None
    begun: dict[str, None] = field(default_factory=dict)
    """Entries begun, the oldest first."""
    barred: Mapping[tuple[str, int], Why] = field(default_factory=dict)

    def state(self) -> NodeState:
        """As `decide` wants it."""
        config = self.config
        max_class = self.max_class
        if config is not None and config.max_class.severity < max_class.severity:
            max_class = config.max_class
        return NodeState(
            ready_assets=self.ready_assets,
            live_streams=self.live_streams,
            max_klass=max_class,
            limits=config if config is not None else Limits(),
            is_clock_trusted=self.is_clock_trusted,
            muted=self.muted,
            held=self.held,
            given_up=self.given_up,
            uncertainty_ms=self.uncertainty_ms,
            turns=self.turns,
            alert_assets=self.alert_assets,
            asset_ms=self.asset_ms,
            clips=self.clips,
            heard=self.heard,
            begun=self.begun.keys(),
            barred=self.barred,
        )


def segment_at(plan: PlanView | None, now_ms: int) -> SegmentView | None:
    """The plan's segment at an instant."""
    if plan is None:
        return None
    after = bisect_right(plan.segments, now_ms, key=lambda segment: segment.start_ms)
    segment = plan.segments[after - 1] if after else None
    return segment if segment is not None and now_ms < segment.end_ms else None


def stretches(situation: Situation, low_ns: int, high_ns: int) -> Iterator[Stretch]:
    """The decisions of `[low_ns, high_ns)` of server time, in order, without a hole."""
    state = situation.state()
    at_ns = low_ns
    while at_ns < high_ns:
        now_ms = at_ns // MS
        decision = decide(situation.plan, situation.alerts, state, now_ms)
        until_ns = high_ns if decision.until_ms is None else min(high_ns, decision.until_ms * MS)
        until_ns = max(until_ns, min(high_ns, (now_ms + 1) * MS))
        yield Stretch(at_ns, until_ns, decision, _tag(situation, decision, now_ms))
        at_ns = until_ns


def next_change_ms(situation: Situation, now_ms: int) -> int | None:
    """When the decision changes by itself; None if never."""
    return decide(situation.plan, situation.alerts, situation.state(), now_ms).until_ms


def _tag(situation: Situation, decision: Decision, now_ms: int) -> Tag | None:
    if decision.kind is DecisionKind.ALERT and decision.alert_id is not None:
        alert = next(alert for alert in situation.alerts.alerts if alert.alert_id == decision.alert_id)
        return Tag(
            f"alert:{decision.alert_id}",
            decision.round_ms or 0,
            decision.round_end_ms or 0,
            SourceKind.RECORDED,
            asset=alert.asset if alert.asset in situation.alert_assets else None,  # for all parts of a round
            alert_id=decision.alert_id,
            klass=BulletinClass.EMERGENCY,
        )
    if decision.entry_id is None or decision.why in {Why.ALREADY_SOUNDED, Why.CLOCK_STEPPED}:
        return None  # it has its line in the log already
    segment = segment_at(situation.plan, now_ms)
    if segment is None:
        return None
    return Tag(
        segment.entry_id,
        segment.start_ms,
        segment.end_ms,
        SourceKind(segment.source),
        asset=segment.asset,
        stream=segment.stream if segment.asset is None else None,
        klass=segment.klass,
        is_limited=segment.late_at_most_ms is not None,
    )


def gain_db(situation: Situation, decision: Decision, now_ms: int) -> float:
    """The gain of a decision: an alert has its own, everything else follows the volume curve up to the limit."""
    config = situation.config
    if decision.kind is DecisionKind.ALERT:
        return config.alert_gain_db if config is not None and config.alert_gain_db is not None else 0.0
    if config is None:
        return decision.gain_db
    minute = (now_ms // 60_000 + config.utc_offset_min) % 1440
    return min(config.max_gain_db, decision.gain_db + _volume_db(config.volume, minute))


def _volume_db(steps: tuple[VolumeStep, ...], minute: int) -> float:
    if not steps:
        return 0.0
    ordered = sorted(steps, key=lambda step: step.from_minute)
    before = [step for step in ordered if step.from_minute <= minute]
    return (before or ordered)[-1].gain_db  # before the day's first step, yesterday's last one holds


def render(
    situation: Situation, sources: Sources, low_ns: int, high_ns: int, samples: int, *, is_final: bool = True
) -> list[Chunk]:
    """`samples` samples of the sound card that cover `[low_ns, high_ns)` of server time, as chunks in order.

    `is_final` False: the caller can wait for what is missing and will ask again.
    """
    chunks: list[Chunk] = []
    per_sample_ns = (high_ns - low_ns) / samples
    for stretch in stretches(situation, low_ns, high_ns):
        first = round((stretch.start_ns - low_ns) / per_sample_ns)
        last = round((stretch.end_ns - low_ns) / per_sample_ns)
        if last <= first:
            continue
        at_ns = low_ns + round(first * per_sample_ns)
        chunks.extend(_sound(situation, sources, stretch, at_ns, last - first, per_sample_ns, is_final))
    return chunks


def _sound(
    situation: Situation,
    sources: Sources,
    stretch: Stretch,
    at_ns: int,
    samples: int,
    per_sample_ns: float,
    is_final: bool,
) -> list[Chunk]:
    decision, tag = stretch.decision, stretch.tag
    step = per_sample_ns * SAMPLE_RATE_HZ * 1e-9
    level = 10.0 ** (gain_db(situation, decision, stretch.start_ns // MS) / 20.0)
    moved_ns = at_ns - stretch.start_ns // MS * MS
    position = decision.offset_ms * 48.0 + moved_ns * 48e-6
    if decision.kind is DecisionKind.ALERT and decision.part is not PartKind.ASSET:
        return _alert(situation, sources, decision, tag, at_ns, samples, step, position, level)
    if decision.kind in {DecisionKind.ASSET, DecisionKind.ALERT} and decision.asset is not None:
        return _asset(sources.asset(decision.asset), decision.why, tag, at_ns, samples, step, position, level)
    if decision.kind is DecisionKind.STREAM and decision.stream is not None:
        return _stream(sources.stream(decision.stream), decision.why, tag, at_ns, samples, step, level, is_final)
    return [Chunk(samples, at_ns, Sounding.SILENCE, decision.why, tag)]


def _asset(
    sound: AssetPcm | None,
    why: Why,
    tag: Tag | None,
    at_ns: int,
    samples: int,
    step: float,
    position: float,
    level: float,
) -> list[Chunk]:
    low = max(0, int(np.floor(position)))
    high = int(np.floor(position + step * samples)) + 2
    pcm = sound.read(low, high) if sound is not None else None
    if sound is None or pcm is None:
        return [Chunk(samples, at_ns, Sounding.HOLE, why, tag)]
    heard = samples
    if sound.length is not None and position + step * samples > sound.length:
        heard = min(samples, max(0, int((sound.length - position) / step)))
    chunks = []
    if heard:
        out = _interpolate(pcm, position - low, step, heard, level)
        chunks.append(Chunk(heard, at_ns, Sounding.SOUND, why, tag, out, heard < samples, is_inside=position > 48.0))
    if heard < samples:
        chunks.append(Chunk(samples - heard, at_ns + round(heard * step / 48e-6), Sounding.SILENCE, why, tag))
    return chunks


def _stream(
    stream: StreamPcm | None,
    why: Why,
    tag: Tag | None,
    at_ns: int,
    samples: int,
    step: float,
    level: float,
    is_final: bool,
) -> list[Chunk]:
    if stream is None:
        return [Chunk(samples, at_ns, Sounding.HOLE, why, tag)]
    pcm, low, mask, position = stream.read(at_ns, samples, step=step, is_final=is_final)
    out = _interpolate(pcm, position - low, step, samples, level)
    if mask is None:
        return [Chunk(samples, at_ns, Sounding.SOUND, why, tag, out, ends_softly=False)]
    # The mask is by source sample; output sample i stands on source sample `position - low + i * step`.
    index = np.minimum((position - low + step * np.arange(samples)).astype(np.int64), len(mask) - 1)
    came = mask[index]
    edges = [0, *(np.flatnonzero(np.diff(came)) + 1).tolist(), samples]
    chunks = []
    for first, last in itertools.pairwise(edges):
        start_ns = at_ns + round(first * step / 48e-6)
        if came[first]:
            part = out[first:last].copy()
            if last < samples:
                ramp_down(part)
            chunks.append(Chunk(last - first, start_ns, Sounding.SOUND, why, tag, part, ends_softly=last < samples))
        else:
            chunks.append(Chunk(last - first, start_ns, Sounding.HOLE, why, tag))
    return chunks


def _alert(
    situation: Situation,
    sources: Sources,
    decision: Decision,
    tag: Tag | None,
    at_ns: int,
    samples: int,
    step: float,
    position: float,
    level: float,
) -> list[Chunk]:
    """A part of a round that is the node's own: tone, phrase or pause."""
    why = decision.why
    if decision.part is PartKind.TONE:
        alert = next(alert for alert in situation.alerts.alerts if alert.alert_id == decision.alert_id)
        out = attention(pattern_for(alert), position + step * np.arange(samples), level)
        return [Chunk(samples, at_ns, Sounding.SOUND, why, tag, out, ends_softly=False, is_inside=position > 48.0)]
    pcm = sources.clip(decision.clip) if decision.part is PartKind.CLIP and decision.clip is not None else None
    if pcm is None:
        return [Chunk(samples, at_ns, Sounding.SILENCE, why, tag)]
    return _asset(_Clip(pcm), why, tag, at_ns, samples, step, position, level)


@dataclass(frozen=True, slots=True)
class _Clip:
    """A phrase as a source."""

    pcm: Pcm

    @property
    def length(self) -> int:
        return len(self.pcm)

    def read(self, low: int, high: int) -> Pcm:
        part = self.pcm[low:high]
        return np.concatenate([part, np.zeros(high - low - len(part), np.int16)]) if len(part) < high - low else part

    def is_ready(self, low: int, high: int) -> bool:
        return high >= low


def _interpolate(pcm: Pcm, offset: float, step: float, samples: int, level: float) -> Pcm:
    """`samples` samples of `pcm` from the (fractional) `offset` on, `step` apart."""
    wave = resample(pcm, offset, step, samples)
    if level != 1.0:
        wave *= np.float32(level)
        np.clip(wave, -32768.0, 32767.0, out=wave)
    np.rint(wave, out=wave)
    return wave.astype(np.int16)


def resample(pcm: Pcm, offset: float, step: float, samples: int) -> npt.NDArray[np.float32]:
    """Linear interpolation at `offset + i * step`, the ends held.

    With a step within 1e-3 of 1 (crystals, gentle steering) whole stretches lie between neighbouring samples with a
    slowly moving weight: a few slices instead of a search per sample (7 times faster, in the fleet's hot spot).
    """
    drift = step - 1.0
    last = offset + (samples - 1) * step
    if abs(drift) > _GENTLE or offset < 0 or last >= len(pcm) - 1:
        return np.interp(offset + step * _GRID[:samples], _GRID[: len(pcm)], pcm).astype(np.float32)
    out = np.empty(samples, np.float32)
    done = 0
    while done < samples:
        position = offset + done * step
        index = int(position)
        part = position - index
        run = samples - done
        if drift > 0:
            run = min(run, max(1, int(np.ceil((1.0 - part) / drift))))
        elif drift < 0:
            run = min(run, int(part / -drift) + 1)
        near = pcm[index : index + run + 1].astype(np.float32)
        weight = _GRID32[:run] * np.float32(drift)
        weight += np.float32(part)
        weight *= near[1:] - near[:-1]
        np.add(near[:-1], weight, out=out[done : done + run])
        done += run
    return out


def ramp_down(pcm: Pcm) -> None:
    """Fade the last 5 ms out, in place."""
    count = min(RAMP_SAMPLES, len(pcm))
    if count:
        pcm[-count:] = (pcm[-count:] * _RAMP[::-1][-count:]).astype(np.int16)


def ramp_up(pcm: Pcm) -> None:
    """Fade the first 5 ms in, in place."""
    count = min(RAMP_SAMPLES, len(pcm))
    if count:
        pcm[:count] = (pcm[:count] * _RAMP[:count]).astype(np.int16)
