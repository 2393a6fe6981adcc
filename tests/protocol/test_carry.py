"""A carried file comes from a stranger's stick: whatever it is, reading it ends, and ends small."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

import pytest

from speaker_protocol.carry import MANIFEST, Carried, CarriedKind, NotCarried


def a_file(folder: Path, manifest: bytes, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    target = folder / "stick.loa"
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(manifest)
        tar.addfile(head, io.BytesIO(manifest))
        for info, content in more:
            tar.addfile(info, io.BytesIO(content))
    return target


def told(**changes: object) -> bytes:
    facts = {"format": 1, "kind": "bundle", "subject": "x", "made_ms": 1, "messages": [], "assets": {}, **changes}
    return json.dumps(facts).encode()


def refused(file: Path) -> str:
    with pytest.raises(NotCarried) as refusal, Carried(file, CarriedKind.BUNDLE) as carried:
        carried.messages()
    return str(refusal.value)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"null",
        b"[" * 5_000,
        told(made_ms=float("inf")),
        told(assets={"x": float("nan")}),
        told(assets=[1]),
        told(messages=1),
        told(messages=[1]),
        told(messages=[{"topic": "t"}]),
        told(messages=[{"topic": "t", "file": "gone", "sha256": "x"}]),
        told(format=[1]),
        told(kind={"a": 1}),
        b'{"format":1,"made_ms":' + b"9" * 5_000 + b"}",
        b"\xff\xfe{}",
    ],
    ids=range(14),
)
def test_a_manifest_that_is_none_is_said_to_be_none(tmp_path: Path, manifest: bytes):
    refused(a_file(tmp_path, manifest))


def test_a_manifest_longer_than_what_it_could_name_is_not_read(tmp_path: Path):
    assert "too large" in refused(a_file(tmp_path, b'{"x":[' + b"[]," * 2_000_000 + b"[]]}"))


def test_a_sparse_member_is_larger_than_the_stick_and_is_not_there(tmp_path: Path):
    """Half a gigabyte of zeros in a kilobyte."""
    head = tarfile.TarInfo("assets/big.opus")
    head.size = 0
    head.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(500 << 20),
        "GNU.sparse.name": "assets/big.opus",
    }
    with Carried(a_file(tmp_path, told(), (head, b"")), CarriedKind.BUNDLE) as carried:
        assert carried.asset("big") is None


def test_a_member_that_leads_back_to_itself_does_not_hold_the_reader_for_ever(tmp_path: Path):
    """A negative size: the next header is the same one again (CVE-2025-8194)."""
    file = a_file(tmp_path, told(), (tarfile.TarInfo("loop"), b""))
    raw = bytearray(file.read_bytes())
    at = raw.index(b"loop")
    raw[at + 124 : at + 136] = b"\xff" * 4 + struct.pack(">q", -512)
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    file.write_bytes(raw)
    refused(file)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path):
    head = tarfile.TarInfo("messages/000001.bin")
    head.size = 2_000
    named = [{"topic": "t", "file": head.name, "sha256": "00"}]
    whole = a_file(tmp_path, told(messages=named), (head, b"x" * 2_000)).read_bytes()
    cut = tmp_path / "cut.loa"
    for length in range(0, 3_584, 97):
        cut.write_bytes(whole[:length])
        refused(cut)


def test_a_message_that_is_not_the_one_the_manifest_names_is_refused(tmp_path: Path):
    head = tarfile.TarInfo("messages/000001.bin")
    head.size = 3
    for content, is_whole in ((b"abc", True), (b"abd", False)):
        named = [{"topic": "t", "file": head.name, "sha256": hashlib.sha256(b"abc").hexdigest()}]
        file = a_file(tmp_path, told(messages=named), (head, content))
        if is_whole:
            with Carried(file, CarriedKind.BUNDLE) as carried:
                assert carried.messages() == [("t", b"abc")]
        else:
            assert "damaged" in refused(file)
