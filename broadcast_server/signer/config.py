"""All that the signing process is told, in one line of JSON on its stdin: nothing of it shows in `ps`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

CONFIG_BYTES: Final = 32 * 1024
"""A longer line is none; a pipe takes it whole."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything it must know. `user`: whom to become when started as root; `allowed`: user ids that may ask."""

    store_url: str
    keys: Path
    answering: Path
    """Where the public halves of the time keys lie."""
    socket: Path
    mode: int
    user: str | None
    allowed: tuple[int, ...]
    until_eof: bool
    log_json: bool
    log_level: str

    @property
    def line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Config:
        """From the line that was sent. Raises `ValueError`, `KeyError`, `TypeError` on nonsense."""
        told: dict[str, Any] = json.loads(line)
        return cls(
            store_url=told["store_url"],
            keys=Path(told["keys"]),
            answering=Path(told["answering"]),
            socket=Path(told["socket"]),
            mode=int(told["mode"]),
            user=told["user"],
            allowed=tuple(int(uid) for uid in told["allowed"]),
            until_eof=bool(told["until_eof"]),
            log_json=bool(told["log_json"]),
            log_level=told["log_level"],
        )
