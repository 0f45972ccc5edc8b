"""Data streams: functions of (seed, task, step) with the passes that the papers' loaders have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionbench_lite.adaptation.streams import KINDS, Stream
from fusionbench_lite.errors import InputError

SIZES = {"size": st.integers(1, 60), "batch_size": st.integers(1, 17), "batches": st.integers(1, 3)}


@given(kind=st.sampled_from(KINDS), step=st.integers(0, 50), seed=st.integers(0, 5), **SIZES)
def test_a_step_is_a_function_of_its_number(kind, step, seed, size, batch_size, batches):
    stream = Stream(kind=kind, size=size, batch_size=batch_size, batches=batches, seed=seed, task="digits")
    indices = stream.indices(step)
    assert np.array_equal(indices, Stream(
        kind=kind, size=size, batch_size=batch_size, batches=batches, seed=seed, task="digits"
    ).indices(step))
    assert 1 <= len(indices) == stream.count(step) <= batch_size * batches
    assert indices.min() >= 0
    assert indices.max() < size


@given(kind=st.sampled_from(["epoch", "cycle", "sequential"]), **SIZES)
def test_a_pass_sees_every_example_once(kind, size, batch_size, batches):
    stream = Stream(kind=kind, size=size, batch_size=batch_size, batches=1, seed=3, task="digits")
    per_pass = -(-size // batch_size)
    for turn in range(2):
        seen = np.concatenate([stream.indices(turn * per_pass + step) for step in range(per_pass)])
        assert np.array_equal(np.sort(seen), np.arange(size))
    several = Stream(kind=kind, size=size, batch_size=batch_size, batches=batches, seed=3, task="digits")
    one_by_one = [stream.indices(step) for step in range(2 * batches)]
    assert np.array_equal(several.indices(1), np.concatenate(one_by_one[batches:]))


def test_redraw_draws_without_replacement_within_a_step_only():
    stream = Stream(kind="redraw", size=40, batch_size=16, batches=2, seed=0, task="digits")
    first, second = stream.indices(0), stream.indices(1)
    assert len(set(first.tolist())) == 32
    assert set(first.tolist()) & set(second.tolist())
    assert not np.array_equal(first, second)


def test_cycle_replays_epoch_reshuffles():
    cycle, epoch = (Stream(kind=kind, size=20, batch_size=20, batches=1, seed=0, task="digits") for kind in ("cycle", "epoch"))
    assert np.array_equal(cycle.indices(0), cycle.indices(1))
    assert not np.array_equal(epoch.indices(0), epoch.indices(1))


def test_tasks_and_seeds_have_streams_of_their_own():
    streams = [Stream(
        kind="epoch", size=30, batch_size=30, batches=1, seed=seed, task=task
    ).indices(0) for seed in (0, 1) for task in ("a", "b")]
    assert len({tuple(indices) for indices in streams}) == 4


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("batch_size", 0), ("batches", -1), ("kind", "random")])
def test_bad_values_are_refused(field, value):
    good = {"kind": "epoch", "size": 5, "batch_size": 2, "batches": 1, "seed": 0, "task": "digits"}
    with pytest.raises(InputError, match=field if field != "kind" else "stream must be one of"):
        Stream(**{**good, field: value})
