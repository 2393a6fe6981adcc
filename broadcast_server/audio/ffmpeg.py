"""Everything we ever say to ffmpeg, and the sandbox it runs in.

A maintainer must not break: (1) every argument list is compiled here by ffmpeg-python, one pure builder per purpose,
and none is ever run by it; (2) ffmpeg never opens a network and never guesses what a file is: protocols are `file` and
`pipe`, formats and codecs stand on a list, a name is always `file:NAME` with a NAME made by the server; (3) duration,
bytes, memory, CPU and wall time have caps, because headers lie (24 h of FLAC silence is a file of 164 kB).

The recipe was tried on m3u8, ffconcat and SDP files named .mp3, on bombs and on lying headers. Cure for the class of
CVE-2016-1897 and CVE-2017-9993.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import shutil
import sys
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ffmpeg

from broadcast_server.audio import jail
from broadcast_server.audio.formats import CHANNELS, SAMPLE_BYTES, SAMPLE_RATE_HZ
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.supervise import Child

log = get_logger()

STDIN: Final = "pipe:0"
STDOUT: Final = "pipe:1"
FILE_CODECS: Final = (
    "mp3", "mp3float", "aac", "flac", "vorbis", "opus", "alac",
    "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw",
)  # fmt: skip
_GLOBAL: Final = ("-nostdin", "-hide_banner", "-nostats")
_PCM: Final[dict[str, Any]] = {"format": "s16le", "acodec": "pcm_s16le", "ar": SAMPLE_RATE_HZ, "ac": CHANNELS}
_ONLY_SOUND: Final[dict[str, Any]] = {"vn": None, "sn": None, "dn": None, "map_metadata": -1, "map_chapters": -1}


class FileFormat(enum.StrEnum):
    """What an upload may be, told by its first bytes, never by its name. The value is ffmpeg's demuxer."""

    MP3 = "mp3"
    WAV = "wav"
    FLAC = "flac"
    OGG = "ogg"
    AAC = "aac"
    MOV = "mov"


class StreamFormat(enum.StrEnum):
    """What a live stream may be, told by its Content-Type, never guessed. The value is ffmpeg's demuxer."""

    MP3 = "mp3"
    AAC = "aac"
    OGG = "ogg"
    MPEGTS = "mpegts"
    FLAC = "flac"
    WEBM = "webm"
    MP4 = "mp4"


# Bytes ffmpeg may look at before the first sound: 4 096 gives the first MP3 sound 0.1 s after a 64 kB burst, instead
# of 4 s; Ogg's headers and MPEG-TS's tables need more. A browser's WebM and MP4 begin with a short header.
_PROBE_BYTES: Final = {
    StreamFormat.MP3: 4_096,
    StreamFormat.AAC: 4_096,
    StreamFormat.OGG: 32_768,
    StreamFormat.MPEGTS: 65_536,
    StreamFormat.FLAC: 32_768,
    StreamFormat.WEBM: 4_096,
    StreamFormat.MP4: 4_096,
}


# -------------------------------------------------------------------------------------------------------- builders


def probe_argv(source: str, kind: FileFormat) -> list[str]:
    """Tells on stderr what `source` is (duration, first audio stream) and decodes nothing."""
    out = _open_file(source, kind).output("pipe:1", format="null", map="0:a:0", c="copy", t=0.001)
    return _compiled(out, log_level="info")


def decode_file_argv(source: str, kind: FileFormat, *, longest_s: float, output: str = STDOUT) -> list[str]:
    """The first audio stream of a file, as PCM, cut at `longest_s`."""
    out = _open_file(source, kind).output(
        output, map="0:a:0", t=longest_s, fs=_cap_bytes(longest_s), threads=1, **_PCM, **_ONLY_SOUND
    )
    return _compiled(out)


def decode_stream_argv(input_format: StreamFormat | str, *, prompt: bool = True) -> list[str]:
    """A stream fed on stdin, as PCM on stdout, as soon as it can be had.

    `prompt`: write every decoded packet at once (a live voice); else PCM comes in lumps of 32 KiB, 0.34 s (a relay).
    """
    kind = StreamFormat(input_format)
    heard = ffmpeg.input(
        STDIN,
        format=kind.value,
        protocol_whitelist="pipe",
        format_whitelist=kind.value,
        probesize=_PROBE_BYTES[kind],
        analyzeduration=0,
        threads=1,
    )["a:0"]
    return _compiled(heard.output(STDOUT, flush_packets=int(prompt), **_PCM, **_ONLY_SOUND))


def concat_files_argv(
    sources: Sequence[tuple[str, FileFormat]], *, longest_s: float, output: str = STDOUT
) -> list[str]:
    """Files one after the other, as PCM, cut at `longest_s`: how material too long for the studio is joined."""
    parts = [
        _open_file(source, kind)["a:0"].filter("aresample", SAMPLE_RATE_HZ).filter("aformat", channel_layouts="mono")
        for source, kind in sources
    ]
    joined = ffmpeg.concat(*parts, v=0, a=1)
    return _compiled(joined.output(output, t=longest_s, fs=_cap_bytes(longest_s), **_PCM, **_ONLY_SOUND))


def measure_pcm_argv() -> list[str]:
    """EBU R128 with true peak of PCM fed on stdin; the summary comes on stderr. An independent second opinion."""
    heard = ffmpeg.input(STDIN, format="s16le", ar=SAMPLE_RATE_HZ, ac=CHANNELS, protocol_whitelist="pipe")
    measured = heard.filter("ebur128", peak="true", framelog="verbose")
    return _compiled(measured.output(STDOUT, format="null"), log_level="info")


def encode_pcm_argv(
    output: str,
    *,
    codec: str,
    kbps: int,
    rate_hz: int = SAMPLE_RATE_HZ,
    channels: int = CHANNELS,
    endless: bool = False,
) -> list[str]:
    """PCM fed on stdin, as a file of `codec` (libmp3lame, libopus, aac, flac …): samples, stations, tests.

    `kbps` 0 leaves the rate to a lossless codec; `endless` writes an MP3 without header frames, fit to be repeated.
    """
    heard = ffmpeg.input(STDIN, format="s16le", ar=SAMPLE_RATE_HZ, ac=CHANNELS, protocol_whitelist="pipe")
    settings: dict[str, Any] = {"acodec": codec, "ar": rate_hz, "ac": channels, "map_metadata": -1}
    if kbps:
        settings["audio_bitrate"] = f"{kbps}k"
    if endless:
        settings |= {"write_xing": 0, "id3v2_version": 0}
    written = heard.output(output, fflags="+bitexact", **{"flags:a": "+bitexact"}, **settings)
    return _compiled(written.overwrite_output())


def _open_file(source: str, kind: FileFormat) -> Any:
    return ffmpeg.input(
        f"file:{source}",
        format=kind.value,
        protocol_whitelist="file,pipe",
        format_whitelist=kind.value,
        codec_whitelist=",".join(FILE_CODECS),
    )


def _cap_bytes(longest_s: float) -> int:
    return int(longest_s * SAMPLE_RATE_HZ) * SAMPLE_BYTES


def _compiled(output: Any, *, log_level: str = "error") -> list[str]:
    return [str(part) for part in output.global_args(*_GLOBAL, "-v", log_level).compile(cmd="ffmpeg")]


# --------------------------------------------------------------------------------------------------------- sandbox


def find_ffmpeg() -> Path:
    """The system's ffmpeg, else the one the `imageio-ffmpeg` package brings. Raises `Unavailable("ffmpeg_missing")`."""
    if found := shutil.which("ffmpeg"):
        return Path(found)
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg  # noqa: PLC0415  an optional package

        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    raise Unavailable("ffmpeg_missing", fix="install_ffmpeg")


class SandboxMode(enum.StrEnum):
    """How ffmpeg is kept from the rest of the machine."""

    BUBBLEWRAP = "bubblewrap"
    SECCOMP = "seccomp"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. `cpu_s` None is for live streams, which have no end."""

    cpu_s: int | None = 120
    memory_bytes: int = 1_500_000_000
    file_bytes: int = 1_000_000_000
    open_files: int = 64
    processes: int = 64


LIVE: Final = Limits(cpu_s=None, file_bytes=0)
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_PROBE_TIMEOUT_S: Final = 5.0
# What a program of Debian needs to start; absent ones are skipped.
_SYSTEM_PATHS: Final = ("/usr", "/etc/alternatives", "/etc/ld.so.cache")
_ROOT_LINKS: Final = ("bin", "lib", "lib64")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs ffmpeg without network, without rights, within limits.

    BUBBLEWRAP: own namespaces; it sees /usr and the files it was given, nothing else. SECCOMP, where namespaces are
    refused (most containers): no sockets and no new processes by a system call filter; files stay visible, so the
    protocol and format lists alone keep it from them.
    """

    mode: SandboxMode
    ffmpeg: Path

    @classmethod
    async def probe(cls, program: Path | None = None, *, modes: Sequence[SandboxMode] = tuple(SandboxMode)) -> Sandbox:
        """Try each of `modes` with the real program, once, and keep the first that works.

        Raises `Unavailable`: `ffmpeg_missing`, or `sandbox_missing` when nothing works; media is then not decoded.
        """
        found = program or find_ffmpeg()
        for mode in modes:
            sandbox = cls(mode=mode, ffmpeg=found)
            if await sandbox._works():
                log.info("sandbox.chosen", mode=mode.value, ffmpeg=str(found))
                return sandbox
        raise Unavailable("sandbox_missing", fix="install_bubblewrap")

    def names(self, files: Sequence[Path]) -> list[str]:
        """What the files of `command(reads=files)` are called inside, for the builders."""
        if self.mode is SandboxMode.BUBBLEWRAP:
            return [f"/in{index}" for index, _ in enumerate(files)]
        return [str(file.resolve()) for file in files]

    def command(self, argv: Sequence[str], *, reads: Sequence[Path] = (), limits: Limits = Limits()) -> list[str]:
        """The whole command for a builder's `argv`, whose first word is replaced by the program."""
        if self.mode is SandboxMode.BUBBLEWRAP:
            return self._bubblewrapped(argv[1:], reads, limits)
        return self._jailed(argv[1:], limits)

    def child(
        self,
        argv: Sequence[str],
        *,
        name: str,
        reads: Sequence[Path] = (),
        limits: Limits = Limits(),
        stdin: AsyncIterable[bytes] | None = None,
        keep_stdin: bool = False,
        stdout: bool = True,
        pass_fds: Sequence[int] = (),
        on_stderr: Callable[[str], None] | None = None,
    ) -> Child:
        """The child process of a builder's `argv`, not yet started; the environment is empty of secrets."""
        return Child(
            self.command(argv, reads=reads, limits=limits),
            name=name,
            stdin=stdin,
            keep_stdin=keep_stdin,
            stdout=stdout,
            pass_fds=pass_fds,
            env=_ENVIRONMENT,
            on_stderr=on_stderr,
        )

    async def _works(self) -> bool:
        child = self.child(["ffmpeg", "-version"], name="audio.sandbox.probe", stdout=False)
        try:
            async with child, asyncio.timeout(_PROBE_TIMEOUT_S):
                return await child.wait() == 0
        except (Unavailable, TimeoutError) as refusal:
            log.info("sandbox.refused", mode=self.mode.value, reason=str(refusal))
            return False

    def _bubblewrapped(self, arguments: Sequence[str], reads: Sequence[Path], limits: Limits) -> list[str]:
        binds: list[str] = []
        for path in _SYSTEM_PATHS:
            binds += ["--ro-bind-try", path, path]
        for link in _ROOT_LINKS:
            if Path("/", link).is_symlink():
                binds += ["--symlink", f"usr/{link}", f"/{link}"]
            else:
                binds += ["--ro-bind-try", f"/{link}", f"/{link}"]
        binds += ["--ro-bind", str(self.ffmpeg.resolve()), "/ffmpeg"]
        for name, file in zip(self.names(reads), reads, strict=True):
            binds += ["--ro-bind", str(file.resolve()), name]
        caps = [f"--as={limits.memory_bytes}", f"--fsize={limits.file_bytes}", f"--nofile={limits.open_files}"]
        caps += [f"--nproc={limits.processes}", "--core=0"]
        if limits.cpu_s is not None:
            caps.append(f"--cpu={limits.cpu_s}")
        return [
            "bwrap", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--new-session",
            "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",  # noqa: S108  its own, empty /tmp
            *binds, "prlimit", *caps, "/ffmpeg", *arguments,
        ]  # fmt: skip

    def _jailed(self, arguments: Sequence[str], limits: Limits) -> list[str]:
        caps = [f"as={limits.memory_bytes}", f"fsize={limits.file_bytes}", f"nofile={limits.open_files}"]
        if limits.cpu_s is not None:
            caps.append(f"cpu={limits.cpu_s}")
        launcher = [sys.executable, "-I", "-S", str(Path(jail.__file__).resolve())]
        return [*launcher, *caps, "--", str(self.ffmpeg.resolve()), *arguments]
