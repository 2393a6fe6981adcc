"""A node nobody has approved yet: silent whatever is planned or warned, and it speaks its code to who stands below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_sim import own_sound
from firmware_sim.own_sound import OwnSound
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import Why
from speaker_protocol.signing import Kind
from tests.firmware_sim.station import PATH, Station, now_ms, segment
from tests.firmware_sim.tones import ogg_opus, read_wav, tone
from tests.firmware_sim.world import Village, needs_mosquitto
from tests.support.boxes import heard, said
from tests.support.until import until


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with Station(tmp_path) as station:
        yield station


async def is_past(at_ms: float) -> None:
    await until(lambda: now_ms() >= at_ms, 30)


@needs_mosquitto
@pytest.mark.e2e
async def test_it_speaks_its_code_and_nothing_else_until_it_is_active(station: Station, tmp_path: Path):
    sha = station.add_asset(ogg_opus(tone((500, 700), 2.0)), 2_000)
    async with Village(station, tmp_path) as village:
        node = village.node()
        station.config(node.node_id, active=False)
        start_ms = now_ms() + 1_500
        station.plan(node.node_id, [segment("p", start_ms, 1.0, asset=sha)])
        alert = wire.AlertBody(
            alert_id="a", level=85, issued_ms=now_ms(), expires_ms=now_ms() + 60_000, hazard="flood", tone_ms=4_000
        )
        station.alerts(PATH[0], [alert])
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        await is_past(start_ms + 1_200)
        order = wire.OrderBody(order_id="o1", verb=wire.OrderVerb.SPEAK_CODE, code="4071")
        station.send(topics.NodeOrder(node.node_id), station.commune.seal(Kind.ORDER, node.node_id, order))
        await until(lambda: any(report.kind is ReportKind.ORDER_DONE for _, report in station.reports))
        assert node.state.config is not None
        assert not node.state.config.active
        assert node.firmware is not None
        assert node.firmware.situation.muted is Why.NOT_ACTIVE
        await is_past(now_ms() + 9_500)
        await village.switch_off(node.node_id)

        pcm = read_wav(tmp_path / "rec" / f"{node.node_id}.wav")
        assert heard(pcm) == "40714071"
        assert abs(pcm.astype(int)).max() < 8_000  # softly
        done = [report for _, report in station.reports if report.kind is ReportKind.ORDER_DONE]
        assert [report.reason for report in done] == [None]
        assert not [report for _, report in station.reports if report.kind is ReportKind.STARTED]


def test_a_code_keeps_its_digits_when_the_card_is_rewound():
    once = said("9305")
    sound = OwnSound(once)
    first = sound.read(48_000, 30_000)
    again = sound.read(60_000, len(once))

    assert (first == once[:30_000]).all()
    assert (again[: len(once) - 12_000] == once[12_000:]).all()
    assert not sound.is_over(48_000 + len(once))
    assert sound.is_over(48_000 + len(once) + 2 * 48_000)


def test_a_code_with_a_broken_digit_is_not_spoken():
    assert own_sound.spoken("12", lambda _: None) is None
    assert own_sound.spoken("", lambda _: None) is None
