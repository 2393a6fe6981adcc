"""Write `THIRD_PARTY_NOTICES`: what the wheel brings in and what the image carries, with versions and licences.

Read from `uv.lock` (what `pip install loa` and its `portable` extra bring, on every platform) and the Dockerfile's
packages; licences from the installed packages' own metadata, or from `TOLD` where a package is not installed on this
platform or says it in no standard way. `--check` compares. The wheel itself holds no third-party file.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "THIRD_PARTY_NOTICES"
TOLD = {
    "audioop-lts": "PSF-2.0",
    "colorama": "BSD-3-Clause",
    "ffmpeg-python": "Apache-2.0",
    "pydub": "MIT",
    "pyreadline3": "BSD-3-Clause",
    "tzdata": "Apache-2.0",
    "vietnam-provinces": "GPL-3.0-or-later; its list is read as data, none of its code runs",
    "uvloop": "MIT OR Apache-2.0",
    "async-timeout": "Apache-2.0",
    "imageio-ffmpeg": "BSD-2-Clause; carries an ffmpeg program under GPL-3.0-or-later",
    "espeakng-loader": "MIT; carries espeak-ng under GPL-3.0-or-later",
    "av": "BSD-3-Clause; its wheel carries FFmpeg's libraries under LGPL-2.1-or-later and libopus under BSD-3-Clause",
    "psycopg-binary": "LGPL-3.0-only; carries libpq under the PostgreSQL licence",
}
DEBIAN = {
    "ca-certificates": "GPL-2.0-or-later and MPL-2.0",
    "python3": "PSF-2.0",
    "ffmpeg": "GPL-2.0-or-later as Debian builds it; runs as a child process",
    "mosquitto": "EPL-2.0 or BSD-3-Clause; runs as a child process",
    "bubblewrap": "LGPL-2.0-or-later; runs as a child process",
    "espeak-ng": "GPL-3.0-or-later; runs as a child process",
    "tzdata": "public domain",
}
"""Debian's packages; their copyright files lie in `/usr/share/doc` of the image."""
SHORT = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "Eclipse Public License v2.0 (EPL-2.0)": "EPL-2.0",
}


def packages() -> list[tuple[str, str]]:
    """Name and locked version of everything that is brought in, in order of name."""
    locked: dict[str, list[dict[str, Any]]] = {}
    for one in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]:
        locked.setdefault(one["name"], []).append(one)  # one for each range of Python versions
    (ours,) = locked["loa"]
    waiting = [*ours["dependencies"], *(one for extra in ours["optional-dependencies"].values() for one in extra)]
    found: set[str] = set()
    while waiting:
        one = waiting.pop()
        for package in locked[one["name"]]:
            extras = package.get("optional-dependencies", {})
            waiting += [part for name in one.get("extra", ()) for part in extras.get(name, ())]
            if one["name"] not in found:
                waiting += package.get("dependencies", [])
        found.add(one["name"])
    return [(name, ", ".join(one["version"] for one in locked[name])) for name in sorted(found)]


def licence_of(name: str) -> str:
    """Its licence. Raises `LookupError` where nothing tells it."""
    if name in TOLD:
        return TOLD[name]
    try:
        told = metadata(name)
    except PackageNotFoundError:
        raise LookupError(f"{name} is not installed here: add its licence to TOLD in {Path(__file__).name}") from None
    if told.get("License-Expression"):
        return str(told["License-Expression"])
    classes = [one.rpartition(" :: ")[2] for one in told.get_all("Classifier") or [] if one.startswith("License ::")]
    short = [SHORT.get(one, one) for one in classes if one != "OSI Approved"]
    if short:
        return " or ".join(dict.fromkeys(short))
    line = str(told.get("License") or "").strip().splitlines()
    if line and len(line[0]) <= 60:
        return line[0]
    raise LookupError(f"{name} tells no licence: add it to TOLD in {Path(__file__).name}")


def debian() -> list[str]:
    """The packages that the image's last stage installs."""
    last = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    told = re.search(r"apt-get install (.+?)(?:&&|\n[A-Z])", last.replace("\\\n", " "), re.DOTALL)
    return [] if told is None else sorted(word for word in told[1].split() if not word.startswith("-"))


def text() -> str:
    """The whole file."""
    lines = [
        "Third-party notices",
        "",
        "Made by scripts/_notices.py from uv.lock and the Dockerfile. The wheel of this program holds files of its own",
        "only; installing it brings the packages below, each with its licence text in its own folder (dist-info).",
        "",
        "Python packages (those for other platforms and the extra `portable` included)",
        "",
        *(f"  {name} {version}: {licence_of(name)}" for name, version in packages()),
        "",
        "Debian packages of the container image (licence texts in its /usr/share/doc)",
        "",
        *(f"  {name}: {DEBIAN[name]}" for name in debian()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the file, or with `--check` say whether it is current."""
    made = text()
    if "--check" in sys.argv[1:]:
        is_current = FILE.exists() and FILE.read_text(encoding="utf-8") == made
        if not is_current:
            print("THIRD_PARTY_NOTICES is not current: run scripts/_notices.py", file=sys.stderr)
        return 0 if is_current else 1
    FILE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
