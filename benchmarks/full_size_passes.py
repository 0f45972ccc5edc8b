"""Evaluation alone at full size: images per second in full and in mixed precision, by the number of images at once."""

from __future__ import annotations

import dataclasses
import warnings

import torch

from benchmarks import full_size_problem as problem
from benchmarks.full_size_measure import Job, evaluator_of, timed
from benchmarks.measure import Memory
from fusionbench_lite.models import clip

REPEATS = 5
"""Passes of the encoder alone that are timed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Evaluation with the pretrained weights, `size` images at once: images per second from bytes in memory to predictions,
    and of the encoder alone on inputs that are there; peak bytes beyond the weights."""

    precision: str
    size: int
    evaluated: float
    encoded: float
    peak: int


def measure_passes(given: tuple[Job, tuple[int, ...]]) -> list[Pass]:
    """Measure evaluation by the number of images at once, in the job's precision; each evaluates its `images` at least."""
    job, sizes = given
    torch.set_num_threads(job.threads)
    warnings.simplefilter("ignore")
    device, size = torch.device(job.device), problem.SIZES[job.model]
    shapes, tasks = clip.shapes(size, job.layout), problem.task_names(1)
    model = problem.model(size, job.layout, problem.experts(shapes, problem.noise(shapes, device), tasks).pretrained, device)
    return [_passes(dataclasses.replace(job, eval_batch=number), model, tasks, Memory(device)) for number in sizes]


def _passes(job: Job, model: torch.nn.Module, tasks: tuple[str, ...], memory: Memory) -> Pass:
    device = torch.device(job.device)
    count = -(-job.images // job.eval_batch) * job.eval_batch
    inputs = evaluator_of(job, tasks, job.eval_batch).inputs(evaluator_of(job, tasks, 1).data[tasks[0]].test_images[:1])
    inputs = inputs.expand(job.eval_batch, -1, -1, -1).contiguous()
    repeats = min(REPEATS, count // job.eval_batch)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
        model(inputs)
        with timed(device) as alone:
            for _ in range(repeats):
                model(inputs)
    del inputs
    held = memory.start()
    evaluator_of(job, tasks, job.eval_batch).evaluate(model)
    evaluator = evaluator_of(job, tasks, count)
    with timed(device) as whole:
        evaluator.evaluate(model)
    assert evaluator.passes.size is not None
    return Pass(
        precision=job.precision, size=evaluator.passes.size, evaluated=count / whole[0],
        encoded=repeats * job.eval_batch / alone[0], peak=memory.peak() - held,
    )
