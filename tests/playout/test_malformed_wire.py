"""Malformed input in its short form, to node and server, as carried files, and from a broker that sends anything."""

from __future__ import annotations

import asyncio
from collections import Counter

from benchmarks import hostile_brokers, malformed_wire
from benchmarks.malformed_wire import Tally, bombs, grown, on_carried, on_node, on_server


def test_nothing_malformed_raises_in_node_or_server():
    tally, corpus, hurting = Tally(), grown(120, 1), bombs()
    on_node(tally, 500, has_samples=False, corpus=corpus, hurting=hurting)
    on_node(tally, 100, has_samples=True, corpus=corpus, hurting=hurting)
    asyncio.run(on_server(tally, 1_500, corpus, hurting))
    asyncio.run(on_carried(tally, 30, corpus, hurting))
    assert tally.raised == []
    families = Counter(dict.fromkeys(("node", "node with samples", "server", "carried"), 0))
    for name, count in tally.tried.items():
        families[name.partition(":")[0]] += count
    assert families == {"node": 500, "node with samples": 100, "server": 1_500, "carried": 30}
    assert tally.refused["body"] > 0 < tally.refused["server status_body"]


def test_both_clients_come_back_from_a_broker_that_sends_anything():
    told = asyncio.run(hostile_brokers.torment(12))
    assert told.raised == []
    assert told.tried == told.reconnects == 24


def test_what_is_sent_has_every_thing_that_hurts():
    assert {raw[:1] for raw in malformed_wire.bombs()} >= {b"[", b"{", b"\0", b"\xff", b" ", b"\x01"}
