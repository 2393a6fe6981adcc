"""How far an emergency came at one node: steps forward only, whatever order the node's words come in."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from broadcast_server.domain.delivery import (
    GIVE_UP_CLEARING,
    Delivery,
    DeliveryState,
    Progress,
    closed,
    held,
    let_go,
    reported,
    unreached_because,
)
from broadcast_server.domain.proof import Report, ReportKind

T0 = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
GRACE = timedelta(seconds=20)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def sent(**facts: object) -> Delivery:
    return Delivery("alert:e1", "n1", DeliveryState.SENT, expires_at=after(600), **facts)  # type: ignore[arg-type]


def report(kind: ReportKind, seconds: float, *, heard_s: float = 0, reason: str | None = None) -> Report:
    return Report(f"b/{seconds}", "alert:e1", T0, kind, after(seconds), timedelta(seconds=heard_s), reason=reason)


WORDS = {
    "has": lambda one: held(one, Progress(), now=after(1)),
    "sounds": lambda one: held(one, Progress(first_at=after(2), is_sounding=True), now=after(3)),
    "whole": lambda one: held(one, Progress(rounds=1, first_at=after(2)), now=after(30)),
    "started": lambda one: reported(one, [report(ReportKind.STARTED, 2)], now=after(4)),
    "finished": lambda one: reported(one, [report(ReportKind.FINISHED, 29, heard_s=27)], now=after(31)),
}


@pytest.mark.parametrize("order", list(itertools.permutations(WORDS)), ids="-".join)
def test_a_round_that_was_heard_stays_heard_in_whatever_order_it_is_told(order: tuple[str, ...]) -> None:
    delivery = sent()
    for word in order:
        delivery = WORDS[word](delivery)

    assert delivery.state is DeliveryState.HEARD
    assert delivery.received_at is not None
    assert delivery.sounding_at is not None


def test_rounds_that_went_by_on_a_node_without_an_output_were_not_heard() -> None:
    told = held(sent(), Progress(rounds=2, why="no_output"), now=after(40))

    assert (told.state, told.reason) == (DeliveryState.REFUSED, "no_output")
    assert unreached_because(told, "online", after(39), T0, now=after(41)) == ("no_output", after(40))


def test_a_node_that_was_silenced_sounds_once_it_may() -> None:
    stopped = held(sent(), Progress(why="stop_all"), now=after(1))
    assert stopped.state is DeliveryState.REFUSED
    free = held(stopped, Progress(first_at=after(60), is_sounding=True), now=after(61))
    assert (free.state, free.reason) == (DeliveryState.SOUNDING, None)


def test_a_round_in_the_nodes_own_words_counts_as_heard() -> None:
    told = [report(ReportKind.FINISHED, 40, heard_s=35, reason="alert_asset_missing")]
    assert reported(sent(), told, now=after(41)).state is DeliveryState.HEARD


def test_the_nodes_own_word_that_nothing_sounded_is_not_forgotten() -> None:
    missed = reported(sent(), [report(ReportKind.NOT_SOUNDED, 9, reason="amp_off")], now=after(10))
    assert (missed.state, missed.reason) == (DeliveryState.MISSED, "amp_off")
    assert held(missed, Progress(), now=after(11)).state is DeliveryState.MISSED
    cut = reported(missed, [report(ReportKind.FINISHED, 12, heard_s=3, reason="power")], now=after(13))
    assert (cut.state, cut.reason) == (DeliveryState.PARTIAL, "power")


@pytest.mark.parametrize(
    ("delivery", "state"),
    [
        (sent(), DeliveryState.EXPIRED),
        (sent(over_at=after(100)), DeliveryState.CANCELLED),
        (held(sent(), Progress(), now=after(1)), DeliveryState.MISSED),
        (held(sent(over_at=after(100)), Progress(), now=after(1)), DeliveryState.CANCELLED),
        (held(sent(), Progress(is_sounding=True), now=after(1)), DeliveryState.PARTIAL),
        (held(sent(), Progress(rounds=1, first_at=after(1)), now=after(1)), DeliveryState.HEARD),
    ],
)
def test_the_end_has_a_word_for_everybody(delivery: Delivery, state: DeliveryState) -> None:
    assert closed(delivery, now=after(90), grace=GRACE) == delivery, "it is in force"
    ended = delivery.over_at or after(600)
    over = let_go(delivery, now=ended + timedelta(seconds=1))
    assert closed(over, now=ended + GRACE - timedelta(seconds=1), grace=GRACE).closed_at is None
    found = closed(over, now=ended + GRACE, grace=GRACE)
    assert (found.state, found.closed_at) == (state, ended + GRACE)


def test_a_node_that_never_shows_that_it_let_go_is_waited_for_a_while() -> None:
    has = held(sent(over_at=after(100)), Progress(), now=after(1))
    assert closed(has, now=after(200), grace=GRACE).closed_at is None
    assert closed(has, now=after(100) + GIVE_UP_CLEARING, grace=GRACE).closed_at is not None


def test_letting_go_says_something_only_after_the_end() -> None:
    has = held(sent(), Progress(), now=after(1))
    assert let_go(has, now=after(5)) == has
    assert let_go(sent(over_at=after(3)), now=after(5)).cleared_at is None


@pytest.mark.parametrize(
    ("link", "seen_s", "reason"),
    [(None, None, "never_seen"), ("offline", 5, "offline"), ("online", 100, "no_word"), ("online", 5, "no_answer")],
)
def test_why_a_node_is_unreached(link: str | None, seen_s: float | None, reason: str) -> None:
    seen_at = None if seen_s is None else after(-seen_s)
    assert unreached_because(sent(), link, seen_at, after(-400), now=T0)[0] == reason
