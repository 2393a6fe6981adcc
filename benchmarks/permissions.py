"""The matrix of permissions, tried: every route × every role × every relation of places, on random trees.

The expectation is written here by hand from the matrix of roles (`docs/glossary.md`), as deeds per role and deeds per
route; it does not look at the program's own table. For each try: who may not read there is answered as for an unknown
id, to the byte; who may read and not do is refused with 403; nobody is told a word of a place they may not read (every
text of a place carries its mark); and a refusal commits nothing but its line in the audit log, and rings no bell.
`LOA_TREES` (200) trees, each with one role and all routes; roles and relations take turns, so that all pairs come up.

A route that is not in `ROUTES` counts as a violation, and so does one whose request never gets as far as being asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self, cast

from sqlalchemy import event

from benchmarks.permission_world import NOW, RELATIONS, World, a_world, names
from benchmarks.run import bar_of
from broadcast_server.api.gate import Entry, RouteTold
from broadcast_server.api.router import create_api, route_table
from broadcast_server.control import access
from broadcast_server.control.desk import AudioRoom, Desk
from broadcast_server.store.schedules import entry_id
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import Base
from broadcast_server.store.words import Role
from broadcast_server.supervise import InlineExecutor, SystemChance
from tests.support.clock import FakeClock
from tests.support.studio import an_audio_room

_MAKER: Final = "read log compose"
_KEEPER: Final = "read device volume enrol retire order"
_FEEDS: Final = "own_feed push offer"
ROLES: Final[Mapping[Role, frozenset[str]]] = {
    role: frozenset(deeds.split())
    for role, deeds in {
        Role.ADMIN: f"{_KEEPER} {_FEEDS} log audit place policy people activate",
        Role.PROVINCE_EDITOR: f"{_MAKER} {_FEEDS} approve schedule play stop oblige send live stop_all propose launch",
        Role.PRODUCER: f"{_MAKER} {_FEEDS}",
        Role.LEADER: "read log audit approve live stop stop_all policy propose launch",
        Role.COMMUNE_HEAD: f"{_MAKER} {_KEEPER} {_FEEDS} approve schedule play stop live stop_all policy propose "
        "subscribe people place send activate",
        Role.BROADCASTER: f"{_MAKER} schedule play stop volume propose",
        Role.LIVE_PERMIT: "read live",
        Role.HAMLET_HEAD: "read log write_short live",
        Role.TECHNICIAN: _KEEPER,
        Role.INSPECTOR: "read log audit",
        Role.FEED_PUSHER: "hold",
    }.items()
}
"""Who may what: the matrix."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a route needs. `deeds`: one of them. `above`: what comes from above is seen below; `unseen`: without the
    deed it is as if it did not exist; `everywhere`: an answer for anybody, about what one may see; `operator`: for the
    machine's operator alone; `body`, `query`: what is sent, with `{table}` for the id of that table's row.
    """

    deeds: frozenset[str]
    body: Any = None
    query: str = ""
    above: bool = False
    unseen: bool = False
    everywhere: bool = False
    operator: bool = False
    raw: bytes | None = None
    kind: str = "application/json"


def _way(deeds: str, body: Any = None, query: str = "", **more: Any) -> Way:
    return Way(frozenset(deeds.split()), body, query, **more)


_LATER: Final = (NOW + timedelta(hours=2)).isoformat()
_PROOF: Final = {"password": "không đúng", "code": "000000"}
_HASH: Final = "ab" * 32
_LOUD: Final = {
    "unit_id": "{units}",
    "mode": "real",
    "message": {"text": "Nước lên"},
    "reason": "lũ",
    "confirm": "KHẨN CẤP",
    "proof": _PROOF,
}
_ONCE: Final = {"unit_id": "{units}", "bulletin_id": "{bulletins}", "starts_at": _LATER}
_PARTS: Final = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--x--\r\n'
_SPAN: Final = "from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z"

ROUTES: Final[Mapping[str, Way]] = {
    "GET /units": _way("", everywhere=True),
    "POST /units": _way("place", {"kind": "hamlet", "name": "Xóm mới", "parent_id": "{units}"}),
    "POST /units/import": _way("", operator=True),
    "GET /units/{unit_id}": _way("", everywhere=True),
    "PATCH /units/{unit_id}": _way("place", {"name": "Tên khác"}),
    "POST /units/{unit_id}/moves": _way("place", {"parent_id": "{own}", "on": "2026-07-01"}),
    "GET /unit-kinds": _way("", everywhere=True),
    "POST /unit-kinds/{code}/closing": _way("", {"on": "2026-07-01"}, operator=True),
    "GET /units/{unit_id}/policy": _way("read"),
    "PUT /units/{unit_id}/policy": _way("policy", {}),
    "DELETE /units/{unit_id}/policy": _way("policy"),
    "GET /clusters": _way("read", query="within={units}"),
    "POST /clusters": _way("device", {"unit_id": "{units}", "name": "Cụm mới"}),
    "GET /clusters/{cluster_id}": _way("read"),
    "PATCH /clusters/{cluster_id}": _way("device", {"name": "Cụm khác"}),
    "DELETE /clusters/{cluster_id}": _way("device"),
    "GET /groups": _way("read", query="within={units}"),
    "POST /groups": _way("device", {"unit_id": "{units}", "name": "Nhóm", "cluster_ids": ["{clusters}"]}),
    "GET /groups/{group_id}": _way("read"),
    "PATCH /groups/{group_id}": _way("device", {"name": "Nhóm khác"}),
    "POST /enrolment-tokens": _way("enrol", {"unit_id": "{units}"}),
    "GET /enrolment-tokens": _way("enrol", query="unit_id={units}"),
    "DELETE /enrolment-tokens/{token_id}": _way("enrol"),
    "POST /devices": _way("enrol", {"serial": "SN-00001", "unit_id": "{units}"}),
    "GET /devices": _way("enrol", query="within={units}"),
    "POST /devices/{device_id}/window": _way("enrol"),
    "DELETE /devices/{device_id}": _way("enrol"),
    "GET /nodes": _way("read", query="within={units}"),
    "GET /nodes/{node_id}": _way("read"),
    "DELETE /nodes/{node_id}": _way("retire"),
    "POST /nodes/{node_id}/binding": _way("enrol"),
    "POST /nodes/{node_id}/binding/answer": _way("enrol", {"code": "1234"}),
    "POST /nodes/{node_id}/approval": _way("activate"),
    "POST /nodes/{node_id}/quarantine": _way("retire", {"reason": "nghi ngờ"}),
    "POST /nodes/{node_id}/release": _way("activate", {"reason": "đã xem"}),
    "POST /nodes/{node_id}/orders": _way("order", {"verb": "identify"}),
    "GET /nodes/{node_id}/orders": _way("read"),
    "GET /feeds": _way("read", query="offered_to={units}"),
    "POST /feeds": _way(
        "own_feed",
        {"unit_id": "{units}", "name": "Nguồn", "tier": "other", "kind": "pull", "url": "http://127.0.0.1:9/a"},
    ),
    "GET /feeds/{feed_id}": _way("read hold", above=True),
    "PATCH /feeds/{feed_id}": _way("own_feed", {"name": "Nguồn khác"}, above=True),
    "POST /feeds/{feed_id}/rotation": _way("push hold", above=True),
    "POST /feeds/{feed_id}/revocation": _way("own_feed", above=True),
    "GET /feeds/{feed_id}/carriers": _way("read hold", above=True),
    "GET /feeds/{feed_id}/offers": _way("read hold", above=True),
    "POST /feeds/{feed_id}/offers": _way("offer", {"unit_id": "{units}", "basis": "CV 1"}, above=True),
    "POST /offers/{offer_id}/withdrawal": _way("offer", above=True),
    "GET /conflicts": _way("read", query="within={units}"),
    "GET /obligations": _way("read", query="for_unit={units}"),
    "POST /obligations": _way(
        "oblige",
        {
            "unit_id": "{units}",
            "content_kind": "bulletin",
            "content_id": "{bulletins}",
            "rule": {"kind": "weekly", "weekdays": ["mo"], "times": ["10:00"]},
            "basis": "CV 2",
        },
    ),
    "GET /obligations/{obligation_id}": _way("read", above=True),
    "DELETE /obligations/{obligation_id}": _way("oblige", above=True),
    "GET /obligations/{obligation_id}/fulfilment": _way("read", query=_SPAN, above=True),
    "GET /feeds/{feed_id}/push-rights": _way("own_feed", above=True),
    "POST /feeds/{feed_id}/push-rights": _way("own_feed", {"unit_id": "{own}"}, above=True),
    "DELETE /push-rights/{right_id}": _way("own_feed", above=True),
    "GET /feeds/{feed_id}/subscriptions": _way("read hold", above=True),
    "POST /feeds/{feed_id}/subscriptions": _way("subscribe", {"unit_id": "{units}"}),
    "DELETE /feeds/{feed_id}/subscriptions/{unit_id}": _way("subscribe"),
    "GET /feeds/{feed_id}/relay": _way("read hold", above=True),
    "PUT /feeds/{feed_id}/relay": _way("own_feed", {}, above=True),
    "POST /feeds/{feed_id}/cut": _way("own_feed stop", above=True),
    "DELETE /feeds/{feed_id}/cut": _way("own_feed stop", above=True),
    "POST /feeds/{feed_id}/stop": _way("own_feed stop", {"reason": "sai"}, above=True),
    "DELETE /feeds/{feed_id}/stop": _way("own_feed stop", above=True),
    "GET /feeds/{feed_id}/spans": _way("read hold", above=True),
    "GET /feeds/{feed_id}/pushes": _way("push hold", above=True),
    "GET /feeds/{feed_id}/monitor": _way("push stop hold", above=True),
    "GET /session": _way("", everywhere=True),
    "DELETE /session": _way("", everywhere=True),
    "PUT /session/password": _way("", {"password": "x", "new_password": "một mật khẩu dài"}, everywhere=True),
    "POST /session/totp": _way("", {"password": "x"}, everywhere=True),
    "PUT /session/totp": _way("", {"code": "000000"}, everywhere=True),
    "POST /session/recovery-codes": _way("", _PROOF, everywhere=True),
    "GET /users/{user_id}/sign-ins": _way("people", unseen=True),
    "DELETE /users/{user_id}/sign-ins": _way("people", unseen=True),
    "DELETE /users/{user_id}/sign-ins/{sign_in_id}": _way("people", unseen=True),
    "POST /users/{user_id}/password": _way("people", unseen=True),
    "DELETE /users/{user_id}/totp": _way("people", unseen=True),
    "GET /users": _way("", everywhere=True),
    "POST /users": _way(
        "people", {"login": "moi", "name": "Mới", "grant": {"role": "broadcaster", "unit_id": "{units}"}}
    ),
    "GET /users/me": _way("", everywhere=True),
    "GET /users/{user_id}": _way("people", unseen=True),
    "DELETE /users/{user_id}": _way("people", unseen=True),
    "POST /users/{user_id}/grants": _way("people", {"role": "broadcaster", "unit_id": "{units}"}),
    "DELETE /users/{user_id}/grants/{grant_id}": _way("people"),
    "GET /users/{user_id}/tokens": _way("people", unseen=True),
    "POST /users/{user_id}/tokens": _way("people", {"name": "máy"}, unseen=True),
    "DELETE /users/{user_id}/tokens/{token_id}": _way("people", unseen=True),
    "GET /bulletins": _way("read", query="unit={units}"),
    "POST /bulletins": _way("compose write_short", {"unit_id": "{units}", "title": "Tin"}),
    "GET /bulletins/{bulletin_id}": _way("read"),
    "PATCH /bulletins/{bulletin_id}": _way("compose write_short", {"title": "Tin khác"}),
    "POST /bulletins/{bulletin_id}/versions/text": _way("compose write_short", {"text": "Xin chào"}),
    "POST /bulletins/{bulletin_id}/versions/audio": _way(
        "compose write_short", raw=_PARTS, kind="multipart/form-data; boundary=x"
    ),
    "PUT /bulletins/{bulletin_id}/audio/{language}": _way(
        "compose write_short", raw=b"x", kind="application/octet-stream"
    ),
    "GET /approvals": _way("read", query="unit={units}"),
    "GET /bulletins/{bulletin_id}/stages": _way("read"),
    "POST /bulletins/{bulletin_id}/versions/{version_id}/submission": _way(
        "compose write_short", {"content_hash": _HASH}
    ),
    "POST /bulletins/{bulletin_id}/versions/{version_id}/withdrawal": _way("compose write_short"),
    "POST /bulletins/{bulletin_id}/versions/{version_id}/rejection": _way(
        "approve", {"content_hash": _HASH, "reason": "sai"}
    ),
    "POST /programmes/{programme_id}/submission": _way("compose", {"content_hash": _HASH}),
    "POST /programmes/{programme_id}/withdrawal": _way("compose"),
    "POST /programmes/{programme_id}/rejection": _way("approve", {"content_hash": _HASH, "reason": "sai"}),
    "POST /schedules/{schedule_id}/approval": _way("approve", {"placement_hash": _HASH, "content_hash": _HASH}),
    "POST /schedules/{schedule_id}/rejection": _way("approve", {"placement_hash": _HASH, "reason": "sai"}),
    "POST /bulletins/{bulletin_id}/versions/{version_id}/approval": _way("approve", {"content_hash": _HASH}),
    "POST /bulletins/{bulletin_id}/versions/{version_id}/recall": _way("approve"),
    "POST /bulletins/{bulletin_id}/recall": _way("approve"),
    "GET /programmes": _way("read", query="unit={units}"),
    "POST /programmes": _way(
        "compose", {"unit_id": "{units}", "title": "CT", "items": [{"bulletin_id": "{bulletins}"}]}
    ),
    "GET /programmes/{programme_id}": _way("read"),
    "PATCH /programmes/{programme_id}": _way("compose", {"title": "CT khác"}),
    "POST /programmes/{programme_id}/rendering": _way("compose"),
    "POST /programmes/{programme_id}/approval": _way("approve", {"content_hash": _HASH}),
    "GET /assets": _way("read", query="unit={units}"),
    "GET /assets/{sha256}/report": _way("read"),
    "GET /assets/{sha256}": _way("read"),
    "GET /schedules": _way("read", query="unit={units}"),
    "POST /schedules": _way("schedule", _ONCE),
    "POST /schedules/preview": _way("schedule", _ONCE),
    "GET /schedules/{schedule_id}": _way("read"),
    "POST /schedules/{schedule_id}/change": _way("schedule", {"scope": "all", "name": "Khác"}),
    "POST /schedules/{schedule_id}/change/preview": _way("schedule", {"scope": "all", "name": "Khác"}),
    "POST /schedules/{schedule_id}/cancel": _way("schedule", {"scope": "all"}),
    "POST /play-now": _way("play", {"unit_id": "{units}", "bulletin_id": "{bulletins}"}),
    "POST /stop": _way("stop", {"entry_id": "{entry}"}),
    "GET /outlook": _way("read", query="unit={units}"),
    "GET /explain": _way("read", query=f"cluster={{clusters}}&at={_LATER.replace('+', '%2B')}"),
    "GET /sendings": _way("read", query="unit={units}"),
    "POST /sendings": _way(
        "send", {"unit_id": "{units}", "bulletin_id": "{bulletins}", "basis": "CV 3", "deadline": _LATER}
    ),
    "GET /sendings/{sending_id}": _way("read"),
    "POST /sendings/{sending_id}/recall": _way("send", {"note": "nhầm"}),
    "POST /sendings/{sending_id}/correction": _way("send", {"note": "đính chính", "deadline": _LATER}),
    "GET /arrivals": _way("read", query="unit={units}"),
    "GET /arrivals/{arrival_id}": _way("read"),
    "POST /arrivals/{arrival_id}/receipt": _way("schedule"),
    "POST /arrivals/{arrival_id}/schedule": _way("schedule", {"starts": [_LATER]}),
    "POST /arrivals/{arrival_id}/play": _way("play", {}),
    "POST /arrivals/{arrival_id}/refusal": _way("schedule", {"note": "không"}),
    "GET /ties": _way("read", query="unit={units}"),
    "GET /ties/{tie_id}": _way("read"),
    "POST /ties/{tie_id}/order": _way("approve", {"entry_ids": ["{entry}", "{entry}"]}),
    "GET /emergencies": _way("read", query="unit={units}"),
    "POST /emergencies": _way("propose", _LOUD),
    "GET /emergencies/{emergency_id}": _way("read", above=True),
    "GET /emergencies/{emergency_id}/deliveries": _way("read", above=True),
    "POST /emergencies/{emergency_id}/approval": _way(
        "launch", {"content_hash": _HASH, "confirm": "KHẨN CẤP", "proof": _PROOF}, above=True
    ),
    "POST /emergencies/{emergency_id}/consent": _way("propose", {"content_hash": _HASH, "proof": _PROOF}, above=True),
    "POST /emergencies/{emergency_id}/cancellation": _way("launch", {"reason": "hết"}, above=True),
    "POST /emergencies/{emergency_id}/correction": _way(
        "propose", {"message": {"text": "Sửa"}, "reason": "sai", "proof": _PROOF}, above=True
    ),
    "POST /emergencies/{emergency_id}/final": _way("launch", {"reason": "hết"}, above=True),
    "GET /stop-alls": _way("read", query="unit={units}"),
    "POST /stop-alls": _way("stop_all", {"units": ["{units}"], "reason": "lạ"}),
    "GET /stop-alls/{stop_all_id}": _way("read", above=True),
    "GET /stop-alls/{stop_all_id}/deliveries": _way("read", above=True),
    "POST /stop-alls/{stop_all_id}/release": _way("stop_all", {"reason": "xong"}, above=True),
    "GET /emergency-templates": _way("read", query="unit={units}"),
    "POST /emergency-templates": _way("propose", {"unit_id": "{units}", "name": "Mẫu", "message": {"text": "Lũ"}}),
    "GET /emergency-templates/{template_id}": _way("read", above=True),
    "POST /emergency-templates/{template_id}/approval": _way(
        "launch", {"content_hash": _HASH, "proof": _PROOF}, above=True
    ),
    "POST /emergency-templates/{template_id}/retirement": _way("propose", above=True),
    "POST /break-glass": _way(
        "launch",
        {
            "unit_id": "{units}",
            "template_id": "{emergency_templates}",
            "reason": "một mình",
            "confirm": "KHẨN CẤP",
            "proof": _PROOF,
        },
    ),
    "GET /break-glass-reviews": _way("log", query="unit={units}"),
    "POST /break-glass-reviews/{emergency_id}/review": _way("launch", {"finding": "justified", "note": "đúng"}),
    "POST /live": _way("live", {"unit_id": "{units}"}),
    "POST /live/preview": _way("live", {"unit_id": "{units}"}),
    "GET /live": _way("read", query="unit={units}"),
    "GET /live/{session_id}": _way("read"),
    "POST /live/{session_id}/renew": _way("live"),
    "POST /live/{session_id}/close": _way("stop"),
    "WEBSOCKET /live/{session_id}/voice": _way("live"),
    "GET /readiness": _way("read", query="unit={units}"),
    "GET /plays": _way("log", query="unit={units}"),
    "GET /broadcasts": _way("log", query="within={units}"),
    "GET /broadcasts/{broadcast_id}": _way("log", unseen=True),
    "GET /audit": _way("audit", query="unit_id={units}"),
    "GET /system": _way("", everywhere=True, above=True),
}
"""What each address needs, and a request that is well formed. One with a secret of its own is not here."""

TABLE_OF: Final = {
    "unit_id": "units",
    "cluster_id": "clusters",
    "group_id": "groups",
    "token_id": "enrolment_tokens",
    "device_id": "device_claims",
    "node_id": "nodes",
    "feed_id": "feeds",
    "offer_id": "feed_offers",
    "right_id": "push_rights",
    "obligation_id": "obligations",
    "user_id": "users",
    "grant_id": "grants",
    "sign_in_id": "sign_ins",
    "bulletin_id": "bulletins",
    "version_id": "bulletin_versions",
    "programme_id": "programmes",
    "sha256": "assets",
    "schedule_id": "schedules",
    "sending_id": "sendings",
    "arrival_id": "arrivals",
    "tie_id": "ties",
    "emergency_id": "emergencies",
    "stop_all_id": "stop_alls",
    "template_id": "emergency_templates",
    "session_id": "live_sessions",
    "broadcast_id": "broadcasts",
}
_NOBODYS: Final = "khong-co"
_UNKNOWN_SHA: Final = "0" * 64


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return asyncio.run(measure(int(os.environ.get("LOA_TREES", "200"))))


@dataclass
class Tally:
    """What was found."""

    seed: int
    checks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    leaks: int = 0
    changed: int = 0
    rings: int = 0
    pairs: set[tuple[str, str, str]] = field(default_factory=set)

    def wrong(self, what: str) -> None:
        """One violation, in words."""
        self.violations.append(what)


async def measure(trees: int, *, seed: int = 1) -> dict[str, Any]:
    """`trees` random trees, one role each, every route against one of its relations, and a few as strangers."""
    tally = Tally(seed)
    told = {f"{one.method} {one.path.removeprefix('/api/v1')}": one for one in route_table()}
    asked = {name for name, one in told.items() if one.door.entry is not Entry.SECRET or one.door.actions}
    for name in sorted(asked ^ set(ROUTES)):
        tally.wrong(f"{name}: {'not tried' if name in asked else 'there is no such route'}")
    routes = [(name, told[name]) for name in ROUTES if name in told]
    if set(ROLES) != set(Role):
        tally.wrong("a role has no line in the matrix")
    with tempfile.TemporaryDirectory(prefix="loa-rights-") as folder:
        async with an_audio_room(Path(folder), speaker=None) as room, _Stage(room) as stage:
            for number in range(trees):
                await _tree(tally, stage, routes, seed * 10_000 + number, number)
    figures: dict[str, Any] = {
        "trees": trees,
        "routes": len(routes),
        "roles": len(ROLES),
        "relations": len(RELATIONS),
        "attempted": tally.checks,
        "ok": tally.checks - len(tally.violations),
        "violations": len(tally.violations),
        "leaks": tally.leaks,
        "changed_on_refusal": tally.changed,
        "rings_on_refusal": tally.rings,
        "combinations_tried": len(tally.pairs),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "first": tally.violations[:20],
    }
    least = 5_000 if trees >= 200 else 1
    bars = [
        bar_of("checks", tally.checks, f">= {least}", holds=tally.checks >= least),
        bar_of("violations", len(tally.violations), 0, holds=not tally.violations),
        bar_of("words of a foreign place in an answer", tally.leaks, 0, holds=not tally.leaks),
        bar_of("rows changed by a refusal", tally.changed, 0, holds=not tally.changed),
        bar_of("bells rung by a refusal", tally.rings, 0, holds=not tally.rings),
    ]
    return {"name": "permissions", "figures": figures, "bars": bars}


class _Ear:
    """A relay that lets anybody listen who may."""

    def listen(self, feed_id: str, at: object) -> AsyncGenerator[bytes, None]:
        del feed_id, at

        async def sound() -> AsyncGenerator[bytes, None]:
            yield b"OggS"

        return sound()


class _Mouth:
    """A room for voices that leads and has none."""

    is_leading = True

    def open(self, session_id: str, *, is_resumed: bool = False) -> None:
        del session_id, is_resumed

    def attach(self, session_id: str, fmt: object) -> Any:
        raise RuntimeError(f"nobody speaks here: {session_id} {fmt}")

    def renew(self, session_id: str) -> None:
        del session_id

    def state(self, session_id: str) -> None:
        del session_id

    async def finish(self, session_id: str) -> None:
        del session_id


class _Stage:
    """One application on one store in memory, emptied and planted anew for each tree; its watch over what is written.

    Making the application costs more than a hundred requests, so it is made once.
    """

    def __init__(self, room: AudioRoom) -> None:
        clock, chance, executor = FakeClock(NOW), SystemChance(), InlineExecutor()
        self.store = Store("sqlite://", clock=clock, chance=chance, executor=executor)
        Base.metadata.create_all(self.store.engine)
        self._room = room
        desk = Desk(store=self.store, clock=clock, chance=chance, executor=executor, audio=room)
        self.app = create_api(desk, monitor=cast("Any", _Ear()), ingest=cast("Any", _Mouth()))
        self.committed: list[str] = []
        self.rings = 0
        self._written: list[str] = []
        event.listen(self.store.engine, "before_cursor_execute", self._seen)
        event.listen(self.store.engine, "commit", self._kept)
        event.listen(self.store.engine, "rollback", self._dropped)
        self.store.doorbell.ring = self._rang  # type: ignore[method-assign]
        self._raw: Any = self.store.engine.raw_connection().driver_connection
        self._empty: bytes = self._raw.serialize()
        self._planted = self._empty

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    def lay_sounds(self, world: World) -> None:
        """A file for every sound there is: whoever may have it gets it."""
        for rows in world.rows.values():
            sha256 = str(rows["assets"])
            path = self._room.assets.path(sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"OggS")

    async def plant(self, plant: Callable[[Session], World]) -> World:
        """An empty store with what `plant` puts there."""
        self._raw.deserialize(self._empty)
        world = await self.store.begin(plant, ring=False)
        self._planted = self._raw.serialize()
        self.forget()
        return world

    def as_planted(self) -> None:
        """Undo whatever was committed since."""
        self._raw.deserialize(self._planted)

    def forget(self) -> None:
        """Begin to watch anew."""
        self.committed.clear()
        self.rings = 0

    def _seen(self, _c: Any, _u: Any, statement: str, *_: Any) -> None:
        found = re.match(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+\"?(\w+)", statement)
        if found:
            self._written.append(found[1])

    def _kept(self, _connection: Any) -> None:
        self.committed += self._written
        self._written.clear()

    def _dropped(self, _connection: Any) -> None:
        self._written.clear()

    def _rang(self) -> None:
        self.rings += 1


async def _tree(tally: Tally, stage: _Stage, routes: list[tuple[str, RouteTold]], seed: int, number: int) -> None:
    """One tree and one role: every second route against one relation.

    Roles take turns by tree, relations and halves of the routes by round: after 14 rounds of all roles every role has
    met every route at every relation. What comes after are grants that are over, not begun, or end in a second.
    """
    roles = list(ROLES)
    role, turn = roles[number % len(roles)], number // len(roles)
    state = turn % 4 if turn >= 2 * len(RELATIONS) else 0
    begins, ends = [
        (-timedelta(days=1), None),
        (-timedelta(days=2), -timedelta(seconds=1)),
        (timedelta(seconds=1), None),
        (-timedelta(days=1), timedelta(seconds=1)),
    ][state]
    world = await stage.plant(lambda session: a_world(session, seed, role, begins=begins, ends=ends))
    stage.lay_sounds(world)
    visit = Visit(tally, stage, world, role, is_in_force=state in {0, 3})
    chance = random.Random(seed)
    for place, (name, told) in enumerate(routes):
        if (place + turn // len(RELATIONS)) % 2:
            continue
        relation = RELATIONS[(turn + place // 2) % len(RELATIONS)]
        await visit.attempt(name, relation)
        if chance.random() < 0.05 and told.method != "WEBSOCKET":
            await visit.as_nobody(name, relation)


class Visit:
    """One actor in one tree, and the watch over what their requests do to the store."""

    def __init__(self, tally: Tally, stage: _Stage, world: World, role: Role, *, is_in_force: bool) -> None:
        self._tally, self._stage, self._world, self._role = tally, stage, world, role
        self._deeds = ROLES[role] if is_in_force else frozenset[str]()

    async def attempt(self, name: str, relation: str) -> None:
        """One request and what must come of it."""
        way = ROUTES[name]
        self._tally.pairs.add((name, self._role.value, relation))
        expected = self._expected(name, way, relation)
        status, answer, asked = await self._send(name, way, relation, self._world.token)
        self._tally.checks += 1
        self._tally.outcomes[f"{expected}: {status}"] += 1
        where = f"tree {self._world.seed} {self._role.value} {relation}: {name}"
        code = _code(answer)
        problem = ""
        if status >= 500 and status != 503:
            problem = f"failed with {status} {answer[:300]}"
        elif expected == "yes" and ((status in {401, 404} and _is_hiding(code)) or code == "not_permitted"):
            problem = f"is refused: {status} {code}"
        elif expected == "no" and status != 403:
            problem = f"should be refused, is {status} {code}"
        elif expected == "hidden":
            problem = await self._is_as_unknown(name, way, relation, status, answer)
        elif expected == "yes" and status == 422 and not asked:
            problem = f"was never asked: {answer[:300]}"
        if problem:
            self._tally.wrong(f"{where} {problem}")
        self._look_for_leaks(where, way, answer)
        if expected in {"no", "hidden"}:
            self._nothing_happened(where)
        elif self._stage.committed:
            self._stage.as_planted()
        self._stage.forget()

    async def as_nobody(self, name: str, relation: str) -> None:
        """Without a token, and with one that nobody has: 401, and nothing happens."""
        for token in (None, "loa_cua-ai"):
            status, answer, _ = await self._send(name, ROUTES[name], relation, token)
            self._tally.checks += 1
            self._tally.outcomes[f"nobody: {status}"] += 1
            where = f"tree {self._world.seed} nobody: {name}"
            if status != 401:
                self._tally.wrong(f"{where} is {status} {answer[:200]}")
            self._nothing_happened(where)
            if names(answer):
                self._tally.leaks += 1
                self._tally.wrong(f"{where} tells {answer[:200]}")
            self._stage.forget()

    def _expected(self, name: str, way: Way, relation: str) -> str:
        """`yes`, `no` (403), `hidden` (as unknown), `any` (for everybody)."""
        if way.everywhere:
            return "any"
        if way.operator:
            return "any"
        is_inside = relation in {"own", "child"}
        if is_inside and way.deeds & self._deeds:
            return "yes"
        may_read = "read" in self._deeds
        holds = (
            is_inside
            and "hold" in self._deeds
            and any(part in name for part in ("/feeds/{feed_id}", "/offers/", "/push-rights/"))
        )
        if "/subscriptions" in name and way.deeds == {"subscribe"}:
            holds = False  # asked for at the unit that carries it, not at the feed
        is_seen = may_read and (is_inside or (way.above and relation == "parent"))
        may_listen = (
            name.endswith("/monitor") and "stop" in self._deeds
        )  # whoever may stop what sounds of a feed in sight
        if is_seen and ("read" in way.deeds or may_listen):
            return "yes"
        is_seen = is_seen or holds
        return "no" if is_seen and not way.unseen else "hidden"

    async def _is_as_unknown(self, name: str, way: Way, relation: str, status: int, answer: str) -> str:
        """Empty, or in what this differs from the answer for an id that nobody has."""
        if status != 404:
            return f"should be as unknown, is {status} {_code(answer)}"
        probe, told, _ = await self._send(name, way, relation, self._world.token, unknown=True)
        mine, theirs = self._blanked(answer, relation), self._blanked(told, relation)
        return "" if (probe, theirs) == (status, mine) else f"differs from an unknown id: {mine[:250]} / {theirs[:250]}"

    def _blanked(self, answer: str, relation: str) -> str:
        ids = [_NOBODYS, _UNKNOWN_SHA, *map(str, self._world.rows[relation].values())]
        told = json.loads(answer) if answer.startswith("{") else {}
        plain = json.dumps({key: told.get(key) for key in ("type", "title", "status", "code", "field", "fix")})
        detail = str(told.get("detail", "")) + " " + " ".join(f"{key}" for key in sorted(told.get("facts") or {}))
        for one in sorted(ids, key=len, reverse=True):
            detail = re.sub(rf"(?<![\w]){re.escape(one)}(?![\w])", "…", detail)
        return f"{plain} {detail}"

    def _look_for_leaks(self, where: str, way: Way, answer: str) -> None:
        allowed = self._world.readable if self._deeds else set[int]()
        found = names(answer) - allowed
        if self._deeds:
            found -= self._world.above  # checked on its own: only what comes down from above may speak of above
            from_above = names(answer) & self._world.above
            may_come_down = way.above or (way.deeds == {"read"} and "GET" in where) or "live_under_stop_all" in answer
            if from_above and not may_come_down:
                found |= from_above
        if found:
            self._tally.leaks += 1
            places = {number: rel for rel, number in self._world.numbers.items()}
            told = sorted(places.get(number, str(number)) for number in found)
            self._tally.wrong(f"{where} tells of {told}: {answer[:300]}")

    def _nothing_happened(self, where: str) -> None:
        changed = [table for table in self._stage.committed if table != "audit"]
        if changed:
            self._tally.changed += 1
            self._tally.wrong(f"{where} is refused and changes {sorted(set(changed))}")
            self._stage.as_planted()
        if self._stage.rings:
            self._tally.rings += 1
            self._tally.wrong(f"{where} is refused and rings")

    # -- sending ------------------------------------------------------------------------------------------------------

    async def _send(
        self, name: str, way: Way, relation: str, token: str | None, *, unknown: bool = False
    ) -> tuple[int, str, list[access.Action]]:
        method, path = name.split(" ")
        rows = {table: key for table, key in self._world.rows[relation].items() if isinstance(key, str)}
        rows["own"] = self._world.units["own"]
        rows["entry"] = entry_id(rows["schedules"], NOW + timedelta(hours=7))
        if "/tokens/" in path and "users" in path:
            rows["enrolment_tokens"] = f"tu-{relation}"
        if unknown:
            rows = {table: _UNKNOWN_SHA if table == "assets" else _NOBODYS for table in rows} | {
                "entry": entry_id(_NOBODYS, NOW + timedelta(hours=7)),
                "own": rows["own"],
            }
        where = re.sub(r"\{(\w+)\}", lambda found: _path_value(found[1], rows), path)
        query = re.sub(r"\{(\w+)\}", lambda found: rows[found[1]], way.query)
        body = way.raw if way.raw is not None else b"" if way.body is None else _filled(way.body, rows)
        with access.watching() as asked:
            status, answer = await _call(self._stage.app, method, "/api/v1" + where, query, body, way.kind, token)
        await asyncio.sleep(0)  # the doorbell rings in the next turn of the loop
        return status, answer, list(asked)


def _path_value(parameter: str, rows: Mapping[str, str]) -> str:
    if parameter in {"language", "code"}:
        return {"language": "vie", "code": "hamlet"}[parameter]
    return rows[TABLE_OF[parameter]]


def _filled(body: Any, rows: Mapping[str, str]) -> bytes:
    text = json.dumps(body)
    return re.sub(r"\{(\w+)\}", lambda found: rows[found[1]], text).encode()


def _code(answer: str) -> str:
    if not answer.startswith("{"):
        return ""
    return str(json.loads(answer).get("code", ""))


def _is_hiding(code: str) -> bool:
    return code.startswith(("unknown_", "token_"))


async def _call(
    app: Any, method: str, path: str, query: str, body: bytes, kind: str, token: str | None
) -> tuple[int, str]:
    """Status and text of the answer of an ASGI application; for a WebSocket, of what it refuses with."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    is_socket = method == "WEBSOCKET"
    scope = {
        "type": "websocket" if is_socket else "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "ws" if is_socket else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "subprotocols": [],
    }
    inbox: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    if is_socket:
        inbox = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": '{"format": "opus"}'}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop(0)
        return {"type": "websocket.disconnect", "code": 1000} if is_socket else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except Exception as error:  # noqa: BLE001 - an accident of the application is a finding, not the end of the suite
        sys.stderr.write(f"{method} {path}: {error!r}\n")
        if not sent:
            return 500, repr(error)
    if is_socket:
        texts = [message["text"] for message in sent if message["type"] == "websocket.send" and message.get("text")]
        told = json.loads(texts[0]).get("error", {}) if texts else {}
        code = next((message.get("code", 0) for message in sent if message["type"] == "websocket.close"), 4200)
        return code - 4000 if 4000 <= code < 5000 else code, json.dumps(told, ensure_ascii=False)
    start = next(message for message in sent if message["type"] == "http.response.start")
    text = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return start["status"], text.decode("utf-8", "replace")
