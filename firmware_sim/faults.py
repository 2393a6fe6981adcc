"""What goes wrong in the field, as verbs: each docstring names the failure it imitates.

A timeline (`--faults FILE`, YAML or JSON) is a list of `{at_s, node, verb, args}`; `node` is an index or an id, `"*"`
all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from firmware_sim.boots import SECOND
from firmware_sim.store import ASSETS_FOLDER, JOURNAL_FILE, MEMORY_SLOTS

if TYPE_CHECKING:
    from firmware_sim.node import SpeakerNode


class UseCases:
    """The faults of one node."""

    VERBS = (
        "drop_frames",
        "cut_link",
        "skew_clock",
        "fill_disk",
        "mute_horn",
        "reboot",
        "garble",
        "brown_out",
        "rot",
        "lose_slot",
    )

    def __init__(self, node: SpeakerNode) -> None:
        self._node = node

    def drop_frames(self, count: int = 1) -> None:
        """A mobile cell drops a burst: the next audio batches never arrive."""
        self._node.box.faultline.drop_frames += count

    def cut_link(self, for_s: float = 30.0) -> None:
        """The SIM is out of credit, the fibre is cut, the router restarts: no goodbye, no network for a while."""
        if self._node.firmware is not None:
            self._node.firmware.link.cut(for_s)

    def skew_clock(self, ms: float = 400.0) -> None:
        """The clock chip's battery is weak or the kernel lost ticks in the heat: the device's clock jumps."""
        self._node.box.clock.jump(ms)

    def fill_disk(self, full: bool = True) -> None:
        """Logs have filled the flash, or it wore out and went read-only: every write fails."""
        self._node.box.disk.is_full = full

    def mute_horn(self, mute: bool = True) -> None:
        """The amplifier's fuse blew or the horn's cable was stolen: the controller plays, the village hears nothing."""
        self._node.box.horn.is_dead = mute

    def reboot(self) -> None:
        """A power dip: everything in memory is gone, nobody said goodbye."""
        self._node.power_cycle()

    def garble(self, count: int = 1) -> None:
        """A modem with bad memory flips bits: the next messages arrive changed."""
        self._node.box.faultline.garble += count

    def brown_out(self, for_s: float = 3.0, reboots: bool = False) -> None:
        """A long feeder or a tired battery: the supply sags below what the amplifier needs, and may pull the box down
        with it.
        """
        box = self._node.box
        box.faultline.low_until_ns = box.clock.now_ns() + round(for_s * SECOND)
        if reboots:
            self._node.power_cycle()

    def rot(self, what: str = "assets", bits: int = 1) -> None:
        """Flash loses its charge in the heat: bits flip in a stored file (`assets`, `memory` or `journal`)."""
        box = self._node.box
        match what:
            case "assets":
                files = sorted((box.disk.root / ASSETS_FOLDER).glob("*.opus"))
            case "memory":
                files = [path for name in MEMORY_SLOTS if (path := box.disk.root / name).exists()]
                files.sort(key=lambda path: path.stat().st_mtime_ns)
                files = files[-1:]
            case "journal":
                files = [path for path in (box.disk.root / JOURNAL_FILE,) if path.exists()]
            case _:
                raise ValueError(f"rot: no such store: {what!r}; there are assets, memory, journal")
        for path in files:
            content = bytearray(path.read_bytes())
            for number in range(min(bits, 8 * len(content))):
                # Spread by a fixed stride, so that the same fault does the same harm.
                at = (7919 * (number + 1) + len(content) // 2) % len(content)
                content[at] ^= 0x10
            path.write_bytes(content)

    def lose_slot(self) -> None:
        """A flash sector dies: the newer of the two copies of what the node must remember is gone."""
        root = self._node.box.disk.root
        slots = [path for name in MEMORY_SLOTS if (path := root / name).exists()]
        if slots:
            max(slots, key=lambda path: path.stat().st_mtime_ns).unlink()

    def apply(self, verb: str, args: dict[str, Any]) -> None:
        """A verb by its name. Raises `ValueError` for one that does not exist or arguments it does not take."""
        if verb not in self.VERBS:
            raise ValueError(f"no such fault: {verb!r}; there are {', '.join(self.VERBS)}")
        try:
            getattr(self, verb)(**args)
        except TypeError as error:
            raise ValueError(f"{verb}: {error}") from None


class TimedFault(BaseModel):
    """One line of a timeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float = Field(ge=0)
    node: int | str = "*"
    verb: str
    args: dict[str, Any] = {}


def load_timeline(path: Path) -> tuple[TimedFault, ...]:
    """The faults of a file in order of time. Raises `ValueError` naming the line that is wrong."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        faults = TypeAdapter(tuple[TimedFault, ...]).validate_python(tuple(told or ()))
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for index, fault in enumerate(faults):
        if fault.verb not in UseCases.VERBS:
            raise ValueError(f"{path}: fault {index}: no such verb {fault.verb!r}; there are {UseCases.VERBS}")
    return tuple(sorted(faults, key=lambda fault: fault.at_s))
