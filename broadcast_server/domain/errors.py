"""Every error this server raises on purpose: one root, kinds named by what the caller can do.

An error carries a stable snake_case `code` and plain facts. It carries no sentence for a person (the vi/en
catalogue makes that from code and facts) and knows no HTTP (the edges map kinds to a status, a page or an exit code).
"""

from __future__ import annotations

from typing import Any


class BroadcastError(Exception):
    """Root. `code` is stable and documented; `facts` fill the catalogue's sentence.

    Two facts have a fixed meaning wherever they appear: `field` (dotted path of the input that is wrong) and
    `fix` (code of the advice; the catalogue has its sentence).
    """

    def __init__(self, code: str, **facts: Any) -> None:
        """`code`: snake_case; `facts`: JSON-representable values only."""
        super().__init__(code, facts)
        self.code = code
        self.facts = facts

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        return f"{self.code}({told})"


class Invalid(BroadcastError):  # noqa: N818  the kind is the word
    """The input is wrong; the caller can mend it. Facts name the `field`."""


class Refused(BroadcastError):  # noqa: N818  the kind is the word
    """Understood and not allowed: permission or station policy. Facts carry the reasons."""


class NotFound(BroadcastError):  # noqa: N818  the kind is the word
    """Nothing by that name, or nothing the caller may know of."""


class Conflict(BroadcastError):  # noqa: N818  the kind is the word
    """The state of things forbids it now: an older version, a busy mount, a duplicate."""


class Unavailable(BroadcastError):  # noqa: N818  the kind is the word
    """A part is away; the same call may succeed later."""


class Corrupt(BroadcastError):  # noqa: N818  the kind is the word
    """What was stored or received contradicts itself; stop and shout."""
