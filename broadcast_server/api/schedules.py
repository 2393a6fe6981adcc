"""Schedules (lịch phát) over HTTP: place, change, cancel, play now, stop; what will sound, and why.

What displaces something is refused as `schedule_conflict` with every conflict and its ways out, until the same request
says `accept_conflicts`. Times are RFC 3339 with an offset; a rule's wall times are local and carry none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Response
from pydantic import AwareDatetime, Field, StringConstraints

from broadcast_server.api.bulletins import Language, Title
from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, LocaleDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.catalogue import Locale, has_sentence, sentence
from broadcast_server.control import outlook, playing, scheduling
from broadcast_server.control.access import Action
from broadcast_server.control.clashes import Clash, Effect, Notice, Party, Preview
from broadcast_server.control.outlook import Explanation, Hearing, Missing, Sounding
from broadcast_server.control.playing import PlayNow
from broadcast_server.control.scheduling import (
    CancelSchedule,
    ChangeSchedule,
    NewSchedule,
    Placed,
    ScheduleChange,
    ScheduleQuery,
    ScheduleView,
    Scope,
)
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import BroadcastError, Invalid
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import Once, Rule, rule_from_dict
from broadcast_server.store.words import ContentKind, ExceptionKind, ScheduleKind, ScheduleState
from speaker_protocol.rules import BulletinClass, Late, LatePolicy

router = Router(tags=["schedules"], route_class=IdempotentRoute)

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Length = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=-60, le=12, allow_inf_nan=False)]
Times = Annotated[list[Annotated[str, StringConstraints(max_length=20)]], Field(min_length=1, max_length=96)]
Dates = Annotated[list[Annotated[str, StringConstraints(max_length=40)]], Field(max_length=400)]
EntryPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}@\d{1,15}$")]


# -- forms ------------------------------------------------------------------------------------------------------------


class TargetForm(Form):
    """Where: everything under a unit, a group, or one cluster, by id."""

    kind: TargetKind
    ref: Id


Targets = Annotated[list[TargetForm], Field(max_length=500)]


class RuleForm(Form):
    """When: `once` at an instant; `weekly` at times; `rrule` from a local start; `lunar` on a day (âm lịch).

    `times`, `start`, `exdates` and `rdates` are local wall time.
    """

    kind: Literal["once", "weekly", "rrule", "lunar"]
    at: AwareDatetime | None = None
    weekdays: Annotated[list[Literal["mo", "tu", "we", "th", "fr", "sa", "su"]], Field(max_length=7)] | None = None
    times: Times | None = None
    text: Annotated[str, StringConstraints(max_length=500)] | None = None
    start: Annotated[str, StringConstraints(max_length=40)] | None = None
    day: Annotated[int, Field(ge=-1, le=30)] | None = None
    month: Annotated[int, Field(ge=1, le=12)] | None = None
    from_date: Annotated[str, StringConstraints(max_length=10)] | None = None
    until_date: Annotated[str, StringConstraints(max_length=10)] | None = None
    exdates: Dates | None = None
    rdates: Dates | None = None

    def asked(self, field: str = "rule") -> Rule:
        """As the domain has it. Raises `Invalid` naming the field."""
        told = self.model_dump(exclude_none=True)
        if self.at is not None:
            told["at"] = self.at.isoformat()
        try:
            return rule_from_dict(told)
        except BroadcastError as error:
            inner = error.facts.get("field")
            facts = {**error.facts, "field": f"{field}.{inner}" if inner else field}
            raise type(error)(error.code, **facts) from None


class LateForm(Form):
    """What to do when it cannot begin in time; `at_most_s` with the two policies that wait."""

    policy: LatePolicy
    at_most_s: Seconds | None = None

    def asked(self) -> Late:
        """As the rules have it. Raises `Invalid`."""
        try:
            return Late(self.policy, None if self.at_most_s is None else round(self.at_most_s * 1000))
        except ValueError:
            raise Invalid("late_at_most", field="late.at_most_s", fix="at_most_with_waiting_only") from None


class ContentForm(Form):
    """What: exactly one of a bulletin, a programme and a feed."""

    bulletin_id: Id | None = None
    programme_id: Id | None = None
    feed_id: Id | None = None

    def content(self) -> tuple[ContentKind, str]:
        """Kind and id. Raises `Invalid` unless exactly one is given."""
        given = [
            (kind, content_id)
            for kind, content_id in (
                (ContentKind.BULLETIN, self.bulletin_id),
                (ContentKind.PROGRAMME, self.programme_id),
                (ContentKind.FEED, self.feed_id),
            )
            if content_id is not None
        ]
        if len(given) != 1:
            raise Invalid("one_of", field="bulletin_id", names="bulletin_id, programme_id, feed_id", fix="name_one")
        return given[0]


class ScheduleForm(ContentForm):
    """What should sound, when and where. `starts_at` is short for a rule that happens once; no targets: the whole unit.

    `length_s`: a relay needs it; `max_wait_s`: how long it may wait for its turn.
    """

    unit_id: Id
    rule: RuleForm | None = None
    starts_at: AwareDatetime | None = None
    targets: Targets = Field(default_factory=list)
    name: Title | None = None
    language: Language = "vie"
    length_s: Length | None = None
    max_wait_s: Seconds = 0
    late: LateForm | None = None
    tie_order: Annotated[int, Field(ge=-1000, le=1000)] = 0
    gain_db: Gain = 0.0
    accept_conflicts: bool = False

    def asked(self) -> NewSchedule:
        """As the verb takes it. Raises `Invalid`."""
        kind, content_id = self.content()
        if (self.rule is None) is (self.starts_at is None):
            raise Invalid("one_of", field="rule", names="rule, starts_at", fix="name_one")
        rule = _once(self.starts_at) if self.starts_at is not None else _rule(self.rule)
        return NewSchedule(
            unit_id=self.unit_id,
            content_kind=kind,
            content_id=content_id,
            rule=rule,
            targets=_targets(self.targets),
            name=self.name,
            language=self.language,
            length=_seconds(self.length_s),
            max_wait=timedelta(milliseconds=round(self.max_wait_s * 1000)),
            late=Late() if self.late is None else self.late.asked(),
            tie_order=self.tie_order,
            gain_db=self.gain_db,
            accept_conflicts=self.accept_conflicts,
        )


class ChangeForm(ContentForm):
    """What should be different. Of `this` only `moved_to`, `length_s`; `occurrence`: the instant the rule gives."""

    scope: Scope
    occurrence: AwareDatetime | None = None
    moved_to: AwareDatetime | None = None
    rule: RuleForm | None = None
    targets: Targets | None = None
    name: Title | None = None
    language: Language | None = None
    length_s: Length | None = None
    max_wait_s: Seconds | None = None
    late: LateForm | None = None
    tie_order: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    gain_db: Gain | None = None
    accept_conflicts: bool = False

    def asked(self, schedule_id: str, version: int | None) -> ChangeSchedule:
        """As the verb takes it. Raises `Invalid`."""
        has_content = (self.bulletin_id, self.programme_id, self.feed_id) != (None, None, None)
        kind, content_id = self.content() if has_content else (None, None)
        change = ScheduleChange(
            moved_to=self.moved_to,
            length=_seconds(self.length_s),
            rule=None if self.rule is None else _rule(self.rule, "change.rule"),
            name=self.name,
            content_kind=kind,
            content_id=content_id,
            targets=None if self.targets is None else _targets(self.targets),
            language=self.language,
            max_wait=_seconds(self.max_wait_s),
            late=None if self.late is None else self.late.asked(),
            tie_order=self.tie_order,
            gain_db=self.gain_db,
        )
        return ChangeSchedule(schedule_id, self.scope, change, self.occurrence, version, self.accept_conflicts)


class CancelForm(Form):
    """How much to take off: this occurrence, from here on, or all."""

    scope: Scope
    occurrence: AwareDatetime | None = None


class PlayNowForm(ContentForm):
    """Sound at once. `queue`: wait for the air up to an hour rather than be refused."""

    unit_id: Id
    targets: Targets = Field(default_factory=list)
    language: Language = "vie"
    length_s: Length | None = None
    gain_db: Gain = 0.0
    queue: bool = False
    accept_conflicts: bool = False

    def asked(self) -> PlayNow:
        """As the verb takes it. Raises `Invalid`."""
        kind, content_id = self.content()
        return PlayNow(
            unit_id=self.unit_id,
            content_kind=kind,
            content_id=content_id,
            targets=_targets(self.targets),
            language=self.language,
            length=_seconds(self.length_s),
            gain_db=self.gain_db,
            queue=self.queue,
            accept_conflicts=self.accept_conflicts,
        )


class StopForm(Form):
    """Which occurrence to end."""

    entry_id: EntryPath


def _once(at: datetime) -> Rule:
    return Rule(Once(at.astimezone(LOCAL).replace(tzinfo=None)))


def _rule(form: RuleForm | None, field: str = "rule") -> Rule:
    if form is None:
        raise Invalid("missing_field", field=field, fix="add_field")
    return form.asked(field)


def _targets(forms: list[TargetForm]) -> tuple[Target, ...]:
    return tuple(Target(form.kind, form.ref) for form in forms)


def _seconds(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(milliseconds=round(seconds * 1000))


# -- shown ------------------------------------------------------------------------------------------------------------


class TargetShown(Shown):
    """Where it sounds."""

    kind: TargetKind
    ref: str


class ExceptionShown(Shown):
    """One occurrence that differs."""

    occurs_at: datetime
    kind: ExceptionKind
    moved_to: datetime | None
    length_ms: int | None
    cut_at: datetime | None


class Schedule(Shown):
    """A schedule as it stands. `level`: its rung of the ladder; `series_id`: kept by a change from here on.

    `is_approved`: its place needs no approval or has one over exactly `placement_hash`; without it nothing sounds.
    """

    id: str
    series_id: str
    unit_id: str
    name: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    content_kind: ContentKind
    content_id: str
    language: str
    rule: dict[str, Any]
    targets: list[TargetShown]
    length_ms: int | None
    max_wait_ms: int
    late: dict[str, Any]
    tie_order: int
    gain_db: float
    required: bool
    state: ScheduleState
    starts_at: datetime
    ends_at: datetime | None
    exceptions: list[ExceptionShown]
    needs_approval: bool
    placement_hash: str
    approved_by: str | None
    approved_at: datetime | None
    is_approved: bool
    key: str | None
    created_by: str
    created_at: datetime
    version: int

    @classmethod
    def of(cls, view: ScheduleView) -> Schedule:
        """As callers see it."""
        return cls.model_validate(view, from_attributes=True)


class PartyShown(Shown):
    """One side of a conflict."""

    entry_id: str
    schedule_id: str
    unit_id: str
    title: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    start: datetime
    end: datetime

    @classmethod
    def of(cls, party: Party) -> PartyShown:
        """As callers see it."""
        return cls.model_validate(party, from_attributes=True)


class WayOutShown(Shown):
    """A way out of a conflict."""

    way: str
    sentence: str
    facts: dict[str, Any]


class ClashShown(Shown):
    """A conflict: who loses what to whom, by which rule, and the ways out."""

    effect: Effect
    at: datetime
    until: datetime | None
    loser: PartyShown
    winner: PartyShown | None
    reason: str
    sentence: str
    is_of_change: bool
    clusters: int
    times: int
    ways_out: list[WayOutShown]

    @classmethod
    def of(cls, clash: Clash, locale: Locale) -> ClashShown:
        """As callers see it."""
        return cls(
            effect=clash.effect,
            at=clash.at,
            until=clash.until,
            loser=PartyShown.of(clash.loser),
            winner=None if clash.winner is None else PartyShown.of(clash.winner),
            reason=clash.reason,
            sentence=sentence(clash.reason, _clash_words(clash), locale),
            is_of_change=clash.is_of_change,
            clusters=clash.clusters,
            times=clash.times,
            ways_out=[
                WayOutShown(
                    way=out.way.value,
                    sentence=sentence(f"way_{out.way.value}", out.facts, locale),
                    facts=dict(out.facts),
                )
                for out in clash.ways_out
            ],
        )


class StretchShown(Shown):
    """What is placed or changed sounds in `[start, end)` on so many clusters."""

    entry_id: str
    start: datetime
    end: datetime
    offset_ms: int
    clusters: int


class NoticeShown(Shown):
    """Something to know although it stops nothing."""

    code: str
    sentence: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, notice: Notice, locale: Locale) -> NoticeShown:
        """As callers see it."""
        return cls(code=notice.code, sentence=sentence(notice.code, notice.facts, locale), facts=dict(notice.facts))


class PreviewShown(Shown):
    """What a change does; conflicts were looked for in `[looked_from, looked_until)`."""

    clusters: int
    stretches: list[StretchShown]
    clashes: list[ClashShown]
    notices: list[NoticeShown]
    looked_from: datetime
    looked_until: datetime

    @classmethod
    def of(cls, preview: Preview, locale: Locale) -> PreviewShown:
        """As callers see it."""
        return cls(
            clusters=preview.clusters,
            stretches=[StretchShown.model_validate(one, from_attributes=True) for one in preview.stretches],
            clashes=[ClashShown.of(one, locale) for one in preview.clashes],
            notices=[NoticeShown.of(one, locale) for one in preview.notices],
            looked_from=preview.looked_from,
            looked_until=preview.looked_until,
        )


class SchedulePlaced(Schedule):
    """A schedule that was saved, and what it does."""

    preview: PreviewShown

    @classmethod
    def placed(cls, made: Placed, locale: Locale) -> SchedulePlaced:
        """As callers see it."""
        shown = Schedule.of(made.schedule).model_dump()
        return cls(**shown, preview=PreviewShown.of(made.preview, locale))


class PlayingShown(Shown):
    """When a play-now really sounds; both instants null: nowhere."""

    entry_id: str
    schedule: Schedule
    starts_at: datetime | None
    latest_start_at: datetime | None
    preview: PreviewShown


class StoppedShown(Shown):
    """An occurrence that was stopped."""

    entry_id: str
    cut_at: datetime
    heard_ms: int


class SoundingShown(Shown):
    """What will sound in `[start, end)`."""

    entry_id: str
    schedule_id: str
    unit_id: str
    title: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    start: datetime
    end: datetime
    offset_ms: int
    feed_id: str | None
    asset_sha256: str | None
    language: str

    @classmethod
    def of(cls, sounding: Sounding) -> SoundingShown:
        """As callers see it."""
        return cls.model_validate(sounding, from_attributes=True)


class MissingShown(Shown):
    """What was meant to sound and will not, and why."""

    entry_id: str
    schedule_id: str
    title: str
    at: datetime
    code: str
    sentence: str
    rule: str
    rule_sentence: str
    until: str | None
    until_sentence: str
    winner_id: str | None
    winner_title: str | None
    facts: dict[str, Any]

    @classmethod
    def of(cls, missing: Missing, locale: Locale) -> MissingShown:
        """As callers see it."""
        facts = _shown_facts(missing.facts)
        return cls(
            entry_id=missing.entry_id,
            schedule_id=missing.schedule_id,
            title=missing.title,
            at=missing.at,
            code=missing.code,
            sentence=sentence(missing.code, {"title": missing.title, **facts}, locale),
            **_grounds(missing.code, {"title": missing.title, **facts}, locale),
            facts=facts,
        )


class HearingShown(Shown):
    """The line of clusters that hear the same."""

    cluster_ids: list[str]
    segments: list[SoundingShown]
    missing: list[MissingShown]

    @classmethod
    def of(cls, hearing: Hearing, locale: Locale) -> HearingShown:
        """As callers see it."""
        return cls(
            cluster_ids=list(hearing.cluster_ids),
            segments=[SoundingShown.of(one) for one in hearing.segments],
            missing=[MissingShown.of(one, locale) for one in hearing.missing],
        )


class ExplanationShown(Shown):
    """Why a cluster sounds, or does not, at an instant."""

    cluster_id: str
    at: datetime
    code: str
    sentence: str
    rule: str | None
    rule_sentence: str | None
    until: str | None
    until_sentence: str | None
    winner_id: str | None
    winner_title: str | None
    facts: dict[str, Any]
    sounding: SoundingShown | None
    missing: list[MissingShown]
    reported: list[dict[str, Any]]

    @classmethod
    def of(cls, told: Explanation, locale: Locale) -> ExplanationShown:
        """As callers see it."""
        facts = _shown_facts(told.facts)
        return cls(
            cluster_id=told.cluster_id,
            at=told.at,
            code=told.code,
            sentence=sentence(told.code, facts, locale),
            **_grounds(told.code, facts, locale),
            facts=facts,
            sounding=None if told.sounding is None else SoundingShown.of(told.sounding),
            missing=[MissingShown.of(one, locale) for one in told.missing],
            reported=[dict(one) for one in told.reported],
        )


_NO_GROUNDS: Final = dict.fromkeys(("rule", "rule_sentence", "until", "until_sentence", "winner_id", "winner_title"))


def _grounds(code: str, facts: Mapping[str, Any], locale: Locale) -> dict[str, Any]:
    """Rule, winner and end of what was refused or lost, in words; nulls where nothing was."""
    rule = facts.get("rule")
    if rule is None:
        return dict(_NO_GROUNDS)
    until, ends_with = facts.get("until"), facts.get("ends_with")
    return {
        "rule": rule,
        "rule_sentence": sentence(code if code == f"node_{rule}" or not has_sentence(rule) else rule, facts, locale),
        "until": until,
        "until_sentence": sentence("until_instant" if ends_with is None else ends_with, facts, locale),
        "winner_id": facts.get("winner_id"),
        "winner_title": facts.get("winner_title"),
    }


def _shown_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: outlook.local_text(value) if isinstance(value, datetime) else value for name, value in facts.items()}


def _clash_words(clash: Clash) -> dict[str, Any]:
    winner = "" if clash.winner is None else clash.winner.title
    return {**clash.facts, "loser": clash.loser.title, "winner": winner, "at": outlook.local_text(clash.at)}


# -- routes: placing --------------------------------------------------------------------------------------------------


@router.get("/schedules")
@asks(Action.READ)
async def list_schedules(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit: IdQuery = None,
    state: Annotated[ScheduleState | None, Query()] = None,
    bulletin: IdQuery = None,
    programme: IdQuery = None,
    feed: IdQuery = None,
    series: IdQuery = None,
    coming: Annotated[bool, Query(description="only what has something to come")] = False,
) -> Page[Schedule]:
    """Schedules, the newest first: under a unit, of a content, of a series."""
    content = next(
        (
            (kind, content_id)
            for kind, content_id in (
                (ContentKind.BULLETIN, bulletin),
                (ContentKind.PROGRAMME, programme),
                (ContentKind.FEED, feed),
            )
            if content_id is not None
        ),
        None,
    )
    query = ScheduleQuery(unit, state, content, series, coming, paging.after, paging.fetch)
    found = await scheduling.list_schedules(desk, actor, query)
    return paging.page(found, key=lambda view: view.id, item=Schedule.of)


@router.post("/schedules", status_code=201)
@asks(Action.SCHEDULE)
async def create_schedule(
    desk: DeskDep, actor: ActorDep, form: ScheduleForm, locale: LocaleDep, response: Response
) -> SchedulePlaced:
    """Put something on the air, and see what it does."""
    placed = await scheduling.create_schedule(desk, actor, form.asked())
    response.headers["Location"] = f"/api/v1/schedules/{placed.schedule.id}"
    set_etag(response, placed.schedule.version)
    return SchedulePlaced.placed(placed, locale)


@router.post("/schedules/preview")
@asks(Action.SCHEDULE)
async def preview_schedule(desk: DeskDep, actor: ActorDep, form: ScheduleForm, locale: LocaleDep) -> PreviewShown:
    """What placing it would do; nothing is saved."""
    return PreviewShown.of(await scheduling.preview_schedule(desk, actor, form.asked()), locale)


@router.get("/schedules/{schedule_id}")
@asks(Action.READ)
async def get_schedule(desk: DeskDep, actor: ActorDep, schedule_id: IdPath, response: Response) -> Schedule:
    """One schedule."""
    view = await scheduling.get_schedule(desk, actor, schedule_id)
    set_etag(response, view.version)
    return Schedule.of(view)


@router.post("/schedules/{schedule_id}/change")
@asks(Action.SCHEDULE)
async def change_schedule(
    desk: DeskDep,
    actor: ActorDep,
    schedule_id: IdPath,
    form: ChangeForm,
    if_match: IfMatchDep,
    locale: LocaleDep,
    response: Response,
) -> SchedulePlaced:
    """Change this occurrence, from here on, or all that is still to come; the answer is the schedule in force then."""
    placed = await scheduling.change_schedule(desk, actor, form.asked(schedule_id, if_match))
    set_etag(response, placed.schedule.version)
    return SchedulePlaced.placed(placed, locale)


@router.post("/schedules/{schedule_id}/change/preview")
@asks(Action.SCHEDULE)
async def preview_change(
    desk: DeskDep, actor: ActorDep, schedule_id: IdPath, form: ChangeForm, locale: LocaleDep
) -> PreviewShown:
    """What the change would do; nothing is saved."""
    return PreviewShown.of(await scheduling.preview_change(desk, actor, form.asked(schedule_id, None)), locale)


@router.post("/schedules/{schedule_id}/cancel")
@asks(Action.SCHEDULE)
async def cancel_schedule(
    desk: DeskDep, actor: ActorDep, schedule_id: IdPath, form: CancelForm, if_match: IfMatchDep, response: Response
) -> Schedule:
    """Take this occurrence, from here on, or all that is still to come off the air."""
    request = CancelSchedule(schedule_id, form.scope, form.occurrence, if_match)
    view = await scheduling.cancel_schedule(desk, actor, request)
    set_etag(response, view.version)
    return Schedule.of(view)


@router.post("/play-now", status_code=201)
@asks(Action.PLAY_NOW)
async def play_now(desk: DeskDep, actor: ActorDep, form: PlayNowForm, locale: LocaleDep) -> PlayingShown:
    """Sound as soon as all nodes can begin together; tells when that really is."""
    made = await playing.play_now(desk, actor, form.asked())
    return PlayingShown(
        entry_id=made.entry_id,
        schedule=Schedule.of(made.schedule),
        starts_at=made.starts_at,
        latest_start_at=made.latest_start_at,
        preview=PreviewShown.of(made.preview, locale),
    )


@router.post("/stop")
@asks(Action.STOP)
async def stop(desk: DeskDep, actor: ActorDep, form: StopForm) -> StoppedShown:
    """End one occurrence that sounds or waits."""
    stopped = await playing.stop(desk, actor, form.entry_id)
    return StoppedShown.model_validate(stopped, from_attributes=True)


# -- routes: questions ------------------------------------------------------------------------------------------------


@router.get("/outlook")
@asks(Action.READ)
async def get_outlook(
    desk: DeskDep,
    actor: ActorDep,
    locale: LocaleDep,
    unit: IdQuery = None,
    cluster: IdQuery = None,
    since: Annotated[AwareDatetime | None, Query(alias="from", description="now if left out")] = None,
    until: Annotated[AwareDatetime | None, Query(description="a day later if left out")] = None,
) -> list[HearingShown]:
    """What will sound and what will not, by groups of clusters that hear the same: of a unit or of one cluster."""
    start = desk.clock.now() if since is None else since
    window = Window(start, start + timedelta(days=1) if until is None else until)
    if (unit is None) is (cluster is None):
        raise Invalid("one_of", field="unit", names="unit, cluster", fix="name_one")
    if unit is not None:
        hearings = await outlook.preview_unit(desk, actor, unit, window)
    else:
        hearings = (await outlook.preview_cluster(desk, actor, cluster or "", window),)
    return [HearingShown.of(hearing, locale) for hearing in hearings]


@router.get("/explain")
@asks(Action.READ)
async def explain(
    desk: DeskDep,
    actor: ActorDep,
    locale: LocaleDep,
    cluster: Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")],
    at: Annotated[AwareDatetime, Query(description="any instant, past or to come")],
) -> ExplanationShown:
    """Why this cluster sounds, or does not, at this instant."""
    return ExplanationShown.of(await outlook.explain(desk, actor, cluster, at), locale)
