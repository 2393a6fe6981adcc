"""The signing process with a user of its own: it is killed in the middle of the day, and the village is heard."""

from __future__ import annotations

import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broadcast_server.supervise import Child, SystemClock, usage_of
from simulation.listening import read_recordings
from simulation.samples import sample
from simulation.village import Village
from tests.e2e.test_outages import in_seconds, sounded_s, until_at
from tests.firmware_sim.world import needs_mosquitto
from tests.support.until import until

pytestmark = pytest.mark.e2e

NOBODY = 65_534
NODES = 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose way is open to other users, as that to a data folder is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def signers_of(server: int) -> list[int]:
    """Process ids of the signing processes below a server."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == server and b"broadcast_server.signer" in command:
            found.append(int(folder.name))
    return found


def named(pid: int) -> bytes:
    """Which module of ours a process runs."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2]


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@needs_mosquitto
@needs_root
async def test_a_signer_of_another_user_dies_twice_and_what_is_placed_then_is_heard(folder: Path):
    async with Village(folder) as village:
        village.settings = {"LOA_SIGNER__USER": "nobody"}
        await village.settle_in()
        await village.open_day_and_night()
        assert village.server is not None
        (first,) = signers_of(village.server.pid)
        keys = folder / "data" / "keys"
        assert user_of(first) == NOBODY
        assert (keys.stat().st_uid, stat.S_IMODE(keys.stat().st_mode)) == (NOBODY, 0o700)
        usage = usage_of(first)
        assert usage is not None
        assert usage.rss_bytes < 150_000_000
        record = ["--record", str(folder / "recordings")]
        async with village.nodes(NODES, identity=folder / "nodes", arguments=record) as fleet:
            await village.until_ready(NODES, fleet)
            for _ in range(2):
                (pid,) = signers_of(village.server.pid)
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: signers_of(village.server.pid) not in ([], [pid]), timeout_s=20)  # type: ignore[union-attr]
            bulletin = await village.bulletin("Thông báo", sample("announcement_a").path)
            start = in_seconds(12)
            await village.schedule(bulletin_id=bulletin, starts_at=start)
            await until_at(start + timedelta(seconds=8))
        for recording in read_recordings(folder / "recordings"):
            assert sounded_s(recording, "announcement_a", start, start + timedelta(seconds=8)) > 3


@needs_mosquitto
@needs_root
async def test_an_ordinary_user_serves_with_a_signer_of_its_own_that_ends_with_it(folder: Path):
    become = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--")
    asked = "import os, sys; sys.exit(not os.access(sys.executable, os.X_OK))"
    async with Child([*become, sys.executable, "-c", asked], name="may", stdout=False) as may:
        if await may.wait():
            pytest.skip("this machine's Python is root's alone")
    os.chown(folder, NOBODY, NOBODY)
    village = Village(folder, is_tls=False)
    environment = {**village.environment, "HOME": str(folder)}
    async with Child(
        [*become, sys.executable, "-m", "broadcast_server", "serve"], name="server", env=environment, stdout=False
    ) as server:
        for _ in range(400):
            if await village._is_ready():
                break
            assert server.returncode is None, server.stderr_tail
            await SystemClock().sleep(0.05)
        (signer,) = signers_of(server.pid)
        assert user_of(signer) == NOBODY
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{signer}").exists(), timeout_s=5)


@needs_mosquitto
async def test_a_signer_that_is_a_service_of_its_own_outlives_the_server(folder: Path):
    async with Village(folder) as village:
        village.settings = {"LOA_SIGNER__RUN": "external"}
        command = [sys.executable, "-m", "broadcast_server", "signer"]
        async with Child(command, name="signer", env=village.environment, stdout=False) as service:
            await village.settle_in()
            assert village.server is not None
            assert signers_of(village.server.pid) == []
            await village.stop_server()
            await village.start_server()
            assert service.returncode is None
            assert named(service.pid) == b"broadcast_server.signer"
            assert await service.terminate() == 0
