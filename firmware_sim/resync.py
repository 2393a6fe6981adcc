"""The way back of a node that lost its memory: which answers are to its own questions, and how soon it asks again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

ASK_AGAIN_S: Final = 5.0
"""Until it was told the floors it asks at least so often: it obeys nothing meanwhile."""
MOST_OPEN: Final = 16


class Resync:
    """The nonces of the questions for floors asked since power-on, the latest `MOST_OPEN`; each answers once."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, None] = OrderedDict()

    def asked(self, nonce: str) -> None:
        """A question for floors leaves with this nonce."""
        self._open[nonce] = None
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)

    def is_answered_by(self, nonce: str) -> bool:
        """Whether an answer with this nonce is to a question of this life that has no answer yet."""
        if nonce not in self._open:
            return False
        del self._open[nonce]
        return True
