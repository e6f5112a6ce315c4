"""Lanes against queueing theory: mean waits of Poisson arrivals, by formulas of 1917 to 1954.

Each mean lies within four standard errors, taken from batch means, and those errors are small
enough that the formula of another queue is refused.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import simpy

from tidesim.records import Resource
from tidesim.simulate.lanes import Job, SharedLane, SteadyLane
from tidesim.simulate.operations import Place, single

JOBS, WARM_UP, BATCHES, ERRORS = 60_000, 2_000, 20, 4.0
PLACE = Place(0, 0, 0)


class Arrivals(NamedTuple):
    """When jobs come, how long each takes and which of them are background jobs."""

    at_s: np.ndarray
    seconds: np.ndarray
    background: np.ndarray


def arrivals(seed, rate, seconds, *, background_share=0.0):
    """Draw Poisson arrivals; `seconds` draws service times given a generator and classes."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate, JOBS))
    background = rng.random(JOBS) < background_share
    return Arrivals(at_s, seconds(rng, background), background)


def waits_s(make_lane, jobs):
    """Return the seconds that every job waits for a lane before it is served."""
    env = simpy.Environment(initial_time=0.0)
    lane, served = make_lane(env), []

    def arrive():
        for at_s, seconds, background in zip(*(each.tolist() for each in jobs), strict=True):
            yield env.timeout(at_s - env.now)
            stages = [(lane, single("work", seconds, 0))]
            served.append(Job(stages, PLACE, env, background=background))
            lane.enter(served[-1])

    env.process(arrive())
    env.run()
    return np.array([job.ends_s[0] for job in served]) - jobs.at_s - jobs.seconds


def mean_and_error(waits):
    """Return the mean after the warm-up and its standard error by the method of batch means."""
    batches = np.array_split(waits[WARM_UP:], BATCHES)
    means = np.array([batch.mean() for batch in batches])
    return means.mean(), means.std(ddof=1) / math.sqrt(BATCHES)


def erlang_c(servers, load):
    """Return the probability that a job of M/M/c must wait; `load` in Erlang."""
    all_busy = load**servers / math.factorial(servers) * servers / (servers - load)
    return all_busy / (sum(load**k / math.factorial(k) for k in range(servers)) + all_busy)


def exponential(rng, background):
    return rng.exponential(1.0, len(background))


def constant(rng, background):
    return np.ones(len(background))


def steady(slots):
    assert slots == 1
    return lambda env: SteadyLane(env, Resource.CPU)


def shared(slots):
    return lambda env: SharedLane(env, Resource.CPU, slots=slots)


LOAD = 0.6  # of each server; a service takes 1 s in the mean
QUEUES = {
    "M/M/1": (exponential, 1, LOAD / (1 - LOAD)),
    "M/D/1": (constant, 1, LOAD / (2 * (1 - LOAD))),
    "M/M/2": (exponential, 2, erlang_c(2, 2 * LOAD) / (2 - 2 * LOAD)),
    "M/M/3": (exponential, 3, erlang_c(3, 3 * LOAD) / (3 - 3 * LOAD)),
}


CASES = [*((name, shared) for name in QUEUES), ("M/M/1", steady), ("M/D/1", steady)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_mean_waits_are_those_of_queueing_theory_and_of_no_other_queue(name, kind):
    seconds, servers, expected = QUEUES[name]
    jobs = arrivals(1, LOAD * servers, seconds)

    mean, error = mean_and_error(waits_s(kind(servers), jobs))

    assert mean == pytest.approx(expected, abs=ERRORS * error)
    others = [wait for _, _, wait in QUEUES.values() if wait != expected]
    assert all(abs(mean - other) > ERRORS * error for other in others)


def test_the_share_of_jobs_that_wait_is_erlangs():
    jobs = arrivals(2, 3 * LOAD, exponential)

    waiting = waits_s(shared(3), jobs) > 1e-6  # subtraction leaves a rounding error

    share, error = mean_and_error(waiting)
    assert share == pytest.approx(erlang_c(3, 3 * LOAD), abs=ERRORS * error)
    assert error < 0.01


def test_background_jobs_wait_as_the_lower_class_of_a_queue_with_priorities():
    """Cobham's M/G/1 without preemption, and nobody waits as first come first served would have."""
    fore, back, share = 0.3, 0.4, 0.5  # loads; half the jobs are background jobs
    rate = 1.0
    means = {False: fore / (rate * (1 - share)), True: back / (rate * share)}

    def seconds(rng, background):
        drawn = rng.exponential(1.0, len(background))
        return np.where(background, means[True], means[False] * drawn)

    jobs = arrivals(3, rate, seconds, background_share=share)
    left_s = rate * ((1 - share) * 2 * means[False] ** 2 + share * means[True] ** 2) / 2
    expected = {
        False: left_s / (1 - fore),
        True: left_s / ((1 - fore) * (1 - fore - back)),
    }
    in_order = left_s / (1 - fore - back)

    waits = waits_s(shared(1), jobs)

    for background, wait in expected.items():
        mean, error = mean_and_error(waits[jobs.background == background])
        assert mean == pytest.approx(wait, abs=ERRORS * error)
        assert abs(mean - in_order) > ERRORS * error
    mean, error = mean_and_error(waits_s(shared(1), jobs._replace(background=jobs.at_s < 0)))
    assert mean == pytest.approx(in_order, abs=ERRORS * error)
