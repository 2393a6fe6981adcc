"""Documents in and out: examples work, going round changes nothing, a wrong line is named, never half is imported."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from broadcast_server.control import approvals, calendars, documents, exchange, library, outlook, places, scheduling
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.exchange import Import, ImportedDocument
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit
from broadcast_server.store.words import ContentKind, Role
from tests.support.people import a_person
from tests.support.studio import HummingSpeaker, an_audio_room, with_room
from tests.support.village import DONG, LAN, NGOC, Village, a_village, at

FOLDER = Path(__file__).parents[2] / "schedules"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


@asynccontextmanager
async def a_studio(tmp_path: Path, *, voice: bool = True, one_person: bool = True) -> AsyncIterator[Village]:
    """A station of one person, who may approve thông thường of her own, unless told otherwise."""
    speaker = HummingSpeaker() if voice else None
    async with a_village() as village, an_audio_room(tmp_path, speaker=speaker) as room:
        await village.feed("Đài mô phỏng Tỉnh")
        await village.feed("Đài mô phỏng Trung tâm")
        if one_person:
            await places.put_policy(village.desk, OPERATOR, DONG, {"self_approval": True})
        yield Village(with_room(village.desk, room))


async def take_in(village: Village, text: str, *, folder: Path | None = FOLDER, **more: Any) -> ImportedDocument:
    read = calendars.read_calendar if text.startswith("BEGIN:VCALENDAR") else documents.read_yaml
    document, marks = read(text, "lich.yaml")
    request = Import(document, marks, DONG, folder, **({"accept_conflicts": True} | more))
    return await exchange.import_document(village.desk, LAN, request)


async def approve_all(village: Village) -> None:
    """A leader approves what waits: an example's own regulations declare no station of one."""
    leader = (await a_person(village.desk, Role.LEADER, DONG)).actor
    found = await approvals.waiting(village.desk, leader)
    for bulletin, version in found.versions:
        await approvals.approve_version(village.desk, leader, bulletin.id, version.id, version.content_hash)
    for row in found.programmes:
        await approvals.approve_programme(village.desk, leader, row.id, row.content_hash or "")


async def given_out(village: Village) -> dict[str, Any]:
    return await exchange.export_document(village.desk, LAN, DONG)


async def heard(village: Village, day: int = 1) -> list[tuple[str, Any]]:
    window = Window(at(0, day=day), at(0, day=day + 1))
    line = await outlook.preview_cluster(village.desk, LAN, f"c1-{DONG}", window)
    return [(one.title, one.start) for one in line.segments]


# -- the examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_satisfies_the_schema(example: Path) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text("utf-8"))
    assert schema == documents.schema(), "print it anew: broadcast-server schedule schema > schedules/schema.json"
    document, marks = documents.read_yaml(example.read_text("utf-8"), example.name)
    assert marks.lines["schedules[0].key"] > 1
    jsonschema.validate(document.model_dump(mode="json", by_alias=True, exclude_none=True), schema)


async def test_the_communes_week_comes_in_sounds_and_goes_round(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        text = (FOLDER / "commune-default.yaml").read_text("utf-8")
        done = await take_in(village, text)
        assert (done.policy, len(done.bulletins), done.programmes, len(done.schedules)) == (True, 3, ["buoi-sang"], 4)
        await approve_all(village)
        assert [(title, start) for title, start in await heard(village, day=2)] == [
            ("Chương trình phát thanh buổi sáng", at(5, day=2)),
            ("Chương trình phát thanh buổi sáng", at(17, day=2)),
        ]
        first = await given_out(village)
        again = await take_in(village, documents.write_yaml(first))
        assert (again.policy, again.bulletins, again.programmes, again.previews) == (False, [], [], {})
        assert again.schedules == done.schedules
        assert await given_out(village) == first
        assert await village.desk.store.read(audit.verify) is None


async def test_the_same_document_twice_changes_nothing_and_speaks_once(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        text = (FOLDER / "storm-duty.yaml").read_text("utf-8")
        first = await take_in(village, text)
        second = await take_in(village, text)
        assert second.schedules == first.schedules
        assert sorted(second.unchanged) == sorted([*first.bulletins, *first.schedules])
        speaker = village.desk.audio.speaker
        assert isinstance(speaker, HummingSpeaker)
        assert len(speaker.said) == 1


async def test_relays_are_found_by_the_feeds_name(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        await take_in(village, (FOLDER / "station-relay.yaml").read_text("utf-8"))
        assert await heard(village, day=6) == [
            ("Đài mô phỏng Tỉnh", at(5, 15, day=6)),
            ("Đài mô phỏng Tỉnh", at(17, 15, day=6)),
            ("Đài mô phỏng Trung tâm", at(18, day=6)),
        ]


async def test_the_demos_day_fits_into_85_seconds_without_a_conflict(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        anchor = at(10)
        text = (FOLDER / "demo-day.yaml").read_text("utf-8")
        with pytest.raises(Invalid, match="anchor_missing") as refused:
            await take_in(village, text)
        assert refused.value.facts["fix"] == "give_anchor"
        done = await take_in(village, text, anchor=anchor, accept_conflicts=False)
        assert all(preview.clashes == () for preview in done.previews.values())
        window = Window(anchor, anchor + timedelta(seconds=85))
        line = await outlook.preview_cluster(village.desk, LAN, f"c1-{DONG}", window)
        assert [(one.start - anchor).total_seconds() for one in line.segments] == [10, 18, 31, 42, 54]
        assert line.segments[-1].end < window.end


async def test_without_a_voice_the_recordings_sound(tmp_path: Path) -> None:
    async with a_studio(tmp_path, voice=False) as village:
        text = (FOLDER / "demo-day.yaml").read_text("utf-8")
        await take_in(village, text, anchor=at(10))
        again = await take_in(village, text, anchor=at(10))
        assert again.previews == {}
        bare = text.replace("fallback_audio: ../audio_samples/speech_introduction.opus", "subject: null")
        bare = bare.replace("        subject: null\n", "").replace("giọng máy", "giọng").replace("tại nhà", "ở nhà")
        with pytest.raises(BroadcastError, match="speech_missing"):
            await take_in(village, bare, anchor=at(11))


# -- going round ------------------------------------------------------------------------------------------------------

TIMES = st.sampled_from(["05:00", "06:30", "17:00", "17:45:30", "20:00"])
WHENS = st.one_of(
    st.builds(
        lambda day, hour: {"once": f"2026-07-{day:02}T{hour:02}:15:00+07:00"}, st.integers(1, 28), st.integers(5, 21)
    ),
    st.builds(lambda times: {"daily": times}, st.lists(TIMES, min_size=1, max_size=3)),
    st.builds(
        lambda days, times: {"weekdays": {"days": days, "times": times}},
        st.lists(st.sampled_from(["mo", "we", "su"]), min_size=1, max_size=3, unique=True),
        st.lists(TIMES, min_size=1, max_size=2),
    ),
    st.builds(
        lambda day, times: {"lunar": {"day": day, "times": times}},
        st.sampled_from([-1, 1, 15]),
        st.lists(TIMES, min_size=1),
    ),
    st.sampled_from(
        [
            {"rrule": {"rule": "FREQ=MONTHLY;BYDAY=1MO", "start": "2026-01-05T06:30"}},
            {"rrule": {"rule": "freq=weekly;interval=2;byday=tu", "start": "2026-06-02T05:00"}},
        ]
    ),
)


@st.composite
def schedule_forms(draw: st.DrawFn, number: int) -> dict[str, Any]:
    form: dict[str, Any] = {"key": f"k{number}", "at": draw(WHENS)}
    if draw(st.booleans()):
        form |= {"relay": "Đài mô phỏng Tỉnh", "length": draw(st.sampled_from(["00:05:00", "00:30:00", "1:00:00.5"]))}
    else:
        form["bulletin"] = "tin"
    if draw(st.booleans()):
        form["name"] = draw(st.sampled_from(["Buổi sáng", "Nhắc họp: thôn Đông"]))
    targets = st.sampled_from([{"unit": "here"}, {"cluster": "CUM-01"}, {"cluster": "CUM-02"}, {"group": "Chợ"}])
    form["targets"] = draw(st.lists(targets, min_size=1, max_size=3))
    if draw(st.booleans()):
        form["max_wait"] = "00:10:00"
        form["late"] = draw(st.sampled_from([{"policy": "wait_at_most", "at_most": "0:05:00"}, {"policy": "next"}]))
    if draw(st.booleans()):
        form |= {"except": ["2026-07-03"], "also": ["2026-07-04T10:00"], "until_date": "2036-01-01"}
    form |= {"order": draw(st.integers(0, 3)), "gain_db": draw(st.sampled_from([0, -3, -1.5]))}
    return form


@st.composite
def written_documents(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 4))
    return {
        "bulletins": [
            {
                "key": "tin",
                "title": 'Tin: lịch "cắt điện"',
                "class": draw(st.sampled_from(["normal", "priority"])),
                "subject": draw(st.sampled_from([None, "điện"])),
                "valid_to": draw(st.sampled_from([None, "2036-01-01T00:00:00Z"])),
                "versions": [{"text": "Cắt điện từ 8h.", "voice": draw(st.sampled_from(["north", "south"]))}],
                "approve": True,
            }
        ],
        "schedules": [draw(schedule_forms(number)) for number in range(count)],
    }


@settings(max_examples=6, deadline=None)
@given(told=written_documents())
async def test_import_export_import_is_identity(told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    async with a_studio(tmp_path_factory.mktemp("studio")) as village:
        document, _ = documents.read_yaml(yaml.safe_dump(told, allow_unicode=True), "lich.yaml")
        await take_in(village, yaml.safe_dump(told, allow_unicode=True))
        out = await given_out(village)
        assert {key: part for key, part in out.items() if key != "policy"} == documents.normal_form(document)
        again = await take_in(village, documents.write_yaml(out))
        assert again.previews == {}
        assert await given_out(village) == out


@settings(max_examples=30, deadline=None)
@given(told=written_documents())
def test_a_calendar_goes_round(told: dict[str, Any]) -> None:
    document, _ = documents.read_yaml(yaml.safe_dump(told, allow_unicode=True), "lich.yaml")
    form = documents.normal_form(document)
    text = calendars.write_calendar(form, now=at(9))
    back, _ = calendars.read_calendar(text, "lich.ics")
    assert documents.normal_form(back)["schedules"] == form["schedules"]


async def test_the_example_calendar_comes_in(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        text = (FOLDER / "commune-week.ics").read_text("utf-8")
        done = await take_in(village, text)
        assert len(done.schedules) == 3
        titles = {title for day in range(1, 8) for title, _ in await heard(village, day=day)}
        assert titles == {"Đài mô phỏng Tỉnh", "Vệ sinh đường làng"}


async def test_what_was_changed_by_hand_is_given_out_as_it_sounds(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        done = await take_in(village, (FOLDER / "commune-default.yaml").read_text("utf-8"))
        await approve_all(village)
        cancel = scheduling.CancelSchedule(done.schedules["sang"], scheduling.Scope.THIS, at(5, day=2))
        await scheduling.cancel_schedule(village.desk, LAN, cancel)
        moved = scheduling.ScheduleChange(moved_to=at(18, day=2))
        change = scheduling.ChangeSchedule(done.schedules["chieu"], scheduling.Scope.THIS, moved, at(17, day=2))
        await scheduling.change_schedule(village.desk, LAN, change)
        before = await heard(village, day=2)
        assert [start for _, start in before] == [at(18, day=2)]
        out = await given_out(village)
        await take_in(village, documents.write_yaml(out))
        assert await heard(village, day=2) == before
        assert await given_out(village) == out


# -- wrong lines ------------------------------------------------------------------------------------------------------

GOOD = """\
format: loa-schedules/1
bulletins:
  - key: tin
    title: Tin
    versions:
      - text: Xin chào.
    approve: true
schedules:
  - key: mot
    bulletin: tin
    at: {daily: [05:00]}
  - key: hai
    bulletin: tin
    targets:
      - unit: here
    at:
      once: "2026-06-09T17:00:00+07:00"
"""

WRONG = [
    ("key: hai", "key: mot", "key_twice", 12, "rename_key"),
    ("05:00]", "25:00]", "not_a_time", 11, "write_hh_mm_quoted"),
    ("05:00]", "03:15]", "quiet_hours", 11, "move_out_of_quiet_hours"),
    ("17:00:00+07:00", "17:00:00", "naive_time", 17, "add_offset"),
    ("2026-06-09", "2025-06-09", "past_time", 17, "give_future_time"),
    ("unit: here", "unit: nowhere", "unknown_target", 15, "pick_target"),
    ("unit: here", "cluster: CUM-99", "unknown_target", 15, "pick_target"),
    ("unit: here", "house: here", "unknown_field", 15, "remove_field"),
    ("  - key: hai\n    bulletin: tin", "  - key: hai\n    bulletin: tan", "unknown_bulletin", 13, "pick_content"),
    ("approve: true", "approve: false", "blocked_approval_void", 10, "approve_content"),
    ("approve: true", "approve: vâng", "wrong_form", 7, "see_schema"),
    ("text: Xin chào.", "audio: khong-co.mp3", "unknown_recording", 6, "check_path"),
    ("title: Tin", "title: Tin\n    title: Tin", "key_twice", 5, "remove_field"),
    ("    bulletin: tin\n    at: {d", "    bulletin: tin\n    relay: x\n    at: {d", "one_of", 9, "name_one"),
    ("    at: {daily: [05:00]}\n", "", "missing_field", 9, "add_field"),
    ("at: {daily", "at: {daily: [05:00], once", "wrong_form", 11, "see_schema"),
    ("    title: Tin", "   title: Tin", "not_yaml", 4, "mend_line"),
]


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "fix"), WRONG, ids=[f"{case[2]}-{n}" for n, case in enumerate(WRONG)]
)
async def test_a_wrong_line_is_named_and_nothing_is_imported(
    old: str, new: str, code: str, line: int, fix: str, tmp_path: Path
) -> None:
    assert GOOD.count(old) >= 1
    async with a_studio(tmp_path) as village:
        before = await given_out(village)
        with pytest.raises(BroadcastError) as refused:
            await take_in(village, GOOD.replace(old, new, 1), accept_conflicts=False)
        facts = refused.value.facts
        assert (refused.value.code, facts["file"], facts["line"], facts["fix"]) == (code, "lich.yaml", line, fix)
        assert facts["field"] != "" or code == "not_yaml"
        assert await given_out(village) == before


async def test_the_good_document_is_good(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        assert len((await take_in(village, GOOD, accept_conflicts=False)).schedules) == 2


async def test_an_overlap_inside_a_document_is_shown_with_its_line(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        clashing = GOOD.replace("2026-06-09T17", "2026-06-09T05")
        with pytest.raises(Conflict, match="schedule_conflict") as refused:
            await take_in(village, clashing, accept_conflicts=False)
        assert (refused.value.facts["line"], refused.value.facts["field"]) == (17, "schedules[1].at.once")
        assert len((await take_in(village, clashing)).previews["hai"].clashes) == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("DTSTART:xx", "wrong_form"),
        ("DTSTART:20260601", "not_a_time"),
        ("RRULE:FREQ=DAILY", "missing_field"),
        ("DTSTART:20260601T050000\r\nRRULE:FREQ=SECONDLY", "bad_frequency"),
        ("DTSTART:20260601T050000\r\nRRULE:FREQ=WEEKLY;BYHOUR=77", "bad_rrule"),
        ("DTSTART:20260601T050000\r\nX-LOA-TARGET:market", "wrong_form"),
        ("DTSTART:20260601T050000\r\nX-LOA-RULE:{", "wrong_form"),
    ],
)
def test_a_wrong_event_is_named_by_its_line(line: str, code: str) -> None:
    event = f"BEGIN:VEVENT\r\nUID:x\r\n{line}\r\nX-LOA-CONTENT:relay:a\r\nDURATION:PT5M\r\nEND:VEVENT"
    with pytest.raises(Invalid, match=code) as refused:
        calendars.read_calendar(f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{event}\r\nEND:VCALENDAR\r\n", "lich.ics")
    assert (refused.value.facts["file"], refused.value.facts["line"]) == ("lich.ics", 3)
    assert refused.value.facts["fix"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "document_empty"),
        ("- a\n- b\n", "wrong_form"),
        ("xin chào", "wrong_form"),
        ("? [a, b]\n: c\n", "unknown_field"),
        ("schedules: {a: b}\n", "wrong_form"),
        ("schedules:\n  - !!python/object:os.system x\n", "wrong_form"),
        ("format: loa-schedules/2\n", "wrong_form"),
        ("policy: {quiet: {from: x}}\n", "not_a_time"),
        ('title: "\x07"\n', "not_yaml"),
    ],
)
def test_whatever_stands_in_a_file_is_refused_in_our_words(text: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        documents.read_yaml(text, "lich.yaml")
    assert refused.value.code == code, refused.value
    assert refused.value.facts["line"] >= 1


async def test_a_bomb_of_aliases_is_refused() -> None:
    layers = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(Invalid, match="document_too_large"):
        documents.read_yaml("\n".join(layers), "bomb.yaml")


async def test_who_may_not_schedule_imports_nothing(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        document, marks = documents.read_yaml(GOOD, "lich.yaml")
        with pytest.raises(Refused, match="not_permitted"):
            await exchange.import_document(village.desk, NGOC, Import(document, marks, DONG, FOLDER))


async def test_a_changed_line_changes_one_schedule_and_voids_the_approval(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        first = await take_in(village, GOOD)
        second = await take_in(village, GOOD.replace("[05:00]", "[06:00]"))
        assert second.schedules["hai"] == first.schedules["hai"]
        assert second.schedules["mot"] != first.schedules["mot"]
        assert [start for _, start in await heard(village, day=3)] == [at(6, day=3)]
        renamed = GOOD.replace("key: tin", "key: moi").replace("bulletin: tin", "bulletin: moi")
        with pytest.raises(Refused, match="blocked_approval_void"):
            await take_in(village, renamed.replace("approve: true", "approve: false"))
        await take_in(village, GOOD.replace("Xin chào.", "Xin chào bà con.").replace("approve: true", "approve: false"))
        [bulletin] = await library.list_bulletins(village.desk, LAN, library.LibraryQuery(unit_id=DONG))
        assert [version.state.value for version in bulletin.versions] == ["draft", "approved"]
        assert len(await heard(village, day=3)) == 1  # what was approved goes on sounding until the new one is


async def test_a_document_from_the_network_names_no_files(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        text = GOOD.replace("text: Xin chào.", "audio: /etc/passwd")
        with pytest.raises(Invalid, match="recording_needs_folder"):
            await take_in(village, text, folder=None)
        with pytest.raises(BroadcastError):
            await take_in(village, text, folder=tmp_path)


async def test_a_relay_of_an_unknown_feed_is_named(tmp_path: Path) -> None:
    async with a_studio(tmp_path) as village:
        text = GOOD.replace("  - key: mot\n    bulletin: tin", "  - key: mot\n    relay: Đài lạ\n    length: 00:30:00")
        with pytest.raises(NotFound, match="unknown_feed") as refused:
            await take_in(village, text)
        assert (refused.value.facts["line"], refused.value.facts["fix"]) == (10, "check_feed_name")
        assert ContentKind.FEED.value == "feed"


async def test_what_one_wrote_oneself_waits_for_somebody_else_and_sounds_then(tmp_path: Path) -> None:
    async with a_studio(tmp_path, one_person=False) as village:
        chairman = await a_person(village.desk, Role.LEADER, DONG)
        done = await take_in(village, GOOD)
        assert done.waiting == ["tin"]
        assert {notice.code for one in done.previews.values() for notice in one.notices} >= {"unapproved_waiting"}
        assert await heard(village, day=2) == []
        out = await given_out(village)
        assert (await take_in(village, documents.write_yaml(out))).previews == {}
        ((bulletin, version),) = (await approvals.waiting(village.desk, chairman.actor)).versions
        with pytest.raises(Refused, match="author_approves"):
            await approvals.approve_version(village.desk, LAN, bulletin.id, version.id, version.content_hash)
        await approvals.approve_version(village.desk, chairman.actor, bulletin.id, version.id, version.content_hash)
        assert await heard(village, day=2) != []
        assert await given_out(village) == out
