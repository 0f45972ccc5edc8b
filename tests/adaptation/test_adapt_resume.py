"""Every method, stopped at three random steps and started again, ends with the bits of an undisturbed run.

Stopped here means that the run is abandoned between two steps and everything but the checkpoint file is built anew;
test_adapt_engine_resume.py does the same with SIGKILL.
"""

from __future__ import annotations

import pytest
import torch

from fusionbench_lite import registry
from fusionbench_lite.base.randomness import generator
from fusionbench_lite.errors import MergeError
from tests.adaptation.test_adapt_engine_resume import same
from tests.support.engine_job import job

STEPS = 33
EVALUATED, SAVED = 10, 12
METHODS = [id for id in registry.names() if registry.get(id, learning=True).adaptive]
VARIANTS = [
    *((id, {}) for id in METHODS), ("concrete_am", {"order": "released"}), ("surgery", {"moments": "all"}),
    ("metamerging", {"adapters": "final", "optimizer": "sgd"}), ("metamerging", {"base": "task_arithmetic"}),
    ("twin_merging", {"router": "entropy"}), ("adarank_cart", {"objective": "cross_entropy", "learn": "masks"}),
    ("pareto_merging", {"mode": "distance"}),
]

SHORTER = {"metamerging": {"adapter_steps": 4}, "concrete_am": {"mask_steps": 5}}
"""What fits a run of nine steps."""


class Stopped(Exception):
    """The run is abandoned."""


def abandon() -> None:
    raise Stopped


def name(case) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


@pytest.mark.parametrize("case", VARIANTS, ids=name)
def test_stopped_and_started_again(case, tmp_path):
    method, given = case
    undisturbed = job(method, STEPS, **given)
    assert len(undisturbed["losses"]) == STEPS
    checkpoint = tmp_path / "last.ckpt"
    draw = generator("resume", name(case))
    # One stop is between an evaluation and the next save, so that the evaluation is made again.
    stops = sorted({int(draw.integers(1, EVALUATED)), int(draw.integers(EVALUATED, SAVED)), int(draw.integers(SAVED, STEPS))})
    for stop in stops:
        with pytest.raises(Stopped):
            job(method, STEPS, checkpoint, stop, abandon, **given)
    assert same(job(method, STEPS, checkpoint, **given), undisturbed)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(method, tmp_path, monkeypatch):
    """The run stops, names task and step, and goes on from before once the cause is gone."""
    from fusionbench_lite.adaptation.engine import procedure as engine

    checkpoint, broken = tmp_path / "last.ckpt", {"now": False}
    part = engine.Examples

    class Poisoned(part):  # what a step reads turns bad at step 6 or, already read ahead, the one before
        def to(self, device):
            whole = super().to(device)
            if not broken["now"]:
                return whole
            bad = {field: value * torch.nan for field in ("inputs", "precomputed") if (value := getattr(whole, field)) is not None}
            return part(**{"inputs": whole.inputs, "precomputed": whole.precomputed, "labels": whole.labels, **bad})

    monkeypatch.setattr("tests.support.engine_job.Examples", Poisoned)
    with pytest.raises(MergeError, match=r"(task '\w+': the loss is nan|the gradient) at step [67]( is not finite)?;"):
        job(method, 9, checkpoint, 6, lambda: broken.update(now=True), **SHORTER.get(method, {}))
    broken["now"] = False
    monkeypatch.undo()
    given = SHORTER.get(method, {})
    assert same(job(method, 9, checkpoint, **given), job(method, 9, **given))
