"""What goes wrong during a run ends in one sentence, soon, and leaves the model and threads usable."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tidesim.errors import CapacityError, RunError, SettingError
from tidesim.runtime.backends import CpuBackend
from tidesim.runtime.checkpoint import load_model
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.generate import generate_offloaded, place_by
from tidesim.runtime.verify import verify
from tidesim.runtime.workers import Latch, Worker, available_cores

LIMIT_S = 120.0  # a busy machine may take long to start
PROMPT = [5, 6, 7, 8]
SETTINGS = DecodeSettings(gen_length=40, steps=8)


@pytest.fixture(scope="module")
def model():
    return load_model("tide-tiny")


@pytest.fixture(scope="module")
def expected(model):
    return decode(model, PROMPT, SETTINGS).tokens


@pytest.fixture
def threads_end():
    """Check that the run's threads end, and that torch and cores are as before."""
    before = threading.active_count(), torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    assert (threading.active_count(), torch.get_num_threads(), os.sched_getaffinity(0)) == before


def within(limit_s, work):
    """Run `work` in a thread; fail if it hangs; return the error it raised."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - that is what is looked at
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    assert not thread.is_alive(), f"hangs for more than {limit_s} s"
    return errors[0] if errors else None


def placing(model, policy="tide", promotion="blocking", budget=8):
    interval = 1 if policy == "tide" else None
    return place_by(policy, model.spec, budget=budget, interval=interval, promotion=promotion)


def offload(model, backend, *, observe=None, **how):
    return generate_offloaded(
        model, PROMPT, SETTINGS, placing(model, **how), backend, observe=observe
    )


def failing_run(model, spoil, *, at=3, **how):
    """Run with a backend that `spoil` breaks after some passes; return the error and the seconds."""
    seen, broken_s = [], []

    def work():
        with CpuBackend() as backend:

            def observe(_event):
                seen.append(1)
                if len(seen) == at:
                    spoil(backend)
                    broken_s.append(time.perf_counter())

            offload(model, backend, observe=observe, **how)

    error = within(LIMIT_S, work)
    assert broken_s, f"was not spoilt: {error}"
    return error, time.perf_counter() - broken_s[0]


def still_works(model, expected):
    assert decode(model, PROMPT, SETTINGS).tokens == expected
    with CpuBackend() as backend:
        run = offload(model, backend)
    assert run.decoded.tokens == expected


HOW = [{"promotion": "blocking"}, {"promotion": "background"}, {"policy": "lru"}]


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["link", "cpu 0"])
def test_a_thread_that_dies_ends_the_run(model, expected, name, how):
    def kill(backend):
        next(worker for worker in backend._all if worker.name == name).stop()

    error, seconds = failing_run(model, kill, **how)

    assert isinstance(error, RunError)
    assert (
        str(error) == f"the {name} thread has died, so its work will not end; start the run again"
    )
    assert seconds < 10
    still_works(model, expected)


@pytest.mark.usefixtures("threads_end")
@pytest.mark.parametrize("how", HOW)
def test_a_copy_that_fails_ends_the_run(model, expected, how):
    def spoil(backend):
        real = backend.link_copy

        def link_copy(target, source, resource, label, layer, **more):
            if label.startswith("promote"):
                raise MemoryError("no room\nat all")
            real(target, source, resource, label, layer, **more)

        backend.link_copy = link_copy

    error, _ = failing_run(model, spoil, at=1, **how)

    assert isinstance(error, RunError)
    assert str(error) == "an operation of the run failed (no room); nothing of it is kept"
    assert isinstance(error.__cause__, MemoryError)
    still_works(model, expected)


@pytest.mark.usefixtures("threads_end")
def test_a_product_that_fails_ends_the_run(model, expected, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    def spoil(_):
        monkeypatch.setattr("tidesim.runtime.backends.misses.expert_products", broken)

    error, _ = failing_run(model, spoil)
    monkeypatch.undo()

    assert isinstance(error, RunError)
    assert "no such kernel" in str(error)
    still_works(model, expected)


def test_a_background_copy_that_failed_has_not_landed():
    latch = Latch(())
    assert not latch.is_open()
    latch.open(OSError("gone"))

    with pytest.raises(RunError, match="gone"):
        latch.is_open()
    with pytest.raises(RunError, match="gone"):
        latch.wait()


@contextmanager
def limit(seconds):
    """Fail what hangs in the main thread, where cores and signals are."""

    def late(*_):
        raise TimeoutError(f"hangs for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RunError("for a test")])
def test_an_interrupt_leaves_model_cores_and_threads_as_they_were(model, expected, stop):
    def interrupt(_):
        raise stop

    cores, running = os.sched_getaffinity(0), threading.active_count()
    torch.set_num_threads(2)
    try:
        with limit(LIMIT_S), pytest.raises((KeyboardInterrupt, RunError)), CpuBackend() as backend:
            offload(model, backend, observe=interrupt)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)

    assert (os.sched_getaffinity(0), threading.active_count()) == (cores, running)
    still_works(model, expected)


@pytest.mark.usefixtures("threads_end")
def test_an_interrupted_verification_gives_the_banks_and_hooks_back(model, expected, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def work():
        with CpuBackend() as backend:
            monkeypatch.setattr("tidesim.runtime.verify.generate_offloaded", interrupt)
            verify(model, PROMPT, SETTINGS, placing(model), backend)

    assert isinstance(within(LIMIT_S, work), KeyboardInterrupt)
    assert not model.lm_head._forward_hooks
    still_works(model, expected)


@pytest.mark.usefixtures("threads_end")
def test_threads_that_cannot_be_started_are_refused_and_the_others_end(monkeypatch):
    real = Worker.__init__

    def init(worker, name, **more):
        if name == "cpu 1":
            raise RuntimeError("can't start new thread")
        real(worker, name, **more)

    monkeypatch.setattr(Worker, "__init__", init)

    with (
        pytest.raises(RunError, match="cpu 1 thread cannot be started"),
        CpuBackend(cpu_workers=2),
    ):
        pass


@pytest.mark.usefixtures("threads_end")
def test_slots_that_do_not_fit_are_refused(model, expected, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("not enough memory: you tried to allocate 1 byte")

    with CpuBackend() as backend:
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(CapacityError, match=r"8 slots of a layer need .* use a smaller budget"):
            offload(model, backend)
        monkeypatch.undo()
    still_works(model, expected)


def test_settings_for_another_engine_or_model_are_refused(model):
    other = replace(placing(model).setup, layers=3)
    wrong = replace(placing(model), setup=other)

    with CpuBackend() as backend:
        with pytest.raises(SettingError, match="set it up for this model"):
            generate_offloaded(model, PROMPT, SETTINGS, wrong, backend)
        reference = place_by("tide", model.spec, budget=8, interval=1, engine="tide-reference")
        with pytest.raises(SettingError, match="computes window full, not block"):
            generate_offloaded(model, PROMPT, SETTINGS, reference, backend)


TOLD = """
import os
from tidesim.runtime.workers import Worker
work = Worker.run
def told(worker):
    os.write(2, b"works\\n")  # in one piece, whatever other threads write
    work(worker)
Worker.run = told
from tidesim.cli import main
main()
"""


def test_ctrl_c_ends_the_command_with_status_130():
    command = ["generate", "--prompt", "a", "--policy", "lru", "--budget", "8", "--backend", "cpu"]
    command += ["--link-gb-per-s", "0.00005"]  # hidden states alone take half a second a layer
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    guard = threading.Timer(LIMIT_S, process.kill)
    guard.start()
    with process:
        try:
            assert [process.stderr.readline() for _ in range(2)] == ["works\n"] * 2
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            guard.cancel()
            process.kill()

    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_the_link_is_not_kept_on_the_core_of_the_thread_that_runs_the_model():
    with CpuBackend() as backend:
        for worker in (backend.link, *backend.workers):  # each has begun
            latch = Latch([worker])
            worker.submit(latch.open, latch)
            latch.wait()
        ours = os.sched_getaffinity(0)
        links, workers = (
            os.sched_getaffinity(worker.native_id) for worker in (backend.link, backend.workers[0])
        )

    assert len(ours) == len(workers) == 1
    assert ours != workers
    assert links != ours
    assert os.sched_getaffinity(0) == set(available_cores())
