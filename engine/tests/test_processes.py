"""Engines in children: forked, spawned, pickled; while others use them, and with more threads than cores."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, PlanError, read_plan

# What hangs does so for ever; what does not needs a small part of this.
PATIENCE = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
ENGINE = Engine(plans.routed_resnet(1, (16,), seed=2), precision="float32", num_threads=2)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
# Python 3.12 warns of any fork beside threads, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work: Callable[[], bool]) -> bool:
    """Return whether `work` returns true in a forked child within the time that is waited for it."""
    child = os.fork()
    if not child:
        code = 3
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def same(engine: Engine, wanted: np.ndarray, images: np.ndarray = IMAGES) -> bool:
    return np.array_equal(engine(images).logits, wanted)


def logits(images: np.ndarray) -> np.ndarray:
    """Return what this module's engine says: in workers the parent's, or one that was made anew."""
    return ENGINE(images).logits


@contextmanager
def busy(engine: Engine, count: int = 2000) -> Iterator[None]:
    """Use an engine from another thread all the time, in calls that take long."""
    stop, images = threading.Event(), np.zeros((count, 32, 32, 3), np.uint8)
    thread = threading.Thread(target=lambda: [engine(images) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@needs_fork
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_engine_that_was_used_works_in_a_forked_child(threads: int) -> None:
    engine = Engine(plans.routed_resnet(1, (16,), seed=2), num_threads=threads)
    wanted, alone = engine(IMAGES).logits, engine(IMAGES[:1]).logits
    assert in_child(lambda: same(engine, wanted) and same(engine, alone, IMAGES[:1]))
    assert same(engine, wanted)


@needs_fork
def test_an_engine_that_was_never_called_works_in_a_forked_child() -> None:
    engine = Engine(plans.routed_resnet(1, (16,), seed=2), num_threads=2)
    assert in_child(lambda: engine(IMAGES).logits.shape == (5, 10))


@needs_fork
def test_children_of_children_work_too() -> None:
    wanted = ENGINE(IMAGES).logits
    assert in_child(lambda: same(ENGINE, wanted) and in_child(lambda: same(ENGINE, wanted)))


@needs_fork
def test_a_child_may_let_an_engine_of_its_parent_go() -> None:
    engines = [Engine(plans.routed_resnet(1, (16,)), num_threads=2)]
    engines[0](IMAGES)

    def let_go() -> bool:
        engines.clear()
        return True

    assert in_child(let_go)


@needs_fork
def test_a_fork_in_the_middle_of_another_threads_call_leaves_the_child_free() -> None:
    engine = Engine(plans.routed_resnet(1, (16,), seed=2), precision="float32", num_threads=2)
    wanted = engine(IMAGES).logits
    with busy(engine):
        assert all(in_child(lambda: same(engine, wanted)) for _ in range(5))
    assert same(engine, wanted)


@needs_fork
def test_a_fork_while_another_thread_makes_engines_leaves_the_child_free() -> None:
    wanted, stop = ENGINE(IMAGES).logits, threading.Event()
    plan = plans.routed_resnet(1, (16,))
    thread = threading.Thread(target=lambda: [Engine(plan, num_threads=2) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        made = lambda: Engine(plan, num_threads=2)(IMAGES).logits.shape == (5, 10)  # noqa: E731
        assert all(in_child(lambda: same(ENGINE, wanted) and made()) for _ in range(5))
    finally:
        stop.set()
        thread.join()


@needs_fork
def test_a_child_process_ends_as_any_other(tmp_path: Path) -> None:
    """Python takes its engines down at the end, and nothing waits for threads that are not there."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, numpy as np, plans\n"
        "from sidestep_engine import Engine\n"
        "engine, image = Engine(plans.routed_resnet(1, (16,)), num_threads=2), np.zeros((3, 3, 32, 32))\n"
        "engine(image)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    engine(image)\n"
        "    sys.exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run([sys.executable, str(program)], timeout=PATIENCE, env=environment)
    assert ended.returncode == 7


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_worker_processes_use_engines(method: str) -> None:
    wanted = ENGINE(IMAGES).logits
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        sent = [pool.submit(ENGINE, IMAGES[index : index + 1]) for index in range(5)]
        said = np.concatenate([future.result(timeout=PATIENCE).logits for future in sent])
        np.testing.assert_allclose(said, wanted, atol=1e-5)
        if method == "fork":
            known = [pool.submit(logits, IMAGES) for _ in range(4)]
            assert all(np.array_equal(future.result(timeout=PATIENCE), wanted) for future in known)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_copies_are_engines_of_the_same_plan(
    again: Callable[[Engine], Engine], precision: str, tmp_path: Path
) -> None:
    plans.write(plans.every_kind(), tmp_path / "a.plan")
    engine = Engine.load(tmp_path / "a.plan", precision=precision, num_threads=3, isa="auto")  # type: ignore[arg-type]
    (tmp_path / "a.plan").unlink()
    made = again(engine)
    assert (made.precision, made.num_threads, made.isa) == (engine.precision, 3, engine.isa)
    x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    one, other = engine(x), made(x)
    for name in ("logits", "options", "exits", "temperatures", "probabilities"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_copy_has_the_instruction_set_that_was_asked_for() -> None:
    engine = Engine(plans.routed_resnet(1, (16,)), precision="float32", isa="base")
    assert pickle.loads(pickle.dumps(engine)).isa == "base"


def test_plans_and_outputs_can_be_pickled_and_copied(tmp_path: Path) -> None:
    plans.write(plans.every_kind(), tmp_path / "a.plan")
    plan = read_plan(tmp_path / "a.plan")
    for made in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert (
            made.steps == plan.steps and made.size == plan.size and list(made.tensors) == list(plan.tensors)
        )
        assert all(np.array_equal(made.tensors[name], plan.tensors[name]) for name in plan.tensors)
    output = pickle.loads(pickle.dumps(ENGINE(IMAGES)))
    np.testing.assert_array_equal(output.logits, ENGINE(IMAGES).logits)


@pytest.mark.parametrize("count", [1, 5])
def test_many_threads_on_few_cores_come_to_an_end(count: int) -> None:
    """A thread that spins on a core keeps those that it waits for from running: one image took seconds."""
    few = Engine(plans.routed_resnet(3, (16, 32)), precision="float32", num_threads=1)
    many = Engine(plans.routed_resnet(3, (16, 32)), precision="float32", num_threads=32)
    wanted, done = few(IMAGES[:count]).logits, threading.Event()

    def call() -> None:
        for _ in range(20):
            np.testing.assert_allclose(many(IMAGES[:count]).logits, wanted, atol=1e-4)
        done.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert done.wait(PATIENCE)


@needs_fork
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
@pytest.mark.parametrize("count", [1, 5])
def test_a_forked_child_with_fewer_cores_than_its_parent_comes_to_an_end(count: int) -> None:
    engine = Engine(plans.routed_resnet(3, (16, 32)), precision="float32", num_threads=8)
    wanted = engine(IMAGES[:count]).logits

    def on_one_core() -> bool:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return all(np.allclose(engine(IMAGES[:count]).logits, wanted, atol=1e-4) for _ in range(20))

    assert in_child(on_one_core)


def test_other_threads_of_python_go_on_during_a_call() -> None:
    """One that asks for the engine waits for its turn without Python's lock."""
    engine = Engine(plans.routed_resnet(3, (16, 32, 64)), precision="float32", num_threads=1)
    running, images = threading.Event(), np.zeros((600, 32, 32, 3), np.uint8)
    ticks: list[float] = []

    def call() -> None:
        running.set()
        engine(images)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    running.wait()
    while any(thread.is_alive() for thread in threads):
        ticks.append(time.monotonic())
        time.sleep(0.001)
    assert len(ticks) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of Linux")
def test_threads_that_the_system_does_not_give_are_an_error_and_no_crash() -> None:
    program = (
        "import plans, resource\n"
        "from sidestep_engine import Engine, PlanError\n"
        "plan = plans.routed_resnet(1, (16,))\n"
        "room = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room + 300_000_000, -1))\n"
        "try:\n"
        "    Engine(plan, num_threads=1000)\n"
        "except PlanError as error:\n"
        "    print(error)\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    said = subprocess.run(
        [sys.executable, "-c", program],
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("num_threads must be as many as this system can start, got 1000 (")


def test_a_damaged_pickle_is_a_plan_error() -> None:
    remade, (plan, precision, threads, isa) = ENGINE.__reduce__()
    with pytest.raises(PlanError, match="num_threads must be"):
        remade(plan, precision, threads - 2, isa)
