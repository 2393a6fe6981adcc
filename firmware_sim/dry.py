"""An output that sounds durations instead of samples, and whoever listens to it.

For simulations of days: it decodes nothing, but it consumes time like a sound card, takes the same decisions, stops
where the sound's length ends, and gives the ledger the same pieces, so that what a node claims to have sounded is what
its witness heard. A jump of the device's clock moves the programme, never the card: the card runs on the crystal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from firmware_sim.clock import MS, SECOND
from firmware_sim.output import Horn, Played
from firmware_sim.player import SAMPLE_RATE_HZ, Chunk, Situation, Sounding, Stretch, stretches
from speaker_protocol.rounds import PartKind
from speaker_protocol.rules import DecisionKind

NOMINAL_POWER: Final = 3_000.0**2
"""Mean square of what sounds: no samples are there to be measured."""


class Witness(Protocol):
    """Stands in front of the horn and looks over the node's shoulder."""

    def sounded(self, piece: Played) -> None:
        """A piece has left the output, in order and without a gap while there is power."""
        ...

    def obeyed(self, topic: str, raw: bytes) -> None:
        """A message passed the gate and is in force from now on."""
        ...


class DryCard:
    """The sound card's place: what has to be accounted for since the last look."""

    def __init__(self, horn: Horn) -> None:
        self._horn = horn
        self._card_ns: int | None = None
        self._server_ns = 0

    def catch_up(
        self, situation: Situation, is_fit: Callable[[str], bool], card_ns: int, server_ns: int, jump_ns: int
    ) -> Iterator[Played]:
        """The pieces from the last look until now. `card_ns`: the crystal's count, `server_ns`: the time believed.

        `is_fit`: whether the bytes of an asset were checked for this use; what was not is a hole.
        """
        before_ns, self._card_ns = self._card_ns, card_ns
        cursor_ns, self._server_ns = self._server_ns, server_ns
        if before_ns is None:
            return
        passed_ns = card_ns - before_ns
        low_ns = server_ns - passed_ns
        if abs(low_ns - cursor_ns) < jump_ns:
            low_ns = cursor_ns  # steered, never torn
        if low_ns >= server_ns:
            self._server_ns = low_ns
            return
        for stretch in stretches(situation, low_ns, server_ns):
            for chunk in _chunks(situation, is_fit, stretch):
                yield self._play(chunk)

    def stop(self) -> None:
        """The time is not known: nothing sounds until it is."""
        self._card_ns = None

    def _play(self, chunk: Chunk) -> Played:
        is_sound = chunk.kind is Sounding.SOUND
        is_heard = is_sound and not self._horn.is_dead
        return Played(chunk, power=chunk.samples * NOMINAL_POWER if is_heard else 0.0, is_heard=is_heard)


def _chunks(situation: Situation, is_fit: Callable[[str], bool], stretch: Stretch) -> Iterator[Chunk]:
    decision = stretch.decision
    sounds_ns = stretch.end_ns - stretch.start_ns
    if decision.asset is not None and not is_fit(decision.asset):
        yield _chunk(stretch, stretch.start_ns, sounds_ns, Sounding.HOLE)
        return
    if decision.kind is DecisionKind.SILENCE or decision.part is PartKind.PAUSE:
        sounds_ns = 0
    elif decision.kind is DecisionKind.ASSET:
        length_ms = situation.asset_ms.get(decision.asset or "")
        if length_ms is not None:
            moved_ns = stretch.start_ns - stretch.start_ns // MS * MS
            sounds_ns = min(sounds_ns, max(0, (length_ms - decision.offset_ms) * MS - moved_ns))
    if sounds_ns:
        yield _chunk(stretch, stretch.start_ns, sounds_ns, Sounding.SOUND)
    if stretch.start_ns + sounds_ns < stretch.end_ns:
        rest_ns = stretch.end_ns - stretch.start_ns - sounds_ns
        yield _chunk(stretch, stretch.start_ns + sounds_ns, rest_ns, Sounding.SILENCE)


def _chunk(stretch: Stretch, start_ns: int, length_ns: int, kind: Sounding) -> Chunk:
    samples = length_ns * SAMPLE_RATE_HZ // SECOND
    return Chunk(samples, start_ns, kind, stretch.decision.why, stretch.tag)
