"""`fusionbench_lite.merge_files`: checkpoints of any size from files to files.

Reading, computing and writing overlap: the system reads the next tensors ahead, and a thread casts, checks and writes those that
are computed, each to a place that the format's header gives before.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fusionbench_lite import registry
from fusionbench_lite.base.signals import ending_in_order
from fusionbench_lite.base.version import __version__
from fusionbench_lite.errors import MergeError, WriteError
from fusionbench_lite.methods import companions
from fusionbench_lite.methods.api import Produced, Result, Weights, prepare, results, stored_parts
from fusionbench_lite.methods.resuming import Journal, identity_of
from fusionbench_lite.paths import atomic_directory, expanded, nearest_existing
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.outputs import check_replaceable, check_tasks, checked_out
from fusionbench_lite.weights.shards import SHARD_BYTES, Layout, layout_of
from fusionbench_lite.weights.vocabulary import Vocabulary
from fusionbench_lite.weights.writing import Writer

T = TypeVar("T")


def merge_files(
    method: str, pretrained: Weights, experts: Mapping[str, Weights], out: str | os.PathLike[str], *,
    shard_bytes: int = SHARD_BYTES, resize: str | None = None, **hyperparameters: Any,
) -> Path:
    """Merge as `merge` does and write the result to the directory `out` as safetensors, in files of at most `shard_bytes`.

    Memory holds one tensor of every expert and of the output; bits are those of `merge`. A method that keeps one model per
    task writes `out/TASK` for each. Configuration, generation settings, tokenizer and chat template of a pretrained folder are
    copied. `resize`: models whose tables of tokens have fewer rows than the largest get rows of the mean of their own ("mean"), as
    the DARE code does, or of zeros ("pad"); None refuses them. Returns `out`.

    Raises MergeError as `merge` does, and for a directory that is, contains or lies inside an input, before anything is read;
    InputError when the directory cannot be written. Nothing is left there then, and an earlier result stays. It is replaced at
    the end; a directory with other files is refused. Where all inputs are paths, a merge that was killed or interrupted
    is continued by the same call, with the same bits; its unfinished directory is hidden beside `out`. SIGTERM ends as Ctrl-C does.
    """
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise MergeError(f"shard_bytes must be an integer of at least 1, got {shard_bytes!r}")
    vocabulary = Vocabulary(resize)
    tasks = tuple(experts) if isinstance(experts, Mapping) else ()
    inputs = {"pretrained": pretrained, **hyperparameters}
    by_name = {f"expert {task!r}": experts[task] for task in tasks}
    folder = checked_out(out, inputs | by_name)
    entry = registry.get(method)
    if entry.per_task:
        check_tasks(tasks, folder)
    check_replaceable(folder, _beside, tasks if entry.per_task else ())
    extra = {name: hyperparameters[name] for name in entry.inputs if hyperparameters.get(name) is not None}
    view, _, produced = prepare(method, pretrained, experts, hyperparameters, fit=vocabulary.fit)
    layout = layout_of(view.specs, shard_bytes)
    said = {
        "fusionbench_lite": __version__, "method": method, "hyperparameters": produced.hyperparameters,
        "pretrained": _shown(pretrained), "experts": {task: _shown(experts[task]) for task in tasks}, "resize": vocabulary.resize,
    }
    beside = _Beside(pretrained, experts, vocabulary, said)
    with ending_in_order():
        if entry.per_task:
            _write_each(view, produced, layout, folder, beside)
            return expanded(out)
        decisive = {
            "method": method, "hyperparameters": produced.hyperparameters, "resize": vocabulary.resize, "shard_bytes": shard_bytes,
        }
        identity = identity_of(decisive, {"pretrained": pretrained, **by_name, **extra})
        _write_one(view, produced, layout, folder, beside, Journal.of(folder, identity, layout))
    return expanded(out)


class _Beside:
    """Writes what lies beside the weights."""

    def __init__(
        self, pretrained: Weights, experts: Mapping[str, Weights], vocabulary: Vocabulary, said: Mapping[str, Any]
    ) -> None:
        self.pretrained, self.experts, self.vocabulary, self.said = pretrained, experts, vocabulary, said

    def write(self, out: Path, layout: Layout) -> None:
        """Copy configuration and tokenizer to `out`, and write what the folder says of itself where something was copied."""
        largest = self.vocabulary.largest
        tokenizer = self.pretrained if largest is None else self.experts[largest]
        copied = companions.copy(self.pretrained, tokenizer, out, layout.specs, self.vocabulary.rows)
        if copied:
            companions.write_manifest(out, self.said, copied)


def _write_one(view: Experts, produced: Produced, layout: Layout, folder: Path, beside: _Beside, journal: Journal) -> None:
    """Write the one model of a method, or what is not yet finished of it."""
    view.finished, view.notes = set(journal.finished), journal.notes
    _check_space(folder, layout.nbytes - sum(layout.places[name].nbytes for name in journal.finished))
    tensors = _begun(results(view, produced()))
    with journal.directory(folder, layout) as temporary:
        _write(temporary, layout, produced, tensors, journal)
        beside.write(temporary, layout)


def _write_each(view: Experts, produced: Produced, layout: Layout, folder: Path, beside: _Beside) -> None:
    """Write the models of a method that keeps one per task, below `folder`."""
    _check_space(folder, len(view.tasks) * layout.nbytes)
    parts = _begun(produced())
    with atomic_directory(folder) as temporary:
        stored = stored_parts(view, parts)
        for task in view.tasks:
            (temporary / task).mkdir()
            layout.create(temporary / task)
            models = results(view, ((name, part.tensor(task)) for name, part in stored.items()))
            _write(temporary / task, layout, produced, models, Journal(None))
            beside.write(temporary / task, layout)


def _write(folder: Path, layout: Layout, produced: Produced, tensors: Iterator[Result], journal: Journal) -> None:
    with Writer(folder, layout, produced.limits, journal.record) as writer:
        for result in tensors:
            writer.put(result.names, result.tensor, finite=result.finite, kept=result.kept)
            del result
    produced.limits.warn()
    layout.verify(folder, journal.finished)


def _check_space(folder: Path, needed: int) -> None:
    place = nearest_existing(folder.parent)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise WriteError(
            f"cannot write {folder}: it needs {needed / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free; nothing was left "
            "there, free some space or choose another directory"
        )


def _begun(iterator: Iterator[T]) -> Iterator[T]:
    """Return an iterator that has done its first step, so that what a method refuses at once is refused before writing."""
    return _handed_out(list(itertools.islice(iterator, 1)), iterator)


def _handed_out(first: list[T], rest: Iterator[T]) -> Iterator[T]:
    while first:  # itertools.chain would hold a tensor until its end
        yield first.pop()
    yield from rest


def _beside(folder: Path) -> set[str]:
    ours = companions.listed(folder)
    return {*ours, companions.MANIFEST} if ours else set()


def _shown(source: Any) -> str:
    return str(expanded(source)) if isinstance(source, (str, os.PathLike)) else "in memory"
