"""Bring uv's binary out of its PyPI wheel with nothing but a bare Python: no pip, no venv, no third-party module.

Use: python3 _bring_uv.py FOLDER; leaves FOLDER/uv. The index is PIP_INDEX_URL or UV_DEFAULT_INDEX or UV_INDEX_URL when
one is set, certificates are those of PIP_CERT or SSL_CERT_FILE; the file must have the SHA-256 that the index states.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import platform
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

TRIED_VERSION = "0.13.9"  # the one this repository was tried with; another is taken when the index lacks it
JSON_INDEX = "application/vnd.pypi.simple.v1+json"  # PEP 691


def main(folder: Path) -> int:
    """Download, verify, unpack."""
    index = next(
        (os.environ[name] for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL") if os.environ.get(name)),
        "https://pypi.org/simple",
    )
    try:
        files = list_files(index.rstrip("/") + "/uv/")
        name, url, sha256 = choose(files)
        wheel = fetch(url)
    except (OSError, ValueError, LookupError) as error:
        print(f"uv: {index}: {error}", file=sys.stderr)
        return 1
    found = hashlib.sha256(wheel).hexdigest()
    if found != sha256:
        print(f"uv: {name} has SHA-256 {found}, the index states {sha256}", file=sys.stderr)
        return 1
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        member = next(path for path in archive.namelist() if path.endswith(".data/scripts/uv"))
        binary = archive.read(member)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "uv.new"
    fresh.write_bytes(binary)
    fresh.chmod(0o755)
    fresh.replace(folder / "uv")
    return 0


def fetch(url: str, accept: str = "*/*", attempts: int = 3) -> bytes:
    """The body of a URL; tries again when the network hiccups."""
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or None
    context = ssl.create_default_context(cafile=certificates)
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "loa-set-up"})  # noqa: S310  from an index
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if attempt + 1 == attempts:
                raise
    raise LookupError(url)


def list_files(page_url: str) -> list[tuple[str, str, str]]:
    """(name, URL, SHA-256) of every file of the project, from a JSON or an HTML index."""
    page = fetch(page_url, accept=f"{JSON_INDEX}, text/html;q=0.5").decode()
    if page.lstrip().startswith("{"):
        return [
            (entry["filename"], urllib.parse.urljoin(page_url, entry["url"]), entry["hashes"]["sha256"])
            for entry in json.loads(page)["files"]
            if not entry.get("yanked") and "sha256" in entry.get("hashes", {})
        ]
    files = []
    for tag, text in re.findall(r"<a\s([^>]*)>([^<]*)</a>", page):
        link = re.search(r'href="([^"#]*)#sha256=([0-9a-f]{64})"', html.unescape(tag))
        if link and "data-yanked" not in tag:
            files.append((text.strip(), urllib.parse.urljoin(page_url, link[1]), link[2]))
    return files


def choose(files: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    """The wheel for this machine, of the version that was tried, else of the newest."""
    libc = "musllinux" if platform.libc_ver()[0] != "glibc" else "manylinux"
    machine = platform.machine()
    if platform.system() == "Darwin":
        libc, machine = "macosx", "arm64" if machine == "arm64" else "x86_64"
    fitting = {}
    for name, url, sha256 in files:
        parts = re.fullmatch(r"uv-(\d+(?:\.\d+)*)-py3-none-(.+)\.whl", name)
        if parts and libc in parts[2] and parts[2].endswith(machine):
            fitting[tuple(int(number) for number in parts[1].split("."))] = (name, url, sha256)
    if not fitting:
        raise LookupError(f"no wheel of uv for {libc} on {machine}")
    tried = tuple(int(number) for number in TRIED_VERSION.split("."))
    return fitting.get(tried) or fitting[max(fitting)]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
