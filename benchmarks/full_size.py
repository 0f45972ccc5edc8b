"""Adaptation, evaluation and the image cache at the sizes that are published: `python -m benchmarks.full_size --help`.

Random weights and images run through the package's own engine, each method in a fresh process, and what is measured stands
beside the plan made before. Nothing is downloaded, and Hydra is not needed. On a machine with torch, torchvision,
lightning, transformers, timm, PyYAML, rich and the usual scientific packages, four small wheels are wanted:
open_clip_torch, ftfy, wcwidth and platformdirs (docs/performance.md says how they travel).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import command, full_size_report
from benchmarks.full_size_images import CLASSES, ImagesJob, measure_images
from benchmarks.full_size_measure import WARM_UP, Job, measure
from benchmarks.full_size_passes import measure_passes
from benchmarks.full_size_problem import SIZES, classes, encoder
from benchmarks.full_size_report import Measured, Results
from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine import memory
from fusionbench_lite.adaptation.engine.placement import PLACES
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.resources import Inputs, Suggestion, Transformer, suggest
from fusionbench_lite.resources.planned import USABLE

METHODS = ("adamerging_layerwise", "adarank_ta", "adarank_cart", "adarank_tsvm", "surgery")
PLANNED = (*METHODS, "doge_am", "concrete_am", "metamerging", "wemoe")
PARTS = ("methods", "passes", "images")
AT_ONCE = {"cpu": (1, 4, 16), "cuda": (16, 64, 256, 1024)}
"""Images at once in the evaluations that are measured by themselves."""

Given = TypeVar("Given")
Found = TypeVar("Found")


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for, print the tables, and write them after every measurement; 1 where one failed."""
    given = _parser().parse_args(arguments)
    if given.memory:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in given.memory]
        print(full_size_report.memory(found))
        return 0
    if given.plans:
        _put(given.markdown, full_size_report.plans(given.methods or PLANNED, given.host, given.batch_size, given.precision))
        return 0
    given.methods = given.methods or METHODS
    flops = Transformer(encoder(given.model, given.layout)).forward_flops
    results = Results(command.machine(given.device, given.threads, "wall"), _setting(given), flops)
    with tempfile.TemporaryDirectory(prefix="full-size-", dir=given.folder) as name:
        for part in given.parts:
            {"methods": _methods, "passes": _passes, "images": _images}[part](given, Path(name), results)
    print(full_size_report.markdown(results))
    return int(bool(results.failed) or any(entry.failed for entry in results.methods))


def _methods(given: argparse.Namespace, folder: Path, results: Results) -> None:
    for method in given.methods:
        job = _job(given, method, folder)
        planned = None
        try:
            fitting = fitted(job, given.place)
            job, planned = dataclasses.replace(job, place=fitting.place, chunk=fitting.chunk), fitting.estimate
            _say(f"{method}: {full_size_report.planned_peak(planned) / 2**30:.2f} GiB planned, constants on {job.place}")
            results.methods.append(Measured(job, planned, _isolated(measure, job)))
        except (InputError, MergeError) as error:
            _say(f"{method} failed: {error}")
            results.methods.append(Measured(job, planned, None, f"failed: {error}"))
        _write(given, results)


def _passes(given: argparse.Namespace, folder: Path, results: Results) -> None:
    for precision in ("fp32", "bf16"):
        _say(f"evaluation, {precision}")
        job = dataclasses.replace(_job(given, "", folder), precision=precision)
        try:
            results.passes += _isolated(measure_passes, (job, given.eval_sizes or AT_ONCE[job.device.split(":")[0]]))
        except (InputError, MergeError) as error:
            results.failed.append(f"Evaluation in {precision} failed: {error}")
        _write(given, results)


def _images(given: argparse.Namespace, folder: Path, results: Results) -> None:
    _say(f"{given.jpegs} JPEG files")
    try:
        results.images.append(_isolated(measure_images, ImagesJob(given.jpegs, given.threads, folder / "images")))
    except (InputError, MergeError) as error:
        results.failed.append(f"The image cache failed: {error}")
    _write(given, results)


def fitted(job: Job, place: str) -> Suggestion:
    """Return the place, the images at once and the plan with which a job fits this machine, as a run finds them.

    Raises InputError where nothing fits and for a method that adapts nothing.
    """
    entry, device = registry.get(job.method, learning=True), torch.device(job.device)
    if not entry.adaptive:
        raise InputError(f"method {job.method!r} merges without data: name an adaptive one, such as {METHODS[0]}")
    inputs = Inputs(
        encoder=encoder(job.model, job.layout), method=job.method, tasks=job.tasks, values=dict(entry.defaults),
        batch_size=job.batch_size, chunk=job.chunk, precision=job.precision, device=device.type, classes=classes(job.tasks),
        steps=job.steps + WARM_UP, test_images=job.known, eval_batch=min(job.eval_batch, job.images), threads=job.threads,
    )
    free = shutil.disk_usage(job.scratch.parent).free
    places = PLACES if place == "auto" else (place,)
    room, machine = (int(USABLE * memory.total(where)) for where in (device, memory.CPU))
    return suggest(inputs, room, machine, free, places=places)


def _job(given: argparse.Namespace, method: str, folder: Path) -> Job:
    return Job(
        model=given.model, layout=given.layout, tasks=given.tasks, method=method, device=given.device, precision=given.precision,
        place="device", chunk=given.chunk, batch_size=given.batch_size, steps=given.steps, images=given.images,
        eval_batch=given.eval_batch, threads=given.threads, scratch=folder / "scratch",
    )


def _isolated(function: Callable[[Given], Found], given: Given) -> Found:
    """Measure in a fresh process; running out of memory becomes an InputError."""
    try:
        return command.isolated(function, given)
    except torch.OutOfMemoryError as error:
        raise InputError(str(error).splitlines()[0]) from error
    except BrokenProcessPool as error:
        raise InputError("its process ended, probably for want of memory") from error


def _write(given: argparse.Namespace, results: Results) -> None:
    if given.markdown:
        given.markdown.write_text(full_size_report.markdown(results), encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(full_size_report.as_json(results), indent=1) + "\n", encoding="utf-8")


def _put(path: Path | None, text: str) -> None:
    print(text)
    if path:
        path.write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _setting(given: argparse.Namespace) -> str:
    return (
        f"{given.model}, {given.tasks} tasks, {given.batch_size} images of each in a step, {given.steps} steps timed, "
        f"{given.layout} layout, {given.precision}; {given.images} images evaluated, {given.eval_batch} at once"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.full_size", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", choices=list(SIZES), default="vit_b32", help="tiny: to try this program")
    add("--tasks", type=int, choices=range(1, 21), default=8, metavar="N", help="1 to 20; default: %(default)s")
    add("--layout", choices=("packed", "separate"), default="packed")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--methods", type=lambda text: tuple(text.split(",")), help=f"adaptive ones; default: {','.join(METHODS)}")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of adaptation and of its evaluation")
    add("--place", choices=("auto", *PLACES), default="auto", help="of constants")
    add("--chunk", type=_number, help="images in one pass of a step; default: as the plan says")
    add("--batch-size", type=_number, default=16, help="images of a task in a step; default: %(default)s")
    add("--steps", type=_number, default=5, help="timed, after two more; default: %(default)s")
    add("--images", type=_number, default=512, help="of an evaluation; default: %(default)s")
    add("--eval-batch", type=_number, default=64, help="images at once in a method's evaluation; default: %(default)s")
    add("--eval-sizes", type=lambda text: tuple(map(_number, text.split(","))), help="images at once in evaluation alone")
    add("--jpegs", type=_files, default=2000, help="files that go through the image cache; default: %(default)s")
    add("--parts", type=_parts, default=PARTS, help=f"default: {','.join(PARTS)}")
    add("--threads", type=_number, default=torch.get_num_threads(), help="default: %(default)s")
    add("--folder", type=Path, help="for temporary files; default: the system's")
    add("--plans", action="store_true", help="print where runs fit on GPUs of four sizes, and measure nothing")
    add("--host", type=_number, default=128, help="GiB of memory beside the GPUs of --plans; default: %(default)s")
    add("--memory", type=Path, metavar="FILE", nargs="+", help="print the peaks of earlier --json files, and measure nothing")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"some of {','.join(PARTS)}, not {text!r}")
    return parts


def _number(text: str, least: int = 1) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"a number of at least {least}, not {text!r}")
    return number


def _files(text: str) -> int:
    return _number(text, CLASSES)


if __name__ == "__main__":
    sys.exit(main())
