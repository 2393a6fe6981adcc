"""What a node has of what it needs: wanted from plan and alerts, fetched by lanes, its bytes checked for each
occurrence before they may sound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from firmware_sim.assets import AssetKeeper, Lane, Wanted
from firmware_sim.decoder import AssetSound, SoundLibrary
from firmware_sim.trust import PlanInForce
from speaker_protocol.messages import AlertBody

KEEP_OCCURRENCES: Final = 64

Occurrence = tuple[str, int]
"""Entry (or alert) and when it begins, in ms."""


class Stock:
    """The keeper of a node's assets, and which of them are fit to sound now."""

    def __init__(self, assets: AssetKeeper, library: SoundLibrary, on_fit: Callable[[], None]) -> None:
        """`on_fit`: called before an asset that could not sound becomes one that can."""
        self.assets = assets
        self._library = library
        self._on_fit = on_fit
        self._calls = {lane: asyncio.Event() for lane in Lane}
        self._fit: dict[str, set[Occurrence]] = {}
        """For which occurrences an asset's bytes were checked, by hash."""

    def want(
        self, plan: PlanInForce | None, alerts: Iterable[AlertBody], now_ms: int, *, utc_offset_min: int
    ) -> dict[str, int]:
        """From now on hold what these need; the lengths of the plan's assets in ms."""
        wanted: dict[str, Wanted] = {}
        lengths: dict[str, int] = {}
        if plan is not None:
            first: dict[str, int] = {}
            for segment in plan.segments:
                if segment.asset is not None and segment.end_ms > now_ms:
                    first.setdefault(segment.asset, segment.start_ms)
            for asset in plan.assets:
                lengths[asset.sha256] = asset.duration_ms
                if asset.sha256 in first:
                    wanted[asset.sha256] = Wanted(asset.sha256, asset.size_bytes, first[asset.sha256])
        for alert in alerts:
            if alert.asset is not None:
                wanted[alert.asset] = Wanted(alert.asset, alert.asset_bytes, 0, is_alert=True)
        self.assets.want(wanted, now_ms, utc_offset_min=utc_offset_min)
        if self.assets.missing:
            self.call()
        return lengths

    def call(self) -> None:
        """Something may be due in either lane."""
        for call in self._calls.values():
            call.set()

    async def called(self, lane: Lane) -> float:
        """Wait for a call; how long until something of the lane is due, in s."""
        await self._calls[lane].wait()
        self._calls[lane].clear()
        return self.assets.wait_s(lane)

    def playable(self) -> frozenset[str]:
        """Assets that are here and can be decoded, as far as is known."""
        broken = {sha256 for sha256 in self._fit if self._library.sound(sha256).is_broken}
        return frozenset(self.assets.ready) - broken

    def is_fit(self, sha256: str) -> bool:
        """Whether an asset is here and its bytes were checked for what sounds now."""
        return sha256 in self.assets.ready and bool(self._fit.get(sha256))

    def sound(self, sha256: str) -> AssetSound | None:
        """The sound of an asset that is fit; None for one that may not sound."""
        return self._library.sound(sha256) if self.is_fit(sha256) else None

    async def checked(self, sha256: str, occurrence: Occurrence) -> AssetSound | None:
        """The sound of an asset, its bytes hashed again for this occurrence; None while it is not here."""
        if sha256 not in self.assets.ready:
            self._fit.pop(sha256, None)
            return None
        if occurrence not in self._fit.get(sha256, ()) or self._library.sound(sha256).content is None:
            content = await self.assets.checked(sha256)
            if content is None:
                self._fit.pop(sha256, None)
                self.call()
                return None
            self._library.give(sha256, content)
            self._on_fit()
            fit = self._fit.setdefault(sha256, set())
            if len(fit) >= KEEP_OCCURRENCES:
                fit.clear()
            fit.add(occurrence)
        return self._library.sound(sha256)
