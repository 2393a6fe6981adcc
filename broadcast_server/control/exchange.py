"""Schedule documents in and out: `schedules/*.yaml` and iCalendar become rows, rows become documents.

Audio is prepared first, then all is written in one transaction: a document is imported whole or not at all. A
maintainer must not break: things are found again by `key` (of the same unit), so importing twice changes nothing;
import → export → import is identity on the normal form (`control.documents`); every verb's own guards hold for an
import too, their refusals told with file, line and fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from broadcast_server.control import access, approvals, documents, library, scheduling
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Preview
from broadcast_server.control.desk import Desk
from broadcast_server.control.documents import (
    BulletinForm,
    Document,
    ItemForm,
    Marks,
    ProgrammeForm,
    ScheduleForm,
    TargetForm,
    VersionForm,
    duration_of,
    instant_of,
)
from broadcast_server.control.library import Audio, ItemRole, NewBulletin, NewProgramme, ProgrammeItem
from broadcast_server.control.places import check_exception, policy_in_force_body
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Invalid, NotFound
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.policy import policy_from_dict, policy_to_dict
from broadcast_server.domain.recurrence import Rule, rule_from_dict
from broadcast_server.store import audit, feeds, fleet, places, schedules
from broadcast_server.store import library as shelf
from broadcast_server.store.schedules import late_from_dict
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    BulletinRow,
    BulletinVersionRow,
    PolicyRow,
    ProgrammeRow,
    ScheduleExceptionRow,
    ScheduleRow,
)
from broadcast_server.store.types import fold
from broadcast_server.store.words import (
    ContentKind,
    ExceptionKind,
    MediaKind,
    ScheduleKind,
    ScheduleState,
    VersionState,
)

_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Import:
    """A document to take in. `folder`: where its recordings lie; None: it may name none."""

    document: Document
    marks: Marks
    unit_id: str
    folder: Path | None = None
    anchor: datetime | None = None
    accept_conflicts: bool = False


@dataclass(slots=True)
class ImportedDocument:
    """What an import did, by key."""

    policy: bool = False
    bulletins: list[str] = field(default_factory=list)
    programmes: list[str] = field(default_factory=list)
    schedules: dict[str, str] = field(default_factory=dict)
    """Key to id of every schedule of the document, also of those that stayed."""
    unchanged: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Submitted, for whoever imports may not approve what they bring; it sounds once somebody else has."""
    previews: dict[str, Preview] = field(default_factory=dict)


# -- import -----------------------------------------------------------------------------------------------------------


async def import_document(desk: Desk, actor: Actor, request: Import) -> ImportedDocument:
    """Make a unit's schedule what the document says. Raises as the verbs do, with file, line and fix; then nothing is
    imported.
    """
    now = desk.clock.now()
    if request.anchor is not None and request.anchor.tzinfo is None:
        raise Invalid("naive_time", field="anchor", fix="add_offset")

    def look(session: Session) -> _Known:
        access.authorize(session, actor, Action.READ, request.unit_id, at=now)
        return _Known.read(session, request.unit_id)

    known = await desk.store.read(look)
    audio = await _prepare_all(desk, request, known)

    def work(session: Session) -> ImportedDocument:
        return _Importer(session, desk, actor, request, audio, now).run()

    return await desk.store.begin(work)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the unit has already, as far as it spares preparing audio again."""

    texts: Mapping[tuple[str, str], tuple[str | None, str | None, str | None]]
    """(bulletin key, language) → text, voice, asset of the newest version."""
    sources: Mapping[str, str]
    """SHA-256 of a recording as it was handed in → its asset."""

    @classmethod
    def read(cls, session: Session, unit_id: str) -> _Known:
        texts = {}
        rows = {row.id: row.key or row.id for row in shelf.bulletins_of(session, unit_id)}
        for bulletin_id, versions in shelf.versions(session, tuple(rows)).items():
            for version in reversed(versions):
                texts[rows[bulletin_id], version.language] = (version.text, version.voice, version.asset_sha256)
        return cls(texts, shelf.asset_sources(session, unit_id))


_Prepared = Mapping[str, Audio | str]
"""Path in the document → fresh audio, or the asset that is there already."""


async def _prepare_all(desk: Desk, request: Import, known: _Known) -> _Prepared:
    """All audio the document needs, outside of any transaction."""
    made: dict[str, Audio | str] = {}
    marks = request.marks
    for number, bulletin in enumerate(request.document.bulletins):
        for place, version in enumerate(bulletin.versions):
            path = f"bulletins[{number}].versions[{place}]"
            with marks.at(path):
                made[path] = await _prepare_version(desk, request, known, bulletin.key, version)
    for number, programme in enumerate(request.document.programmes):
        for place, item in enumerate(programme.items):
            path = f"programmes[{number}].items[{place}]"
            with marks.at(path):
                if item.audio is not None:
                    made[path] = await _prepare_file(desk, request, known, item.audio)
    for number, programme in enumerate(request.document.programmes):
        path = f"programmes[{number}]"
        with marks.at(path):
            await _prepare_programme(desk, request, programme, path, made)
    return made


async def _prepare_version(desk: Desk, request: Import, known: _Known, key: str, version: VersionForm) -> Audio | str:
    if version.asset is not None:
        return version.asset
    if version.audio is not None:
        return await _prepare_file(desk, request, known, version.audio)
    assert version.text is not None  # noqa: S101 - the document was checked
    text, voice, asset = known.texts.get((key, version.language), (None, None, None))
    if text == version.text and asset is not None:
        is_spoken, was_spoken = desk.audio.speaker is not None or version.fallback_audio is None, voice is not None
        if (was_spoken and voice == version.voice) or not is_spoken:
            return asset
    if desk.audio.speaker is None and version.fallback_audio is not None:
        return await _prepare_file(desk, request, known, version.fallback_audio)
    return await library.spoken(desk, version.text, version.voice)


async def _prepare_file(desk: Desk, request: Import, known: _Known, name: str) -> Audio | str:
    if request.folder is None:
        raise Invalid("recording_needs_folder", field="audio", fix="name_an_asset")
    source = request.folder / name
    if not await desk.executor.run(source.is_file):
        raise NotFound("unknown_recording", field="audio", fix="check_path", name=name)
    digest = await desk.executor.run(library.digest_of, source)
    asset = known.sources.get(digest)
    if asset is not None and asset in desk.audio.assets:
        return asset
    return await library.recorded(desk, source)


async def _prepare_programme(
    desk: Desk, request: Import, programme: ProgrammeForm, path: str, made: dict[str, Audio | str]
) -> None:
    """Render what the document itself holds, or what the unit has approved."""
    own = {bulletin.key: number for number, bulletin in enumerate(request.document.bulletins)}
    parts: list[tuple[str, ItemRole, str]] = []
    for place, item in enumerate(programme.items):
        sha256 = item.asset
        if item.audio is not None:
            sha256 = _sha256(made[f"{path}.items[{place}]"])
        elif item.bulletin is not None and item.bulletin in own:
            form = request.document.bulletins[own[item.bulletin]]
            for number, version in enumerate(form.versions):
                if version.language == item.language:
                    sha256 = _sha256(made[f"bulletins[{own[item.bulletin]}].versions[{number}]"])
        elif item.bulletin is not None:
            sha256 = await desk.store.read(_approved_asset(request.unit_id, item))
        if sha256 is None:
            raise NotFound("unknown_bulletin", field=f"items[{place}]", fix="pick_content", bulletin=item.bulletin)
        parts.append((f"{place + 1}", item.role, sha256))
    made[path] = await library.rendered(desk, parts)


def _approved_asset(unit_id: str, item: ItemForm) -> Callable[[Session], str | None]:
    def look(session: Session) -> str | None:
        row = shelf.bulletin_of_key(session, unit_id, item.bulletin or "")
        version = None if row is None else shelf.approved_version(session, row.id, item.language)
        return None if version is None else version.asset_sha256

    return look


def _sha256(audio: Audio | str) -> str:
    return audio if isinstance(audio, str) else audio.sha256


class _Importer:
    """One import inside one transaction."""

    def __init__(
        self, session: Session, desk: Desk, actor: Actor, request: Import, audio: _Prepared, now: datetime
    ) -> None:
        self.session, self.desk, self.actor, self.request = session, desk, actor, request
        self.audio, self.now, self.marks = audio, now, request.marks
        self.unit_id = request.unit_id
        self.done = ImportedDocument()
        self.bulletins: dict[str, str] = {}
        self.programmes: dict[str, str] = {}

    def run(self) -> ImportedDocument:
        document = self.request.document
        access.authorize(self.session, self.actor, Action.SCHEDULE, self.unit_id, at=self.now)
        if document.policy is not None:
            with self.marks.at("policy"):
                self._policy(document.policy)
        for number, bulletin in enumerate(document.bulletins):
            with self.marks.at(f"bulletins[{number}]"):
                self.bulletins[bulletin.key] = self._bulletin(bulletin, f"bulletins[{number}]")
        for number, programme in enumerate(document.programmes):
            with self.marks.at(f"programmes[{number}]"):
                self.programmes[programme.key] = self._programme(programme, f"programmes[{number}]")
        for number, schedule in enumerate(document.schedules):
            self._schedule(schedule, f"schedules[{number}]")
        audit.append(
            self.session,
            now=self.now,
            actor=self.actor.login,
            verb="document.import",
            unit_id=self.unit_id,
            subject=f"unit/{self.unit_id}",
            detail={"file": Path(self.marks.file).name, "schedules": len(self.done.schedules)},
        )
        return self.done

    def _policy(self, told: Mapping[str, Any]) -> None:
        body = policy_to_dict(policy_from_dict(told))
        row = places.policy_row(self.session, self.unit_id)
        if row is not None and row.body == body:
            self.done.unchanged.append("policy")
            return
        access.authorize(self.session, self.actor, Action.POLICY_EDIT, self.unit_id, at=self.now)
        before = policy_in_force_body(self.session, self.unit_id, self.now)
        check_exception(self.session, self.actor, self.unit_id, before, body, self.now)
        if row is None:
            self.session.add(PolicyRow(unit_id=self.unit_id, body=body, updated_at=self.now, version=1))
        else:
            row.body, row.updated_at, row.version = body, self.now, row.version + 1
        self.session.flush()
        self.done.policy = True

    def _bulletin(self, form: BulletinForm, path: str) -> str:
        valid_from, valid_to = (None if each is None else instant_of(each) for each in (form.valid_from, form.valid_to))
        row = shelf.bulletin_of_key(self.session, self.unit_id, form.key)
        changed = row is None
        if row is None:
            request = NewBulletin(
                self.unit_id, form.title, form.klass, form.subject, valid_from, valid_to, key=form.key
            )
            row = library.enter_bulletin(self.session, self.actor, request, self.desk.chance.new_id(), self.now)
        else:
            if row.klass is not form.klass:
                raise Invalid("class_never_changes", field="class", fix="rename_key", key=form.key)
            if (row.title, row.subject, row.valid_from, row.valid_to) != (
                form.title,
                form.subject,
                valid_from,
                valid_to,
            ):
                access.authorize(self.session, self.actor, Action.BULLETIN_WRITE, self.unit_id, at=self.now)
                shelf.rename(row, form.title)
                if (row.valid_from, row.valid_to) != (valid_from, valid_to):
                    library.void_approvals(self.session, self.actor, row, self.now)
                row.subject, row.valid_from, row.valid_to = form.subject, valid_from, valid_to
                row.version, changed = row.version + 1, True
        for place, version in enumerate(form.versions):
            with self.marks.at(f"{path}.versions[{place}]"):
                changed |= self._version(row, form, version, self.audio[f"{path}.versions[{place}]"])
        self.done.bulletins.append(form.key) if changed else self.done.unchanged.append(form.key)
        return row.id

    def _version(self, bulletin: BulletinRow, form: BulletinForm, version: VersionForm, audio: Audio | str) -> bool:
        """Whether anything is new."""
        is_spoken = version.text is not None and version.audio is None and version.asset is None
        if is_spoken and version.fallback_audio is not None and self.desk.audio.speaker is None:
            is_spoken = False
        media = MediaKind.TEXT if is_spoken else MediaKind.AUDIO
        voice = version.voice if is_spoken else None
        newest = next(
            (
                row
                for row in shelf.versions(self.session, (bulletin.id,))[bulletin.id]
                if row.language == version.language and row.state is not VersionState.RECALLED
            ),
            None,
        )
        wanted = library.version_hash(text=version.text, voice=voice, asset_sha256=_sha256(audio))
        changed = newest is None or newest.content_hash != wanted
        if newest is None or changed:
            newest = library.enter_version(
                self.session,
                self.actor,
                bulletin,
                self.desk.chance.new_id(),
                self.now,
                language=version.language,
                media=media,
                text=version.text,
                voice=voice,
                audio=audio if isinstance(audio, Audio) else None,
                asset_sha256=audio if isinstance(audio, str) else None,
            )
        if form.approve and newest.state not in {VersionState.APPROVED, VersionState.SUBMITTED}:
            told = newest.content_hash
            approvals.enter_submission(self.session, self.actor, bulletin, newest, told, self.now)
            changed = True
        if form.approve and newest.state is VersionState.SUBMITTED:
            if approvals.may_approve(self.session, self.actor, bulletin, newest, self.now):
                approvals.enter_approval(self.session, self.actor, bulletin, newest, newest.content_hash, self.now)
                changed = True
            else:
                self.done.waiting.append(form.key)
        return changed

    def _programme(self, form: ProgrammeForm, path: str) -> str:
        for place in range(len(form.items)):
            audio = self.audio.get(f"{path}.items[{place}]")
            if isinstance(audio, Audio):
                library.enter_audio(self.session, audio, unit_id=self.unit_id, label=form.title, now=self.now)
        items = tuple(
            self._item(item, f"{path}.items[{place}]", f"items[{place}]") for place, item in enumerate(form.items)
        )
        audio = self.audio[path]
        assert isinstance(audio, Audio)  # noqa: S101 - programmes are always rendered
        row = shelf.programme_of_key(self.session, self.unit_id, form.key)
        changed = False
        if row is None:
            request = NewProgramme(self.unit_id, form.title, items, key=form.key)
            row = library.enter_programme(self.session, self.actor, request, self.desk.chance.new_id(), self.now)
            changed = True
        elif row.title != form.title or row.items != library.items_as_rows(self.session, items, self.unit_id, self.now):
            library.enter_programme_change(self.session, self.actor, row, self.now, title=form.title, items=items)
            changed = True
        if row.asset_sha256 != audio.sha256:
            library.enter_rendering(self.session, self.actor, row, audio, self.now)
            changed = True
        if form.approve and row.content_hash is not None and row.approved_hash != row.content_hash:
            changed |= row.submitted_hash != row.content_hash
            approvals.enter_programme_submission(self.session, self.actor, row, row.content_hash, self.now)
            if approvals.may_approve_programme(self.session, self.actor, row, self.now):
                approvals.enter_programme_approval(self.session, self.actor, row, row.content_hash, self.now)
                changed = True
            else:
                self.done.waiting.append(form.key)
        self.done.programmes.append(form.key) if changed else self.done.unchanged.append(form.key)
        return row.id

    def _item(self, item: ItemForm, path: str, field_name: str) -> ProgrammeItem:
        if item.bulletin is not None:
            bulletin_id = self._content_id(self.bulletins, shelf.bulletin_of_key, item.bulletin)
            if bulletin_id is None:
                raise NotFound("unknown_bulletin", field=field_name, fix="pick_content", bulletin=item.bulletin)
            return ProgrammeItem(item.role, bulletin_id=bulletin_id, language=item.language)
        sha256 = item.asset if item.asset is not None else _sha256(self.audio[path])
        return ProgrammeItem(item.role, asset_sha256=sha256)

    def _content_id(
        self,
        own: Mapping[str, str],
        find: Callable[[Session, str, str], BulletinRow | ProgrammeRow | None],
        key: str,
    ) -> str | None:
        if key in own:
            return own[key]
        row = find(self.session, self.unit_id, key)
        return None if row is None else row.id

    def _schedule(self, form: ScheduleForm, path: str) -> None:
        document = self.request.document
        fields = {
            "rule": f"at.{documents.pattern_of(form.at)}",
            "content_id": "bulletin" if form.bulletin else "programme" if form.programme else "relay",
            "tie_order": "order",
        }
        anchor = self.request.anchor
        rule = documents.rule_of(form, document.sessions, self.marks, path, anchor=anchor)
        with self.marks.at(path, fields):
            request = self._request(form, path, rule)
            before = schedules.schedule_of_key(self.session, self.unit_id, form.key)
            if before is not None and _same(self.session, before, request):
                self.done.unchanged.append(form.key)
                self.done.schedules[form.key] = before.id
                return
            if before is not None:
                scheduling.end_schedule(before, self.now)
                before.key = None
                self.session.flush()
            placed = scheduling.enter_schedule(
                self.session, self.actor, request, self.desk.chance.new_id(), self.now, verb="schedule.import"
            )
        self.done.schedules[form.key] = placed.schedule.id
        self.done.previews[form.key] = placed.preview

    def _request(self, form: ScheduleForm, path: str, rule: Rule) -> NewSchedule:
        kind, content_id = self._content(form)
        return NewSchedule(
            unit_id=self.unit_id,
            content_kind=kind,
            content_id=content_id,
            rule=rule,
            targets=tuple(sorted(self._target(target, number) for number, target in enumerate(form.targets))),
            name=form.name,
            language=form.language,
            length=None if form.length is None else duration_of(form.length),
            max_wait=duration_of(form.max_wait),
            late=documents.late_of(form, self.marks, path),
            tie_order=form.order,
            gain_db=form.gain_db,
            accept_conflicts=self.request.accept_conflicts,
            key=form.key,
        )

    def _content(self, form: ScheduleForm) -> tuple[ContentKind, str]:
        if form.relay is not None:
            return ContentKind.FEED, self._feed(form.relay)
        if form.bulletin is not None:
            found = self._content_id(self.bulletins, shelf.bulletin_of_key, form.bulletin)
            # What a unit above has written is named by its id.
            return ContentKind.BULLETIN, form.bulletin if found is None else found
        assert form.programme is not None  # noqa: S101 - the document was checked
        found = self._content_id(self.programmes, shelf.programme_of_key, form.programme)
        return ContentKind.PROGRAMME, form.programme if found is None else found

    def _feed(self, name: str) -> str:
        seen = feeds.list_feeds(
            self.session, visible_to=frozenset({self.unit_id}), at=self.now, folded=fold(name), limit=200
        )
        exact = [one.feed for one in seen if one.feed.name == name]
        usable = [row for row in exact if feeds.may_relay(self.session, row, self.unit_id, self.now)]
        if not exact:
            raise NotFound("unknown_feed", field="relay", fix="check_feed_name", feed_id=name)
        return (usable or exact)[0].id

    def _target(self, form: TargetForm, number: int) -> Target:
        if form.unit is not None:
            return Target(TargetKind.UNIT, self.unit_id if form.unit == "here" else form.unit)
        if form.cluster is not None:
            cluster = fleet.cluster_of_code(self.session, self.unit_id, form.cluster)
            return Target(TargetKind.CLUSTER, form.cluster if cluster is None else cluster.id)
        on = places.local_date(self.now)
        groups = fleet.list_groups(self.session, frozenset({self.unit_id}), on, limit=1000)
        found = [group for group in groups if group.name == form.group]
        if not found:
            facts = {"kind": "group", "ref": form.group}
            raise Invalid("unknown_target", field=f"targets[{number}]", fix="pick_target", **facts)
        return Target(TargetKind.GROUP, found[0].id)


def _same(session: Session, row: ScheduleRow, wanted: NewSchedule) -> bool:
    """Whether the row says what the document says."""
    targets = schedules.targets_of(session, (row.id,)).get(row.id, ())
    return (
        (row.content_kind, row.content_id, row.language) == (wanted.content_kind, wanted.content_id, wanted.language)
        and rule_from_dict(row.rule) == wanted.rule
        and targets == wanted.targets
        and (wanted.name is None or row.name == wanted.name)
        and row.length_ms == (None if wanted.length is None else wanted.length // _MS)
        and row.max_wait_ms == wanted.max_wait // _MS
        and late_from_dict(row.late) == wanted.late
        and (row.tie_order, row.gain_db) == (wanted.tie_order, wanted.gain_db)
        and not schedules.exceptions_of(session, (row.id,))[row.id]
    )


# -- export -----------------------------------------------------------------------------------------------------------


async def export_document(desk: Desk, actor: Actor, unit_id: str) -> dict[str, Any]:
    """The unit's policy, bulletins, programmes and schedules still to come, in normal form.

    Obligations laid on the unit and what was played at once are not part of it.
    """
    now = desk.clock.now()

    def work(session: Session) -> dict[str, Any]:
        access.authorize(session, actor, Action.READ, unit_id, at=now)
        return _Exporter(session, unit_id, now).run()

    return await desk.store.read(work)


class _Exporter:
    """One export from one snapshot."""

    def __init__(self, session: Session, unit_id: str, now: datetime) -> None:
        self.session, self.unit_id, self.now = session, unit_id, now
        self.keys: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        told: dict[str, Any] = {"format": documents.FORMAT}
        policy = places.policy_row(self.session, self.unit_id)
        if policy is not None:
            told["policy"] = policy.body
        bulletins = shelf.bulletins_of(self.session, self.unit_id)
        self.keys |= {row.id: row.key or row.id for row in bulletins}
        versions = shelf.versions(self.session, [row.id for row in bulletins])
        told["bulletins"] = [self._bulletin(row, newest) for row in bulletins if (newest := _newest(versions[row.id]))]
        programmes = shelf.programmes_of(self.session, self.unit_id)
        self.keys |= {row.id: row.key or row.id for row in programmes}
        told["programmes"] = [self._programme(row) for row in programmes]
        told["schedules"] = list(self._schedules())
        document, _ = documents.read_plain({name: value for name, value in told.items() if value}, "export")
        return documents.normal_form(document)

    def _bulletin(self, row: BulletinRow, versions: Sequence[BulletinVersionRow]) -> dict[str, Any]:
        told: dict[str, Any] = {"key": self.keys[row.id], "title": row.title, "class": row.klass.value}
        told["subject"] = row.subject
        for name, value in (("valid_from", row.valid_from), ("valid_to", row.valid_to)):
            told[name] = None if value is None else documents.local_text(value)
        told["versions"] = [_version(version) for version in versions]
        told["approve"] = all(version.state in {VersionState.APPROVED, VersionState.SUBMITTED} for version in versions)
        return told

    def _programme(self, row: ProgrammeRow) -> dict[str, Any]:
        items = []
        for item in row.items:
            told = {"role": item["role"]}
            if "bulletin_id" in item:
                told |= {"bulletin": self._key(item["bulletin_id"]), "language": item.get("language", "vie")}
            else:
                told["asset"] = item["asset_sha256"]
            items.append(told)
        is_laid_before = approvals.programme_state(row) is not VersionState.DRAFT
        return {"key": self.keys[row.id], "title": row.title, "items": items, "approve": is_laid_before}

    def _key(self, content_id: str) -> str:
        return self.keys.get(content_id, content_id)

    def _schedules(self) -> Iterator[dict[str, Any]]:
        rows = schedules.schedules_of(self.session, self.unit_id, in_force_after=self.now)
        ids = [row.id for row in rows]
        targets, exceptions = schedules.targets_of(self.session, ids), schedules.exceptions_of(self.session, ids)
        for row in rows:
            if (
                row.kind in {ScheduleKind.PLAY_NOW, ScheduleKind.LIVE}
                or row.required
                or row.state is not ScheduleState.ACTIVE
            ):
                continue
            yield self._schedule(row, targets.get(row.id, ()), exceptions[row.id])

    def _schedule(
        self, row: ScheduleRow, targets: Sequence[Target], exceptions: Sequence[ScheduleExceptionRow]
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"key": row.key or row.id}
        title, content = self._content(row)
        told |= content
        if row.name != title:
            told["name"] = row.name
        told["targets"] = [self._target(target) for target in targets]
        told["language"] = row.language
        told |= documents.rule_form(_with_exceptions(rule_from_dict(row.rule), exceptions))
        if row.length_ms is not None:
            told["length"] = documents.duration_text(row.length_ms * _MS)
        told["max_wait"] = documents.duration_text(row.max_wait_ms * _MS)
        if row.late:
            late = late_from_dict(row.late)
            told["late"] = {"policy": late.policy.value}
            if late.at_most_ms is not None:
                told["late"]["at_most"] = documents.duration_text(late.at_most_ms * _MS)
        told |= {"order": row.tie_order, "gain_db": row.gain_db}
        return told

    def _content(self, row: ScheduleRow) -> tuple[str, dict[str, str]]:
        match row.content_kind:
            case ContentKind.FEED:
                name = feeds.feed(self.session, row.content_id).name
                return name, {"relay": name}
            case ContentKind.BULLETIN:
                title = shelf.bulletin(self.session, row.content_id).title
                return title, {"bulletin": self._key(row.content_id)}
            case ContentKind.PROGRAMME:
                title = shelf.programme(self.session, row.content_id).title
                return title, {"programme": self._key(row.content_id)}
            case ContentKind.LIVE:
                raise Invalid("live_is_opened", field="content_kind", fix="open_live")

    def _target(self, target: Target) -> dict[str, str]:
        match target.kind:
            case TargetKind.UNIT:
                return {"unit": "here" if target.ref == self.unit_id else target.ref}
            case TargetKind.GROUP:
                return {"group": fleet.group(self.session, target.ref).name}
            case TargetKind.CLUSTER:
                cluster = fleet.cluster(self.session, target.ref)
                return {"cluster": cluster.code if cluster.unit_id == self.unit_id else cluster.id}


def _newest(versions: Sequence[BulletinVersionRow]) -> list[BulletinVersionRow]:
    """The newest version of each language that was not recalled."""
    found: dict[str, BulletinVersionRow] = {}
    for version in versions:  # the newest of a language comes first
        if version.state is not VersionState.RECALLED and version.asset_sha256 is not None:
            found.setdefault(version.language, version)
    return [found[language] for language in sorted(found)]


def _version(row: BulletinVersionRow) -> dict[str, Any]:
    told: dict[str, Any] = {"language": row.language, "text": row.text}
    if row.media is MediaKind.TEXT:
        return told | {"voice": row.voice}
    return told | {"asset": row.asset_sha256}


def _with_exceptions(rule: Rule, exceptions: Sequence[ScheduleExceptionRow]) -> Rule:
    """Cancelled starts left out; a moved one is left out where it was and added where it is."""
    exdates, rdates = list(rule.exdates), list(rule.rdates)
    for one in exceptions:
        if one.kind is ExceptionKind.CUT:
            continue
        exdates.append(one.occurs_at.astimezone(LOCAL).replace(tzinfo=None))
        if one.moved_to is not None:
            rdates.append(one.moved_to.astimezone(LOCAL).replace(tzinfo=None))
    return Rule(rule.pattern, rule.from_date, rule.until_date, tuple(exdates), tuple(rdates))
