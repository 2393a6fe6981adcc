"""Bulletins sent down over HTTP: send, recall, correct; the inbox of a unit and what it decides.

Times are RFC 3339 with an offset. An arrival's `sentence` says in the reader's language what became of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import AwareDatetime, Field, StringConstraints

from broadcast_server.api.bulletins import Language
from broadcast_server.api.deps import ActorDep, DeskDep, LocaleDep
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Instant, ProofForm, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.api.schedules import Gain, LateForm, PreviewShown, Seconds, Targets
from broadcast_server.catalogue import Locale, sentence
from broadcast_server.control import sending
from broadcast_server.control.access import Action
from broadcast_server.control.outlook import local_text
from broadcast_server.control.sending import (
    ArrivalView,
    Correction,
    NewSending,
    ScheduleArrival,
    SendingView,
)
from broadcast_server.domain.places import Target
from broadcast_server.store.places import STATION_KINDS
from broadcast_server.store.tables import SendingRow
from broadcast_server.store.words import ArrivalState, ConflictKind
from speaker_protocol.rules import BulletinClass, Late

router = Router(tags=["sendings"], route_class=IdempotentRoute)

Basis = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Note = Annotated[str, StringConstraints(min_length=1, max_length=300)]


# -- forms ------------------------------------------------------------------------------------------------------------


class SendingForm(Form):
    """Send a bulletin to `unit_ids`, or to every unit of `kinds` below `below`.

    `earliest`, `latest`, `times` are wishes; `deadline`: until when units decide or the server places it; of an
    emergency until when nodes that were away still obey. `confirm`: the word of a real emergency, which a second person
    must agree to; it asks for `proof` too.
    """

    unit_id: Id
    bulletin_id: Id
    version_id: Id | None = None
    language: Language = "vie"
    unit_ids: Annotated[tuple[Id, ...], Field(max_length=5000)] = ()
    below: Id | None = None
    kinds: Annotated[tuple[Id, ...], Field(max_length=40)] = STATION_KINDS
    basis: Basis
    deadline: Instant
    earliest: Instant | None = None
    latest: Instant | None = None
    times: Annotated[int, Field(ge=1, le=20)] = 1
    valid_to: Instant | None = None
    confirm: Annotated[str, StringConstraints(max_length=40)] = ""
    proof: ProofForm | None = None


class CorrectionForm(Form):
    """Send a newer version after one that was sent; `note`: what is mended; `proof`: for an emergency."""

    note: Note
    version_id: Id | None = None
    deadline: Instant
    earliest: Instant | None = None
    latest: Instant | None = None
    valid_to: Instant | None = None
    proof: ProofForm | None = None


class NoteForm(Form):
    """Why, in words the other side reads."""

    note: Note


class PlaceForm(Form):
    """Give an arrival its place: one start or several. No targets: the whole unit."""

    starts: Annotated[list[AwareDatetime], Field(min_length=1, max_length=20)]
    targets: Targets = Field(default_factory=list)
    max_wait_s: Seconds = 0
    late: LateForm | None = None
    gain_db: Gain = 0.0
    accept_conflicts: bool = False


class PlayForm(Form):
    """Sound it now. `queue`: wait for the air up to an hour rather than be refused."""

    queue: bool = False
    accept_conflicts: bool = False


# -- shown ------------------------------------------------------------------------------------------------------------


class HeardShown(Shown):
    """What the play log has: so many of so many nodes sounded it, the longest for `heard_ms`."""

    nodes_heard: int
    nodes_planned: int
    heard_ms: int


class TroubleShown(Shown):
    """Why it will not sound as planned."""

    kind: ConflictKind
    affects_from: datetime
    facts: dict[str, Any]


class Arrival(Shown):
    """A bulletin sent to one unit: received, decided by whom, planned, heard, or why not."""

    id: str
    sending_id: str
    unit_id: str
    unit_name: str
    sender_id: str
    bulletin_id: str
    version_id: str
    title: str
    klass: BulletinClass
    language: str
    basis: str
    earliest: datetime | None
    latest: datetime | None
    times: int
    deadline: datetime
    valid_to: datetime | None
    corrects_id: str | None
    state: ArrivalState
    reason: str | None
    sentence: str
    note: str | None
    sent_at: datetime
    received_at: datetime | None
    received_by: str | None
    decided_at: datetime | None
    decided_by: str | None
    schedule_id: str | None
    alert_id: str | None
    sounds_at: datetime | None
    heard: HeardShown
    trouble: TroubleShown | None

    @classmethod
    def of(cls, view: ArrivalView, locale: Locale) -> Arrival:
        """As callers see it."""
        row, sent = view.arrival, view.sending
        reason = "taken_off_by_unit" if view.is_off else row.reason
        words = {
            "unit": view.unit_name,
            "title": sent.title,
            "by": row.decided_by or "",
            "note": row.note or "",
            "deadline": local_text(sent.deadline),
            "at": "" if row.sounds_at is None else local_text(row.sounds_at),
            "heard": view.heard.nodes_heard,
            "planned": view.heard.nodes_planned,
            "why": "" if reason is None else sentence(reason, {**(row.facts or {}), "title": sent.title}, locale),
        }
        code = "arrival_heard" if view.heard.nodes_planned and row.state is ArrivalState.PLANNED else None
        if row.state is ArrivalState.WAITING and row.alert_id is not None:
            code = "arrival_waits_for_second"
        code = "arrival_taken_off" if view.is_off and not view.heard.nodes_heard else code
        return cls(
            id=row.id,
            sending_id=sent.id,
            unit_id=row.unit_id,
            unit_name=view.unit_name,
            sender_id=sent.unit_id,
            bulletin_id=sent.bulletin_id,
            version_id=sent.version_id,
            title=sent.title,
            klass=sent.klass,
            language=sent.language,
            basis=sent.basis,
            earliest=sent.earliest,
            latest=sent.latest,
            times=sent.times,
            deadline=sent.deadline,
            valid_to=sent.valid_to,
            corrects_id=sent.corrects_id,
            state=row.state,
            reason=reason,
            sentence=sentence(code or f"arrival_{row.state.value}", words, locale),
            note=row.note,
            sent_at=sent.created_at,
            received_at=row.received_at,
            received_by=row.received_by,
            decided_at=row.decided_at,
            decided_by=row.decided_by,
            schedule_id=row.schedule_id,
            alert_id=row.alert_id,
            sounds_at=row.sounds_at,
            heard=HeardShown.model_validate(view.heard, from_attributes=True),
            trouble=None
            if view.trouble is None
            else TroubleShown(
                kind=view.trouble.kind, affects_from=view.trouble.affects_from, facts=dict(view.trouble.facts)
            ),
        )


class Sending(Shown):
    """A version of a bulletin sent down."""

    id: str
    unit_id: str
    bulletin_id: str
    version_id: str
    title: str
    klass: BulletinClass
    language: str
    basis: str
    earliest: datetime | None
    latest: datetime | None
    times: int
    deadline: datetime
    valid_to: datetime | None
    corrects_id: str | None
    note: str | None
    recalled_at: datetime | None
    recalled_by: str | None
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, row: SendingRow) -> Sending:
        """As callers see it."""
        return cls.model_validate(row, from_attributes=True)


class SendingDetail(Sending):
    """A sending with what became of it at every unit."""

    arrivals: list[Arrival]

    @classmethod
    def viewed(cls, view: SendingView, locale: Locale) -> SendingDetail:
        """As callers see it."""
        shown = Sending.of(view.sending).model_dump()
        return cls(**shown, arrivals=[Arrival.of(one, locale) for one in view.arrivals])


class ArrivalPlaced(Arrival):
    """An arrival that has its place, and what that does to the air."""

    preview: PreviewShown


# -- routes: the sender -----------------------------------------------------------------------------------------------


@router.get("/sendings")
@asks(Action.READ)
async def list_sendings(desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None) -> Page[Sending]:
    """What was sent by units you may see, the newest first."""
    found = await sending.list_sendings(desk, actor, unit_id=unit, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda row: row.id, item=Sending.of)


@router.post("/sendings", status_code=201)
@asks(Action.SEND)
async def send_bulletin(
    desk: DeskDep, actor: ActorDep, form: SendingForm, locale: LocaleDep, response: Response
) -> SendingDetail:
    """Send a bulletin down; priority and emergency have their place in the answer already."""
    made = await sending.send_bulletin(
        desk,
        actor,
        NewSending(
            unit_id=form.unit_id,
            bulletin_id=form.bulletin_id,
            basis=form.basis,
            deadline=form.deadline,
            unit_ids=form.unit_ids,
            below=form.below,
            kinds=form.kinds,
            version_id=form.version_id,
            language=form.language,
            earliest=form.earliest,
            latest=form.latest,
            times=form.times,
            valid_to=form.valid_to,
            confirm=form.confirm,
        ),
        None if form.proof is None else form.proof.given(),
    )
    response.headers["Location"] = f"/api/v1/sendings/{made.sending.id}"
    return SendingDetail.viewed(made, locale)


@router.get("/sendings/{sending_id}")
@asks(Action.READ)
async def get_sending(desk: DeskDep, actor: ActorDep, sending_id: IdPath, locale: LocaleDep) -> SendingDetail:
    """One sending, unit by unit."""
    return SendingDetail.viewed(await sending.get_sending(desk, actor, sending_id), locale)


@router.post("/sendings/{sending_id}/recall")
@asks(Action.SEND)
async def recall_sending(
    desk: DeskDep, actor: ActorDep, sending_id: IdPath, form: NoteForm, locale: LocaleDep
) -> SendingDetail:
    """Take it back: out of every inbox, off every plan and off the air."""
    return SendingDetail.viewed(await sending.recall(desk, actor, sending_id, form.note), locale)


@router.post("/sendings/{sending_id}/correction", status_code=201)
@asks(Action.SEND)
async def correct_sending(
    desk: DeskDep, actor: ActorDep, sending_id: IdPath, form: CorrectionForm, locale: LocaleDep, response: Response
) -> SendingDetail:
    """Send a newer version after it, down the same road."""
    request = Correction(
        sending_id, form.note, form.deadline, form.version_id, form.earliest, form.latest, form.valid_to
    )
    made = await sending.correct(desk, actor, request, None if form.proof is None else form.proof.given())
    response.headers["Location"] = f"/api/v1/sendings/{made.sending.id}"
    return SendingDetail.viewed(made, locale)


# -- routes: the unit -------------------------------------------------------------------------------------------------


@router.get("/arrivals")
@asks(Action.READ)
async def list_arrivals(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    locale: LocaleDep,
    unit: IdQuery = None,
    state: Annotated[ArrivalState | None, Query()] = None,
) -> Page[Arrival]:
    """The inbox: what was sent to units you may see, the newest first."""
    found = await sending.list_arrivals(desk, actor, unit_id=unit, state=state, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda view: view.arrival.id, item=lambda view: Arrival.of(view, locale))


@router.get("/arrivals/{arrival_id}")
@asks(Action.READ)
async def get_arrival(desk: DeskDep, actor: ActorDep, arrival_id: IdPath, locale: LocaleDep) -> Arrival:
    """One arrival, for its unit and for the sender."""
    return Arrival.of(await sending.get_arrival(desk, actor, arrival_id), locale)


@router.post("/arrivals/{arrival_id}/receipt")
@asks(Action.SCHEDULE)
async def receive_arrival(desk: DeskDep, actor: ActorDep, arrival_id: IdPath, locale: LocaleDep) -> Arrival:
    """Say that the unit has seen it."""
    return Arrival.of(await sending.receive(desk, actor, arrival_id), locale)


@router.post("/arrivals/{arrival_id}/schedule", status_code=201)
@asks(Action.SCHEDULE)
async def schedule_arrival(
    desk: DeskDep, actor: ActorDep, arrival_id: IdPath, form: PlaceForm, locale: LocaleDep
) -> ArrivalPlaced:
    """Give it a place on the air."""
    request = ScheduleArrival(
        starts=tuple(form.starts),
        targets=tuple(Target(one.kind, one.ref) for one in form.targets),
        max_wait=timedelta(milliseconds=round(form.max_wait_s * 1000)),
        late=Late() if form.late is None else form.late.asked(),
        gain_db=form.gain_db,
        accept_conflicts=form.accept_conflicts,
    )
    view, preview = await sending.schedule_arrival(desk, actor, arrival_id, request)
    return ArrivalPlaced(**Arrival.of(view, locale).model_dump(), preview=PreviewShown.of(preview, locale))


@router.post("/arrivals/{arrival_id}/play", status_code=201)
@asks(Action.PLAY_NOW)
async def play_arrival(
    desk: DeskDep, actor: ActorDep, arrival_id: IdPath, form: PlayForm, locale: LocaleDep
) -> ArrivalPlaced:
    """Sound it now."""
    view, playing = await sending.play_arrival(
        desk, actor, arrival_id, queue=form.queue, accept_conflicts=form.accept_conflicts
    )
    return ArrivalPlaced(**Arrival.of(view, locale).model_dump(), preview=PreviewShown.of(playing.preview, locale))


@router.post("/arrivals/{arrival_id}/refusal")
@asks(Action.SCHEDULE)
async def refuse_arrival(
    desk: DeskDep, actor: ActorDep, arrival_id: IdPath, form: NoteForm, locale: LocaleDep
) -> Arrival:
    """Say no, with a reason the sender reads."""
    return Arrival.of(await sending.refuse(desk, actor, arrival_id, form.note), locale)
