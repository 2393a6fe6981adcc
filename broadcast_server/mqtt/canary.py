"""Two users with a node's rights that try, at start and every hour, what no node may do to another.

What counts is delivery: mosquitto grants a subscription of which it then gives nothing, and acknowledges a publish that
it throws away. Every look also proves that what is allowed arrives, so a broker that delivers nothing never passes.
A maintainer must not break: the canaries speak on topics of their own names alone, so no real node hears them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.probe import Login, Probe, try_connect

log = get_logger()

ROOT: Final = "loa/1"
TRIES: Final = 2
_SETTLE_S: Final = 0.05


class Leak(StrEnum):
    """What a broker let through."""

    ANONYMOUS = "anonymous"
    """It let in who showed nothing."""
    READ_ACROSS = "read_across"
    """A node was given what is another's, or everything by `#`."""
    WRITE_ACROSS = "write_across"
    """What a node published on another's topic, or on the server's, was delivered."""
    WILL_ACROSS = "will_across"
    """A will for another's topic was delivered."""
    TAKE_OVER = "take_over"
    """Showing another's client id ended that one's session."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the canaries fly. `publish`: the server's own voice (None: it is not asked for)."""

    host: str
    port: int
    clock: Clock
    canaries: tuple[tuple[str, Login], tuple[str, Login]] | None
    """Two user names, whose topics they own, and how they get in. None: only strangers are tried."""
    stranger: Login = field(default_factory=Login)
    """Who shows nothing."""
    publish: Callable[[str, bytes], Awaitable[None]] | None = None


async def look(ground: Ground, mark: bytes) -> frozenset[Leak]:
    """What the broker lets through. `mark`: random bytes of this look, so that nothing of an earlier one counts.

    Raises `Unavailable("broker_canary_unheard")` when even what is allowed does not arrive, after `TRIES`.
    """
    leaks = set()
    for stranger in (ground.stranger, replace(ground.stranger, tls=None)):
        if await try_connect(ground.host, ground.port, stranger) == 0:
            leaks.add(Leak.ANONYMOUS)
    if ground.canaries is None:
        return frozenset(leaks)
    attempt = 1
    while True:
        try:
            return frozenset(leaks | await _fly(ground, *ground.canaries, mark + b"/%d" % attempt))
        except Unavailable as silence:
            log.warning("canary.unheard", attempt=attempt, reason=silence.code)
            if attempt >= TRIES:
                raise Unavailable("broker_canary_unheard") from silence
        attempt += 1


async def _fly(ground: Ground, first: tuple[str, Login], second: tuple[str, Login], mark: bytes) -> set[Leak]:
    (mine, as_mine), (other, as_other) = first, second
    leaks: set[Leak] = set()
    victim = await _enter(ground, as_other)
    try:
        await victim.subscribe([f"{ROOT}/node/{other}/+", f"{ROOT}/unit/+/alert", f"{ROOT}/stream/+/audio"])
        thief = await _enter(ground, as_mine)
        try:
            for topic_filter in ("#", "+/+/+/+/+", f"{ROOT}/node/+/+", f"{ROOT}/node/{other}/+"):
                await thief.subscribe([topic_filter])
            await thief.subscribe([f"{ROOT}/node/{mine}/+"])
            await victim.publish(f"{ROOT}/node/{other}/status", mark)
            if ground.publish is not None:
                await ground.publish(f"{ROOT}/node/{other}/plan", mark)
            for topic in (
                f"{ROOT}/node/{other}/status",
                f"{ROOT}/node/{other}/plan",
                f"{ROOT}/node/{mine}/plan",
                f"{ROOT}/unit/{mine}/alert",
                f"{ROOT}/stream/{mine}/audio",
            ):
                await thief.publish(topic, mark + b" forged", retain=True)
                await thief.publish(topic, mark + b" forged", qos=0)
            await _hears_itself(thief, f"{ROOT}/node/{mine}/status", mark + b" control")
            if any(one.payload == mark for one in thief.heard):
                leaks.add(Leak.READ_ACROSS)
            if any(one.payload == mark + b" forged" for one in thief.heard):  # its own plan
                leaks.add(Leak.WRITE_ACROSS)
        finally:
            await thief.close()
        willed = await _enter(ground, as_mine, will=(f"{ROOT}/node/{other}/status", mark + b" willed", False))
        await willed.vanish()
        await ground.clock.sleep(_SETTLE_S)  # a will leaves when the broker has seen the end
        await _hears_itself(victim, f"{ROOT}/node/{other}/status", mark + b" after")
        if any(one.payload == mark + b" forged" for one in victim.heard):
            leaks.add(Leak.WRITE_ACROSS)
        if any(one.payload == mark + b" willed" for one in victim.heard):
            leaks.add(Leak.WILL_ACROSS)
        if await _is_taken_over(ground, victim, as_mine, as_other.client_id):
            leaks.add(Leak.TAKE_OVER)
    finally:
        await victim.close()
    return leaks


async def _enter(ground: Ground, login: Login, *, will: tuple[str, bytes, bool] | None = None) -> Probe:
    try:
        return await Probe.open(ground.host, ground.port, login, will=will)
    except Refused as refusal:
        raise Unavailable("broker_refused", user=login.user) from refusal


async def _hears_itself(probe: Probe, topic: str, payload: bytes) -> None:
    """What is allowed arrives, and with it all that was sent before. Raises `Unavailable("broker_away")`."""
    await probe.publish(topic, payload)
    if not await probe.hears(topic, payload):
        raise Unavailable("broker_away")
    await probe.ping()


async def _is_taken_over(ground: Ground, victim: Probe, thief: Login, client_id: str) -> bool:
    """Whether the victim's session ends when another shows its client id (with its own, and with no, credentials)."""
    for login in (thief, ground.stranger):
        try:
            rival = await Probe.open(ground.host, ground.port, replace(login, client_id=client_id))
        except (Refused, Unavailable):
            continue
        try:
            await victim.ping()
        except Unavailable:
            return True
        finally:
            await rival.close()
    try:
        await victim.ping()
    except Unavailable:
        return True
    return False
