"""Make the phrase clips anew: `python -m firmware_sim.phrases.make`. Run by hand; the clips are committed.

Each phrase of `speaker_protocol.hazards` through espeak-ng, brought to one level, cut free of silence at both ends, as
mono Ogg Opus of 48 kHz. A clip longer than its slot is an error: the slot is what keeps poles in step.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import av.audio.resampler
import numpy as np
import numpy.typing as npt

from firmware_sim.decoder import mono
from speaker_protocol.hazards import CLIPS

SAMPLE_RATE_HZ: Final = 48_000
BITS_PER_SECOND: Final = 16_000
WORDS_A_MINUTE: Final = 130
_LEVEL: Final = 5_200.0
"""Root mean square of the voiced part, of 32 768: about -16 dBFS."""
_PEAK: Final = 30_000.0
_AUDIBLE: Final = 300
_PACKET: Final = 960

Pcm = npt.NDArray[np.int16]


def speak(text: str) -> Pcm:
    """A text in espeak-ng's northern voice, 48 kHz."""
    made = subprocess.run(
        ["espeak-ng", "-v", "vi", "-s", str(WORDS_A_MINUTE), "--stdout", "--", text], check=True, capture_output=True
    )
    resampler = av.audio.resampler.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    parts: list[Pcm] = []
    with av.open(io.BytesIO(made.stdout), "r", format="wav") as container:
        for frame in container.decode(audio=0):
            parts += [mono(part) for part in resampler.resample(frame)]
    parts += [mono(part) for part in resampler.resample(None)]
    return np.concatenate(parts)


def level(pcm: Pcm) -> Pcm:
    """Without silence at its ends, at the common level, ramped over 5 ms."""
    audible = np.flatnonzero(np.abs(pcm.astype(np.int32)) > _AUDIBLE)
    wave = pcm[max(0, audible[0] - 480) : audible[-1] + 960].astype(np.float64)
    voiced = wave[np.abs(wave) > _AUDIBLE]
    wave *= _LEVEL / np.sqrt(np.mean(voiced**2))
    wave = _PEAK * np.tanh(wave / _PEAK)
    ramp = np.linspace(0.0, 1.0, 240)
    wave[:240] *= ramp
    wave[-240:] *= ramp[::-1]
    return np.rint(wave).astype(np.int16)


def encode(pcm: Pcm) -> bytes:
    """Ogg Opus, the same bytes for the same samples."""
    out = io.BytesIO()
    with av.open(out, "w", format="ogg", options={"fflags": "+bitexact", "serial_offset": "1"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE_HZ, layout="mono", options={"application": "voip"})
        stream.bit_rate = BITS_PER_SECOND
        whole = np.concatenate([pcm, np.zeros(-len(pcm) % _PACKET, np.int16)])
        for at in range(0, len(whole), _PACKET):
            frame = av.AudioFrame.from_ndarray(whole[None, at : at + _PACKET], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, at, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def main() -> int:
    """Write every clip and the manifest; 1 if a clip is longer than its slot."""
    folder = Path(__file__).parent
    manifest, is_too_long = [], False
    for code, phrase in sorted(CLIPS.items()):
        pcm = level(speak(phrase.text))
        content = encode(pcm)
        length_ms = -(-len(pcm) * 1000 // SAMPLE_RATE_HZ)
        (folder / f"{code}.opus").write_bytes(content)
        manifest.append(
            {"code": code, "text": phrase.text, "sha256": hashlib.sha256(content).hexdigest(), "ms": length_ms}
        )
        fits = length_ms <= phrase.slot_ms
        is_too_long |= not fits
        sys.stdout.write(f"{code}: {length_ms} ms of {phrase.slot_ms}{'' if fits else '  TOO LONG'}\n")
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return int(is_too_long)


if __name__ == "__main__":
    sys.exit(main())
