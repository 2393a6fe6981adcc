"""Khẩn cấp and stop-all over HTTP: two people raise it, one ends it; and node by node how far it came."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, ProofForm, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import consents, emergency
from broadcast_server.control.access import Action
from broadcast_server.control.emergency import (
    Correction,
    DeliveryQuery,
    EmergencyQuery,
    EmergencyView,
    Message,
    NewEmergency,
    Rounds,
    StopAllView,
)
from broadcast_server.domain.consent import ConsentRole
from broadcast_server.domain.delivery import DeliveryState
from broadcast_server.domain.errors import Invalid
from broadcast_server.store.deliveries import Shown as Delivered
from broadcast_server.store.words import EmergencyMode, EmergencyNature, EmergencyState

router = Router(tags=["emergencies"], route_class=IdempotentRoute)

Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,40}$")]
Line = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00]*$")]
Speech = Annotated[str, StringConstraints(min_length=1, max_length=emergency.TEXT_MAX, pattern=r"^[^\x00]+$")]
VoiceName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{3}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class MessageForm(Form):
    """What it says: a hazard the nodes have phrases for, a text, an approved bulletin, or several of these."""

    hazard: Code | None = None
    phrases: Annotated[tuple[Code, ...], Field(max_length=12)] = ()
    text: Speech | None = None
    voice: VoiceName = emergency.USUAL_VOICE
    bulletin_id: Id | None = None
    language: Language = "vie"

    def asked(self) -> Message:
        """As the verb takes it."""
        return Message(self.hazard, self.phrases, self.text, self.voice, self.bulletin_id, self.language)


class RoundsForm(Form):
    """How it goes round; what is left out is the node's usual figure. `every_min`: a round begins so often."""

    times: Annotated[int, Field(ge=1, le=20)] | None = None
    gap_ms: Annotated[int, Field(ge=0, le=60_000)] | None = None
    tone_ms: Annotated[int, Field(ge=4_000, le=10_000)] | None = None
    every_min: Annotated[int, Field(ge=1, le=emergency.LONGEST_MIN)] | None = None

    def asked(self) -> Rounds:
        """As the verb takes it."""
        return Rounds(self.times, self.gap_ms, self.tone_ms, self.every_min)


Minutes = Annotated[int, Field(ge=1, le=emergency.LONGEST_MIN)]


class EmergencyForm(Form):
    """An emergency for a second person to agree to. `confirm`: `KHẨN CẤP` for a real one, `DIỄN TẬP` for a drill."""

    unit_id: Id
    mode: EmergencyMode
    units: Annotated[tuple[Id, ...], Field(max_length=emergency.MOST_UNITS)] = ()
    message: MessageForm
    rounds: RoundsForm = RoundsForm()
    expires_min: Minutes = emergency.DEFAULT_MIN
    reason: Line
    confirm: Line
    proof: ProofForm

    def asked(self) -> NewEmergency:
        """As the verb takes it."""
        return NewEmergency(
            self.unit_id,
            self.mode,
            self.message.asked(),
            self.reason,
            self.confirm,
            self.units,
            self.rounds.asked(),
            self.expires_min,
        )


class ApprovalForm(Form):
    """Agree, as the second person, to exactly what was seen."""

    content_hash: Sha256
    confirm: Line
    proof: ProofForm


class RenewalForm(Form):
    """Agree anew, as the first person, to exactly what was seen."""

    content_hash: Sha256
    proof: ProofForm


class ReasonForm(Form):
    """Why."""

    reason: Line


class CorrectionForm(Form):
    """What is to take its place, once a second person agrees."""

    message: MessageForm
    rounds: RoundsForm = RoundsForm()
    expires_min: Minutes = emergency.DEFAULT_MIN
    reason: Line
    proof: ProofForm


class FinalForm(Form):
    """The last word. Without a text a ready one is said at once; with one, `proof` and a second person are needed."""

    text: Speech | None = None
    voice: VoiceName = emergency.USUAL_VOICE
    reason: Line
    proof: ProofForm | None = None


class StopAllForm(Form):
    """Silence these units and all below."""

    units: Annotated[tuple[Id, ...], Field(min_length=1, max_length=emergency.MOST_UNITS)]
    reason: Line


class CountsShown(Shown):
    """Nodes by how far it came. `holding`: nodes that still have it although it is over, as far as they told."""

    nodes: int
    received: int
    sounding: int
    heard: int
    unreached: int
    holding: int


class ConsentShown(Shown):
    """One person agreed to exactly `content_hash`."""

    login: str
    role: ConsentRole
    content_hash: str
    at: datetime


class Emergency(Shown):
    """An emergency. `stopped_by`: stop-alls in force over its places; `successor_id`: what stands in its place.

    `template_id`: one person raised it alone (break-glass); `agree_by`: until when a second person may agree to it.
    """

    id: str
    unit_id: str
    units: list[str]
    state: EmergencyState
    mode: EmergencyMode
    nature: EmergencyNature
    replaces_id: str | None
    template_id: str | None
    successor_id: str | None
    level: int
    hazard: str | None
    phrases: list[str]
    text: str | None
    voice: str | None
    bulletin_version_id: str | None
    asset_sha256: str | None
    speech_error: str | None
    tone_ms: int | None
    times: int | None
    gap_ms: int | None
    every_min: int | None
    expires_min: int
    content_hash: str
    reason: str
    proposed_by: str
    proposed_at: datetime
    approved_by: str | None
    launched_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
    ended_by: str | None
    end_reason: str | None
    is_in_force: bool
    stopped_by: list[str]
    consents: list[ConsentShown]
    agree_by: datetime | None
    counts: CountsShown

    @classmethod
    def of(cls, view: EmergencyView) -> Emergency:
        """As callers see it."""
        told: dict[str, Any] = {
            "successor_id": view.successor_id,
            "is_in_force": view.is_in_force,
            "stopped_by": list(view.stopped_by),
            "consents": [ConsentShown.model_validate(one, from_attributes=True) for one in view.consents],
            "agree_by": view.agree_by,
            "counts": CountsShown.model_validate(view.counts, from_attributes=True),
        }
        own = {name: getattr(view.row, name) for name in cls.model_fields if name not in told}
        return cls(**own, **told)


class StopAll(Shown):
    """A stop-all: in force until `released_at`."""

    id: str
    unit_id: str
    since: datetime
    set_by: str
    reason: str | None
    released_at: datetime | None
    released_by: str | None
    release_reason: str | None
    counts: CountsShown

    @classmethod
    def of(cls, view: StopAllView) -> StopAll:
        """As callers see it."""
        own = {name: getattr(view.row, name) for name in cls.model_fields if name != "counts"}
        return cls(**own, counts=CountsShown.model_validate(view.counts, from_attributes=True))


class Delivery(Shown):
    """How it came to one node. `reason` and `since`: why it is unreached, or did not sound, and since when."""

    node_id: str
    unit_id: str
    cluster_id: str
    cluster_code: str
    cluster_name: str
    state: DeliveryState
    reason: str | None
    since: datetime | None
    rounds: int
    attempts: int
    sent_at: datetime | None
    received_at: datetime | None
    sounding_at: datetime | None
    heard_at: datetime | None
    cleared_at: datetime | None

    @classmethod
    def of(cls, delivered: Delivered) -> Delivery:
        """As callers see it."""
        return cls.model_validate(delivered, from_attributes=True)


InForce = Annotated[bool, Query(description="only what is in force")]
Unreached = Annotated[bool, Query(description="only nodes it did not reach, with the reason")]
State = Annotated[DeliveryState | None, Query()]


@router.get("/emergencies")
@asks(Action.READ)
async def list_emergencies(
    desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None, in_force: InForce = False
) -> Page[Emergency]:
    """Emergencies, the newest first: of what one may see, and launched above it."""
    found = await emergency.list_emergencies(desk, actor, EmergencyQuery(unit, in_force, paging.after, paging.fetch))
    return paging.page(found, key=lambda view: view.row.id, item=Emergency.of)


@router.post("/emergencies", status_code=201)
@asks(Action.EMERGENCY_PROPOSE)
async def propose_emergency(desk: DeskDep, actor: ActorDep, form: EmergencyForm, response: Response) -> Emergency:
    """Raise an emergency or a drill; it sounds as soon as a second person has agreed to it."""
    return _made(await consents.propose(desk, actor, form.asked(), form.proof.given()), response)


@router.get("/emergencies/{emergency_id}")
@asks(Action.READ)
async def get_emergency(desk: DeskDep, actor: ActorDep, emergency_id: IdPath) -> Emergency:
    """One emergency and how far it came."""
    return Emergency.of(await emergency.get_emergency(desk, actor, emergency_id))


@router.get("/emergencies/{emergency_id}/deliveries")
@asks(Action.READ)
async def list_emergency_deliveries(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    emergency_id: IdPath,
    unreached: Unreached = False,
    state: State = None,
) -> Page[Delivery]:
    """How it came to each node; `unreached=true`: whom it did not reach, and why."""
    query = DeliveryQuery(unreached, state, paging.after, paging.fetch)
    found = await emergency.list_deliveries(desk, actor, emergency_id, query)
    return paging.page(found, key=lambda one: one.node_id, item=Delivery.of)


@router.post("/emergencies/{emergency_id}/approval")
@asks(Action.EMERGENCY_LAUNCH)
async def approve_emergency(desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: ApprovalForm) -> Emergency:
    """Be the second person: it sounds at once, exactly as it was seen."""
    view = await consents.approve(
        desk, actor, emergency_id, form.proof.given(), content_hash=form.content_hash, confirm=form.confirm
    )
    return Emergency.of(view)


@router.post("/emergencies/{emergency_id}/consent")
@asks(Action.EMERGENCY_PROPOSE)
async def renew_emergency(desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: RenewalForm) -> Emergency:
    """Agree anew, as the first person, to what nobody launched within a quarter of an hour."""
    view = await consents.renew(desk, actor, emergency_id, form.proof.given(), content_hash=form.content_hash)
    return Emergency.of(view)


@router.post("/emergencies/{emergency_id}/cancellation")
@asks(Action.EMERGENCY_LAUNCH, Action.EMERGENCY_PROPOSE)
async def cancel_emergency(desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: ReasonForm) -> Emergency:
    """Silence it at once, or withdraw a proposal."""
    return Emergency.of(await emergency.cancel(desk, actor, emergency_id, reason=form.reason))


@router.post("/emergencies/{emergency_id}/correction", status_code=201)
@asks(Action.EMERGENCY_PROPOSE)
async def correct_emergency(
    desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: CorrectionForm, response: Response
) -> Emergency:
    """Propose a correction for the same places; to silence what is wrong needs nobody else."""
    request = Correction(emergency_id, form.message.asked(), form.reason, form.rounds.asked(), form.expires_min)
    return _made(await consents.correct(desk, actor, request, form.proof.given()), response)


@router.post("/emergencies/{emergency_id}/final", status_code=201)
@asks(Action.EMERGENCY_LAUNCH, Action.EMERGENCY_PROPOSE)
async def finish_emergency(
    desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: FinalForm, response: Response
) -> Emergency:
    """Silence it and say once, in ready words, that it is over; or propose words of one's own."""
    if form.text is None:
        view = await emergency.finish(desk, actor, emergency_id, reason=form.reason, voice=form.voice)
        return _made(view, response)
    if form.proof is None:
        raise Invalid("proof_missing", field="proof", fix="give_proof")
    view = await consents.finish(
        desk, actor, emergency_id, form.proof.given(), reason=form.reason, text=form.text, voice=form.voice
    )
    return _made(view, response)


@router.get("/stop-alls")
@asks(Action.READ)
async def list_stop_alls(
    desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None, in_force: InForce = False
) -> Page[StopAll]:
    """Stop-alls, the newest first."""
    found = await emergency.list_stop_alls(desk, actor, EmergencyQuery(unit, in_force, paging.after, paging.fetch))
    return paging.page(found, key=lambda view: view.row.id, item=StopAll.of)


@router.post("/stop-alls", status_code=201)
@asks(Action.STOP_ALL)
async def stop_all(desk: DeskDep, actor: ActorDep, form: StopAllForm) -> list[StopAll]:
    """Silence everything at these units and below, until released."""
    return [StopAll.of(view) for view in await emergency.stop_all(desk, actor, form.units, reason=form.reason)]


@router.get("/stop-alls/{stop_all_id}")
@asks(Action.READ)
async def get_stop_all(desk: DeskDep, actor: ActorDep, stop_all_id: IdPath) -> StopAll:
    """One stop-all and how far it came."""
    return StopAll.of(await emergency.get_stop_all(desk, actor, stop_all_id))


@router.get("/stop-alls/{stop_all_id}/deliveries")
@asks(Action.READ)
async def list_stop_all_deliveries(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    stop_all_id: IdPath,
    unreached: Unreached = False,
    state: State = None,
) -> Page[Delivery]:
    """How it came to each node."""
    query = DeliveryQuery(unreached, state, paging.after, paging.fetch)
    found = await emergency.list_stop_all_deliveries(desk, actor, stop_all_id, query)
    return paging.page(found, key=lambda one: one.node_id, item=Delivery.of)


@router.post("/stop-alls/{stop_all_id}/release")
@asks(Action.STOP_ALL)
async def release_stop_all(desk: DeskDep, actor: ActorDep, stop_all_id: IdPath, form: ReasonForm) -> StopAll:
    """Let the unit sound again."""
    return StopAll.of(await emergency.release(desk, actor, stop_all_id, reason=form.reason))


def _made(view: EmergencyView, response: Response) -> Emergency:
    response.headers["Location"] = f"/api/v1/emergencies/{view.row.id}"
    return Emergency.of(view)
