"""README.md of an exported folder: a model card with a YAML front matter, every name in it escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from fusionbench_lite import registry
from fusionbench_lite.base.version import __version__
from fusionbench_lite.exporting import layout
from fusionbench_lite.planning import recorded
from fusionbench_lite.tables.escaping import markdown

if TYPE_CHECKING:
    from fusionbench_lite.exporting.forms import Form
    from fusionbench_lite.exporting.remaking import Remade

NOT_STATED = "not stated"


def text(made: Remade, form: Form, agreements: Sequence[object] | None) -> str:
    """Return the card of a written model; `agreements` are the lines of the comparison, None where there was none."""
    return "\n".join(_lines(made, form, agreements)) + "\n"


def _lines(made: Remade, form: Form, agreements: Sequence[object] | None) -> Iterator[str]:
    record, plan = made.record, made.plan
    label = registry.get(plan.method).label
    front = {
        "library_name": "fusionbench_lite", "license": "other", "license_name": NOT_STATED,
        "tags": ["model merging", plan.method, plan.model],
        "fusionbench_lite": {"record": record.key, "select": made.rule, "kind": form.kind},
    }
    yield f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
    yield f"# {markdown(label)} of {len(plan.seen)} experts of {markdown(plan.model)}\n"
    yield f"{layout.KINDS[form.kind][0].upper()}{layout.KINDS[form.kind][1:]}. `{layout.HEADS}` holds the class embeddings of the tasks."
    yield "Tensors have open_clip's names.\n"
    yield "```python\nimport fusionbench_lite as fbl\n\nmodel = fbl.load_exported(\"DIR\")  # this folder"
    yield "model.logits(images, task)  # images: bytes [B, 32, 32, 3]\n```\n"
    yield from _made_of(made, form)
    yield from _scores(record.data["selections"][made.rule])
    yield "\n## Whether it is the model of the record\n"
    if agreements is None:
        yield "Not compared with the record's predictions (`verify=false`)."
    else:
        yield from (f"- {markdown(one)}" for one in agreements)
    caveats = list(record.data.get("caveats", ()))
    if record.limit is not None:
        caveats.append(f"The record is a trial of at most {record.limit} test examples per task.")
    if record.data["selections"][made.rule]["uses_test_labels"]:
        caveats.append("Labels of test examples were read to make or to choose this model.")
    caveats += record.data.get("warnings", [])
    yield "\n## Caveats\n"
    yield from (f"- {markdown(caveat)}" for caveat in caveats or ["None are recorded."])
    yield "\n## How it is made again\n"
    line = recorded.command(record.data["config"], record.data["config"].get("results_dir", "results"))
    yield _fenced(f"{line}\npython -m fusionbench_lite.export {record.key} out=DIR select={made.rule}")
    versions = {**record.data["versions"], "exported with fusionbench_lite": __version__}
    yield "\nVersions of the run: " + ", ".join(f"{markdown(name)} {markdown(value)}" for name, value in versions.items()) + "."


def _made_of(made: Remade, form: Form) -> Iterator[str]:
    record, plan = made.record, made.plan
    chosen = record.data["selections"][made.rule]
    yield "## What it is made of\n"
    for name, folder in layout.folders_of(plan.tasks).items() if form.kind == layout.EACH else ():
        yield f"- the model of {markdown(name)}: `{folder}/{layout.MODEL}`"
    yield f"- method: {markdown(plan.method)}, select={markdown(made.rule)} (step {chosen['step']}), seed {plan.seed}"
    yield f"- tasks: {', '.join(map(markdown, plan.tasks))}; experts of {', '.join(map(markdown, plan.seen))}"
    yield f"- experts: family {markdown(record.data['checkpoints']['family'])}; licence of base and experts: {NOT_STATED}\n"
    yield "| hyperparameter | value | source |\n| --- | --- | --- |"
    settings: Mapping[str, Any] = record.data["hyperparameters"]
    for name, setting in settings.items():
        yield f"| {markdown(name)} | {markdown(setting['value'])} | {markdown(setting['source'])} |"
    yield "\n| file | SHA-256 | source |\n| --- | --- | --- |"
    sources = record.data["checkpoints"].get("sources", {})
    for name, sha256 in record.data["checkpoints"]["files"].items():
        where = sources.get(name, "trained by this package" if record.data["checkpoints"]["family"] == "embedded" else NOT_STATED)
        yield f"| {markdown(name)} | {markdown(sha256)} | {markdown(where)} |"


def _scores(chosen: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Scores\n\n| task | metric | value | interval (95%) | examples |\n| --- | --- | --- | --- | --- |"
    for task, cell in chosen["per_task"].items():
        low, high = cell["interval"]
        metric = markdown(cell.get("label", cell["metric"]))
        yield f"| {markdown(task)} | {metric} | {cell['value']:.4f} | {low:.4f} to {high:.4f} | {cell['examples']:,} |"
    if chosen["average"] is not None:
        yield f"| average | | {chosen['average']:.4f} | | |"


def _fenced(lines: str) -> str:
    """Return lines as a block of code, fenced by more signs than any run of them inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in _runs(lines)), default=0))
    return f"{fence}sh\n{lines}\n{fence}"


def _runs(lines: str) -> list[str]:
    return "".join(sign if sign == "`" else " " for sign in lines).split()
