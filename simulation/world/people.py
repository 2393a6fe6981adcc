"""A small province and what its people want of it in a day, through the same verbs the console uses.

Everything asked for is written to the trace as an intent (what, for whom, when, with which sound), independent of what
the server makes of it: the checker holds every second of sound against these.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final, cast

from broadcast_server.control import fleet, playing, scheduling
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import AudioRoom, Desk
from broadcast_server.control.scheduling import CancelSchedule, NewSchedule, Scope
from broadcast_server.domain.clock import LOCAL, to_ms
from broadcast_server.domain.consent import ConsentRole
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import rule_from_dict
from broadcast_server.store import audit, emergencies, library, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    AlertRow,
    ClusterRow,
    EmergencyRow,
    GrantRow,
    GroupMemberRow,
    GroupRow,
    NodeRow,
    StopAllRow,
    UnitLinkRow,
    UnitRow,
    UserRow,
)
from broadcast_server.store.tables_approval import EmergencyConsentRow
from broadcast_server.store.types import fold
from broadcast_server.store.words import (
    ContentKind,
    EmergencyMode,
    EmergencyNature,
    EmergencyState,
    MediaKind,
    Role,
    VersionState,
)
from simulation.world.shelf import Shelf
from simulation.world.trace import Trace
from speaker_protocol.rules import BulletinClass, Level

PROVINCE: Final = "48"
WEEK: Final = ("mo", "tu", "we", "th", "fr", "sa", "su")
ROUTINE: Final = ("05:00", "05:20", "06:10", "11:00", "11:30", "16:45", "17:00", "17:25", "18:40", "20:15")


@dataclass(frozen=True, slots=True)
class Place:
    """A commune: its clusters, by id, and its head."""

    unit_id: str
    clusters: tuple[str, ...]
    group_id: str
    head: Actor


@dataclass(slots=True)
class Sound:
    """A bulletin with its asset."""

    bulletin_id: str
    sha256: str
    length_ms: int

    @property
    def version_id(self) -> str:
        """Of its one version."""
        return f"v{self.bulletin_id[1:]}"


@dataclass(slots=True)
class Placed:
    """A schedule of theirs."""

    schedule_id: str
    unit_id: str
    actor: Actor


@dataclass(slots=True)
class People:
    """All of them."""

    desk: Desk
    shelf: Shelf
    trace: Trace
    chance: random.Random
    ring: Callable[[], None]
    """Tells the servers that something was committed, as their doorbells would."""
    places: list[Place] = field(default_factory=list)
    editor: Actor = field(default_factory=lambda: Actor("user-editor", "editor"))
    placed: list[Placed] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    stops: list[tuple[str, str]] = field(default_factory=list)

    # -- the province

    async def settle(self, nodes: int) -> None:
        """Places, clusters, people."""
        communes = max(1, min(5, nodes // 4))
        shares = [nodes // communes + (number < nodes % communes) for number in range(communes)]
        for number, share in enumerate(shares):
            unit = f"2{number:04}"
            clusters = tuple(f"c{index}-{unit}" for index in range(share))
            self.places.append(Place(unit, clusters, f"g-{unit}", Actor(f"user-{unit}", f"truongdai-{unit}")))
        await self.desk.store.begin(self._settle, ring=False)
        for place in self.places:
            self.trace.note("place", unit=place.unit_id, path=[place.unit_id, PROVINCE], clusters=list(place.clusters))
            self._note_group(place, place.clusters[:2])

    def _settle(self, session: Session) -> None:
        now = self.desk.clock.now()
        places.ensure_kinds(session)
        self._unit(session, PROVINCE, "province", "Tỉnh mô phỏng", now)
        session.flush()
        for place in self.places:
            self._unit(session, place.unit_id, "commune", f"Xã mô phỏng {place.unit_id}", now)
            session.flush()
            session.add(
                UnitLinkRow(
                    id=f"link-{place.unit_id}",
                    unit_id=place.unit_id,
                    parent_id=PROVINCE,
                    valid_from=date(2025, 7, 1),
                )
            )
            for cluster in place.clusters:
                session.add(
                    ClusterRow(
                        id=cluster,
                        unit_id=place.unit_id,
                        code=cluster.upper()[:20],
                        name=cluster,
                        name_folded=cluster,
                        config={},
                        created_at=now,
                    )
                )
            session.flush()
            session.add(GroupRow(id=place.group_id, unit_id=place.unit_id, name="Chợ", created_at=now))
            session.flush()
            for cluster in place.clusters[:2]:
                session.add(GroupMemberRow(group_id=place.group_id, cluster_id=cluster))
            self._person(session, place.head, Role.COMMUNE_HEAD, place.unit_id, now)
        self._person(session, self.editor, Role.PROVINCE_EDITOR, PROVINCE, now)

    @staticmethod
    def _unit(session: Session, unit_id: str, kind: str, name: str, now: datetime) -> None:
        session.add(UnitRow(id=unit_id, kind=kind, name=name, name_folded=fold(name), created_at=now))

    @staticmethod
    def _person(session: Session, actor: Actor, role: Role, unit_id: str, now: datetime) -> None:
        session.add(UserRow(id=actor.user_id, login=actor.login, name=actor.login, created_at=now))
        session.flush()
        session.add(
            GrantRow(
                id=f"grant-{actor.login}",
                user_id=actor.user_id,
                role=role,
                unit_id=unit_id,
                valid_from=now - timedelta(days=1),
            )
        )

    async def seat(self, node_id: str, cluster_id: str, unit_id: str, public_hex: str, token: str) -> None:
        """A node drives a cluster from now on."""
        now = self.desk.clock.now()

        def write(session: Session) -> None:
            session.add(
                NodeRow(
                    id=node_id,
                    unit_id=unit_id,
                    cluster_id=cluster_id,
                    public_key=public_hex,
                    hardware="mô phỏng",
                    firmware="1",
                    broker_password_line="$7$",  # noqa: S106  no broker reads it
                    asset_token_hash=hashlib.sha256(token.encode()).hexdigest(),
                    enrolled_at=now,
                )
            )

        await self.desk.store.begin(write, ring=False)
        self.shelf.admit(token, node_id)
        self.trace.note("seat", node=node_id, cluster=cluster_id, unit=unit_id)

    # -- sounds

    async def bulletin(
        self, unit_id: str, *, klass: BulletinClass = BulletinClass.NORMAL, approved: bool = True
    ) -> Sound:
        """A recorded bulletin of a random length, its bytes on the shelf."""
        made = self.desk.chance.new_id()
        content = self.chance.randbytes(self.chance.randrange(400, 1_200))
        sha256 = hashlib.sha256(content).hexdigest()
        length_ms = self.chance.randrange(20, 240) * 1_000
        now = self.desk.clock.now()

        def write(session: Session) -> None:
            library.add_asset(
                session,
                sha256=sha256,
                unit_id=unit_id,
                label="mô phỏng",
                size_bytes=len(content),
                duration_ms=length_ms,
                report={},
                created_at=now,
            )
            library.add_bulletin(
                session,
                bulletin_id=made,
                unit_id=unit_id,
                title="Bản tin mô phỏng",
                klass=klass,
                subject=None,
                valid_from=None,
                valid_to=None,
                created_by="mo-phong",
                created_at=now,
            )
            version = library.add_version(
                session,
                version_id=f"v{made[1:]}",
                bulletin_id=made,
                language="vie",
                media=MediaKind.AUDIO,
                text=None,
                voice=None,
                asset_sha256=sha256,
                content_hash=f"hash-{made}",
                created_by="mo-phong",
                created_at=now,
            )
            if approved:
                version.state = VersionState.APPROVED
                version.approved_hash, version.approved_by, version.approved_at = version.content_hash, "mo-phong", now

        await self.desk.store.begin(write, ring=False)
        self.shelf.put(sha256, content)
        self.trace.note("asset", asset=sha256, length_ms=length_ms, approved=approved)
        return Sound(made, sha256, length_ms)

    # -- what they do

    async def routine(self) -> None:
        """The week's programme of every commune, and one bulletin for the whole province."""
        for place in self.places:
            for at in self.chance.sample(ROUTINE, self.chance.randrange(3, 6)):
                sound = await self.bulletin(place.unit_id)
                await self.schedule(place.unit_id, place.head, sound, [at], self._aim(place))
        sound = await self.bulletin(PROVINCE)
        await self.schedule(PROVINCE, self.editor, sound, ["06:30", "19:00"], ())

    def _aim(self, place: Place) -> tuple[Target, ...]:
        kind = self.chance.choice(("unit", "unit", "group", "cluster"))
        if kind == "group":
            return (Target(TargetKind.GROUP, place.group_id),)
        if kind == "cluster":
            return (Target(TargetKind.CLUSTER, self.chance.choice(place.clusters)),)
        return ()

    async def schedule(
        self, unit_id: str, actor: Actor, sound: Sound, times: list[str], targets: tuple[Target, ...]
    ) -> None:
        """Every day at these times."""
        rule = {"kind": "weekly", "weekdays": list(WEEK), "times": times}
        placed = await self._try("schedule", self._create(unit_id, actor, sound, rule, targets))
        if placed is not None:
            self._intend(placed, unit_id, actor, sound, targets, times=times)

    async def schedule_once(
        self, unit_id: str, actor: Actor, sound: Sound, at: datetime, targets: tuple[Target, ...]
    ) -> None:
        """Once."""
        rule = {"kind": "once", "at": at.isoformat()}
        placed = await self._try("schedule_once", self._create(unit_id, actor, sound, rule, targets))
        if placed is not None:
            self._intend(placed, unit_id, actor, sound, targets, at=to_ms(at))

    async def _create(
        self, unit_id: str, actor: Actor, sound: Sound, rule: dict[str, Any], targets: tuple[Target, ...]
    ) -> str:
        made = await scheduling.create_schedule(
            self.desk,
            actor,
            NewSchedule(
                unit_id=unit_id,
                content_kind=ContentKind.BULLETIN,
                content_id=sound.bulletin_id,
                rule=rule_from_dict(rule),
                targets=targets,
                accept_conflicts=True,
            ),
        )
        return made.schedule.id

    def _intend(
        self, schedule: str, unit_id: str, actor: Actor, sound: Sound, targets: tuple[Target, ...], **when: Any
    ) -> None:
        aims = [[target.kind.value, target.ref] for target in targets] or [["unit", unit_id]]
        self.trace.note("intent", schedule=schedule, unit=unit_id, aims=aims, asset=sound.sha256, **when)
        self.placed.append(Placed(schedule, unit_id, actor))

    async def play_now(self, place: Place) -> None:
        """Somebody presses play."""
        sound = await self.bulletin(place.unit_id)
        targets = self._aim(place)
        request = playing.PlayNow(
            unit_id=place.unit_id,
            content_kind=ContentKind.BULLETIN,
            content_id=sound.bulletin_id,
            targets=targets,
            queue=True,
        )
        made = await self._try("play_now", playing.play_now(self.desk, place.head, request))
        if made is not None:
            self._intend(
                made.schedule.id, place.unit_id, place.head, sound, targets, at=to_ms(self.desk.clock.now()), loose=True
            )

    async def cancel(self) -> None:
        """A schedule is taken off the air for good."""
        if not self.placed:
            return
        victim = self.placed.pop(self.chance.randrange(len(self.placed)))
        request = CancelSchedule(victim.schedule_id, Scope.ALL)
        done = await self._try("cancel", scheduling.cancel_schedule(self.desk, victim.actor, request))
        if done is not None:
            self.trace.note("cancelled", schedule=victim.schedule_id)

    async def regroup(self, place: Place) -> None:
        """Clusters change their group."""
        count = min(len(place.clusters), self.chance.randrange(1, 4))
        members = tuple(sorted(self.chance.sample(place.clusters, count)))
        done = await self._try(
            "regroup", fleet.update_group(self.desk, place.head, place.group_id, cluster_ids=members)
        )
        if done is not None:
            self._note_group(place, members)

    def _note_group(self, place: Place, members: tuple[str, ...]) -> None:
        self.trace.note("group", group=place.group_id, clusters=list(members))

    async def launch(self, unit_id: str, *, minutes: int) -> None:
        """An emergency for a unit and everything under it."""
        sound = await self.bulletin(unit_id, klass=BulletinClass.EMERGENCY)
        made, now = self.desk.chance.new_id(), self.desk.clock.now()
        expires = now + timedelta(minutes=minutes)
        level = Level.EMERGENCY_UPPER if unit_id == PROVINCE else Level.EMERGENCY_COMMUNE
        row = EmergencyRow(
            id=made,
            unit_id=unit_id,
            units=[unit_id],
            state=EmergencyState.IN_FORCE,
            mode=EmergencyMode.DRILL,
            nature=EmergencyNature.ALERT,
            level=int(level),
            phrases=[],
            text="Diễn tập mô phỏng",
            bulletin_version_id=sound.version_id,
            asset_sha256=sound.sha256,
            expires_min=minutes,
            reason="mô phỏng",
            proposed_by=self.editor.login,
            proposed_at=now,
            launched_at=now,
            expires_at=expires,
        )
        row.content_hash = emergencies.alarm_of(row).content_hash
        agreed = ((self.editor, ConsentRole.INITIATOR), (self.places[0].head, ConsentRole.APPROVER))

        def write(session: Session) -> None:
            session.add(row)
            session.flush()
            for number, (actor, role) in enumerate(agreed):
                session.add(
                    EmergencyConsentRow(
                        id=f"{number}{made[1:]}",
                        emergency_id=made,
                        user_id=actor.user_id,
                        login=actor.login,
                        role=role,
                        content_hash=row.content_hash,
                        at=now,
                    )
                )
            session.add(
                AlertRow(
                    id=made,
                    emergency_id=made,
                    unit_id=unit_id,
                    level=int(level),
                    body=emergencies.body_of(session, row),
                    issued_at=now,
                    expires_at=expires,
                )
            )
            self._audit(session, "emergency.launch", unit_id, f"emergency/{made}", now)

        await self._write("launch", write)
        self.alerts.append((made, unit_id))
        self.trace.note(
            "alert", alert=made, unit=unit_id, level=int(level), asset=sound.sha256, expires_ms=to_ms(expires)
        )

    async def call_off(self) -> None:
        """The oldest emergency in force is cancelled."""
        if not self.alerts:
            return
        made, unit_id = self.alerts.pop(0)
        now = self.desk.clock.now()

        def write(session: Session) -> None:
            session.get_one(AlertRow, made).cancelled_at = now
            row = session.get_one(EmergencyRow, made)
            row.state, row.ended_at = EmergencyState.CANCELLED, now
            self._audit(session, "emergency.cancel", unit_id, f"emergency/{made}", now)

        await self._write("call_off", write)
        self.trace.note("alert_cancelled", alert=made)

    async def stop_all(self, unit_id: str) -> None:
        """Everything under a unit is silent until released."""
        made, now = self.desk.chance.new_id(), self.desk.clock.now()

        def write(session: Session) -> None:
            session.add(StopAllRow(id=made, unit_id=unit_id, since=now, set_by="mo-phong"))
            self._audit(session, "stop_all.set", unit_id, f"stop_all/{made}", now)

        await self._write("stop_all", write)
        self.stops.append((made, unit_id))
        self.trace.note("stop_all", latch=made, unit=unit_id)

    async def release(self) -> None:
        """The oldest latch is released."""
        if not self.stops:
            return
        made, unit_id = self.stops.pop(0)
        now = self.desk.clock.now()

        def write(session: Session) -> None:
            row = session.get_one(StopAllRow, made)
            row.released_at, row.released_by = now, "mo-phong"
            self._audit(session, "stop_all.release", unit_id, f"stop_all/{made}", now)

        await self._write("release", write)
        self.trace.note("released", latch=made)

    @staticmethod
    def _audit(session: Session, verb: str, unit_id: str, subject: str, now: datetime) -> None:
        audit.append(session, now=now, actor="mo-phong", verb=verb, unit_id=unit_id, subject=subject)

    async def _write(self, what: str, write: Callable[[Session], None]) -> None:
        await self.desk.store.begin(write, ring=False)
        self.done[what] = self.done.get(what, 0) + 1
        self.ring()

    # -- a day

    async def act(self) -> None:
        """One thing somebody wants, drawn."""
        place = self.chance.choice(self.places)
        unit = place.unit_id if self.chance.random() < 0.8 else PROVINCE
        deeds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (5, lambda: self.play_now(place)),
            (5, lambda: self._soon(place)),
            (2, self.cancel),
            (3, lambda: self.regroup(place)),
            (2, lambda: self.launch(unit, minutes=self.chance.randrange(10, 50))),
            (2, self.call_off),
            (1, lambda: self.stop_all(unit)),
            (2, self.release),
        ]
        weights = [weight for weight, _ in deeds]
        await self.chance.choices([deed for _, deed in deeds], weights)[0]()

    async def _soon(self, place: Place) -> None:
        sound = await self.bulletin(place.unit_id)
        at = self.desk.clock.now() + timedelta(minutes=self.chance.randrange(3, 90))
        at = at.astimezone(LOCAL).replace(second=0, microsecond=0)
        await self.schedule_once(place.unit_id, place.head, sound, at, self._aim(place))

    async def make_peace(self) -> None:
        """Nothing urgent is left in force."""
        while self.stops:
            await self.release()
        while self.alerts:
            await self.call_off()

    async def _try(self, what: str, work: Awaitable[Any]) -> Any:
        """Do it, or be refused: a refusal is an answer, not a fault."""
        try:
            made = await work
        except BroadcastError as error:
            key = f"{what}:{error.code}"
            self.refused[key] = self.refused.get(key, 0) + 1
            return None
        self.done[what] = self.done.get(what, 0) + 1
        self.ring()
        return made


def local(day: datetime, text: str) -> datetime:
    """A wall-clock time of the day of an instant."""
    hour, minute = text.split(":")
    return day.astimezone(LOCAL).replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)


def a_desk(store: Any, clock: Any, chance: Any, executor: Any) -> Desk:
    """The front door's desk; nobody uploads here, so there is no audio room."""
    return Desk(store=store, clock=clock, chance=chance, executor=executor, audio=cast("AudioRoom", None))
