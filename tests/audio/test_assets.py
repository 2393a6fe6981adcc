"""The folder of sounds: whole or not at all, named by content, never fuller than the disk allows."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broadcast_server.audio.assets import AssetStore, disk_free_bytes
from broadcast_server.domain.errors import Corrupt, Invalid, NotFound, Unavailable
from simulation.samples import sample

OPUS = sample("announcement_b").path
LATER = datetime.now(UTC) + timedelta(hours=1)
EARLIER = datetime.now(UTC) - timedelta(hours=1)


def test_what_is_put_is_found_by_the_hash_of_its_bytes(assets: AssetStore):
    stored = assets.put(OPUS)
    assert stored.hash == hashlib.sha256(OPUS.read_bytes()).hexdigest()
    assert stored.size_bytes == OPUS.stat().st_size
    assert stored.duration_ms == 8_000
    assert assets.put(OPUS.read_bytes()) == stored
    assert stored.hash in assets
    assert assets.path(stored.hash).parent.name == stored.hash[:2]
    assert assets.verify(stored.hash) == stored


def test_ranges_are_read_without_reading_the_rest(assets: AssetStore):
    stored = assets.put(OPUS)
    with assets.open(stored.hash) as reader:
        assert reader.size_bytes == stored.size_bytes
        assert reader.read(0, 4) == b"OggS"
        assert reader.read(100, 50) == OPUS.read_bytes()[100:150]
        assert reader.read(stored.size_bytes, 10) == b""


@pytest.mark.parametrize("name", ["", "ab", "../../../etc/passwd", "A" * 64, "g" * 64, "a" * 63 + "/", "a" * 64 + "\n"])
def test_a_name_that_is_no_hash_is_nothing(assets: AssetStore, name: str):
    assert name not in assets
    with pytest.raises(NotFound):
        assets.open(name)


def test_a_hash_nobody_stored_is_not_found(assets: AssetStore):
    with pytest.raises(NotFound):
        assets.open("0" * 64)
    with pytest.raises(NotFound):
        assets.verify("0" * 64)


def test_a_link_in_the_folder_is_not_followed(assets: AssetStore, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"hush")
    place = assets.path("a" * 64)
    place.parent.mkdir()
    place.symlink_to(secret)
    with pytest.raises(NotFound):
        assets.open("a" * 64)


def test_a_byte_turned_on_the_disk_is_shouted_about(assets: AssetStore):
    stored = assets.put(OPUS)
    content = bytearray(OPUS.read_bytes())
    content[5_000] ^= 1
    assets.path(stored.hash).write_bytes(content)
    with pytest.raises(Corrupt, match="asset_corrupt"):
        assets.verify(stored.hash)
    assert assets.put(OPUS) == stored  # a fresh copy mends it
    assert assets.verify(stored.hash) == stored


@pytest.mark.parametrize("name", ["announcement_a", "chime", "play_now"])
def test_only_ogg_opus_comes_in(assets: AssetStore, name: str):
    with pytest.raises(Invalid, match="asset_not_opus"):
        assets.put(sample(name).path)
    assert not list(assets.hashes())


def test_what_nobody_needs_is_collected_unless_it_is_young(assets: AssetStore):
    kept, gone = assets.put(OPUS), assets.put(sample("announcement_c").path)
    assert assets.collect({kept.hash}, older_than=EARLIER) == ()
    assert assets.collect({kept.hash}, older_than=LATER) == (gone.hash,)
    assert list(assets.hashes()) == [kept.hash]


def test_what_a_killed_process_left_behind_goes_with_it(assets: AssetStore):
    left = assets._scratch / "tmpabc"
    left.mkdir()
    (left / "made.opus").write_bytes(b"half")
    assets.collect((), older_than=EARLIER)
    assert left.exists()
    assets.collect((), older_than=LATER)
    assert not left.exists()


def test_a_disk_near_its_reserve_takes_nothing_more_and_still_gives(tmp_path: Path):
    free = [10**9]
    assets = AssetStore(tmp_path / "assets", reserve_bytes=10**8, free_bytes=lambda _: free[0])
    stored = assets.put(OPUS)
    free[0] = 10**8 + 10
    with pytest.raises(Unavailable, match="disk_full"):
        assets.put(sample("announcement_c").path)
    with pytest.raises(Unavailable, match="disk_full"), assets.scratch(needs_bytes=100):
        pytest.fail("scratch was given")
    with assets.open(stored.hash) as reader:
        assert reader.read(0, 4) == b"OggS"


def test_the_real_disk_has_a_number(tmp_path: Path):
    assert disk_free_bytes(tmp_path) > 0
