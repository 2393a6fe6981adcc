"""Keys in files of this machine: who speaks for whom, and for how long.

A chain of two links: the root delegates to an authority (90 days, may only delegate), the authority to the keys that
speak (30 days): one for each unit, the server's own for stream heads and places, and the time key, whose private half
lies elsewhere (`time_key`). Whoever asks for the statements of a unit gets what follows from the register, signed now;
asking also makes the successor of what will soon end, so a lost broker is refilled from here and nothing runs out while
the server runs. The root is needed once in 90 days; it may lie in a drawer meanwhile (`ceremony`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.clock import Chance
from broadcast_server.domain.errors import Refused
from broadcast_server.logs import get_logger
from broadcast_server.signer.port import SignRequest
from broadcast_server.signer.register import DAY_MS, Book, KeyEntry, KeyRegister, KeyRole, Revoked
from broadcast_server.signer.time_key import public_halves, time_folder
from speaker_protocol.messages import DelegationBody, RevocationListBody, RevokedKey
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import EVERYWHERE, Kind, key_id_of, seal

log = get_logger()

UNIT_MAY: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS)
SERVER_MAY: Final = (Kind.HEAD, Kind.CONFIG)
"""CONFIG too: it tells a node its path, so it must reach one that does not know its new unit's key yet."""
TIME_MAY: Final = (Kind.ACK,)
_MAY: Final = {KeyRole.UNIT: UNIT_MAY, KeyRole.SERVER: SERVER_MAY, KeyRole.TIME: TIME_MAY}

AUTHORITY_LIFE_MS: Final = 90 * DAY_MS
AUTHORITY_RENEWED_MS: Final = 45 * DAY_MS
"""While the root is at hand, so long before its end an authority gets a successor."""
KEY_LIFE_MS: Final = 30 * DAY_MS
OVERLAP_MS: Final = 9 * DAY_MS
"""A key has so long to live when its successor takes over: longer than any plan it signed (eight days), so that a node
that goes offline in that minute follows its plan to the end.
"""
SPREAD_MS: Final = 5 * DAY_MS
"""Keys that were made on one day are not all replaced on one day."""
SETTLE_MS: Final = 15 * 60_000
"""A successor signs nothing before nodes had time to hear of it."""
EARLIER_MS: Final = 3_600_000
"""A delegation begins so long before it is made, for nodes whose clock is late and a server whose clock was early."""
KEPT_AFTER_END_MS: Final = 2 * DAY_MS
LIST_LIFE_MS: Final = 3_650 * DAY_MS
"""A list of revocations does not age; only a newer one takes its place."""
BEFORE_CHAINS_MS: Final = 400 * DAY_MS
"""How long the root's delegations of earlier versions live: a revocation is told so long."""
TEND_EVERY_MS: Final = 3_600_000
LEAP: Final = 1_000
"""How far the version of the list of revocations leaps when a backup is put in place: above what nodes have seen."""


@dataclass(frozen=True, slots=True)
class _Held:
    private: Ed25519PrivateKey
    key_id: bytes


class FileSigner:
    """The `Signer` of one machine. `path_of` gives a unit's own id and its ancestors, nearest first.

    `answering`: where the public halves of the time keys lie; by default `time-key` beside the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        chance: Chance,
        path_of: Callable[[str], Sequence[str]],
        answering: Path | None = None,
    ) -> None:
        """Raises as `KeyRegister` does."""
        self.register = KeyRegister(folder, chance=chance)
        self._path_of = path_of
        self._answering = answering or time_folder(folder)
        self._seen: Book | None = None
        self._few = Book()
        """The keys that are not a unit's."""
        self._by_unit: dict[str, list[KeyEntry]] = {}
        self._tended: tuple[int, int, frozenset[str]] | None = None
        self._common: tuple[tuple[int, str, int, int, int], tuple[bytes, ...]] | None = None

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        return bytes.fromhex(self._book().root)

    def ensure_units(self, units: Iterable[str]) -> None:
        """Give each unit a key of its own if it has none. Raises `Refused("no_key_for_unit")`."""
        self._book()
        lacking = [unit for unit in units if unit not in self._by_unit]
        if lacking:
            with self.register.change() as book:
                there = {key.unit for key in book.keys.values() if key.role is KeyRole.UNIT}
                for unit in lacking:
                    if unit not in there:
                        self.register.make(book, KeyRole.UNIT, unit)

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Signer.sign_many`. About 40 µs a signature; callers with thousands run it in slices."""
        book = self._book()
        held: dict[tuple[str | None, int], _Held] = {}
        chosen: list[tuple[SignRequest, _Held]] = []
        for request in requests:
            _require_kind(request)
            place = (request.unit, request.issued_ms)
            if place not in held:
                entry = self._speaker(book, request.unit, request.issued_ms)
                held[place] = _Held(self.register.private(entry), bytes.fromhex(entry.key_id))
            chosen.append((request, held[place]))
        return [
            seal(
                speaker.private,
                speaker.key_id,
                kind=request.kind,
                target=request.target,
                issued_ms=request.issued_ms,
                expires_ms=request.expires_ms,
                epoch=request.epoch,
                sequence=request.sequence,
                body=request.body,
            )
            for request, speaker in chosen
        ]

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        """See `Signer.sign_each`."""
        outcomes: list[bytes | Refused] = []
        for request in requests:
            try:
                outcomes += await self.sign_many((request,))
            except Refused as refused:
                outcomes.append(refused)
        return outcomes

    async def statements_of(
        self, units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int
    ) -> list[tuple[bytes, ...] | Refused]:
        """See `Signer.statements_of`."""
        self.ensure_units(units)
        return [await self.key_statements(unit, issued_ms=issued_ms, epoch=epoch, sequence=sequence) for unit in units]

    async def key_statements(self, unit: str, *, issued_ms: int, epoch: int, sequence: int) -> tuple[bytes, ...]:
        """What is said under one unit: what the root signed, the lists of revocations, and the keys that may speak."""
        self._tend(issued_ms)
        book = self._book()
        authorities = authorities_over(self._few, issued_ms, self._path_of(unit))
        authority = authorities[-1] if authorities else None
        common = self._common_statements(book, authorities, issued_ms, epoch, sequence)
        own = [key for key in self._by_unit.get(unit, ()) if _is_told(book, key, issued_ms)]
        return (
            *common,
            *(self._delegation(authority, key, issued_ms, epoch, sequence) for key in own if authority is not None),
        )

    # -- who speaks

    def _book(self) -> Book:
        book = self.register.book
        if book is not self._seen:
            self._seen, self._few = book, book.few()
            self._by_unit = {}
            for key in book.of(KeyRole.UNIT):
                self._by_unit.setdefault(key.unit, []).append(key)
        return book

    def _speaker(self, book: Book, unit: str | None, at_ms: int) -> KeyEntry:
        if unit is None:
            return _latest(book, self._few.of(KeyRole.SERVER), at_ms)
        for place in self._path_of(unit):
            if place in self._by_unit:
                return _latest(book, self._by_unit[place], at_ms)
        raise Refused("no_key_for_unit", unit=unit)

    # -- what is said of keys

    def _common_statements(
        self, book: Book, authorities: Sequence[KeyEntry], issued_ms: int, epoch: int, sequence: int
    ) -> tuple[bytes, ...]:
        """What is the same under every unit of these authorities, signed once."""
        named = (book.version, "".join(key.key_id for key in authorities), issued_ms, epoch, sequence)
        authority = authorities[-1] if authorities else None
        if self._common is None or self._common[0] != named:
            speakers = [*self._few.of(KeyRole.SERVER), *self._few.of(KeyRole.TIME)]
            self._common = (
                named,
                (
                    *(bytes.fromhex(key.certificate or "") for key in authorities),
                    *(bytes.fromhex(raw) for _, raw in sorted(book.lists.items())),
                    *(
                        self._delegation(authority, key, issued_ms, epoch, sequence)
                        for key in speakers
                        if authority is not None and _is_told(book, key, issued_ms)
                    ),
                ),
            )
        return self._common[1]

    def _delegation(self, authority: KeyEntry, key: KeyEntry, issued_ms: int, epoch: int, sequence: int) -> bytes:
        until_ms = min(key.until_ms, authority.until_ms)
        unit = authority.unit if key.unit == EVERYWHERE else key.unit
        return seal(
            self.register.private(authority),
            bytes.fromhex(authority.key_id),
            kind=Kind.KEYS,
            target=unit,
            issued_ms=issued_ms,
            expires_ms=until_ms,
            epoch=epoch,
            sequence=sequence,
            body=DelegationBody(
                public_key=key.public,
                unit=unit,
                may=tuple(kind.name for kind in _MAY[key.role]),
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=max(0, key.made_ms - EARLIER_MS),
                valid_until_ms=until_ms,
            ).encode(),
        )

    # -- what time does

    def _tend(self, now_ms: int) -> None:
        """Date what is new, make the successor of what will end, drop what has ended; once an hour, and after a
        change.
        """
        halves = public_halves(self._answering)
        looked = (self._book().version, now_ms // TEND_EVERY_MS, frozenset(halves))
        if looked == self._tended:
            return
        with self.register.change() as book:
            tend(self.register, book, halves, now_ms)
        self._tended = (self._book().version, now_ms // TEND_EVERY_MS, frozenset(halves))


def _require_kind(request: SignRequest) -> None:
    if request.kind not in (SERVER_MAY if request.unit is None else UNIT_MAY):
        raise Refused("no_key_for_kind", kind=request.kind.name)


def _latest(book: Book, keys: Sequence[KeyEntry], at_ms: int) -> KeyEntry:
    """The newest key that nodes had time to hear of; before a single one is silent, any that is not revoked."""
    good = [key for key in keys if key.key_id not in book.revoked]
    if not good:
        raise Refused("no_key_for_unit", unit=keys[0].unit)
    settled = [key for key in good if key.made_ms + SETTLE_MS <= at_ms < key.until_ms]
    alive = [key for key in good if at_ms < key.until_ms or not key.until_ms]
    return settled[-1] if settled else alive[0] if alive else good[-1]


def _is_told(book: Book, key: KeyEntry, now_ms: int) -> bool:
    return key.key_id not in book.revoked and now_ms < key.until_ms


def authorities_at(book: Book, now_ms: int) -> list[KeyEntry]:
    """The authorities the root signed that are neither over nor revoked, the newest last."""
    found = [
        key
        for key in book.of(KeyRole.AUTHORITY)
        if key.certificate is not None
        and key.made_ms - EARLIER_MS <= now_ms < key.until_ms
        and key.key_id not in book.revoked
    ]
    return sorted(found, key=lambda key: (key.made_ms, key.key_id))


def authority_at(book: Book, now_ms: int) -> KeyEntry | None:
    """The one that delegates now."""
    found = authorities_at(book, now_ms)
    return found[-1] if found else None


def authorities_over(book: Book, now_ms: int, path: Sequence[str]) -> list[KeyEntry]:
    """Those that may delegate for a place (`path`: it and those above it), the newest last.

    What an older one delegated is good until it ends.
    """
    return [key for key in authorities_at(book, now_ms) if key.unit == EVERYWHERE or key.unit in path]


# -- changes of the register -----------------------------------------------------------------------------------------


def tend(register: KeyRegister, book: Book, halves: Iterable[str], now_ms: int) -> None:
    """What is due by now: see `FileSigner`. `halves`: public time keys, hex."""
    authority = authority_at(book, now_ms)
    if register.has_root and (authority is None or authority.until_ms - now_ms < AUTHORITY_RENEWED_MS):
        made = register.make(book, KeyRole.AUTHORITY, EVERYWHERE)
        certify(book, made, register.root(), now_ms, now_ms + AUTHORITY_LIFE_MS)
        log.info("keys.authority_made", key_id=made.key_id)
        sign_lists(register, book, now_ms)
    elif authority is None:
        log.error("keys.no_authority")
    for public in halves:
        key_id = key_id_of(bytes.fromhex(public)).hex()
        if key_id not in book.keys and key_id not in book.revoked:
            book.keys[key_id] = KeyEntry(key_id, KeyRole.TIME, EVERYWHERE, public, None)
    for key in list(book.keys.values()):
        if key.role is not KeyRole.AUTHORITY and not key.until_ms:
            book.keys[key.key_id] = dataclasses.replace(key, made_ms=now_ms, until_ms=now_ms + KEY_LIFE_MS)
    for role in (KeyRole.SERVER, KeyRole.UNIT):
        newest = {key.unit: key for key in book.of(role)}
        for key in newest.values():
            if key.key_id in book.revoked or key.until_ms - now_ms < OVERLAP_MS + _spread_ms(key):
                succeed(register, book, key, now_ms)
    for key in [key for key in book.keys.values() if key.until_ms and key.until_ms + KEPT_AFTER_END_MS < now_ms]:
        register.drop(book, key)
    for line in [line for line in book.revoked.values() if line.until_ms + BEFORE_CHAINS_MS < now_ms]:
        del book.revoked[line.key_id]


def _spread_ms(key: KeyEntry) -> int:
    return int(key.key_id[:8], 16) % SPREAD_MS


def succeed(register: KeyRegister, book: Book, key: KeyEntry, now_ms: int) -> KeyEntry:
    """A new key in the place of another, which goes on to its end."""
    made = register.make(book, key.role, key.unit, made_ms=now_ms, until_ms=now_ms + KEY_LIFE_MS)
    log.info("keys.successor_made", role=key.role.value, unit=key.unit, key_id=made.key_id)
    return made


def certify(book: Book, key: KeyEntry, root: Ed25519PrivateKey, now_ms: int, until_ms: int) -> KeyEntry:
    """An authority, signed by the root."""
    certificate = sign_authority(root, key.public, key.unit, now_ms, until_ms)
    signed = dataclasses.replace(key, made_ms=now_ms, until_ms=until_ms, certificate=certificate.hex())
    book.keys[key.key_id] = signed
    return signed


def sign_authority(root: Ed25519PrivateKey, public: str, unit: str, now_ms: int, until_ms: int) -> bytes:
    """The root's word that a key may delegate within a place. Its order is the instant, for the root has no leader."""
    return seal(
        root,
        key_id_of(root.public_key().public_bytes_raw()),
        kind=Kind.KEYS,
        target=unit,
        issued_ms=max(0, now_ms - EARLIER_MS),
        expires_ms=until_ms,
        epoch=0,
        sequence=now_ms,
        body=DelegationBody(
            public_key=public,
            unit=unit,
            may=(Kind.KEYS.name,),
            max_class=BulletinClass.EMERGENCY,
            valid_from_ms=max(0, now_ms - EARLIER_MS),
            valid_until_ms=until_ms,
        ).encode(),
    )


def sign_list(
    private: Ed25519PrivateKey, target: str, rl_ver: int, lines: Iterable[tuple[str, int]], now_ms: int
) -> bytes:
    """A list of revocations. `lines`: key id and from when, UTC ms."""
    revoked = tuple(RevokedKey(key_id=key_id, at_ms=at_ms) for key_id, at_ms in sorted(lines))
    return seal(
        private,
        key_id_of(private.public_key().public_bytes_raw()),
        kind=Kind.KEYS,
        target=target,
        issued_ms=max(0, now_ms - EARLIER_MS),
        expires_ms=now_ms + LIST_LIFE_MS,
        epoch=0,
        sequence=rl_ver,
        body=RevocationListBody(rl_ver=rl_ver, revoked=revoked).encode(),
    )


def sign_lists(register: KeyRegister, book: Book, now_ms: int) -> None:
    """Every signer at hand says all that is revoked; each is heard about what it may revoke."""
    if not book.rl_ver:
        return
    alive = {key.key_id for key in authorities_at(book, now_ms)}
    root_id = key_id_of(bytes.fromhex(book.root)).hex()
    book.lists = {signer: raw for signer, raw in book.lists.items() if signer in {root_id, *alive}}
    lines = [(line.key_id, line.at_ms) for line in book.revoked.values()]
    for key in authorities_at(book, now_ms):
        own = [(line.key_id, line.at_ms) for line in book.revoked.values() if line.role is not KeyRole.AUTHORITY]
        book.lists[key.key_id] = sign_list(register.private(key), key.unit, book.rl_ver, own, now_ms).hex()
    if register.has_root:
        book.lists[root_id] = sign_list(register.root(), EVERYWHERE, book.rl_ver, lines, now_ms).hex()


def revoke(register: KeyRegister, book: Book, key_id: str, *, at_ms: int, now_ms: int, reason: str) -> KeyEntry:
    """From `at_ms` on nobody obeys this key; what it was for has another at once.

    Raises `Refused` (`unknown_key`, `root_is_away` for an authority: that takes the root's own signature).
    """
    key = book.keys.get(key_id)
    if key is None:
        raise Refused("unknown_key", key_id=key_id)
    if key.role is KeyRole.AUTHORITY and not register.has_root:
        raise Refused("root_is_away")
    until_ms = max(key.until_ms, at_ms)
    book.revoked[key_id] = Revoked(key_id, key.role, key.unit, at_ms, until_ms, reason)
    book.rl_ver += 1
    replace_revoked(register, book, key_id, now_ms)
    sign_lists(register, book, now_ms)
    return key


def is_of_the_roots_making(key: KeyEntry) -> bool:
    """Whether an earlier version had the root itself delegate this key, which only the root can take back."""
    return key.file is not None and "@" not in key.file


def replace_revoked(register: KeyRegister, book: Book, key_id: str, now_ms: int) -> None:
    """What a key that is revoked was for has another at once, where this machine can make it."""
    key = book.keys.get(key_id)
    if key is None or key.role is KeyRole.TIME:
        return
    if key.role is KeyRole.AUTHORITY:
        tend(register, book, (), now_ms)
    elif all(other.key_id in book.revoked for other in book.of(key.role, key.unit)):
        succeed(register, book, key, now_ms)


def renew_after_restore(register: KeyRegister, book: Book, now_ms: int) -> int:
    """The keys of a backup may have been replaced or revoked since it was made: others take their place. How many.

    Authorities stay, for they cannot be made without the root: one that was revoked since is refused by the nodes.
    """
    old = [*book.of(KeyRole.UNIT), *book.of(KeyRole.SERVER)]
    for role, unit in sorted({(key.role, key.unit) for key in old}):
        register.make(book, role, unit)
    for key in [*old, *book.of(KeyRole.TIME)]:
        register.drop(book, key)
    book.rl_ver += LEAP
    sign_lists(register, book, now_ms)
    return len(old)


def rotate(register: KeyRegister, book: Book, role: KeyRole, unit: str, now_ms: int) -> KeyEntry:
    """A successor now, before it is due. Raises `Refused` (`root_is_away`, `no_key_for_unit`, `key_is_elsewhere`)."""
    if role is KeyRole.TIME:
        raise Refused("key_is_elsewhere", key_id="")
    if role is KeyRole.AUTHORITY:
        root = register.root()
        made = register.make(book, KeyRole.AUTHORITY, EVERYWHERE)
        signed = certify(book, made, root, now_ms, now_ms + AUTHORITY_LIFE_MS)
        sign_lists(register, book, now_ms)
        return signed
    held = book.of(role, unit)
    if not held:
        raise Refused("no_key_for_unit", unit=unit)
    return succeed(register, book, held[-1], now_ms)
