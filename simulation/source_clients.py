"""Real source clients pushing a sample to a mount, as a station's studio does: ffmpeg, liquidsoap, ezstream.

Programs of Debian (ffmpeg otherwise as PyPI brings it), run as children; each plays one file round and round. A
maintainer must not break: every one of them is a public program that our listener must get on with as it is, so
nothing here bends it to our liking beyond address, user, password, mount and TLS.

On TLS (measured with Debian 12's): ffmpeg checks whom it speaks to only as an HTTPS client (`-method PUT https://…`
with `-tls_verify 1 -ca_file`); by `icecast://` with `-tls 1` it encrypts and asks nobody. ezstream checks a name, never
an address. liquidsoap 2.1 encrypts and checks nothing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.sax.saxutils import escape

from broadcast_server.audio.ffmpeg import find_ffmpeg
from broadcast_server.domain.errors import Unavailable
from broadcast_server.supervise import Child


class SourceClient(StrEnum):
    """Which program pushes."""

    FFMPEG = "ffmpeg"
    LIQUIDSOAP = "liquidsoap"
    EZSTREAM = "ezstream"


@dataclass(frozen=True, slots=True)
class Mount:
    """Where to push to."""

    port: int
    mount: str
    password: str
    user: str = "source"
    host: str = "127.0.0.1"
    authority: Path | None = None
    """PEM of what the listener's certificate is signed by: push on TLS; None: plain."""


def find_client(client: SourceClient) -> str | None:
    """The program's path, None where it is not installed."""
    if client is not SourceClient.FFMPEG:
        return shutil.which(client.value)
    try:
        return str(find_ffmpeg())
    except Unavailable:
        return None


def ffmpeg_argv(program: str, mount: Mount, sound: Path) -> list[str]:
    """Copy the MP3 in real time: `PUT` with `Expect: 100-continue`; on TLS it checks whom it speaks to."""
    where = f"{mount.user}:{mount.password}@{mount.host}:{mount.port}/{mount.mount}"
    how, address = ["-content_type", "audio/mpeg"], f"icecast://{where}"
    if mount.authority is not None:
        how += ["-method", "PUT", "-auth_type", "basic", "-tls_verify", "1", "-ca_file", str(mount.authority)]
        address = f"https://{where}"
    return [
        program, "-nostdin", "-hide_banner", "-v", "error", "-re", "-stream_loop", "-1", "-i", f"file:{sound}",
        "-map", "0:a:0", "-c:a", "copy", *how, "-f", "mp3", address,
    ]  # fmt: skip


def liquidsoap_script(mount: Mount, sound: Path) -> str:
    """Let liquidsoap decode, and encode Ogg Vorbis anew; `SOURCE` unless told otherwise."""
    return "\n".join(
        (
            "settings.init.allow_root.set(true)",
            "settings.log.stdout.set(true)",
            "settings.log.level.set(3)",
            f"radio = mksafe(single({_quoted(str(sound))}))",
            "output.icecast(%vorbis(samplerate=44100, channels=2, quality=0.3),",
            f"  protocol={_quoted('http' if mount.authority is None else 'https')},",
            f"  host={_quoted(mount.host)}, port={mount.port}, user={_quoted(mount.user)},",
            f"  password={_quoted(mount.password)}, mount={_quoted(mount.mount)}, radio)",
            "",
        )
    )


def ezstream_config(mount: Mount, sound: Path) -> str:
    """Have ezstream (libshout) send the file as it is, in real time."""
    host, secured = mount.host, "<protocol>HTTP</protocol><tls>None</tls>"
    if mount.authority is not None:
        host = "localhost" if host == "127.0.0.1" else host
        secured = f"<protocol>HTTPS</protocol><ca_file>{escape(str(mount.authority))}</ca_file>"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ezstream>
  <servers>
    <server>
      <name>default</name>
      {secured}
      <hostname>{escape(host)}</hostname>
      <port>{mount.port}</port>
      <user>{escape(mount.user)}</user>
      <password>{escape(mount.password)}</password>
      <reconnect_attempts>3</reconnect_attempts>
    </server>
  </servers>
  <streams>
    <stream>
      <name>default</name>
      <mountpoint>/{escape(mount.mount)}</mountpoint>
      <format>MP3</format>
    </stream>
  </streams>
  <intakes>
    <intake>
      <name>default</name>
      <type>file</type>
      <filename>{escape(str(sound))}</filename>
    </intake>
  </intakes>
</ezstream>
"""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextlib.asynccontextmanager
async def pushing(client: SourceClient, mount: Mount, sound: Path, *, folder: Path) -> AsyncIterator[Child]:
    """Push `sound` (an MP3 file) until the context ends. `folder`: where configuration may be written.

    Raises `Unavailable("program_missing")` where the client is not installed.
    """
    program = find_client(client)
    if program is None:
        raise Unavailable("program_missing", program=client.value)
    argv: list[str]
    match client:
        case SourceClient.FFMPEG:
            argv = ffmpeg_argv(program, mount, sound)
        case SourceClient.LIQUIDSOAP:
            script = folder / f"{mount.mount}.liq"
            script.write_text(liquidsoap_script(mount, sound), encoding="utf-8")
            argv = [program, str(script)]
        case SourceClient.EZSTREAM:
            config = folder / f"{mount.mount}.xml"
            config.write_text(ezstream_config(mount, sound), encoding="utf-8")
            config.chmod(0o600)
            argv = [program, "-c", str(config)]
    async with Child(argv, name=f"source.{client.value}[{mount.mount}]", stdout=False, grace_s=1.0) as child:
        yield child
