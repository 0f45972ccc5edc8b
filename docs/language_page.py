"""The page about language models and text tasks: its prose is here, its tables are made from the data files of the package."""

from __future__ import annotations

from collections.abc import Iterator

from fusionbench_lite.data.text import descriptions, protocols

START = """# Language models

Written by `make docs` from the data files of the package.

    python -m fusionbench_lite.doctor method=adarank model=gpt2 tasks=glue7   # what it needs, before it starts
    python -m fusionbench_lite method=adarank model=gpt2 tasks=glue7
    python -m fusionbench_lite method=adarank model=roberta tasks=glue7
    python -m fusionbench_lite method=doge_ta model=flan_t5_base tasks=glue8

**No published checkpoint and no GPU was at hand when this was written**: everything here runs in the tests on files of the
published names and layouts with random weights, served by a local hub.

## Tasks

GLUE is read from `nyu-mll/glue`. The labels of its own test splits are hidden, so that results are of validation splits, as in all
papers. [text_tasks.md](text_tasks.md) says how to bring a task of one's own.
"""

PROTOCOLS = """
## Protocols

A protocol is what the code behind published tables does with the tasks; `data.protocol` chooses one, and a record names it.
"""

PROMPTS = """
## Prompts

Models that generate read FusionBench's prompts, to the letter: experts were trained with their spelling. The answer is generated
greedily, up to 10 tokens with the start token, and right where it is the word itself.
"""

NOTES = """
## Notes

Records repeat those of their tasks.
"""


def page() -> str:
    """Return the page in Markdown."""
    parts = [START, *_table(_tasks()), PROTOCOLS, *_table(_protocols()), PROMPTS, *_table(_prompts()), NOTES, *_notes()]
    return "\n".join([*parts, ""])


def _table(rows: Iterator[list[object]]) -> Iterator[str]:
    head = next(rows)
    yield f"| {' | '.join(map(str, head))} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _tasks() -> Iterator[list[object]]:
    yield ["task", "columns", "classes, in the order of the labels", "training", "validation"]
    for name in descriptions.glue_names():
        task = descriptions.glue(name)
        sizes = {split.removeprefix("validation").replace("_", " "): f"{count:,}" for split, count in task.rows.items()}
        classes, training = ", ".join(task.classes or ("scores from 0 to 5",)), sizes.pop("train")
        yield [name, ", ".join(task.text), classes, training, ", ".join(count + kind for kind, count in sizes.items())]


def _protocols() -> Iterator[list[object]]:
    yield ["protocol", "model", "reads", "tokens", "MNLI", "CoLA", "STS-B", "other tasks", "whose"]
    for name in protocols.names():
        for model in protocols.models(name):
            one = protocols.protocol(name, model)
            usual = " (default)" if protocols.protocol(None, model).name == name else ""
            yield [
                f"{name}{usual}", model, {"pair": "columns", "prompt": "the prompt"}[one.style], one.longest,
                one.splits["mnli"].removeprefix("validation_"), one.metric("cola"),
                one.metric("stsb") if one.metric("stsb") == "spearman" else "–", one.metric("sst2"), one.source,
            ]


def _prompts() -> Iterator[list[object]]:
    yield ["task", "prompt", "answers"]
    for name in descriptions.glue_names():
        task = descriptions.glue(name)
        yield [name, task.template, ", ".join(task.words or ("the score with one decimal; what is no number counts as 0",))]


def _notes() -> Iterator[str]:
    for name in protocols.names():
        for model in protocols.models(name):
            for note in protocols.protocol(name, model).notes.values():
                yield f"- {name}, {model}: {note}"
