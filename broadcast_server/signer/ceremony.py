"""What needs the root's own hand, done where the root is: requests go there as files, answers come back as files.

A server without its root asks (`request_authority`, `request_revocations`); on the machine that holds the root, which
needs no network, no store and no data folder, the request is read by a person and signed (`sign`); the answer is
checked and taken in (`install`). Neither file holds a secret.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.errors import Corrupt, Refused
from broadcast_server.signer import keys
from broadcast_server.signer.register import DAY_MS, KEY_BYTES, Book, KeyRegister, KeyRole, Revoked, write_secret
from speaker_protocol import chain
from speaker_protocol.messages import DelegationBody, RevocationListBody
from speaker_protocol.signing import EVERYWHERE, EnvelopeRefused, KeyRing, Watermarks, key_id_of

FORMAT: Final = "loa-keys-1"
AUTHORITY: Final = "authority"
REVOCATIONS: Final = "revocations"
LONGEST_DAYS: Final = 400


@dataclass(frozen=True, slots=True)
class Installed:
    """What an answer brought."""

    kind: str
    key_id: str
    until_ms: int
    revoked: tuple[str, ...] = ()


def request_authority(register: KeyRegister, book: Book, now_ms: int, *, unit: str, days: int) -> dict[str, Any]:
    """A fresh authority that waits for the root's word; its private half stays here. `unit`: `*` for every place."""
    made = register.make(book, KeyRole.AUTHORITY, unit)
    asked = {"kind": AUTHORITY, "public_key": made.public, "unit": unit, "days": days}
    return {"format": FORMAT, "root": book.root, "made_ms": now_ms, **asked}


def request_revocations(book: Book, now_ms: int, *, key_ids: Sequence[str], at_ms: int, reason: str) -> dict[str, Any]:
    """All that is revoked, and these keys too, for the root to sign. Raises `Refused("unknown_key")`."""
    lines = dict(book.revoked)
    for key_id in key_ids:
        key = book.keys.get(key_id)
        if key is None:
            raise Refused("unknown_key", key_id=key_id)
        lines[key_id] = Revoked(key_id, key.role, key.unit, at_ms, max(at_ms, key.until_ms), reason)
    return {
        "format": FORMAT,
        "root": book.root,
        "made_ms": now_ms,
        "kind": REVOCATIONS,
        "rl_ver": book.rl_ver + 1,
        "revoked": [dataclasses.asdict(line) for line in lines.values()],
    }


def sign(asked: Mapping[str, Any], root: Ed25519PrivateKey, now_ms: int) -> dict[str, Any]:
    """The root's answer to a request. Raises `Corrupt("key_request_damaged")`, `Refused("root_key_differs")`."""
    public = root.public_key().public_bytes_raw().hex()
    try:
        if asked["format"] != FORMAT:
            raise Corrupt("key_request_damaged")
        if asked["root"] != public:
            raise Refused("root_key_differs")
        if asked["kind"] == AUTHORITY:
            days = int(asked["days"])
            if not 1 <= days <= LONGEST_DAYS or len(bytes.fromhex(asked["public_key"])) != KEY_BYTES:
                raise Corrupt("key_request_damaged")
            until_ms = now_ms + days * DAY_MS
            raw = keys.sign_authority(root, asked["public_key"], str(asked["unit"]), now_ms, until_ms)
        elif asked["kind"] == REVOCATIONS:
            lines = [_line(one) for one in asked["revoked"]]
            raw = keys.sign_list(
                root, EVERYWHERE, int(asked["rl_ver"]), [(one.key_id, one.at_ms) for one in lines], now_ms
            )
        else:
            raise Corrupt("key_request_damaged")
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt("key_request_damaged") from error
    return {**asked, "signed_ms": now_ms, "signed": raw.hex()}


def install(register: KeyRegister, book: Book, answer: Mapping[str, Any], now_ms: int) -> Installed:
    """Take an answer in, if the root signed it and it is to what was asked here.

    Raises `Corrupt("key_request_damaged")`, `Refused` (`root_key_differs`, `key_answer_refused`, `unknown_key`).
    """
    ring = KeyRing(bytes.fromhex(book.root))
    try:
        if answer["format"] != FORMAT:
            raise Corrupt("key_request_damaged")
        if answer["root"] != book.root:
            raise Refused("root_key_differs")
        raw = bytes.fromhex(answer["signed"])
        place = str(answer.get("unit", EVERYWHERE))
        _, said, _ = chain.take(ring, Watermarks(), raw, above=(place,), now_ms=now_ms)
        lines = [_line(one) for one in answer.get("revoked", ())]
    except EnvelopeRefused as refused:
        raise Refused("key_answer_refused", reason=refused.reason.value) from refused
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt("key_request_damaged") from error
    match said:
        case DelegationBody():
            return _install_authority(register, book, said, raw, now_ms)
        case RevocationListBody():
            return _install_revocations(register, book, said, raw, lines, now_ms)
        case _:
            raise Refused("key_answer_refused", reason="kind")


def _install_authority(register: KeyRegister, book: Book, said: DelegationBody, raw: bytes, now_ms: int) -> Installed:
    key_id = key_id_of(bytes.fromhex(said.public_key)).hex()
    asked = book.keys.get(key_id)
    if asked is None or asked.role is not KeyRole.AUTHORITY:
        raise Refused("unknown_key", key_id=key_id)
    register.private(asked)  # a certificate for a key that is damaged helps nobody
    book.keys[key_id] = dataclasses.replace(
        asked, made_ms=now_ms, until_ms=said.valid_until_ms, certificate=raw.hex(), unit=said.unit
    )
    keys.sign_lists(register, book, now_ms)
    return Installed(AUTHORITY, key_id, said.valid_until_ms)


def _install_revocations(
    register: KeyRegister, book: Book, said: RevocationListBody, raw: bytes, lines: Sequence[Revoked], now_ms: int
) -> Installed:
    if said.rl_ver <= book.rl_ver:
        raise Refused("key_answer_refused", reason="older")
    named = {line.key_id: line for line in lines}
    fresh = [line.key_id for line in said.revoked if line.key_id not in book.revoked]
    for line in said.revoked:
        if line.key_id in named:
            book.revoked[line.key_id] = named[line.key_id]
    book.rl_ver = said.rl_ver
    book.lists[key_id_of(bytes.fromhex(book.root)).hex()] = raw.hex()
    for key_id in fresh:
        keys.replace_revoked(register, book, key_id, now_ms)
    keys.sign_lists(register, book, now_ms)
    return Installed(REVOCATIONS, "", 0, tuple(fresh))


def _line(told: Mapping[str, Any]) -> Revoked:
    return Revoked(**{**told, "role": KeyRole(told["role"])})


# -- the root's own file ----------------------------------------------------------------------------------------------


def export_root(register: KeyRegister, target: Path) -> None:
    """Copy the root key, and read the copy back. Raises `Refused` (`root_is_away`, `key_file_exists`)."""
    secret = register.root().private_bytes_raw()
    if target.exists():
        raise Refused("key_file_exists", path=str(target))
    write_secret(target, secret)
    if read_root(target).private_bytes_raw() != secret:
        raise Corrupt("key_file_damaged", name=target.name)


def remove_root(register: KeyRegister, copy: Path) -> None:
    """Take the root key off this machine, if `copy` holds it. Raises `Refused` (`root_is_away`, `root_key_differs`)."""
    if read_root(copy).private_bytes_raw() != register.root().private_bytes_raw():
        raise Refused("root_key_differs")
    if copy.resolve().parent == register.folder.resolve():
        raise Refused("root_copy_is_here")
    register.drop_root()


def read_root(path: Path) -> Ed25519PrivateKey:
    """A root key from a file that was carried. Raises `Corrupt("key_file_damaged")`."""
    try:
        raw = path.read_bytes()
    except OSError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise Corrupt("key_file_damaged", name=path.name)
    return Ed25519PrivateKey.from_private_bytes(raw)


def read_file(path: Path) -> dict[str, Any]:
    """A request or an answer. Raises `Corrupt("key_request_damaged")`."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Corrupt("key_request_damaged") from error
    if not isinstance(told, dict):
        raise Corrupt("key_request_damaged")
    return told


def write_file(path: Path, told: Mapping[str, Any]) -> None:
    """A request or an answer, whole. Raises `Refused("key_file_exists")`."""
    if path.exists():
        raise Refused("key_file_exists", path=str(path))
    path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
