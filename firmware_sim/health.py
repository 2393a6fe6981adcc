"""The node's state as four independent answers (link, clock, audio, health), and its faults by name, as data.

Nothing here acts: `Signs` is what the firmware sees of itself, `CATALOGUE` says which signs make which fault, and
`machine` puts the four answers together. What follows from them is decided where sound is decided (`rules.decide`).
A new fault is one row here and its sentence in the server's catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from speaker_protocol.messages import AudioState, ClockSource

TRUSTED_WITHIN_MS: Final = 60_000.0
"""A clock that may be more wrong than this starts nothing."""
REFUSALS_MANY: Final = 20


class LinkState(StrEnum):
    """The session with the broker."""

    OFFLINE = "offline"
    CONNECTING = "connecting"
    ONLINE = "online"


class ClockState(StrEnum):
    """The node's idea of the time."""

    TRUSTED = "trusted"
    HOLDOVER = "holdover"
    UNKNOWN = "unknown"


class HealthState(StrEnum):
    """The worst of the faults."""

    OK = "ok"
    DEGRADED = "degraded"
    SAFE = "safe"


class Fault(StrEnum):
    """What may be wrong with a node; the status carries these codes."""

    SAFE_MODE = "safe_mode"
    POWER_LOW = "power_low"
    CLOCK_UNKNOWN = "clock_unknown"
    CLOCK_UNCERTAIN = "clock_uncertain"
    CLOCK_UNCONFIRMED = "clock_unconfirmed"
    CLOCK_CONTRADICTED = "clock_contradicted"
    PLAN_MISSING = "plan_missing"
    PLAN_EXPIRED = "plan_expired"
    ASSET_ROTTEN = "asset_rotten"
    ASSET_DUE_MISSING = "asset_due_missing"
    ASSET_UNPLAYABLE = "asset_unplayable"
    STORAGE_FULL = "storage_full"
    QUOTA_FULL = "quota_full"
    MEMORY_SLOT_LOST = "memory_slot_lost"
    MEMORY_LOST = "memory_lost"
    RESYNCING = "resyncing"
    LOG_DAMAGED = "log_damaged"
    LOG_OVERFLOWED = "log_overflowed"
    NO_SOUND_FROM_HORN = "no_sound_from_horn"
    MESSAGES_REFUSED = "messages_refused"
    PHRASES_BROKEN = "phrases_broken"


@dataclass(frozen=True, slots=True)
class Signs:
    """What the firmware sees of itself."""

    is_up: bool = False
    is_connecting: bool = False
    clock: ClockSource = ClockSource.UNKNOWN
    uncertainty_ms: float = 0.0
    is_clock_confirmed: bool = True
    """Whether a signed answer has come since power-on."""
    is_clock_contradicted: bool = False
    audio: AudioState = AudioState.IDLE
    is_safe_mode: bool = False
    is_power_low: bool = False
    has_plan: bool = False
    is_plan_over: bool = False
    rotten: int = 0
    """Assets found rotten that are not fetched again yet."""
    due_missing: int = 0
    """Assets that are used within the hour and are not here."""
    unplayable: int = 0
    is_storage_full: bool = False
    is_quota_full: bool = False
    slots_lost: int = 0
    is_resyncing: bool = False
    """Whether it obeys nothing, because it does not know what it obeyed once and was not told the floors yet."""
    log_damaged: int = 0
    log_dropped: int = 0
    is_horn_silent: bool = False
    forged: int = 0
    """Messages refused for a bad signature or shape since power-on."""
    phrases_broken: int = 0
    """Phrase clips of the firmware that are not intact."""


CATALOGUE: Final[Mapping[Fault, Callable[[Signs], bool]]] = MappingProxyType(
    {
        Fault.SAFE_MODE: lambda signs: signs.is_safe_mode,
        Fault.POWER_LOW: lambda signs: signs.is_power_low,
        Fault.CLOCK_UNKNOWN: lambda signs: signs.clock is ClockSource.UNKNOWN,
        Fault.CLOCK_UNCERTAIN: lambda signs: signs.uncertainty_ms > TRUSTED_WITHIN_MS,
        Fault.CLOCK_UNCONFIRMED: lambda signs: not signs.is_clock_confirmed and signs.clock is not ClockSource.UNKNOWN,
        Fault.CLOCK_CONTRADICTED: lambda signs: signs.is_clock_contradicted,
        Fault.PLAN_MISSING: lambda signs: not signs.has_plan,
        Fault.PLAN_EXPIRED: lambda signs: signs.is_plan_over,
        Fault.ASSET_ROTTEN: lambda signs: signs.rotten > 0,
        Fault.ASSET_DUE_MISSING: lambda signs: signs.due_missing > 0,
        Fault.ASSET_UNPLAYABLE: lambda signs: signs.unplayable > 0,
        Fault.STORAGE_FULL: lambda signs: signs.is_storage_full,
        Fault.QUOTA_FULL: lambda signs: signs.is_quota_full,
        Fault.MEMORY_SLOT_LOST: lambda signs: signs.slots_lost == 1,
        Fault.MEMORY_LOST: lambda signs: signs.slots_lost > 1,
        Fault.RESYNCING: lambda signs: signs.is_resyncing,
        Fault.LOG_DAMAGED: lambda signs: signs.log_damaged > 0,
        Fault.LOG_OVERFLOWED: lambda signs: signs.log_dropped > 0,
        Fault.NO_SOUND_FROM_HORN: lambda signs: signs.is_horn_silent,
        Fault.MESSAGES_REFUSED: lambda signs: signs.forged >= REFUSALS_MANY,
        Fault.PHRASES_BROKEN: lambda signs: signs.phrases_broken > 0,
    }
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The four answers."""

    link: LinkState
    clock: ClockState
    audio: AudioState
    health: HealthState
    faults: tuple[Fault, ...]


def machine(signs: Signs) -> Machine:
    """The state these signs make."""
    faults = tuple(fault for fault, is_there in CATALOGUE.items() if is_there(signs))
    health = HealthState.SAFE if signs.is_safe_mode else HealthState.DEGRADED if faults else HealthState.OK
    return Machine(_link(signs), _clock(signs), signs.audio, health, faults)


def _link(signs: Signs) -> LinkState:
    if signs.is_up:
        return LinkState.ONLINE
    return LinkState.CONNECTING if signs.is_connecting else LinkState.OFFLINE


def _clock(signs: Signs) -> ClockState:
    if signs.clock is ClockSource.UNKNOWN or signs.uncertainty_ms > TRUSTED_WITHIN_MS:
        return ClockState.UNKNOWN
    return ClockState.TRUSTED if signs.clock is ClockSource.SERVER else ClockState.HOLDOVER
