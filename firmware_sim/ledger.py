"""What this node has sounded, segment by segment, told by what left the output and by nothing else.

A segment opens with its first sample and closes when something else has the air. `heard_ms` counts the samples that
left the horn as they were meant to, over the whole life of the segment (a segment that an alert interrupts goes on
counting), so a later report of the same segment supersedes an earlier one of the same life. What an earlier life
heard and could not report any more (`carried`) is counted on when the segment goes on after the power cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from firmware_sim.clock import MS
from firmware_sim.ear import dbfs
from firmware_sim.output import Played
from firmware_sim.player import SAMPLE_RATE_HZ, Sounding, Tag
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import Trouble, Why

KEEP_CLOSED: Final = 200
_ENDED_IN_TIME_MS: Final = 250
_ALERT_WHY: Final = frozenset({Why.ALERT, Why.ALERT_ASSET_MISSING})
_FINE_WHY: Final = frozenset({Why.PLANNED, Why.ALERT, Why.ALERT_ASSET_MISSING, Why.NOTHING_PLANNED})


@dataclass(slots=True)
class Account:
    """One segment's account."""

    tag: Tag
    heard_samples: int = 0
    rest_samples: int = 0
    """Pauses of an alert's round: silence that was meant, and that belongs to what was heard."""
    power: float = 0.0
    underruns: int = 0
    holes_samples: int = 0
    is_started: bool = False
    mute_samples: int = 0
    trouble: str | None = None
    """The first reason it was silent while it was its turn."""
    last_ms: int = 0
    told_ms: int = 0
    """What the latest FINISHED line said was heard."""

    @property
    def untold_ms(self) -> int:
        """What was heard since: lost if the power goes now and nobody wrote it down."""
        return self.heard_ms - self.told_ms

    def note(self, trouble: str) -> None:
        """The first trouble stays; that a node spoke in its own words is none beside a real one."""
        if self.trouble in {None, Why.ALERT_ASSET_MISSING.value}:
            self.trouble = trouble

    @property
    def heard_ms(self) -> int:
        """How long it was heard."""
        return (self.heard_samples + self.rest_samples) * 1000 // SAMPLE_RATE_HZ

    @property
    def level_dbfs(self) -> float | None:
        """Level of what was heard."""
        return round(dbfs(self.power / self.heard_samples), 1) if self.heard_samples and self.power else None


@dataclass(frozen=True, slots=True)
class Line:
    """One line for the device log."""

    kind: ReportKind
    tag: Tag
    at_ms: int
    heard_ms: int = 0
    underruns: int = 0
    level_dbfs: float | None = None
    reason: str | None = None


@dataclass(slots=True)
class Ledger:
    """Accounts of the current and the latest segments; `write` receives the lines."""

    write: Callable[[Line], None]
    current: Account | None = None
    closed: OrderedDict[tuple[str, int], Account] = field(default_factory=OrderedDict)
    carried: dict[tuple[str, int], int] = field(default_factory=dict)
    """Milliseconds heard in a life that a power cut ended, by segment."""

    @property
    def sounding(self) -> Tag | None:
        """The segment that sounds now."""
        account = self.current
        return account.tag if account is not None and account.is_started else None

    def heard_of(self, entry_id: str) -> int:
        """Samples heard of the current segment of an entry."""
        account = self.current
        return account.heard_samples if account is not None and account.tag.entry_id == entry_id else 0

    def played(self, piece: Played) -> None:
        """Account for a piece that has sounded."""
        chunk = piece.chunk
        at_ms = chunk.server_ns // MS
        account = self._account(chunk.tag, at_ms, chunk.why)
        if account is None:
            return
        account.last_ms = (chunk.server_ns + chunk.samples * 1_000_000_000 // SAMPLE_RATE_HZ) // MS
        if piece.is_underrun:
            account.underruns += 1
        match chunk.kind:
            case Sounding.SOUND if piece.is_heard:
                if not account.is_started:
                    account.is_started = True
                    self.write(Line(ReportKind.STARTED, account.tag, round(chunk.server_ns / MS)))
                account.heard_samples += chunk.samples
                account.power += piece.power
                if chunk.why is Why.ALERT_ASSET_MISSING:
                    account.note(chunk.why.value)
            case Sounding.SOUND:
                account.mute_samples += chunk.samples
                account.note(Trouble.NO_SOUND_FROM_HORN.value)
            case Sounding.HOLE:
                account.holes_samples += chunk.samples
                if chunk.samples >= SAMPLE_RATE_HZ // 10 or piece.is_underrun:
                    account.note((Trouble.UNDERRUN if piece.is_underrun else Trouble.HOLE).value)
            case Sounding.SILENCE:
                if chunk.why in _ALERT_WHY and account.heard_samples:
                    account.rest_samples += chunk.samples
                if chunk.why not in _FINE_WHY:
                    account.note(chunk.why.value)

    def _account(self, tag: Tag | None, at_ms: int, why: Why) -> Account | None:
        account = self.current
        if account is not None and (tag is None or account.tag.key != tag.key):
            self._close(at_ms, None if why in {Why.PLANNED, Why.NOTHING_PLANNED} else why.value)
            account = None
        if account is None and tag is not None:
            account = self.closed.pop(tag.key, None) or self._opened(tag)
            account.is_started = False
            self.current = account
        if account is not None and tag is not None:
            account.tag = tag  # a new plan may have moved its end
        return account

    def _opened(self, tag: Tag) -> Account:
        carried_ms = self.carried.pop(tag.key, None)
        account = Account(tag)
        if carried_ms is not None:
            account.heard_samples = carried_ms * SAMPLE_RATE_HZ // 1000
            account.trouble = Why.POWER_LOST.value
        return account

    def close(self, reason: str) -> None:
        """Nothing more will sound (power-off, no plan)."""
        if self.current is not None:
            self._close(self.current.last_ms, reason)

    def _close(self, at_ms: int, reason: str | None) -> None:
        account = self.current
        if account is None:
            return
        self.current = None
        tag = account.tag
        is_early = at_ms < tag.end_ms - _ENDED_IN_TIME_MS
        told = (reason or Trouble.CUT.value) if is_early else None
        if account.heard_samples:
            account.told_ms = account.heard_ms
            self.write(
                Line(
                    ReportKind.FINISHED,
                    tag,
                    at_ms,
                    account.heard_ms,
                    account.underruns,
                    account.level_dbfs,
                    told or account.trouble,
                )
            )
        else:
            self.write(
                Line(
                    ReportKind.NOT_SOUNDED,
                    tag,
                    at_ms,
                    0,
                    account.underruns,
                    None,
                    account.trouble or told or Trouble.NO_SOUND.value,
                )
            )
        self.closed[tag.key] = account
        while len(self.closed) > KEEP_CLOSED:
            self.closed.popitem(last=False)
