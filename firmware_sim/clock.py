"""The node's own, wrong clock, and how it learns the server's time over MQTT.

True time exists only outside the node: `TrueTime` drives crystal, sound card and recording; the firmware reads
nothing but `DeviceClock.now_ns` and signed answers. Facts to keep: an answer is worth `delay / 2` at best, so the
quickest exchanges carry the estimate (min-RTT filter, as NTP's clock filter, RFC 5905 §10) and a line through them
carries the drift; the estimate slews below 500 ms and steps above, and only exchanges signed by the server move it;
the estimate is a closed function of the device's clock, so a player may ask it about the near future.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from speaker_protocol.messages import ClockSource

_Floats = npt.NDArray[np.float64]

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000

STEP_NS: Final = 500 * MS
"""An error above this is stepped, one below it is slewed."""
CRYSTAL_PPM: Final = 50.0
"""How far a crystal may be off: the prior of the drift fit, and how fast an unfitted estimate gets worse."""
MAX_DELAY_NS: Final = 2 * SECOND
"""An exchange slower than this says nothing."""
WINDOW_NS: Final = 600 * SECOND
_JITTER_FLOOR_NS: Final = 0.1 * MS
_ASYMMETRY: Final = 0.1
"""Share of a delay that may well have been spent on one way only."""
_FITS: Final = 3
"""Passes of the fit: who is quick depends on the slope."""
_SLOPE_PRIOR: Final = 1.0 / (CRYSTAL_PPM * 1e-6) ** 2
_STEEPEST: Final = 300e-6
"""A crystal that is further off is broken; the prior holds good ones near 0."""
_SLEW_PER_NS: Final = 0.002
_SLEW_WITHIN_NS: Final = 8 * SECOND
_SLEW_AT_MOST_PER_NS: Final = 0.015
"""Below what a sounding programme may be steered by, so that a slew is never heard as a jump."""
GOOD_NS: Final = 2 * MS
"""An estimate this good needs no hurry."""
HOLDOVER_AFTER_NS: Final = 60 * SECOND
BUILT_NS: Final = 1_767_225_600 * SECOND
"""1 January 2026, before this firmware was built: no time before it is believed of a device's clock."""
LONGEST_OFF_NS: Final = 60 * 86_400 * SECOND
_STEADIEST_PPM: Final = 5.0
"""What a fitted slope is worth at best: crystals follow the weather."""
_CONTRADICTED_FOR_NS: Final = 600 * SECOND


class TrueTime(Protocol):
    """The world outside the node."""

    def now_ns(self) -> int:
        """True UTC, in nanoseconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let true time pass."""
        ...

    def ring(self, seconds: float, bell: Callable[[], None]) -> Callable[[], None]:
        """Call `bell` once so much true time has passed; the answer takes it back."""
        ...


class MachineTime:
    """True time of a real run: this machine's UTC at the start, then its monotonic clock."""

    def __init__(self) -> None:
        self._zero_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """True UTC, in nanoseconds."""
        return self._zero_ns + time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        """Let true time pass."""
        await asyncio.sleep(max(0.0, seconds))

    def ring(self, seconds: float, bell: Callable[[], None]) -> Callable[[], None]:
        """See `TrueTime.ring`."""
        return asyncio.get_running_loop().call_later(seconds, bell).cancel


class DeviceClock:
    """The clock a node has by itself: wrong by an offset, and drifting. It keeps running while the node is off."""

    def __init__(self, true: TrueTime, *, offset_ms: float = 0.0, drift_ppm: float = 0.0) -> None:
        self._true = true
        self._anchor_true_ns = self._born_ns = true.now_ns()
        self._counted_ns = 0
        self._anchor_device_ns = self._anchor_true_ns + round(offset_ms * MS)
        self.drift_ppm = drift_ppm

    @property
    def rate(self) -> float:
        """Seconds it counts in one true second."""
        return 1.0 + self.drift_ppm * 1e-6

    def now_ns(self) -> int:
        """What the device believes, before any correction."""
        return self.at(self._true.now_ns())

    def at(self, true_ns: int) -> int:
        """What it shows at a true instant. For the sound card, which runs on the same crystal."""
        return self._anchor_device_ns + round((true_ns - self._anchor_true_ns) * self.rate)

    def crystal_ns(self) -> int:
        """What the crystal has counted, in nanoseconds from an arbitrary origin; no jump of the clock moves it."""
        return self._counted_ns + round((self._true.now_ns() - self._born_ns) * self.rate)

    def run_at(self, drift_ppm: float) -> None:
        """Another rate from now on: heat, age."""
        now_ns, counted_ns = self._true.now_ns(), self.crystal_ns()
        self._anchor_device_ns, self._anchor_true_ns = self.at(now_ns), now_ns
        self._counted_ns, self._born_ns = counted_ns, now_ns
        self.drift_ppm = drift_ppm

    def jump(self, by_ms: float) -> None:
        """Make it jump."""
        self._anchor_device_ns += round(by_ms * MS)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its signed answer, in ns: `asked`, `arrived` by the device, the others by the server."""

    asked_ns: int
    received_ns: int
    sent_ns: int
    arrived_ns: int

    @property
    def delay_ns(self) -> int:
        """Time on the way, both ways."""
        return (self.arrived_ns - self.asked_ns) - (self.sent_ns - self.received_ns)

    @property
    def offset_ns(self) -> int:
        """Server minus device, if both ways took equally long."""
        return ((self.received_ns - self.asked_ns) + (self.sent_ns - self.arrived_ns)) // 2

    @property
    def middle_ns(self) -> int:
        """The device instant the offset belongs to."""
        return (self.asked_ns + self.arrived_ns) // 2


@dataclass(frozen=True, slots=True)
class _Line:
    """offset(d) = offset_ns + slope * (d - at_ns)."""

    at_ns: int
    offset_ns: int
    slope: float

    def offset(self, device_ns: int) -> float:
        return self.offset_ns + self.slope * (device_ns - self.at_ns)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What survives a reboot: the server's lead over the device's clock at a device instant."""

    device_ns: int
    offset_ns: int
    slope: float
    uncertainty_ms: float


def _border(x: _Floats, y: _Floats, sigma: _Floats) -> tuple[float, float, float]:
    """A direction's part in the slope: spread of x, spread of x with y, and the weight it rests on."""
    weights = 1.0 / (sigma * sigma)
    weight = float(weights.sum())
    x = x - (weights * x).sum() / weight
    return float((weights * x * x).sum()), float((weights * x * y).sum()), weight


class Discipline:
    """The server's time as the node believes it."""

    def __init__(self, *, settle_exchanges: int = 8) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=96)
        self._line: _Line | None = None
        self._slew_from_ns = 0
        self._slew_ns = 0.0
        self._settle = settle_exchanges
        self._heard = 0
        self._error_ns = 0.0
        self._last_ns: int | None = None
        self._surprises = 0
        self._ppm = CRYSTAL_PPM
        self._contradiction_ns = 0.0
        self._contradicted_ns: int | None = None
        self.steps = 0

    @property
    def is_known(self) -> bool:
        """Whether it has any idea of the server's time."""
        return self._line is not None

    @property
    def exchanges(self) -> int:
        """How many answers were taken since power-on."""
        return self._heard

    @property
    def is_confirmed(self) -> bool:
        """Whether a signed answer has come since power-on; before it the time is the device clock's word alone."""
        return self._heard > 0

    def is_contradicted(self, device_ns: int) -> bool:
        """Whether two sources contradicted each other lately."""
        at_ns = self._contradicted_ns
        return at_ns is not None and 0 <= device_ns - at_ns <= _CONTRADICTED_FOR_NS

    def jumped(self, by_ns: int) -> None:
        """The device's clock jumped and its crystal says by how much: what is known moves along, time does not."""
        self._exchanges = deque(
            (replace(one, asked_ns=one.asked_ns + by_ns, arrived_ns=one.arrived_ns + by_ns) for one in self._exchanges),
            maxlen=self._exchanges.maxlen,
        )
        if self._line is not None:
            self._line = replace(self._line, at_ns=self._line.at_ns + by_ns, offset_ns=self._line.offset_ns - by_ns)
        self._slew_from_ns += by_ns
        if self._last_ns is not None:
            self._last_ns += by_ns
        if self._contradicted_ns is not None:
            self._contradicted_ns += by_ns

    def recall(self, remembered: Remembered, device_ns: int) -> bool:
        """Begin with what was known before a reboot, if that is plausible.

        The device's clock must not be behind what was written down last (a dead battery shows 1970 or 2000), at most
        60 days on, and nobody lives before the firmware was built. False: the time is unknown.
        """
        age_ns = device_ns - remembered.device_ns
        if not 0 <= age_ns <= LONGEST_OFF_NS or device_ns + remembered.offset_ns < BUILT_NS:
            return False
        self._line = _Line(remembered.device_ns, remembered.offset_ns, remembered.slope)
        self._error_ns = remembered.uncertainty_ms * MS
        self._last_ns = remembered.device_ns
        return True

    def remember(self, device_ns: int) -> Remembered | None:
        """What to store."""
        if self._line is None:
            return None
        return Remembered(device_ns, round(self.offset_ns(device_ns)), self._line.slope, self.uncertainty_ms(device_ns))

    def is_doubtful(self) -> bool:
        """Whether asking soon again may pay: few answers yet, or none quick enough to believe to a few milliseconds."""
        return self._error_ns > GOOD_NS

    def take(self, exchange: Exchange) -> bool:
        """Learn from one exchange; False if it is worthless."""
        if not 0 <= exchange.delay_ns <= MAX_DELAY_NS:
            return False
        now_ns = exchange.arrived_ns
        if self._line is not None:
            surprise_ns = abs(exchange.offset_ns - self._line.offset(exchange.middle_ns))
            doubt_ns = exchange.delay_ns / 2 + 20 * MS
            bound_ns = doubt_ns + self.uncertainty_ms(now_ns) * MS
            if surprise_ns > (doubt_ns if self._exchanges else bound_ns):
                if surprise_ns > bound_ns:  # two sources contradict each other: nobody is believed within less
                    self._contradiction_ns, self._contradicted_ns = surprise_ns, now_ns
                # Once may be a stall on the way; twice in a row, the device's clock jumped and the past is worthless.
                self._surprises += 1
                if self._surprises < 2:
                    return False
                self._exchanges.clear()
        self._surprises = 0
        self._contradiction_ns = 0.0
        self._exchanges.append(exchange)
        self._heard += 1
        while now_ns - self._exchanges[0].arrived_ns > WINDOW_NS:
            self._exchanges.popleft()
        was_ns = self.offset_ns(now_ns) if self._line is not None else None
        self._line = self._fit(now_ns)
        self._last_ns = now_ns
        wrong_ns = 0.0 if was_ns is None else was_ns - self._line.offset(now_ns)
        if was_ns is None or abs(wrong_ns) > STEP_NS or self._heard <= self._settle:
            self.steps += was_ns is None or abs(wrong_ns) > STEP_NS
            wrong_ns = 0.0
        self._slew_from_ns, self._slew_ns = now_ns, wrong_ns
        return True

    def _fit(self, now_ns: int) -> _Line:
        """The line midway between what the quickest questions and the quickest answers allow.

        A question that arrived shows the server at least its way ahead, an answer at most its way behind: true time
        runs in the corridor between them. Each direction has its own quickest messages, so one lucky question and
        another lucky answer are worth as much as one lucky exchange. The slope is a fit through both borders, each
        message weighed by how much longer than the quickest it took; what crystals are holds it near 0 until the span
        tells more.
        """
        base_ns = self._exchanges[-1].offset_ns
        rows = [(one.asked_ns - now_ns, one.received_ns - one.asked_ns - base_ns) for one in self._exchanges]
        up_x, up_y = np.array(rows, np.float64).T
        rows = [(one.arrived_ns - now_ns, one.sent_ns - one.arrived_ns - base_ns) for one in self._exchanges]
        down_x, down_y = np.array(rows, np.float64).T
        slope = 0.0 if self._line is None else self._line.slope
        weight, spread = 0.0, _SLOPE_PRIOR
        for _ in range(_FITS):
            up, down = up_y - slope * up_x, down_y - slope * down_x
            floor_ns = _JITTER_FLOOR_NS + _ASYMMETRY * (up.min() - down.max())
            fitted = [
                _border(up_x, up_y, up - up.min() + floor_ns),
                _border(down_x, down_y, down.max() - down + floor_ns),
            ]
            weight = min(border[2] for border in fitted)
            spread = sum(border[0] for border in fitted) + _SLOPE_PRIOR
            slope = sum(border[1] for border in fitted) / spread
            slope = min(max(slope, -_STEEPEST), _STEEPEST)
        self._ppm = min(CRYSTAL_PPM, _STEADIEST_PPM + 3e6 / math.sqrt(spread))
        low, high = (down_y - slope * down_x).max(), (up_y - slope * up_x).min()
        # Asymmetry of the quickest ways cannot be seen from here: half the corridor stays in the error.
        self._error_ns = max(0.0, float(high - low)) / 2 + 1.0 / math.sqrt(weight)
        return _Line(now_ns, base_ns + round((low + high) / 2), slope)

    def offset_ns(self, device_ns: int) -> float:
        """Correction to the device's clock, in nanoseconds. Raises `RuntimeError` while nothing is known."""
        if self._line is None:
            raise RuntimeError("the time is not known")
        return self._line.offset(device_ns) + self._slewing_ns(device_ns)

    def _slewing_ns(self, device_ns: int) -> float:
        if not self._slew_ns:
            return 0.0
        lasts_ns = max(
            min(abs(self._slew_ns) / _SLEW_PER_NS, float(_SLEW_WITHIN_NS)), abs(self._slew_ns) / _SLEW_AT_MOST_PER_NS
        )
        gone = (device_ns - self._slew_from_ns) / lasts_ns
        return self._slew_ns * (1.0 - gone) if 0.0 <= gone < 1.0 else (self._slew_ns if gone < 0.0 else 0.0)

    def server_ns(self, device_ns: int) -> int:
        """The server's time at a device instant. Raises `RuntimeError` while nothing is known."""
        return device_ns + round(self.offset_ns(device_ns))

    def uncertainty_ms(self, device_ns: int) -> float:
        """How wrong the estimate may be; grows with the age of the last answer."""
        if self._line is None or self._last_ns is None:
            return 0.0
        age_ns = max(0, device_ns - self._last_ns)
        own_ns = self._error_ns + age_ns * self._ppm * 1e-6 + abs(self._slewing_ns(device_ns))
        return max(own_ns, self._contradiction_ns) / MS

    def source(self, device_ns: int) -> ClockSource:
        """Where the time comes from now."""
        if self._line is None or self._last_ns is None:
            return ClockSource.UNKNOWN
        fresh = bool(self._exchanges) and device_ns - self._last_ns < HOLDOVER_AFTER_NS
        return ClockSource.SERVER if fresh else ClockSource.HOLDOVER
