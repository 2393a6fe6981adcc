"""A plan: what one set of nodes will sound, and the assets that takes; its digest; what changed between two.

Equal plans have equal digests on every machine and version: the canonical form is JSON with sorted keys, no spaces,
integers for instants (UTC milliseconds) and lengths, gains in whole hundredths of a decibel. A plan is published again
only when its digest changed, so nothing that differs without being heard may enter it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import Invalid
from speaker_protocol.rules import BulletinClass, SourceKind

_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class PlanAsset:
    """A recording the nodes must hold. `hash`: SHA-256, hex, of the stored file."""

    hash: str
    size_bytes: int
    duration: timedelta


@dataclass(frozen=True, slots=True)
class PlanSegment:
    """What sounds in `[start, end)`: an asset from `offset` on, or a stream at its "now". Exactly one of the two.

    `approval`: content hash that was approved, None for what needs none (a feed). `late_at_most`: a node that could
    not begin the entry within so long skips it; `tolerates`: how wrong the node's clock may be; None: no such limit.
    """

    entry_id: str
    start: datetime
    end: datetime
    klass: BulletinClass
    level: int
    source: SourceKind
    offset: timedelta = timedelta(0)
    asset: str | None = None
    stream: str | None = None
    gain_db: float = 0.0
    approval: str | None = None
    late_at_most: timedelta | None = None
    tolerates: timedelta | None = None

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise Invalid("empty_window", field="end", entry_id=self.entry_id)
        if (self.asset is None) is (self.stream is None):
            raise Invalid("asset_or_stream", field="asset", entry_id=self.entry_id)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node of `target_set` sounds in `[valid_from, valid_until)`.

    Raises `Invalid` when segments are not ordered and disjoint, or name an asset that `assets` lacks.
    """

    target_set: str
    valid_from: datetime
    valid_until: datetime
    segments: tuple[PlanSegment, ...] = ()
    assets: tuple[PlanAsset, ...] = ()

    def __post_init__(self) -> None:
        if self.valid_until <= self.valid_from:
            raise Invalid("empty_window", field="valid_until")
        for number, (earlier, later) in enumerate(pairwise(self.segments), start=1):
            if later.start < earlier.end:
                raise Invalid("segments_overlap", field=f"segments[{number}].start", entry_id=later.entry_id)
        held = {asset.hash for asset in self.assets}
        for number, segment in enumerate(self.segments):
            if segment.asset is not None and segment.asset not in held:
                raise Invalid("asset_not_listed", field=f"segments[{number}].asset", asset=segment.asset)


def canonical(plan: Plan) -> bytes:
    """The bytes the digest is taken over. `target_set` is left out: sets that sound the same share one body."""
    document = {
        "valid_from_ms": to_ms(plan.valid_from),
        "valid_until_ms": to_ms(plan.valid_until),
        "segments": [_segment(segment) for segment in plan.segments],
        "assets": [
            {"hash": asset.hash, "size_bytes": asset.size_bytes, "duration_ms": asset.duration // _MS}
            for asset in sorted(plan.assets, key=lambda asset: asset.hash)
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(plan: Plan) -> str:
    """SHA-256, hex, of the canonical form."""
    return hashlib.sha256(canonical(plan)).hexdigest()


def _segment(segment: PlanSegment) -> dict[str, Any]:
    told = {
        "entry_id": segment.entry_id,
        "start_ms": to_ms(segment.start),
        "end_ms": to_ms(segment.end),
        "offset_ms": segment.offset // _MS,
        "klass": segment.klass.value,
        "level": int(segment.level),
        "source": segment.source.value,
        "asset": segment.asset,
        "stream": segment.stream,
        "gain_cdb": round(segment.gain_db * 100),
        "approval": segment.approval,
    }
    if segment.late_at_most is not None:
        told["late_at_most_ms"] = segment.late_at_most // _MS
    if segment.tolerates is not None:
        told["tolerates_ms"] = segment.tolerates // _MS
    return told


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What a new plan takes away and brings; a moved or otherwise changed segment is in both."""

    removed: tuple[PlanSegment, ...]
    added: tuple[PlanSegment, ...]
    assets_removed: tuple[str, ...]
    assets_added: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether a listener would hear no difference."""
        return not (self.removed or self.added)


def diff(old: Plan | None, new: Plan) -> PlanDiff:
    """What changes for a listener from `old` (None: nothing was planned) to `new`.

    Only segments that end after `new.valid_from` count: what has passed is history, not a change. A segment already
    sounding at that instant is compared from there on.
    """
    before = _coming(old.segments if old is not None else (), new.valid_from)
    after = _coming(new.segments, new.valid_from)
    assets_before = {asset.hash for asset in old.assets} if old is not None else set()
    assets_after = {asset.hash for asset in new.assets}
    return PlanDiff(
        removed=tuple(segment for key, segment in before.items() if key not in after),
        added=tuple(segment for key, segment in after.items() if key not in before),
        assets_removed=tuple(sorted(assets_before - assets_after)),
        assets_added=tuple(sorted(assets_after - assets_before)),
    )


def _coming(segments: Iterable[PlanSegment], since: datetime) -> dict[str, PlanSegment]:
    """Segments by what a listener hears of them from `since` on."""
    coming: dict[str, PlanSegment] = {}
    for segment in segments:
        if segment.end <= since:
            continue
        heard = _segment(segment)
        passed_ms = max(0, to_ms(since) - heard["start_ms"])
        heard["start_ms"] += passed_ms
        heard["offset_ms"] += passed_ms
        coming[json.dumps(heard, sort_keys=True)] = segment
    return coming
