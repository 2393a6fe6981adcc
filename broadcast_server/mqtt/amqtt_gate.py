"""The doorman of amqtt: the same users and rights as mosquitto's files, and the holes of amqtt that are closed here.

A maintainer must not break: this module is imported only when amqtt is installed and wanted; `broker` reaches it late.
amqtt loads plugins by dotted name and builds them from a mapping, so the two questions travel inside that mapping.

What amqtt (0.11, 0.12) does and a plugin cannot forbid is closed by overriding: (1) it deletes, or takes over, the
session of a client id before it asks for the password; (2) a will goes to whatever topic it names; (3) who connects
is given the retained messages of everybody's subscriptions; (4) a user who was struck off stays connected. What
stays open is told at start: no bound on the size of a packet, and none on what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import BAD_USERNAME_PASSWORD, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broadcast_server.mqtt.bus import Right

CONNECT_WITHIN_S = 10.0

LetsIn = Callable[[str | None, str | None, str | None], bool]
"""User, password, client id."""


class Rules(Protocol):
    """What `broker.AccessRules` answers."""

    def may(self, user: str, right: Right, topic: str) -> bool:
        """Whether `user` may read from or write to a topic."""
        ...

    def may_subscribe(self, user: str, topic_filter: str) -> bool:
        """Whether `user` may read everything a filter can bring."""
        ...


class Doorman(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # amqtt is untyped for us
    """Answers who gets in and who may read or write what."""

    @dataclass
    class Config:
        """The two questions."""

        lets_in: Any
        rules: Any

    async def authenticate(self, *, session: Session) -> bool:
        """Whether the client gets in; anonymous ones never do."""
        return bool(self.config.lets_in(session.username, session.password, session.client_id))

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Whether the client may publish on a topic or be given a message of it.

        A subscription that could bring more than the client may read is refused as a whole: amqtt hands retained
        messages to a new subscription without asking again (mosquitto grants it and filters each message).
        """
        if session is None or not session.username or topic is None:
            return False
        rules: Rules = self.config.rules
        if action == Action.SUBSCRIBE:
            return rules.may_subscribe(session.username, topic)
        return rules.may(session.username, "write" if action == Action.PUBLISH else "read", topic)


class _Steady(dict[str, Any]):
    """A mapping that may change while somebody goes through it."""

    def items(self) -> Any:
        """As of now."""
        return list(super().items())

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().__iter__()))


class GuardedBroker(Broker):  # type: ignore[misc]  # amqtt is untyped for us
    """amqtt with the questions asked first. What is overridden is not public: the contract tests and the version bound
    in pyproject.toml watch over it.
    """

    def __init__(self, config: dict[str, object], *, lets_in: LetsIn, rules: Rules) -> None:
        super().__init__(config)
        self._lets_in, self._rules = lets_in, rules
        self._subscriptions = _Steady()  # amqtt waits while it goes through them, and lost the message if one was added

    async def end_sessions(self, users: Collection[str]) -> None:
        """End what these have open."""
        for session, handler in tuple(self._sessions.values()):
            if session.username in users and session.transitions.is_connected():
                await handler.handle_connection_closed()
                await self._stop_handler(handler)

    async def _initialize_client_session(
        self, reader: Any, writer: Any, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        """Who is not let in is gone before any session is touched; sessions are always clean."""
        del remote_address, remote_port
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                handler, session = await BrokerProtocolHandler.init_from_connect(reader, writer, self.plugins_manager)
        except (AMQTTError, MQTTError, NoDataError, TimeoutError, OSError) as error:
            with contextlib.suppress(OSError):
                await writer.close()
            raise AMQTTError(str(error)) from error
        if not self._lets_in(session.username, session.password, session.client_id):
            with contextlib.suppress(OSError):
                await ConnackPacket.build(0, BAD_USERNAME_PASSWORD).to_stream(writer)
                await writer.close()
            raise AMQTTError("not let in")
        if session.will_flag and not self._rules.may(session.username, "write", session.will_topic or ""):
            session.will_flag = False
        old = self._sessions.get(session.client_id)
        if old is not None and old[0].transitions.is_connected():
            await old[1].handle_connection_closed()
            await self._stop_handler(old[1])
        await self._delete_session(session.client_id)
        session.clean_session = True
        session.parent = 0
        return handler, session

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Only for a subscription of its own: amqtt asks for everybody's when somebody connects."""
        own = self._subscriptions.get(subscription[0], ())
        if any(subscriber is session for subscriber, _ in own):
            await super()._publish_retained_messages_for_subscription(subscription, session)


def make_broker(
    *,
    bind: str,
    lets_in: LetsIn,
    rules: Rules,
    certificate: Path | None,
    key: Path | None,
    connections_max: int,
) -> GuardedBroker:
    """A broker that is not started yet."""
    listener: dict[str, object] = {"type": "tcp", "bind": bind, "max_connections": connections_max}
    if certificate is not None:
        # Its chain holds our authority, which signed what a client may show; passwords are what counts.
        listener |= {"ssl": True, "cafile": str(certificate), "certfile": str(certificate), "keyfile": str(key)}
    return GuardedBroker(
        {
            "listeners": {"default": listener},
            "plugins": {f"{__name__}.{Doorman.__name__}": {"lets_in": lets_in, "rules": rules}},
        },
        lets_in=lets_in,
        rules=rules,
    )
