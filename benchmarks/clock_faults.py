"""Clocks go wrong in every way they can: does any pole sound the wrong thing, twice, or after its time?

Every run is one node's real code on virtual time: seven minutes with a recording every forty seconds, each second of
each recording a pulse of its own kind, and a microphone that knows true time. One fault per run, of a family below. A
run is judged by what left the horn: a pulse more than 30 s from its civil time must be flagged by the node's own log
(`reason`, or an uncertainty that covers it); no pulse sounds twice; nothing of an expired plan sounds; and what is due
after the fault is over (and, where the node lost its time, after an answer came) is heard whole and on time.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import bar_of  # noqa: E402
from firmware_sim.clock import DeviceClock  # noqa: E402
from simulation.world.time import VirtualLoop, VirtualTime, dice  # noqa: E402
from simulation.world.time import run as run_virtually  # noqa: E402
from tests.firmware_sim.sky import Heard, Sky, Ways  # noqa: E402
from tests.firmware_sim.station import segment  # noqa: E402

RUNS = 320
NODE = "node-1"
LONG_S = 10
FIRST_S, EVERY_S, ITEMS = 50, 40, 10
END_S = FIRST_S + EVERY_S * (ITEMS - 1) + LONG_S + 8
SURE_S = FIRST_S + EVERY_S * (ITEMS - 2) - 15
"""By then every fault is over and the network back for a while: the last two recordings must sound."""
OFF_CIVIL_S = 30.0
YEAR_S = 365.25 * 86_400
JUMPS_S = (1, 2, 5, 20, 45, 90, 300, 1_800, 3_600, 7 * 3_600, 86_400, 30 * 86_400, 90 * 86_400, YEAR_S, 10 * YEAR_S)
MOMENTS = {
    "an ordinary morning": datetime(2026, 9, 21, 22, 10, tzinfo=UTC),
    "midnight": datetime(2026, 6, 1, 16, 57, tzinfo=UTC),
    "midnight UTC": datetime(2026, 6, 1, 23, 57, tzinfo=UTC),
    "new year": datetime(2026, 12, 31, 16, 57, tzinfo=UTC),
    "into the leap day": datetime(2028, 2, 28, 16, 57, tzinfo=UTC),
    "out of the leap day": datetime(2028, 2, 29, 16, 57, tzinfo=UTC),
    "no leap day": datetime(2027, 2, 28, 16, 57, tzinfo=UTC),
    "2^31 seconds": datetime(2038, 1, 19, 3, 11, tzinfo=UTC),
}
WRAPS_S = {"13.3 h": 2**31 / 45_000, "24.9 h": 2**32 / 48_000, "27.1 h": 2**31 / 22_050, "24.9 d": 2**31 / 1_000}
DEAD_RTC = {"1970": 0.0, "2000-01-01": 946_684_800.0, "1980-01-06": 315_964_800.0}


@dataclass
class Case:
    """One run: its name, when it takes place, and what happens to the clock."""

    family: str
    what: str
    seed: int
    act: Callable[[Stage], Coroutine[Any, Any, None]]
    start: datetime = MOMENTS["an ordinary morning"]
    drift_ppm: float = 0.0
    offset_ms: float = 0.0


@dataclass
class Stage:
    """The run while it goes on."""

    sky: Sky
    time: VirtualTime
    clock: DeviceClock
    chance: random.Random
    zero_s: float = 0.0

    async def until(self, at_s: float) -> None:
        """So many seconds after the plan's zero."""
        await self.time.sleep(self.zero_s + at_s - self.time.monotonic())

    async def reboot(self, meanwhile: Callable[[], None], off_s: float, dead_net_s: float) -> None:
        """Power off; something happens; power on, and the network is away for a while longer.

        `off_s` 0: a dip, after which nothing was put in order.
        """
        self.sky.is_open = False
        if off_s:
            await self.sky.switch_off(NODE)
            meanwhile()
            await self.time.sleep(off_s)
            self.sky.switch_on(NODE)
        else:
            meanwhile()
            self.sky.nodes[NODE].power_cycle()
        await self.time.sleep(dead_net_s)
        self.sky.is_open = True
        link = self.sky.links.get(NODE)
        if link is not None and link.is_up:
            link.again()


@dataclass
class Verdict:
    """What a run came to."""

    case: Case
    pulses: tuple[Heard, ...] = ()
    violations: list[str] = field(default_factory=list)
    flagged: int = 0


async def _run(case: Case, folder: Path) -> Verdict:
    time = VirtualTime(case.start)
    sky = Sky(time, folder)
    chance = dice(case.seed, case.what)
    clock = DeviceClock(time, offset_ms=case.offset_ms, drift_ppm=case.drift_ppm)
    assets = [sky.asset(f"recording {number}", LONG_S) for number in range(ITEMS + 1)]
    sky.node(
        NODE,
        chance=chance,
        clock=clock,
        ways=Ways(lambda: chance.uniform(0.02, 0.2), lambda: chance.uniform(0.02, 0.2)),
    )
    stage = Stage(sky, time, clock, chance)
    if case.family == "counter wraps":
        await case.act(stage)
    stage.zero_s = time.monotonic()
    zero_ms = sky.now_ms
    starts = [zero_ms + (FIRST_S + EVERY_S * number) * 1000 for number in range(ITEMS)]
    segments = [segment(f"item-{number}", start, LONG_S, asset=assets[number]) for number, start in enumerate(starts)]
    # The plan is over before this one, so nobody may ever hear it.
    expired_ms = starts[-1] + 1000 * LONG_S + 2_000
    segments.append(segment(f"item-{ITEMS}", expired_ms + 500, 3.0, asset=assets[ITEMS]))
    sky.plan(NODE, segments, valid_ms=(zero_ms - 3_600_000, expired_ms))
    if case.family != "counter wraps":
        await case.act(stage)
    await stage.until(END_S)
    await sky.close()
    return _judge(case, sky, starts)


def _judge(case: Case, sky: Sky, starts: list[int]) -> Verdict:
    verdict = Verdict(case, sky.microphones[NODE].pulses())
    flags: dict[str, float] = {}
    for _, report, _ in sky.reports:
        if report.kind == "started":
            covered_ms = float("inf") if report.reason is not None else report.uncertainty_ms
            flags[report.entry_id] = max(covered_ms, flags.get(report.entry_id, 0.0))
    seen: Counter[tuple[int, int]] = Counter()
    whole: Counter[int] = Counter()
    for pulse in verdict.pulses:
        entry = f"item-{pulse.number}"
        if pulse.number == ITEMS:
            verdict.violations.append(f"{entry} of an expired plan sounded")
            continue
        if not 0 <= pulse.number < ITEMS or not 0 <= pulse.second < LONG_S:
            verdict.violations.append(f"a sound that nobody planned: {pulse}")
            continue
        seen[pulse.number, pulse.second] += 1
        off_ms = pulse.at_ns / 1e6 - (starts[pulse.number] + pulse.second * 1000 + 500)
        if abs(off_ms) > OFF_CIVIL_S * 1000:
            if flags.get(entry, 0.0) < abs(off_ms):
                verdict.violations.append(f"{entry} second {pulse.second} is {off_ms / 1000:.1f} s off and not flagged")
            verdict.flagged += 1
        elif abs(off_ms) < 1_000:
            whole[pulse.number] += 1
    verdict.violations += [
        f"item-{number} second {second} sounded {times} times" for (number, second), times in seen.items() if times > 1
    ]
    for number in (ITEMS - 2, ITEMS - 1):
        if whole[number] != LONG_S and not any(seen[number, second] for second in range(LONG_S) if not whole[number]):
            verdict.violations.append(f"item-{number}, due after the fault, was heard {whole[number]} s of {LONG_S}")
    return verdict


# -- the families -----------------------------------------------------------------------------------------------------


def _device_jump(seed: int, chance: random.Random) -> Case:
    by_s = chance.choice((-1, 1)) * chance.choice(JUMPS_S)
    at_s = chance.uniform(40, SURE_S - 40)

    async def act(stage: Stage) -> None:
        await stage.until(at_s)
        stage.clock.jump(by_s * 1000)

    return Case("the device's clock jumps while it runs", f"{by_s:+} s at {at_s:.0f} s", seed, act)


def _rtc_jump(seed: int, chance: random.Random) -> Case:
    by_s = chance.choice((-1, 1)) * chance.choice(JUMPS_S)
    at_s, off_s, dead_s = chance.uniform(55, 180), chance.choice((0.0, chance.uniform(1, 40))), chance.uniform(20, 100)

    async def act(stage: Stage) -> None:
        await stage.until(at_s)
        await stage.reboot(lambda: stage.clock.jump(by_s * 1000), off_s, dead_s)

    return Case("the battery clock jumps while the power is off", f"{by_s:+} s, off {off_s:.0f} s", seed, act)


def _dead_rtc(seed: int, chance: random.Random) -> Case:
    name = chance.choice(tuple(DEAD_RTC))
    at_s, off_s, dead_s = chance.uniform(55, 180), chance.choice((0.0, chance.uniform(1, 40))), chance.uniform(20, 100)

    async def act(stage: Stage) -> None:
        await stage.until(at_s)
        await stage.reboot(lambda: stage.clock.jump(DEAD_RTC[name] * 1000 - stage.clock.now_ns() / 1e6), off_s, dead_s)

    return Case("the battery clock is dead", name, seed, act)


def _drift(seed: int, chance: random.Random) -> Case:
    ppm, dead_s = chance.choice((-1, 1)) * 200.0, chance.uniform(60, 200)

    async def act(stage: Stage) -> None:
        await stage.until(chance.uniform(30, 90))
        stage.sky.is_open = False
        await stage.time.sleep(dead_s)
        stage.sky.is_open = True

    return Case("a crystal 200 ppm off", f"{ppm:+} ppm", seed, act, drift_ppm=ppm, offset_ms=chance.uniform(-500, 500))


def _one_wrong_answer(seed: int, chance: random.Random) -> Case:
    by_s = chance.choice((-1, 1)) * chance.choice(JUMPS_S)

    async def act(stage: Stage) -> None:
        await stage.until(chance.uniform(40, SURE_S - 60))
        stage.sky.wrong_answers, stage.sky.wrong_by_ns = 1, round(by_s * 1e9)

    return Case("one signed answer is wrong", f"{by_s:+} s", seed, act)


def _moment(seed: int, chance: random.Random) -> Case:
    name = chance.choice(tuple(MOMENTS))
    by_s = chance.choice((0.0, 1.5, -1.5, 3_600.0, -86_400.0))

    async def act(stage: Stage) -> None:
        await stage.until(160)
        if by_s:
            stage.clock.jump(by_s * 1000)

    return Case(
        "a moment of the calendar",
        f"{name}, {by_s:+} s",
        seed,
        act,
        start=MOMENTS[name],
        drift_ppm=chance.uniform(-50, 50),
    )


def _wrap(seed: int, chance: random.Random) -> Case:
    name = chance.choice(tuple(WRAPS_S))

    async def act(stage: Stage) -> None:
        await stage.time.sleep(30)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        # Counters of samples and milliseconds have run since power-on: the wrap comes in the middle of the programme.
        loop.jump(WRAPS_S[name] - stage.time.monotonic() - chance.uniform(20, SURE_S))
        await stage.time.sleep(20)

    return Case("counter wraps", name, seed, act, drift_ppm=chance.uniform(-50, 50))


FAMILIES = (_device_jump, _rtc_jump, _rtc_jump, _dead_rtc, _drift, _one_wrong_answer, _moment, _wrap)


def case_of(number: int) -> Case:
    """The case of a number; the same for ever."""
    return FAMILIES[number % len(FAMILIES)](number, dice(number, "case"))


def play(number: int) -> Verdict:
    """Run one case."""
    with tempfile.TemporaryDirectory(prefix="bench-clock-") as aside:
        return run_virtually(_run(case_of(number), Path(aside)))


def run(runs: int = RUNS) -> dict[str, Any]:
    """The suite's figures and bars."""
    verdicts = [play(number) for number in range(runs)]
    broken = [verdict for verdict in verdicts if verdict.violations]
    families: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        told = families.setdefault(verdict.case.family, {"attempted": 0, "ok": 0, "flagged_seconds": 0})
        told["attempted"] += 1
        told["ok"] += not verdict.violations
        told["flagged_seconds"] += verdict.flagged
    figures = {
        "attempted": len(verdicts),
        "ok": len(verdicts) - len(broken),
        "violations": sum(len(verdict.violations) for verdict in broken),
        "pulses_heard": sum(len(verdict.pulses) for verdict in verdicts),
        "families": families,
        "first_violations": [
            f"run {v.case.seed} ({v.case.family}, {v.case.what}): {v.violations[0]}" for v in broken[:10]
        ],
    }
    return {
        "name": "clock_faults",
        "figures": figures,
        "bars": [
            bar_of("runs attempted", len(verdicts), 300, holds=len(verdicts) >= 300),
            bar_of(
                "off civil time unflagged, replayed, expired or lost",
                figures["violations"],
                0,
                holds=bool(verdicts) and not broken,
            ),
        ],
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS), indent=2, ensure_ascii=False))
