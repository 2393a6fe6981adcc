"""Boxes as an installer holds them: a label, a key of their own, a voice; and an ear below the pole."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.control import devices, enrolment
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.enrolment import Claim, Enrolled, NewDevice
from broadcast_server.store.session import Session
from broadcast_server.store.tables import OutboxRow
from firmware_sim import own_sound
from firmware_sim.enrol import request_of
from firmware_sim.phrases import burned_in
from speaker_protocol import claims

Pcm = npt.NDArray[np.int16]

_RATE: Final = 48_000
_FFT: Final = 1 << 16
"""Samples: more than two words."""
_QUIET: Final = 40
"""Samples below this are the pause between two digits."""


@dataclass(frozen=True)
class Box:
    """A box of one serial; two of one `serial` with different `number`s are two boxes with one label."""

    number: int
    serial: str
    code: str
    key: Ed25519PrivateKey = field(init=False)
    csr: str = field(init=False)

    def __post_init__(self) -> None:
        secret = hashlib.sha256(f"box {self.number} {self.serial}".encode()).digest()
        object.__setattr__(self, "key", Ed25519PrivateKey.from_private_bytes(secret))
        object.__setattr__(self, "csr", request_of(self.key))

    @property
    def public_hex(self) -> str:
        return self.key.public_key().public_bytes_raw().hex()

    def claim(self, code: str | None = None, *, nonce: str = "0" * 32, key: bytes | None = None) -> Claim:
        """What it sends, as if `code` were printed on it; `key`: what a code gave, where it is known already."""
        secret = key or claims.claim_key(self.serial, code or self.code)
        return Claim(self.serial, self.csr, nonce, claims.proof(secret, self.csr, self.serial, nonce), "sim-1", "0.1")


def a_box(number: int = 1) -> Box:
    """A box fresh from the factory."""
    return Box(number, f"LOA-{number:05}", claims.code_of(hashlib.sha256(f"label {number}".encode()).digest()[:10]))


async def expect(desk: Desk, actor: Actor, box: Box, unit_id: str, cluster_code: str | None = None) -> str:
    """An officer registers what is printed on the box; id of the claim."""
    made = await enrolment.register_device(desk, actor, NewDevice(box.serial, unit_id, cluster_code, box.code))
    return made.claim.id


async def install(desk: Desk, actor: Actor, box: Box, unit_id: str, cluster_code: str | None = None) -> Enrolled:
    """A box is expected and comes."""
    await expect(desk, actor, box, unit_id, cluster_code)
    return await enrolment.enrol_by_claim(desk, box.claim())


async def spoken(desk: Desk, actor: Actor, node_id: str) -> Pcm:
    """What comes out of the horn when the node is asked for its code: its order, through its own voice."""
    view = await devices.ask_binding(desk, actor, node_id)

    def order(session: Session) -> str:
        row = session.get(OutboxRow, view.order_id)
        assert row is not None
        return str(row.body["code"])

    return said(await desk.store.read(order))


def said(code: str) -> Pcm:
    """A node's voice speaking digits."""
    sound = own_sound.spoken(code, burned_in().pcm)
    assert sound is not None
    return sound.wave


def heard(pcm: Pcm) -> str:
    """The digits in a recording, in order, each known by its own clip and no other."""
    found = ""
    for low, high in _words(pcm):
        word = _spectrum(pcm[low:high].astype(np.float64))
        alike = {digit: _alike(word, clip) for digit, clip in _clips().items()}
        digit = max(alike, key=lambda one: alike[one])
        assert alike[digit] > 0.8, alike
        found += digit
    return found


async def approve(desk: Desk, installer: Actor, officer: Actor, node_id: str) -> None:
    """The code is heard and typed in, and somebody else approves."""
    code = heard(await spoken(desk, installer, node_id))
    await devices.answer_binding(desk, installer, node_id, code[:4])
    await devices.approve_node(desk, officer, node_id)


@functools.cache
def _clips() -> dict[str, tuple[npt.NDArray[np.complex128], float]]:
    """Spectrum and length of each digit's clip."""
    clips = {str(digit): burned_in().pcm(f"digit_{digit}") for digit in range(10)}
    return {digit: _spectrum(clip.astype(np.float64)) for digit, clip in clips.items() if clip is not None}


def _spectrum(wave: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.complex128], float]:
    # Not linalg.norm: its threads wait for each other where many tests run.
    return np.fft.rfft(wave, _FFT), float(np.sqrt(np.sum(wave * wave)))


def _alike(word: tuple[npt.NDArray[np.complex128], float], clip: tuple[npt.NDArray[np.complex128], float]) -> float:
    """The best correlation of the two, whatever their shift: 1 is the same wave."""
    both = np.fft.irfft(word[0] * np.conj(clip[0]), _FFT)
    return float(both.max() / (word[1] * clip[1] + 1e-9))


def _words(pcm: Pcm) -> list[tuple[int, int]]:
    """Stretches of sound that are at least 250 ms apart."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > _QUIET)
    if not len(loud):
        return []
    cuts = np.flatnonzero(np.diff(loud) > _RATE // 4)
    lows = [loud[0], *loud[cuts + 1]]
    highs = [*loud[cuts], loud[-1]]
    return [(int(low), int(high) + 1) for low, high in zip(lows, highs, strict=True) if high - low > _RATE // 20]
