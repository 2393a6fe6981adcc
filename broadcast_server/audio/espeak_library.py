"""The espeak-ng library of the `espeakng-loader` package as a program: text on stdin, a WAV on stdout.

Run as a child process by `speech.EspeakSpeaker` where Debian's espeak-ng is missing, so that an engine in C that
breaks takes nothing with it. Arguments: voice, words a minute. Source: espeak-ng's speak_lib.h.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import Final

import espeakng_loader

_OUTPUT_RETRIEVAL: Final = 1
_RATE_PARAMETER: Final = 1
_BY_CHARACTER: Final = 1
_TEXT_IS_UTF8: Final = 1


def main() -> int:
    """Speak stdin; 0 when it was spoken."""
    voice, words_a_minute = sys.argv[1:3]
    text = sys.stdin.buffer.read()
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate_hz = library.espeak_Initialize(_OUTPUT_RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate_hz <= 0 or library.espeak_SetVoiceByName(voice.encode()) != 0:
        return 1
    pcm = bytearray()

    def hear(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            pcm.extend(ctypes.string_at(samples, count * 2))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(hear)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(_RATE_PARAMETER, int(words_a_minute), 0)
    spoken = library.espeak_Synth(
        ctypes.c_char_p(text), ctypes.c_size_t(len(text) + 1), 0, _BY_CHARACTER, 0, _TEXT_IS_UTF8, None, None
    )
    library.espeak_Synchronize()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2,
                       2, 16, b"data", len(pcm))  # fmt: skip
    sys.stdout.buffer.write(head + pcm)
    return 0 if spoken == 0 and pcm else 1


if __name__ == "__main__":
    sys.exit(main())
