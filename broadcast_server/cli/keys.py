"""`broadcast-server keys …`: the signing keys: what there is, the root's journeys, rotation, revocation.

`sign` alone needs neither store nor settings: it runs where the root key is, on a machine without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from broadcast_server.cli.office import fail, load_settings, run, tell
from broadcast_server.control import signing_keys
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.domain.clock import from_ms, to_ms
from broadcast_server.domain.errors import BroadcastError, Refused
from broadcast_server.signer import ceremony, keys
from broadcast_server.signer.register import DAY_MS, Book, KeyEntry, KeyRegister, KeyRole
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.supervise import SystemClock
from speaker_protocol import EVERYWHERE

app = typer.Typer(no_args_is_help=True, help="The signing keys (khóa ký).")

Json = Annotated[bool, typer.Option("--json", help="for machines")]
Reason = Annotated[str, typer.Option("--reason", help="why; kept in the audit log, not told to nodes")]
Work = Callable[[KeyRegister, Book, int], Mapping[str, Any]]


class What(StrEnum):
    """What can be rotated."""

    AUTHORITY = "authority"
    SERVER = "server"
    TIME = "time"
    UNIT = "unit"
    UNITS = "units"


# -- what there is ----------------------------------------------------------------------------------------------------


@app.command("show")
def show(
    unit: Annotated[str | None, typer.Option(help="the keys of this unit too, one by one")] = None,
    as_json: Json = False,
) -> None:
    """What keys there are, until when, and what nodes know of them."""
    folder = load_settings().keys_dir

    async def errand(desk: Desk) -> dict[str, Any]:
        if not folder.is_dir():
            raise Refused("no_keys_yet")
        register = KeyRegister(folder, chance=desk.chance)
        nodes = await signing_keys.known(desk, OPERATOR)
        return {**_shown(register, unit, to_ms(desk.clock.now())), "nodes": _nodes(nodes)}

    told = run(errand)
    if as_json:
        tell(told, as_json=True)
        return
    tell({name: told[name] for name in ("root", "root_is_here", "rl_version", "revoked", "units")}, as_json=False)
    tell(told["keys"], as_json=False)
    tell({"nodes": told["nodes"]}, as_json=False)


@app.command("revocations")
def revocations(as_json: Json = False) -> None:
    """Every key that is revoked, with the reason."""
    folder = load_settings().keys_dir

    async def errand(desk: Desk) -> list[dict[str, Any]]:
        lines = KeyRegister(folder, chance=desk.chance).book.revoked.values()
        return [
            {
                "key_id": line.key_id,
                "role": line.role.value,
                "unit": line.unit,
                "at": from_ms(line.at_ms),
                "reason": line.reason,
            }
            for line in sorted(lines, key=lambda line: (line.at_ms, line.key_id))
        ]

    tell(run(errand), as_json=as_json)


def _shown(register: KeyRegister, unit: str | None, now_ms: int) -> dict[str, Any]:
    book = register.book
    units = book.of(KeyRole.UNIT)
    ends = [key.until_ms for key in units if key.key_id not in book.revoked]
    rest = [key for key in book.keys.values() if key.role is not KeyRole.UNIT or key.unit == unit]
    return {
        "root": book.root,
        "root_is_here": register.has_root,
        "rl_version": book.rl_ver,
        "revoked": len(book.revoked),
        "units": {
            "units": len({key.unit for key in units}),
            "keys": len(units),
            "first_end": _instant(min(ends, default=0)),
        },
        "keys": [_key(book, key, now_ms) for key in rest],
    }


def _key(book: Book, key: KeyEntry, now_ms: int) -> dict[str, Any]:
    if key.key_id in book.revoked:
        state = "revoked"
    elif key.role is KeyRole.AUTHORITY and key.certificate is None:
        state = "awaits_root"
    else:
        state = "not_told_yet" if not key.until_ms else "over" if key.until_ms <= now_ms else "good"
    return {
        "key_id": key.key_id,
        "role": key.role.value,
        "unit": key.unit,
        "state": state,
        "since": _instant(key.made_ms),
        "until": _instant(key.until_ms),
    }


def _nodes(told: signing_keys.NodesKnow) -> dict[str, Any]:
    return {
        "nodes": told.nodes,
        "by_list": {str(version): count for version, count in told.by_list.items()},
        "first_end": _instant(told.first_end_ms or 0),
        "without_keys": list(told.without_keys),
        "resyncing": list(told.resyncing),
    }


def _instant(at_ms: int) -> datetime | None:
    return from_ms(at_ms) if at_ms else None


# -- acts -------------------------------------------------------------------------------------------------------------


def _act(
    verb: str,
    asked: Mapping[str, Any],
    work: Work,
    *,
    must_resign: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> dict[str, Any]:
    """Change the register, between two rows of the audit log."""
    folder = load_settings().keys_dir

    async def errand(desk: Desk) -> dict[str, Any]:
        now_ms = to_ms(desk.clock.now())

        def do() -> Mapping[str, Any]:
            if not folder.is_dir():
                raise Refused("no_keys_yet")
            register = KeyRegister(folder, chance=desk.chance)
            with register.change() as book:
                return work(register, book, now_ms)

        return dict(await signing_keys.change(desk, OPERATOR, verb, asked, do, must_resign=must_resign))

    return run(errand)


def _time_key(desk_chance: Any) -> TimeKey:
    return TimeKey(time_folder(load_settings().data_dir / "keys"), chance=desk_chance)


@app.command("rotate")
def rotate(
    what: What,
    unit: Annotated[str | None, typer.Argument(help="with `unit`: which")] = None,
    as_json: Json = False,
) -> None:
    """Make a successor before it is due; the old key is good to its end."""
    if (what is What.UNIT) != (unit is not None):
        raise typer.BadParameter("`unit` needs a unit, and nothing else does")

    def work(register: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        if what is What.TIME:
            made = [_time_key(register.chance).make(now_ms)]
        elif what is What.UNITS:
            units = sorted({key.unit for key in book.of(KeyRole.UNIT)})
            made = [keys.rotate(register, book, KeyRole.UNIT, one, now_ms).key_id for one in units]
        else:
            role = KeyRole(what.value)
            made = [keys.rotate(register, book, role, unit or EVERYWHERE, now_ms).key_id]
        return {"what": what.value, "unit": unit, "count": len(made), "key_ids": made[:20]}

    tell(_act("keys.rotate", {"what": what.value, "unit": unit}, work), as_json=as_json)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="as `keys show` prints it")],
    reason: Reason,
    at: Annotated[str | None, typer.Option(help="from when on, ISO 8601 with offset; now if left out")] = None,
    as_json: Json = False,
) -> None:
    """No node obeys this key any more; what it was for has another at once, and is signed anew."""
    since_ms = None if at is None else _since_ms(at)

    def work(register: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        why = signing_keys.reason_of(reason)
        at_ms = now_ms if since_ms is None else since_ms
        gone = keys.revoke(register, book, key_id, at_ms=at_ms, now_ms=now_ms, reason=why)
        if gone.role is KeyRole.TIME:
            holder = _time_key(register.chance)
            holder.drop(key_id)
            holder.make(now_ms)
        return {
            "key_id": key_id,
            "role": gone.role.value,
            "unit": gone.unit,
            "at_ms": at_ms,
            "reason": why,
            "rl_version": book.rl_ver,
            "root_must_sign_too": not register.has_root and keys.is_of_the_roots_making(gone),
        }

    told = _act("keys.revoke", {"key_id": key_id, "reason": reason.strip()}, work, must_resign=lambda _: True)
    tell(told, as_json=as_json)


def _since_ms(text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("not an instant in ISO 8601", param_hint="--at") from None
    if instant.tzinfo is None:
        raise typer.BadParameter("give the offset, as in 2026-06-01T08:00:00+07:00", param_hint="--at")
    return to_ms(instant)


# -- the root ---------------------------------------------------------------------------------------------------------


@app.command("root-export")
def root_export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="where to copy the root key, on a carrier")],
    as_json: Json = False,
) -> None:
    """Copy the root key to a file, and read the copy back. The key stays here until `root-remove`."""

    def work(register: KeyRegister, book: Book, _: int) -> Mapping[str, Any]:
        ceremony.export_root(register, file)
        return {"root": book.root, "file": file.name}

    tell(_act("keys.root_export", {"file": file.name}, work), as_json=as_json)


@app.command("root-remove")
def root_remove(
    copy: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a copy made by `root-export`")],
    as_json: Json = False,
) -> None:
    """Take the root key off this machine, if the copy holds it; the server goes on with its authority."""

    def work(register: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        keys.tend(register, book, (), now_ms)  # no authority yet, or one near its end: the root's last act here
        ceremony.remove_root(register, copy)
        authority = keys.authority_at(book, now_ms)
        return {"root": book.root, "authority_until": None if authority is None else from_ms(authority.until_ms)}

    told = _act("keys.root_remove", {"copy": copy.name}, lambda *args: _plain(work(*args)))
    tell(told, as_json=as_json)


@app.command("request-authority")
def request_authority(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="request to write")],
    unit: Annotated[str, typer.Option(help="place it may delegate in, with all below it; every place if left out")] = (
        EVERYWHERE
    ),
    days: Annotated[int, typer.Option(min=1, max=ceremony.LONGEST_DAYS, help="how long it shall hold")] = (
        keys.AUTHORITY_LIFE_MS // DAY_MS
    ),
    as_json: Json = False,
) -> None:
    """Make a new authority's key here, and write what the root must sign."""

    def work(register: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        asked = ceremony.request_authority(register, book, now_ms, unit=unit, days=days)
        ceremony.write_file(file, asked)
        return asked

    tell(_act("keys.request_authority", {"file": file.name, "unit": unit, "days": days}, work), as_json=as_json)


@app.command("request-revocation")
def request_revocation(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="as `keys show` prints it")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="request to write")],
    reason: Reason,
    at: Annotated[str | None, typer.Option(help="from when on, ISO 8601 with offset; now if left out")] = None,
    as_json: Json = False,
) -> None:
    """Write the list of revocations with this key on it, for the root to sign; an authority ends in no other way."""
    since_ms = None if at is None else _since_ms(at)

    def work(_: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        asked = ceremony.request_revocations(
            book,
            now_ms,
            key_ids=[key_id],
            at_ms=now_ms if since_ms is None else since_ms,
            reason=signing_keys.reason_of(reason),
        )
        ceremony.write_file(file, asked)
        return {"rl_ver": asked["rl_ver"], "revoked": [line["key_id"] for line in asked["revoked"]]}

    asked = {"key_id": key_id, "file": file.name, "reason": reason.strip()}
    tell(_act("keys.request_revocation", asked, work), as_json=as_json)


@app.command("sign")
def sign(
    request: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what `request-…` wrote")],
    answer: Annotated[Path, typer.Argument(dir_okay=False, help="answer to write")],
    root: Annotated[Path, typer.Option("--root", exists=True, dir_okay=False, help="the root key's file")],
    as_json: Json = False,
) -> None:
    """Where the root key is: say what is asked, and sign it. Needs no network, no store, no settings."""
    try:
        asked = ceremony.read_file(request)
        answered = ceremony.sign(asked, ceremony.read_root(root), to_ms(SystemClock().now()))
        ceremony.write_file(answer, answered)
    except BroadcastError as error:
        fail(error)
    tell({name: value for name, value in answered.items() if name != "signed"}, as_json=as_json)


@app.command("install")
def install(
    answer: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what `sign` wrote")],
    as_json: Json = False,
) -> None:
    """Take in what the root signed; nodes are told at once."""

    def work(register: KeyRegister, book: Book, now_ms: int) -> Mapping[str, Any]:
        return asdict(ceremony.install(register, book, ceremony.read_file(answer), now_ms))

    told = _act("keys.install", {"file": answer.name}, work, must_resign=lambda done: bool(done["revoked"]))
    tell(told, as_json=as_json)


def _plain(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in told.items()}
