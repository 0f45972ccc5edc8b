"""What a reader of results on a text task has to know, as sentences."""

from __future__ import annotations

import numpy as np

from fusionbench_lite.data.layouts import unused_classes
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples
from fusionbench_lite.data.text.protocols import Protocol


def of(
    entry: Description, protocol: Protocol, test: Examples, train: Examples | None, *, cut: int, tested: int,
    published: int | None, metric: str,
) -> tuple[str, ...]:
    """Return the caveats of a task: `test` is its whole test split, of which `tested` examples are judged and `cut` truncated."""
    name = entry.name
    said = [protocol.notes[name]] if name in protocol.notes else []
    if published is not None and len(test) != published:
        said.append(f"{name}: {test.where} has {len(test):,} examples, the published split {published:,}: not comparable.")
    if entry.classes is not None:
        labels = None if train is None else train.labels
        said += (note.replace(" image", " example") for note in unused_classes(name, entry.classes, labels, test.labels))
    if cut:
        said.append(f"{name}: {cut:,} of {tested:,} test texts are cut to the length that the model reads ({cut / tested:.1%}).")
    if train is not None:
        shared = duplicates(entry, train, test)
        if shared:
            said.append(f"{name}: {shared:,} of {len(test):,} test examples have the same texts as a training example.")
    if protocol.metrics.get(name, entry.metric) not in (metric, "accuracy"):
        said.append(f"{name}: {protocol.metrics.get(name, entry.metric)} is of classes; generated answers are judged by {metric}.")
    return tuple(said)


def duplicates(entry: Description, train: Examples, test: Examples) -> int:
    """Return how many test examples have the texts of a training example, whatever their labels."""
    seen = set(zip(*(train.columns[name] for name in entry.text), strict=True))
    return int(np.sum([texts in seen for texts in zip(*(test.columns[name] for name in entry.text), strict=True)]))
