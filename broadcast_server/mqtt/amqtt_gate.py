"""The doorman of amqtt: the same users and rights as mosquitto's files, asked through its plugin interface.

A maintainer must not break: this module is imported only when amqtt is installed and wanted; `broker` reaches it late.
amqtt loads plugins by dotted name and builds them from a mapping, so the two questions travel inside that mapping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broadcast_server.mqtt.bus import Right


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
        return bool(self.config.lets_in(session.username, session.password))

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


def make_broker(
    *,
    bind: str,
    lets_in: Callable[[str | None, str | None], bool],
    rules: Rules,
    certificate: Path | None,
    key: Path | None,
) -> Broker:
    """A broker that is not started yet."""
    listener: dict[str, object] = {"type": "tcp", "bind": bind}
    if certificate is not None:
        listener |= {"ssl": True, "certfile": str(certificate), "keyfile": str(key)}
    return Broker(
        {
            "listeners": {"default": listener},
            "plugins": {f"{__name__}.{Doorman.__name__}": {"lets_in": lets_in, "rules": rules}},
        }
    )
