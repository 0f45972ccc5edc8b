"""How many texts a task has, without reading them."""

from __future__ import annotations

from collections.abc import Mapping

from fusionbench_lite.data.text import descriptions, mini
from fusionbench_lite.data.text.protocols import Protocol
from fusionbench_lite.errors import InputError, did_you_mean


def sizes(task: str, protocol: Protocol) -> Mapping[str, int]:
    """Return the numbers of texts by split, train, validation and test, and of classes where a task has them.

    Of MNLI's two validation and test splits those that the protocol reads. Raises InputError for a task that is neither GLUE's nor
    drawn.
    """
    if task in mini.DRAWINGS:
        return {"train": mini.TRAIN, "test": mini.TEST, "classes": len(mini.DRAWINGS[task].classes)}
    if task not in descriptions.glue_names():
        raise InputError(f"nothing says how large {task!r} is: {did_you_mean(task, [*descriptions.glue_names(), *mini.DRAWINGS])}")
    described = descriptions.glue(task)
    validation = protocol.splits.get(task, "validation")
    test = descriptions.unlabelled(task, validation.replace("validation", "test"))
    found = {"train": described.rows["train"], "validation": described.rows[validation], "test": test}
    return found if described.classes is None else {**found, "classes": len(described.classes)}
