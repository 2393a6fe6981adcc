"""A topic is a value: it cannot be built wrong, and what comes in is ours or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speaker_protocol.topics import ALL_TOPICS, Direction, NodePlan, StreamAudio, TopicError, node_acl, parse

OWNERS = st.from_regex(r"[A-Za-z0-9._~-]{1,64}", fullmatch=True)


@given(st.sampled_from(ALL_TOPICS), OWNERS)
def test_every_topic_reads_back_as_itself(kind, owner):
    assert parse(str(kind(owner))) == kind(owner)
    assert type(parse(str(kind(owner)))) is kind


@pytest.mark.parametrize("owner", ["", "a/b", "+", "#", "a\0", "x" * 65, "xã"])
def test_an_id_that_could_leave_its_level_is_no_topic(owner):
    with pytest.raises(TopicError):
        NodePlan(owner)


@given(st.text(max_size=80))
def test_foreign_topics_are_refused_not_misread(topic):
    try:
        assert str(parse(topic)) == topic
    except TopicError:
        assert True


def test_a_node_may_write_its_own_up_topics_and_nothing_else():
    written = [line for line in node_acl() if line.startswith("pattern write")]
    assert len(written) == sum(kind.direction is Direction.UP for kind in ALL_TOPICS)
    assert all("/node/%u/" in line for line in written)
    assert not any("node/+" in line for line in node_acl()), "no pattern lets a node hear another"


def test_audio_is_never_waited_for():
    assert StreamAudio.qos == 0
    assert not StreamAudio.retained
