"""The gate: every address of the API says what it asks of whoever comes, or it does not start.

`@asks(Action.…)` under the route's own decorator; or `@public`, `@signed_in`, `@by_secret`. A noun's router is a
`Router` of this module: an endpoint that declares nothing fails when its module is imported, a WebSocket too, and
`close` (called by `create_api`) fails for whatever came in another way. The description carries it as `x-action`.

A maintainer must not break: the gate declares and does not decide. What is declared is asked by the verb in its own
transaction, through `control.access`; `tests/api/test_gate.py` watches that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from broadcast_server.api import deps
from broadcast_server.control.access import Action

E = TypeVar("E", bound=Callable[..., Any])

_MARK: Final = "__door__"
_OURS_BY_THE_FRAMEWORK: Final = frozenset({"openapi"})
"""Endpoints the framework makes: the description, which is public."""


class Entry(StrEnum):
    """Who gets as far as the verb."""

    PUBLIC = "public"  # nobody is asked who they are
    SECRET = "secret"  # noqa: S105 - the request itself carries what is worth something: a device's token, a code
    ACCOUNT = "account"  # anybody who is signed in; sees what belongs to nobody, or the own account
    ACTION = "action"  # who may do one of `actions` at the place in question


@dataclass(frozen=True, slots=True)
class Door:
    """What a route asks. `actions`: the verb asks one of them, which one depends on the request.

    `or_own`: no action is needed for what is one's own (one's tokens, what one is speaking).
    """

    entry: Entry
    actions: frozenset[Action] = frozenset()
    or_own: bool = False

    def described(self) -> dict[str, Any]:
        """For the description of the API: `x-action` and `x-access`."""
        told: dict[str, Any] = {"x-access": self.entry.value}
        if self.actions:
            told["x-action"] = sorted(action.value for action in self.actions)
        if self.or_own:
            told["x-or-own"] = True
        return told


class UndeclaredError(TypeError):
    """A route does not say what it asks."""


class RouteTold(NamedTuple):
    """One line of the table of routes."""

    method: str
    """GET, POST, …, or WEBSOCKET."""
    path: str
    door: Door
    endpoint: Callable[..., Any]


def asks(*actions: Action, or_own: bool = False) -> Callable[[E], E]:
    """The verb asks for one of these actions at the place in question."""
    if not actions:
        raise UndeclaredError("asks() needs an action")
    return _marking(Door(Entry.ACTION, frozenset(actions), or_own))


def public(endpoint: E) -> E:
    """Anybody may, without a name: only what a machine or a stranger must be able to see."""
    return _marking(Door(Entry.PUBLIC))(endpoint)


def signed_in(endpoint: E) -> E:
    """Anybody with an account may; the answer is theirs or belongs to no place."""
    return _marking(Door(Entry.ACCOUNT))(endpoint)


def by_secret(*actions: Action) -> Callable[[E], E]:
    """A secret in the request is the authority; `actions`: what a person must be allowed who comes without one."""
    return _marking(Door(Entry.SECRET, frozenset(actions)))


def _marking(door: Door) -> Callable[[E], E]:
    def mark(endpoint: E) -> E:
        setattr(endpoint, _MARK, door)
        return endpoint

    return mark


def door_of(endpoint: Callable[..., Any]) -> Door:
    """What the endpoint declares. Raises `UndeclaredError`."""
    door = getattr(endpoint, _MARK, None)
    if not isinstance(door, Door):
        raise UndeclaredError(f"{endpoint.__module__}.{endpoint.__qualname__} declares no action: see api/gate.py")
    return door


def is_by_secret(endpoint: Callable[..., Any]) -> bool:
    """Whether it asks nobody who they are, because the request itself carries what counts."""
    door = getattr(endpoint, _MARK, None)
    return isinstance(door, Door) and door.entry is Entry.SECRET


class Router(APIRouter):
    """A router that takes no route without a declaration."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """As FastAPI does. Raises `UndeclaredError`."""
        door = door_of(endpoint)
        told: Mapping[str, Any] = options.pop("openapi_extra", None) or {}
        super().add_api_route(path, endpoint, openapi_extra={**told, **door.described()}, **options)
        route = self.routes[-1]
        if door.entry in {Entry.ACCOUNT, Entry.ACTION} and not _asks_who(cast("APIRoute", route), door):
            raise UndeclaredError(f"{endpoint.__module__}.{endpoint.__qualname__} asks for an action and not who acts")

    def add_api_websocket_route(self, path: str, endpoint: Callable[..., Any], *args: Any, **options: Any) -> None:
        """As FastAPI does. Raises `UndeclaredError`."""
        door_of(endpoint)
        super().add_api_websocket_route(path, endpoint, *args, **options)


def _asks_who(route: APIRoute, door: Door) -> bool:
    who = {get_args(deps.ActorDep)[1].dependency}
    if door.entry is Entry.ACCOUNT:
        who.add(get_args(deps.OwnerDep)[1].dependency)
    return any(needed.call in who for needed in route.dependant.dependencies)


def table(routers: Iterable[APIRouter], prefix: str = "") -> list[RouteTold]:
    """Every route of these routers, in order. Raises `UndeclaredError`."""
    return [told for router in routers for told in _told(router.routes, prefix)]


def close(app: FastAPI) -> list[RouteTold]:
    """Everything the application answers, however it was put in; paths as their own router has them.

    Raises `UndeclaredError`.
    """
    return list(_told(app.routes, ""))


def _told(routes: Iterable[object], prefix: str) -> Iterator[RouteTold]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _told(inner.routes, prefix)
            continue
        endpoint = getattr(route, "endpoint", None)
        if endpoint is None:
            raise UndeclaredError(f"{route!r} is no route that can declare an action")
        if not isinstance(route, APIRoute | APIWebSocketRoute):
            if endpoint.__name__ not in _OURS_BY_THE_FRAMEWORK:
                raise UndeclaredError(f"{route!r} declares no action: see api/gate.py")
            continue
        methods = sorted(route.methods or ()) if isinstance(route, APIRoute) else ["WEBSOCKET"]
        for method in methods:
            yield RouteTold(method, prefix + route.path, door_of(endpoint), endpoint)
