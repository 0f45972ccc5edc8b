"""The model card, README.md: what the model is, where its weights come from, how it was merged, what it scores, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fusionbench_lite import registry
from fusionbench_lite.base.version import __version__
from fusionbench_lite.evaluation.columns import AVERAGE
from fusionbench_lite.exporting.forms import WHAT
from fusionbench_lite.exporting.published import numbers_of
from fusionbench_lite.planning import recorded
from fusionbench_lite.tables.escaping import markdown

if TYPE_CHECKING:
    from fusionbench_lite.exporting.asked import Asked
    from fusionbench_lite.exporting.layouts import Layout
    from fusionbench_lite.exporting.proving import Compared
    from fusionbench_lite.exporting.remaking import Remade

FILE = "README.md"
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{6,40}:")
"""How sources on the hub are written: repository@revision:path."""


def write(
    folder: Path, made: Remade, layout: Layout, form: str, folders: Sequence[str], found: Sequence[Compared], asked: Asked,
    name: str,
) -> None:
    """Write the card; `folders` are the tasks that have a folder of their own below this one."""
    sections = (
        _head(made, layout, form, folders), _usage(made, layout, folders, name), _proof(found, asked), _scores(made),
        _sources(made), _method(made), _caveats(made), _again(made, asked),
    )
    text = f"---\n{_front(made, layout)}---\n\n" + "\n\n".join("\n".join(section) for section in sections) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def _front(made: Remade, layout: Layout) -> str:
    """Return the YAML that the hub reads at the top of a card."""
    sources = made.record.data["checkpoints"].get("sources") or {}
    base = _HUB.match(str(next(iter(sources.values()), "")))  # the pretrained model's files come first
    content: dict[str, Any] = {
        "library_name": {"own": "fusionbench_lite"}.get(layout.name, layout.name),
        "tags": ["model-merging", made.plan.method, made.plan.model],
    }
    if base is not None:
        content["base_model"] = base[1]
        content["base_model_relation"] = "merge"
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _head(made: Remade, layout: Layout, form: str, folders: Sequence[str]) -> Iterator[str]:
    label = registry.get(made.plan.method).label
    yield f"# {markdown(label)} of {len(made.plan.seen)} experts of {markdown(made.plan.model)}"
    yield ""
    tasks = ", ".join(map(markdown, made.plan.tasks))
    yield f"Experts of {', '.join(map(markdown, made.plan.seen))}, merged with {markdown(label)}; judged on {tasks}."
    what = f"a folder for every task, each with {WHAT[form]}" if folders else WHAT[form]
    yield f"What is here: {what}. Layout: {layout.name}."
    for sentence in layout.says:
        yield markdown(sentence)


def _usage(made: Remade, layout: Layout, folders: Sequence[str], name: str) -> Iterator[str]:
    task = folders[0] if folders else made.plan.tasks[0]
    yield from ("## Loading", "", "```python", layout.usage(f"{name}/{task}" if folders else name, task), "```")


def _proof(found: Sequence[Compared], asked: Asked) -> Iterator[str]:
    yield from ("## Proof", "")
    if not found:
        yield "The files were written without comparing their predictions with the record's (verify=false)."
        return
    trial = f" On the first {asked.limit:,} examples of every task alone." if asked.limit is not None else ""
    yield f"The files were loaded again, and their predictions compared with those of the record, example by example.{trial}"
    yield ""
    yield from (f"- {markdown(one)}" for one in found)


def _scores(made: Remade) -> Iterator[str]:
    selection = made.record.data["selections"][made.rule]
    labels = "; the rule looks at test labels" if selection["uses_test_labels"] else ""
    trial = "" if made.record.limit is None else f" TRIAL: at most {made.record.limit:,} examples per task."
    yield from ("## Scores", "")
    yield f"Selection: {markdown(made.rule)}, step {selection['step']}{labels}. 95 % intervals, over test examples.{trial}"
    yield from ("", "| task | metric | value | interval | examples | published |", "| --- | --- | ---: | --- | ---: | --- |")
    papers = numbers_of(made.record, made.rule)
    for task, cell in selection["per_task"].items():
        low, high = cell["interval"]
        value, said = f"{cell['value']:.4f} | {low:.4f} to {high:.4f}", markdown("; ".join(papers.get(task, ())))
        yield f"| {markdown(task)} | {markdown(cell['metric'])} | {value} | {cell['examples']:,} | {said} |"
    if selection["average"] is not None:
        yield f"| average | | {selection['average']:.4f} | | | {markdown('; '.join(papers.get(AVERAGE, ())))} |"


def _sources(made: Remade) -> Iterator[str]:
    checkpoints = made.record.data["checkpoints"]
    yield from ("## Sources", "", f"Checkpoints of family {markdown(checkpoints['family'])}.", "")
    yield from ("| file | source | SHA-256 |", "| --- | --- | --- |")
    sources: Mapping[str, Any] = checkpoints.get("sources") or {}
    for name, sha256 in checkpoints["files"].items():
        yield f"| {markdown(name)} | {markdown(sources.get(name, 'made by the run'))} | {markdown(sha256)} |"
    yield from ("", "Licence: not stated by the files; that of the pretrained model and the experts holds.")


def _method(made: Remade) -> Iterator[str]:
    yield from ("## Method", "", f"{markdown(made.plan.method)}, seed {made.plan.seed}.", "")
    yield from ("| setting | value | from |", "| --- | --- | --- |")
    for name, setting in made.record.data["hyperparameters"].items():
        yield f"| {markdown(name)} | {markdown(setting['value'])} | {markdown(setting['source'])} |"


def _caveats(made: Remade) -> Iterator[str]:
    said = [*made.record.data.get("caveats", ()), *made.record.data.get("warnings", ())]
    yield from ("## Caveats", "")
    yield from [f"- {markdown(sentence)}" for sentence in said] or ["None are recorded."]


def _again(made: Remade, asked: Asked) -> Iterator[str]:
    line = recorded.command(made.record.data["config"], Path("results"))
    yield from ("## Again", "", "```bash", *([line] if line else ()))
    keys = [f"layout={asked.layout}"] if asked.layout else []
    keys += [] if asked.compact else ["compact=false"]
    yield " ".join([f"python -m fusionbench_lite.export {made.record.key} out=DIR select={made.rule}", *keys])
    yield from ("```", "")
    versions = ", ".join(f"{name} {version}" for name, version in made.record.data["versions"].items())
    yield f"Record {made.record.key}, run with {markdown(versions)}; exported with fusionbench_lite {__version__}."
