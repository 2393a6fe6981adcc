"""Time and chance are parameters: only a few named files may ask the machine, so that a day can be simulated."""

from __future__ import annotations

import ast

from tests.architecture.sources import PACKAGES, dotted, modules

CLOCKS = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "date.today",
    "datetime.date.today",
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.perf_counter_ns",
    "time.sleep",
    "asyncio.sleep",
}
CHANCES = ("random.", "secrets.", "uuid.uuid", "os.urandom", "token_bytes", "token_hex", "numpy.random.", "np.random.")

# file → why it may
MAY_ASK_THE_CLOCK = {
    "broadcast_server/supervise.py": "SystemClock is the machine's clock",
    "firmware_sim/clock.py": "the node's true clock, under its drifting one",
    "simulation/radio.py": "a real radio station outside the product",
    "simulation/source_clients.py": "real source clients outside the product",
    "simulation/demo.py": "the demo's own seconds",
    "simulation/world/time.py": "a virtual loop's own sleep",
}
MAY_ASK_CHANCE = {
    "broadcast_server/supervise.py": "SystemChance is the machine's randomness",
}
MAY_SLEEP_IN_TESTS = {
    "tests/support/until.py": "the one place that waits for the outside world",
    "tests/firmware_sim/station.py": "starts its broker before there is a loop",
    "tests/support/postgres.py": "a session fixture that waits for a server before there is a loop",
}


def calls(tree: ast.Module) -> list[tuple[int, str, ast.Call]]:
    return [(node.lineno, dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_a_turn(call: ast.Call) -> bool:
    """`asyncio.sleep(0)` lets others run; it measures nothing."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_nobody_asks_the_machine_what_time_it_is() -> None:
    found = [
        f"{path}:{line}: {name}"
        for path, tree in modules(*PACKAGES)
        if path not in MAY_ASK_THE_CLOCK
        for line, name, call in calls(tree)
        if name in CLOCKS and not (name == "asyncio.sleep" and is_a_turn(call))
    ]
    assert not found, f"take a Clock: {found}"


def test_nobody_asks_the_machine_for_chance() -> None:
    found = [
        f"{path}:{line}: {name}"
        for path, tree in modules("broadcast_server", "speaker_protocol")
        if path not in MAY_ASK_CHANCE
        for line, name, _ in calls(tree)
        if name.startswith(CHANCES) and name != "secrets.compare_digest"
    ]
    assert not found, f"take a Chance: {found}"


def test_no_test_sleeps() -> None:
    found = [
        f"{path}:{line}: {name}"
        for path, tree in modules("tests")
        if path not in MAY_SLEEP_IN_TESTS
        for line, name, call in calls(tree)
        if name in {"time.sleep", "asyncio.sleep"} and not is_a_turn(call)
    ]
    assert not found, f"advance a FakeClock, or wait `until` something is so: {found}"


def test_no_test_patches_our_own_code() -> None:
    found = [
        f"{path}:{line}: {name}"
        for path, tree in modules("tests")
        for line, name, _ in calls(tree)
        if name in {"monkeypatch.setattr", "patch", "mock.patch", "patch.object", "mock.patch.object", "mocker.patch"}
    ]
    assert not found, f"replace a port through the constructor instead: {found}"


def test_the_one_broad_net_is_in_the_supervisor() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in modules(*PACKAGES)
        if path != "broadcast_server/supervise.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_a_net(node)
    ]
    assert not found, f"name what may go wrong; the rest is the supervisor's: {found}"


def is_a_net(handler: ast.ExceptHandler) -> bool:
    """Whether it keeps whatever comes; one that cleans up and raises again does not."""
    last = handler.body[-1]
    passes_on = isinstance(last, ast.Raise) and last.exc is None
    return not passes_on and (handler.type is None or dotted(handler.type) in {"Exception", "BaseException"})


def test_every_task_has_a_name() -> None:
    found = [
        f"{path}:{line}"
        for path, tree in modules(*PACKAGES)
        for line, name, call in calls(tree)
        if name.endswith("create_task") and not any(word.arg == "name" for word in call.keywords)
    ]
    assert not found, f"a task without a name cannot be found in a dump: {found}"


def test_what_is_allowed_still_exists() -> None:
    known = {path for path, _ in modules(*PACKAGES, "tests")}
    assert (MAY_ASK_CHANCE.keys() | MAY_SLEEP_IN_TESTS.keys()) <= known
