"""The media clock of a stream: which sample index the sound that just arrived shall have. Pure arithmetic.

Sample m of a stream is due on every node at `t0 + m/48 000 s + playout delay`, so the index *is* the time. `lead` is
how far the stream's position runs ahead of the wall: 0 for a perfect live source, positive after a burst, falling when
the source is late. A maintainer must not break: (1) media time never goes back and never repeats; (2) a source that
comes back after a silence continues at the wall (the nodes have played silence meanwhile) and shifts nothing later;
(3) every correction has a name and is counted; (4) one drift correction is 20 ms and at most one a second: up to 2 %.

The policies, by name: HOLD: a source faster than real time (a file, a burst) is not asked for more (back-pressure).
JUMP: late beyond `late_ms`: media time jumps to the wall, the next batch carries AFTER_GAP. CONCEAL: drifting late:
one empty packet, which the node's decoder conceals. DROP: drifting early while never held: one frame is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from broadcast_server.audio.formats import FRAME_SAMPLES, SAMPLE_RATE_HZ

BATCH_STEPS: Final = ((500, 50), (2_000, 80), (1_000_000_000, 100))
"""`(listeners up to, packets a batch)`: fan-out costs per message, hardly per byte, so many listeners get long batches.

At 1 000 listeners mosquitto needs about as much as icecast2 with 1 s, and a third less with 1.6 s
(`benchmarks/fanout.py`).
"""

SAFETY_MS: Final = 1_000
"""What a node has in hand beyond a whole batch when the source and the network are on time."""


def choose_batch(listeners: int) -> int:
    """Packets of 20 ms in one batch for so many listeners."""
    return next(packets for limit, packets in BATCH_STEPS if listeners <= limit)


def playout_delay_ms(packets_per_batch: int) -> int:
    """Delay of the head: a batch is made when its last sample has come, `SAFETY_MS` before its first is due."""
    return packets_per_batch * 20 + SAFETY_MS


@dataclass(frozen=True, slots=True)
class Pace:
    """The limits, as data, in milliseconds unless said."""

    ceiling_ms: int = 2_000
    """So far ahead of the wall the stream may run."""
    late_ms: int = 400
    """So far behind it is still played late out of the nodes' safety; beyond it jumps."""
    drift_ms: int = 150
    """The least lead of a window may differ so much from that of the first settled one before it is corrected."""
    window_s: float = 10.0
    correction_every_s: float = 1.0


USUAL_PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with the block that arrived."""

    jump_samples: int = 0
    """Let media time jump ahead by so many samples first (whole frames), and flag what follows AFTER_GAP."""
    conceal: bool = False
    """Put one empty packet in."""
    drop: bool = False
    """Leave one frame of it out."""
    hold_s: float = 0.0
    """Then do not ask the source for so long."""


@dataclass(slots=True)
class Corrections:
    """How often each policy was needed."""

    jumps: int = 0
    jumped_ms: int = 0
    concealed: int = 0
    dropped: int = 0
    held_ms: int = 0


@dataclass(slots=True)
class MediaClock:
    """Position of the stream, in samples since `t0_s` of the clock that is handed in.

    The first block defines t0: its end is "now", so the lead starts at zero.
    """

    pace: Pace = field(default_factory=Pace)
    t0_s: float | None = None
    position: int = 0
    """Index of the next sample."""
    corrections: Corrections = field(default_factory=Corrections)
    _baseline: float | None = None
    _window_ends_s: float = 0.0
    _least: float | None = None
    _was_held: bool = False
    _is_settling: bool = True
    _corrected_s: float = float("-inf")

    def lead_samples(self, now_s: float) -> float:
        """How far the position is ahead of the wall; negative: behind."""
        return 0.0 if self.t0_s is None else self.position - (now_s - self.t0_s) * SAMPLE_RATE_HZ

    def arrived(self, samples: int, now_s: float) -> Step:
        """A block of `samples` has come at `now_s`; moves the position on by it and by the corrections."""
        if self.t0_s is None:
            self.t0_s = now_s - samples / SAMPLE_RATE_HZ
            self._window_ends_s = now_s + self.pace.window_s
        lead = self.lead_samples(now_s) + samples
        jump = 0
        if lead < -_samples(self.pace.late_ms):
            jump = -int(lead // FRAME_SAMPLES) * FRAME_SAMPLES  # up to a frame too far, never too short
            self.corrections.jumps += 1
            self.corrections.jumped_ms += jump * 1000 // SAMPLE_RATE_HZ
            self._baseline, self._is_settling = None, True
            self._open_window(now_s)
        self.position += jump + samples
        lead += jump
        conceal, drop = self._drift(lead, now_s, samples)
        self.position += FRAME_SAMPLES * (conceal - drop)
        hold_s = max(0.0, (lead - _samples(self.pace.ceiling_ms)) / SAMPLE_RATE_HZ)
        if hold_s > 0:
            self._was_held = True
            self.corrections.held_ms += round(hold_s * 1000)
        return Step(jump, conceal, drop, hold_s)

    def padded(self, samples: int) -> None:
        """So many samples of silence were put in, to fill a frame before a pause."""
        self.position += samples

    def _drift(self, lead: float, now_s: float, samples: int) -> tuple[bool, bool]:
        """Compare the least lead of each window with the first settled one's: jitter is above it, drift moves it."""
        self._least = lead if self._least is None else min(self._least, lead)
        if now_s < self._window_ends_s:
            return False, False
        if self._was_held or self._is_settling:
            # Held back, or just begun (perhaps with a burst), it tells nothing of the source's own speed.
            self._baseline, self._is_settling = None, self._was_held
            self._open_window(now_s)
            return False, False
        if self._baseline is None:
            self._baseline = self._least
            self._open_window(now_s)
            return False, False
        moved = self._least - self._baseline
        is_due = now_s - self._corrected_s >= self.pace.correction_every_s
        conceal = is_due and moved < -_samples(self.pace.drift_ms)
        drop = is_due and moved > _samples(self.pace.drift_ms) and samples >= FRAME_SAMPLES
        if conceal or drop:
            # The window stays as it is, moved by what was done, until it is within bounds again.
            self._corrected_s = now_s
            self._least += FRAME_SAMPLES * (conceal - drop)
            self.corrections.concealed += conceal
            self.corrections.dropped += drop
        elif abs(moved) <= _samples(self.pace.drift_ms):
            self._open_window(now_s)
        return conceal, drop

    def _open_window(self, now_s: float) -> None:
        self._least, self._was_held = None, False
        self._window_ends_s = now_s + self.pace.window_s


def _samples(duration_ms: int) -> int:
    return duration_ms * SAMPLE_RATE_HZ // 1000
