"""The operator's acts on the signing keys, written down before and after; and what nodes say they know of them.

The keys themselves are the signer's. A maintainer must not break: an act that cannot be written down is not done, and
what was done is told to whoever publishes (`facts.KEYS_CHANGED`) in the transaction that says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.clock import from_ms
from broadcast_server.domain.errors import BroadcastError, Invalid, Refused
from broadcast_server.store import audit, facts, fleet
from broadcast_server.store.session import Session

SHORTEST_REASON: Final = 5
LONGEST_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class NodesKnow:
    """What nodes said last. `by_list`: how many hold which version of the list of revocations."""

    nodes: int
    by_list: Mapping[int, int]
    first_end_ms: int | None
    """The first instant at which a node runs out of keys for its plan."""
    without_keys: tuple[str, ...]
    resyncing: tuple[str, ...]


def reason_of(text: str) -> str:
    """A reason, trimmed. Raises `Invalid("key_reason_missing")`."""
    reason = text.strip()
    if not SHORTEST_REASON <= len(reason) <= LONGEST_REASON:
        raise Invalid("key_reason_missing", field="reason", least=SHORTEST_REASON, most=LONGEST_REASON)
    return reason


async def change(
    desk: Desk,
    actor: Actor,
    verb: str,
    asked: Mapping[str, Any],
    do: Callable[[], Mapping[str, Any]],
    *,
    must_resign: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> Mapping[str, Any]:
    """Do it between two rows of the audit log; what it answered. `must_resign`: whether all that is retained must be
    signed anew.

    For whoever stands at the machine. Raises `Refused("not_permitted")` and what `do` raises.
    """
    if not actor.everywhere:
        raise Refused("not_permitted", action="keys")
    now, word = desk.clock.now(), desk.chance.new_id()

    def note(session: Session, step: str, detail: Mapping[str, Any]) -> None:
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb=f"{verb}{step}",
            unit_id=None,
            subject="keys",
            detail=dict(detail),
        )

    await desk.store.begin(lambda session: note(session, ".asked", asked), ring=False)
    try:
        done = await desk.executor.run(do)
    except BroadcastError as error:
        code = error.code
        await desk.store.begin(lambda session: note(session, ".refused", {**asked, "code": code}), ring=False)
        raise

    def write(session: Session) -> None:
        note(session, "", done)
        told = {"word": word, "must_resign": must_resign(done)}
        facts.put(session, facts.KEYS_CHANGED, told, now=now)

    await desk.store.begin(write)
    return done


@dataclass(frozen=True, slots=True)
class Ending:
    """Of this role a key ends soon and has no successor yet. `until`: the first that ends."""

    role: str
    until: datetime


def ending(session: Session, now: datetime) -> list[Ending]:
    """What ends soon of the keys nodes were told of last."""
    held = facts.find(session, facts.KEYS_HELD)
    ends = {} if held is None else {role: from_ms(end["until_ms"]) for role, end in held["ends"].items()}
    return [Ending(role, until) for role, until in ends.items() if until - now < facts.keys_end_soon(role)]


async def known(desk: Desk, actor: Actor) -> NodesKnow:
    """What nodes said last of the keys they know, for the operator."""
    if not actor.everywhere:
        raise Refused("not_permitted", action="keys")
    told = await desk.store.read(fleet.words)
    ends = {node_id: body.get("keys_until_ms") for node_id, body in told.items()}
    return NodesKnow(
        nodes=len(told),
        by_list=dict(sorted(Counter(int(body.get("rl_ver") or 0) for body in told.values()).items())),
        first_end_ms=min((end for end in ends.values() if end is not None), default=None),
        without_keys=tuple(sorted(node_id for node_id, end in ends.items() if end is None)),
        resyncing=tuple(sorted(node_id for node_id, body in told.items() if body.get("is_resyncing"))),
    )
