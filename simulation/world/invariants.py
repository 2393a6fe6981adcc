"""I1-I10: what must hold whatever went wrong, checked over a trace and nothing else.

The checker has its own, plain idea of what is right: it holds what left each output against what people asked for,
what was signed and what each node had obeyed by then, never against the code that decided it. Where a network or a
power fault may excuse something, the excuse must be in the trace too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from simulation.world.trace import Record

LOCAL: Final = ZoneInfo("Asia/Ho_Chi_Minh")
S: Final = 1_000
TOLERANCE_MS: Final = 2 * S
CUT_WITHIN_MS: Final = 2 * S
OVERLAP_MS: Final = 1 * S
CONVERGED_MS: Final = 60 * S
KNOWN_WITHIN_MS: Final = 100 * S
MEMORY_OF_NODE_FAULTS_MS: Final = 130 * 60 * S
"""A fault of one node troubles it no longer than this (two hours, and the time to come back)."""
MEMORY_OF_SERVER_FAULTS_MS: Final = 90 * 60 * S
MEMORY_OF_CLOCK_FAULTS_MS: Final = 240 * 60 * S
"""A clock that jumped is mended by the second answer that says so, and answers are half an hour apart here."""
MOST_TOLD: Final = 20
EXCUSES: Final = frozenset(
    {
        "alert",
        "alert_asset_missing",
        "stop_all",
        "clock_unknown",
        "clock_uncertain",
        "asset_missing",
        "power_low",
        "safe_mode",
        "power_lost",
        "quiet_hours",
    }
)
CLOCK_FAULTS: Final = frozenset({"clock_jump"})
STOCK_FAULTS: Final = frozenset({"rot_asset", "disk_full", "cut", "mute", "deaf", "dark", "brown_out", "reboot"})
MEMORY_FAULTS: Final = frozenset({"rot_memory", "disk_full"})
SERVER_FAULTS: Final = frozenset(
    {"broker_restart", "broker_wipe", "server_crash", "server_cut", "double_leader", "bad_download"}
)


@dataclass(slots=True)
class Verdict:
    """What the checker found."""

    attempted: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def check(records: Sequence[Record]) -> Verdict:
    """All invariants over one trace."""
    return _Checker(records).run()


@dataclass(slots=True)
class _Node:
    cluster: str
    unit: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan a node obeys since `since`."""

    since: int
    until_ms: int
    body: str


@dataclass(frozen=True, slots=True)
class _Set:
    """A set of alerts a node obeys since `since`."""

    since: int
    unit: str
    alerts: dict[str, tuple[int, int]]
    """`(level, expires_ms)` by id."""
    latch: str | None


class _Checker:
    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.verdict = Verdict()
        self.by: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            self.by[record["what"]].append(record)
        self.end = records[-1]["t"] if records else 0
        paths = {one["unit"]: tuple(one["path"]) for one in self.by["place"]}
        self.nodes = {one["node"]: _Node(one["cluster"], one["unit"], paths[one["unit"]]) for one in self.by["seat"]}
        self.clusters_of: dict[str, frozenset[str]] = defaultdict(frozenset)
        for node in self.nodes.values():
            for unit in node.path:
                self.clusters_of[unit] |= {node.cluster}
        self.intents = {one["schedule"]: one for one in self.by["intent"]}
        self.assets = {one["asset"]: one for one in self.by["asset"]}
        self.alerts = {one["alert"]: one for one in self.by["alert"]}
        self.bodies = {one["body"]: one["segments"] for one in self.by["body"]}
        self.published = {one["digest"]: one for one in self.by["published"]}
        self.sounds = self._of_nodes("sound")
        self.silences = self._of_nodes("silence")
        self.faults = self._of_nodes("fault")
        self.server_faults = [one for one in self.by["fault"] if "node" not in one]
        self.plans: dict[str, list[_Plan]] = defaultdict(list)
        self.sets: dict[str, list[_Set]] = defaultdict(list)
        self.boots = self._of_nodes("boot")
        self.darks = self._of_nodes("dark")
        for one in self.by["obeyed"]:
            told = self.published.get(one["digest"])
            if told is None:
                continue
            if one["topic"].endswith("/plan"):
                self.plans[one["node"]].append(_Plan(one["t"], told["until_ms"], told["body"]))
            elif one["topic"].endswith("/alert"):
                alerts = {alert: (level, expires) for alert, level, expires in told["alerts"]}
                self.sets[one["node"]].append(_Set(one["t"], told["unit"], alerts, told["latch"]))

    def _of_nodes(self, what: str) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.by[what]:
            if "node" in record:
                found[record["node"]].append(record)
        return found

    def run(self) -> Verdict:
        """Every invariant in turn."""
        for name, look in (
            ("I1", self.authorised),
            ("I2", self.due_items_play),
            ("I3", self.none_twice),
            ("I4", self.gravest_first),
            ("I5", self.stops_in_time),
            ("I6", self.audited),
            ("I7", self.log_is_true),
            ("I8", self.in_scope),
            ("I9", self.only_forward),
            ("I10", self.known_when_down),
        ):
            told = 0
            for problem in look():
                self.verdict.attempted[name] += 1
                if problem:
                    told += 1
                    if told <= MOST_TOLD:
                        self.verdict.violations.append(f"{name}: {problem}")
        return self.verdict

    # -- what was known when

    def plan_at(self, node: str, t: int) -> _Plan | None:
        """The plan a node had obeyed last by then."""
        plans = self.plans[node]
        at = bisect_right(plans, t, key=lambda plan: plan.since)
        return plans[at - 1] if at else None

    def sets_at(self, node: str, t: int) -> dict[str, _Set]:
        """The sets of alerts a node had obeyed last by then, by unit."""
        found: dict[str, _Set] = {}
        for one in self.sets[node]:
            if one.since > t:
                break
            found[one.unit] = one
        return found

    def has_fault(self, node: str, since: int, until: int, verbs: frozenset[str] | None = None) -> bool:
        """Whether a fault of the node began in that time."""
        return any(since <= one["t"] <= until and (verbs is None or one["verb"] in verbs) for one in self.faults[node])

    def is_calm(self, node: str, since: int, until: int) -> bool:
        """Whether no fault, of the node or of the server's side, can still have troubled it in that time."""
        if self.has_fault(node, since - MEMORY_OF_NODE_FAULTS_MS, until):
            return False
        if any(since - 2 * S <= one["t"] <= until for one in self.darks[node]):
            return False
        first = since - MEMORY_OF_SERVER_FAULTS_MS
        return not any(first <= one["t"] <= until for one in self.server_faults)

    def clock_is_doubtful(self, node: str, since: int, until: int) -> bool:
        """Whether the node's idea of the time may have been wrong."""
        return self.has_fault(node, since - MEMORY_OF_CLOCK_FAULTS_MS, until, CLOCK_FAULTS)

    def is_aimed_at(self, node: str, intent: Record, t: int) -> bool:
        """Whether an intent meant the node's cluster, at that time or in the hour before."""
        cluster = self.nodes[node].cluster
        for kind, ref in intent["aims"]:
            if kind == "cluster" and ref == cluster:
                return True
            if kind == "unit" and cluster in self.clusters_of[ref]:
                return True
            if kind == "group":
                known = [one for one in self.by["group"] if one["group"] == ref and one["t"] <= t]
                recent = [one for one in known if one["t"] > t - 3_600 * S]
                if any(cluster in one["clusters"] for one in [*known[-1:], *recent, *known[-len(recent) - 1 : -1]]):
                    return True
        return False

    # -- I1 ---------------------------------------------------------------------------------------------------------

    def authorised(self) -> Iterator[str | None]:
        """Every second of sound maps to one authorised, unexpired, in-scope, approved intent."""
        for node, sounds in self.sounds.items():
            for one in sounds:
                yield self._why_not_authorised(node, one)

    def _why_not_authorised(self, node: str, one: Record) -> str | None:
        where = f"{node} at {_at(one['true_from'])} sounded {one.get('entry')}"
        entry = one.get("entry")
        if entry is None:
            return f"{where}: of nothing"
        if entry.startswith("alert:"):
            alert = self.alerts.get(entry.removeprefix("alert:"))
            if alert is None:
                return f"{where}: an alert nobody launched"
            if one["server_to"] > alert["expires_ms"] + TOLERANCE_MS:
                return f"{where}: past the alert's expiry"
            return None
        schedule, _, instant = entry.partition("@")
        intent = self.intents.get(schedule)
        if intent is None:
            return f"{where}: nobody asked for it"
        if one["asset"] != intent["asset"] or not self.assets[intent["asset"]]["approved"]:
            return f"{where}: another sound than the one approved"
        if not _is_asked_for(intent, int(instant)):
            return f"{where}: at a time nobody asked for"
        plan = self.plan_at(node, one["true_to"]), self.plan_at(node, one["true_from"] + TOLERANCE_MS)
        if not any(self._covers(one_plan, one) for one_plan in plan if one_plan is not None):
            return f"{where}: not in the plan it obeyed"
        return None

    def _covers(self, plan: _Plan, one: Record) -> bool:
        if one["server_to"] > plan.until_ms + TOLERANCE_MS:
            return False
        return any(
            (entry, start) == (one["entry"], one["start"])
            and one["server_from"] >= start - TOLERANCE_MS
            and one["server_to"] <= end + TOLERANCE_MS
            for entry, start, end, _, _ in self.bodies[plan.body]
        )

    # -- I2 ---------------------------------------------------------------------------------------------------------

    def due_items_play(self) -> Iterator[str | None]:
        """Every due item of every node that is alive and ready played once, or carries an allowed reason."""
        quiet = self.by["quiet"][0]["t"] if self.by["quiet"] else self.end
        for node in self.nodes:
            seen: set[tuple[str, int]] = set()
            plans = self.plans[node]
            for index, plan in enumerate(plans):
                until = plans[index + 1].since if index + 1 < len(plans) else self.end
                for entry, start, end, offset, asset in self.bodies[plan.body]:
                    if plan.since <= start < until and end < self.end - TOLERANCE_MS and (entry, start) not in seen:
                        seen.add((entry, start))
                        length = min(end - start, max(0, self.assets[asset]["length_ms"] - offset))
                        yield self._why_not_played(node, entry, start, length)
            if quiet < self.end:
                yield self._why_not_converged(node)

    def _why_not_converged(self, node: str) -> str | None:
        """After an hour of peace a node obeys what was published last."""
        last = [one for one in self.by["published"] if one.get("node") == node]
        plan = self.plan_at(node, self.end)
        if not last or self.end - last[-1]["t"] < CONVERGED_MS:
            return None
        if plan is None or plan.body != last[-1]["body"]:
            return f"{node}: does not follow the last plan after an hour of peace"
        return None

    def _why_not_played(self, node: str, entry: str, start: int, length: int) -> str | None:
        heard = _sum(self._heard_of(node, entry, start))
        if heard >= length - TOLERANCE_MS:
            return None
        until = start + length
        if self.clock_is_doubtful(node, start, until):
            return None
        covered = [(one["true_from"], one["true_to"]) for one in self.sounds[node]]
        covered += [
            (one["true_from"], one["true_to"])
            for one in self.silences[node]
            if one["why"] in EXCUSES and self._is_true(node, one)
        ]
        covered += self._without_power(node)
        covered += self._out_of_plan(node, entry, start)
        left = length - _covered(covered, start, until)
        if left <= TOLERANCE_MS:
            return None
        return f"{node}: {entry} from {_at(start)}: {left / S:.1f} s of {length / S:.0f} s silent without a reason"

    def _heard_of(self, node: str, entry: str, start: int) -> list[tuple[int, int]]:
        return [
            (one["true_from"], one["true_to"])
            for one in self.sounds[node]
            if (one.get("entry"), one.get("start")) == (entry, start)
        ]

    def _is_true(self, node: str, one: Record) -> bool:
        """Whether a reason a node gives is borne out by what happened to it."""
        t = one["true_from"]
        if one["why"] == "stop_all":
            return any(each.latch is not None for each in self.sets_at(node, t + CUT_WITHIN_MS).values())
        if one["why"] == "safe_mode":
            recent = [boot for boot in self.boots[node] if t - 1_200 * S <= boot["t"] <= t + S]
            return len(recent) >= 3
        if one["why"] == "asset_missing":
            is_fresh = one.get("asset") is not None and t - self.assets[one["asset"]]["t"] < 1_200 * S
            has_reason = self.has_fault(node, 0, t, STOCK_FAULTS) or any(each["t"] <= t for each in self.server_faults)
            return is_fresh or has_reason
        if one["why"] in {"clock_unknown", "clock_uncertain"}:
            return self.has_fault(node, 0, t)
        if one["why"] == "power_lost":
            return bool(self.darks[node])
        return True

    def _without_power(self, node: str) -> list[tuple[int, int]]:
        """From power-off to the moment the next life knows the time: it may need the network for that."""
        found = []
        for dark in self.darks[node]:
            coming = [boot["t"] for boot in self.boots[node] if boot["t"] >= dark["t"]]
            found.append((dark["t"] - S, (coming[0] if coming else self.end) + 10 * S))
        first = self.boots[node][0]["t"] if self.boots[node] else self.end
        return [*found, (0, first + 10 * S)]

    def _out_of_plan(self, node: str, entry: str, start: int) -> list[tuple[int, int]]:
        """While the plan it obeyed did not have the item any more (or had it expired)."""
        found = []
        plans = self.plans[node]
        for index, plan in enumerate(plans):
            until = plans[index + 1].since if index + 1 < len(plans) else self.end
            known = [end for name, begins, end, _, _ in self.bodies[plan.body] if (name, begins) == (entry, start)]
            if not known:
                found.append((plan.since, until))
            else:
                found.append((known[0], until))
        return found

    # -- I3 ---------------------------------------------------------------------------------------------------------

    def none_twice(self) -> Iterator[str | None]:
        """No stretch of an item sounds twice on a node, by the node's own time."""
        for node, sounds in self.sounds.items():
            stretches: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
            for one in sounds:
                if one.get("entry") is not None and not one["entry"].startswith("alert:"):
                    stretches[one["entry"], one["start"]].append((one["server_from"], one["server_to"]))
            for (entry, start), found in stretches.items():
                twice = _sum(found) - _covered(found, min(a for a, _ in found), max(b for _, b in found))
                yield f"{node}: {twice / S:.1f} s of {entry} from {_at(start)} twice" if twice > OVERLAP_MS else None

    # -- I4 ---------------------------------------------------------------------------------------------------------

    def gravest_first(self) -> Iterator[str | None]:
        """An alert that a node comes to know takes the air within two seconds, from everything below it."""
        for node, sets in self.sets.items():
            known: set[str] = set()
            for one in sets:
                fresh = [alert for alert in one.alerts if alert not in known]
                known |= set(one.alerts)
                for alert in fresh:
                    yield self._why_not_heard(node, one, alert)

    def _why_not_heard(self, node: str, one: _Set, alert: str) -> str | None:
        level, expires = one.alerts[alert]
        until = one.since + 10 * S
        state = self.sets_at(node, one.since)
        others = [other for each in state.values() for other in each.alerts.values()]
        if expires <= until or any(each.latch for each in state.values()) or max(others)[0] > level:
            return None
        if len(others) > 1 or self.has_fault(node, one.since - MEMORY_OF_CLOCK_FAULTS_MS, until):
            return None  # alerts of one level take turns; a troubled node is held against I2
        coming = [set_ for set_ in self.sets[node] if one.since < set_.since <= until]
        if any(alert not in set_.alerts or set_.latch for set_ in coming):
            return None
        found = [each for each in self.sounds[node] if each.get("entry") == f"alert:{alert}"]
        if any(each["true_from"] <= one.since + CUT_WITHIN_MS for each in found):
            return None
        return f"{node}: knew alert {alert[:12]} at {_at(one.since)} and did not sound it within 2 s"

    # -- I5 ---------------------------------------------------------------------------------------------------------

    def stops_in_time(self) -> Iterator[str | None]:
        """Stop-all, cancel and expiry are obeyed within two seconds of being known, and known soon where calm."""
        for node in self.nodes:
            for since, until in self._latched(node):
                late = _covered(
                    [(one["true_from"], one["true_to"]) for one in self.sounds[node]], since + CUT_WITHIN_MS, until
                )
                yield f"{node}: {late / S:.1f} s of sound under stop-all from {_at(since)}" if late > 0 else None
            yield from self._called_off(node)
        for latch in self.by["stop_all"]:
            yield from self._heard_of_latch(latch)
        for one in self.by["cancelled"]:
            yield from self._off_the_air(one)

    def _latched(self, node: str) -> Iterator[tuple[int, int]]:
        since: int | None = None
        latches: dict[str, str | None] = {}
        for one in self.sets[node]:
            latches[one.unit] = one.latch
            is_latched = any(latches.values())
            if is_latched and since is None:
                since = one.since
            elif not is_latched and since is not None:
                yield since, one.since
                since = None
        if since is not None:
            yield since, self.end

    def _called_off(self, node: str) -> Iterator[str | None]:
        for index, one in enumerate(self.sets[node]):
            before = next((each for each in reversed(self.sets[node][:index]) if each.unit == one.unit), None)
            gone = set() if before is None else set(before.alerts) - set(one.alerts)
            again = {alert for each in self.sets[node][index + 1 :] for alert in each.alerts}
            for alert in sorted(gone - again):
                late = [
                    each
                    for each in self.sounds[node]
                    if each.get("entry") == f"alert:{alert}" and each["true_to"] > one.since + CUT_WITHIN_MS
                ]
                yield f"{node}: alert {alert[:12]} sounded after it was called off" if late else None

    def _heard_of_latch(self, latch: Record) -> Iterator[str | None]:
        released = next((one["t"] for one in self.by["released"] if one["latch"] == latch["latch"]), self.end)
        deadline = latch["t"] + CONVERGED_MS
        for node, seat in self.nodes.items():
            if latch["unit"] not in seat.path or released <= deadline or not self.is_calm(node, latch["t"], deadline):
                continue
            is_known = any(each.latch is not None for each in self.sets_at(node, deadline).values())
            yield None if is_known else f"{node}: does not know of stop-all {latch['latch'][:12]} after a minute"

    def _off_the_air(self, one: Record) -> Iterator[str | None]:
        deadline = one["t"] + CONVERGED_MS
        for node in self.nodes:
            if not self.is_calm(node, one["t"], deadline):
                continue
            late = [
                each
                for each in self.sounds[node]
                if each.get("entry", "").startswith(f"{one['schedule']}@") and each["true_from"] > deadline
            ]
            late = [each for each in late if self.is_calm(node, one["t"], each["true_from"])]
            yield f"{node}: {late[0]['entry']} sounded after it was cancelled" if late else None

    # -- I6 ---------------------------------------------------------------------------------------------------------

    def audited(self) -> Iterator[str | None]:
        """The audit chain holds, and every deed has its row."""
        for one in self.by["audit_chain"]:
            yield None if one["broken"] is None else f"the audit chain is broken at {one['broken']}"
        numbers = [one["sequence"] for one in self.by["audit"]]
        yield None if numbers == list(range(1, len(numbers) + 1)) else "the audit has gaps"
        rows = {(one["verb"], one["subject"].rpartition("/")[2]) for one in self.by["audit"]}
        verbs = {verb for verb, _ in rows}
        for what, key, verb in (
            ("intent", "schedule", None),
            ("cancelled", "schedule", "schedule.cancel"),
            ("alert", "alert", "emergency.launch"),
            ("alert_cancelled", "alert", "emergency.cancel"),
            ("stop_all", "latch", "stop_all.set"),
            ("released", "latch", "stop_all.release"),
        ):
            for one in self.by[what]:
                wanted = [verb] if verb is not None else sorted(verbs)
                is_there = any((each, one[key]) in rows for each in wanted)
                yield None if is_there else f"no audit row for {what} {one[key][:12]}"

    # -- I7 ---------------------------------------------------------------------------------------------------------

    def log_is_true(self) -> Iterator[str | None]:
        """The server says PLAYED if and only if the node's log does, and never more than left the horn."""
        stored = {(one["node"], one["boot"], one["sequence"]) for one in self.by["stored"]}
        told: dict[tuple[str, str, int], int] = defaultdict(int)
        for one in self.by["reported"]:
            if one["kind"] == "finished" and (one["node"], one["boot"], one["sequence"]) in stored:
                told[one["node"], one["entry"], one["start"]] += one["heard_ms"]
        for play in self.by["play"]:
            where = f"{play['node']}: {play['entry']} from {_at(play['start'])}"
            heard = _sum(self._heard_of(play["node"], play["entry"], play["start"]))
            length = play["end"] - play["start"]
            claimed = play["heard_ms"] if play["verdict"] in {"played", "partial"} else 0
            if claimed > heard + TOLERANCE_MS:
                yield f"{where}: the log says {claimed} ms, {heard} ms left the horn"
            elif play["verdict"] == "played" and heard < length - 2 * TOLERANCE_MS:
                yield f"{where}: PLAYED, and {heard} of {length} ms left the horn"
            else:
                said = told[play["node"], play["entry"], play["start"]]
                is_whole = said >= length - TOLERANCE_MS and 2 * said >= length
                is_missed = is_whole and play["verdict"] != "played" and play["judged"]
                yield f"{where}: reported whole and {play['verdict']}" if is_missed else None
        for one in self.by["reported"]:
            key = (one["node"], one["boot"], one["sequence"])
            is_old = one["t"] < self.end - 600 * S
            yield f"{key}: a report was sent and is not stored" if is_old and key not in stored else None

    # -- I8 ---------------------------------------------------------------------------------------------------------

    def in_scope(self) -> Iterator[str | None]:
        """Nothing has an effect outside of where it was meant for."""
        for node, sounds in self.sounds.items():
            for one in sounds:
                entry = one.get("entry") or ""
                if entry.startswith("alert:"):
                    alert = self.alerts.get(entry.removeprefix("alert:"))
                    is_meant = alert is not None and alert["unit"] in self.nodes[node].path
                else:
                    intent = self.intents.get(entry.partition("@")[0])
                    plan = self.plan_at(node, one["true_from"] + TOLERANCE_MS)
                    since = one["true_from"] if plan is None else plan.since
                    is_meant = intent is not None and self.is_aimed_at(node, intent, since)
                yield None if is_meant else f"{node} sounded {entry}, which was not meant for it"
        for one in self.by["obeyed"]:
            _, _, family, owner, _ = one["topic"].split("/")
            is_own = owner == one["node"] if family == "node" else owner in self.nodes[one["node"]].path
            yield None if is_own else f"{one['node']} obeyed {one['topic']}"

    # -- I9 ---------------------------------------------------------------------------------------------------------

    def only_forward(self) -> Iterator[str | None]:
        """What a node obeys on a topic never gets older, whichever key signed; a number never stands for two things."""
        highest: dict[tuple[str, str], tuple[list[int], str]] = {}
        for one in self.by["obeyed"]:
            if one["topic"].endswith("/keys"):
                continue
            key = (one["node"], one["topic"])
            before = highest.get(key)
            highest[key] = (one["order"], one["digest"])
            if before is None or self.has_fault(one["node"], 0, one["t"], MEMORY_FAULTS):
                yield None
            elif one["order"] < before[0]:
                yield f"{one['node']} obeyed {one['order']} on {one['topic']} after {before[0]}"
            elif one["order"] == before[0] and one["digest"] != before[1]:
                yield f"{one['node']} obeyed two messages of order {one['order']} on {one['topic']}"
            else:
                yield None
        lines: dict[tuple[str, str, int], str] = {}
        for one in self.by["reported"]:
            known = lines.setdefault((one["node"], one["boot"], one["sequence"]), one["digest"])
            yield None if known == one["digest"] else f"{one['node']}: two reports {one['boot']}/{one['sequence']}"

    # -- I10 --------------------------------------------------------------------------------------------------------

    def known_when_down(self) -> Iterator[str | None]:
        """The server knows of a node without power within 100 s."""
        for node, darks in self.darks.items():
            spans = [one for one in self.by["span"] if one["node"] == node]
            for dark in darks:
                t, deadline = dark["t"], dark["t"] + KNOWN_WITHIN_MS
                back = next((boot["t"] for boot in self.boots[node] if boot["t"] >= t), self.end)
                if back <= deadline or deadline >= self.end:
                    continue
                first = t - MEMORY_OF_SERVER_FAULTS_MS
                if any(first <= one["t"] <= deadline for one in self.server_faults):
                    continue
                is_online = any(one["since"] <= t and (one["until"] or self.end) > deadline for one in spans)
                yield f"{node}: without power since {_at(t)}, and still taken for online" if is_online else None


def _is_asked_for(intent: Record, instant: int) -> bool:
    if "times" in intent:
        local = datetime.fromtimestamp(instant / 1000, UTC).astimezone(LOCAL)
        return f"{local:%H:%M}" in intent["times"] and local.second == 0
    if intent.get("loose"):
        return -TOLERANCE_MS <= instant - int(intent["at"]) <= 3_600 * S
    return instant == int(intent["at"])


def _sum(stretches: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in stretches)


def _covered(stretches: Iterable[tuple[int, int]], since: int, until: int) -> int:
    """How much of `[since, until)` the stretches cover together."""
    total, at = 0, since
    for start, end in sorted(stretches):
        low, high = max(start, at), min(end, until)
        if low < high:
            total += high - low
            at = high
    return total


def _at(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone(LOCAL):%d %H:%M:%S}"
