"""The page about language models and text tasks: its prose is here, its tables are made from the data files of the package."""

from __future__ import annotations

from collections.abc import Iterator

import pages
import yaml

from fusionbench_lite.base.needs import size_text
from fusionbench_lite.checkpoints.language import releases
from fusionbench_lite.data.text import descriptions, protocols
from fusionbench_lite.finetuning.language import recipes
from fusionbench_lite.harness import sets
from fusionbench_lite.models.language_shapes import SIZES, of_size
from fusionbench_lite.paths import config_dir
from fusionbench_lite.suites.text.requests import MODELS

START = """# Language models

Written by `make docs` from the data files of the package.

    python -m fusionbench_lite.doctor method=adarank model=gpt2 tasks=glue7   # what it needs, before it starts
    python -m fusionbench_lite method=adarank model=gpt2 tasks=glue7
    python -m fusionbench_lite method=adarank model=roberta tasks=glue7
    python -m fusionbench_lite method=doge_ta model=flan_t5_base tasks=glue8

**No published checkpoint and no GPU was at hand when this was written**: everything here runs in the tests on files of the
published names and layouts with random weights, served by a local hub.

## Models and checkpoints
"""

TASKS = """
`checkpoints=own checkpoints.dir=FOLDER` reads a folder as `python -m fusionbench_lite.finetune` leaves it: `pretrained/` and a
folder a task, each with config.json and weights in transformers' layout, or with an adapter in peft's. MiniLM and the small
models of `tasks=mini_text` are trained here, into the cache.

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

RECIPES = """
## Fine-tuning
"""

PRESETS = """
## Presets

What `conf/presets.yaml` sets for these models by name; a preset in brackets is asked for, as in `preset=fusionbench`. Values on the
line, as `method.scaling=0.5`, win, and a record says where each came from. `tensors` says which are merged, of all but the heads:
all, the transformer blocks alone, or the blocks with all others at the experts' mean.
"""

LARGE = """
## Large models

    python -m fusionbench_lite.merge_files method=doge_ta base=BASE 'experts={lm: LM, math: MATH, code: CODE}' resize=mean out=OUT
    python -m fusionbench_lite.evaluate_llm OUT tasks=gsm8k,math individual=published
    python -m fusionbench_lite.evaluate_llm OUT tasks=gsm8k individual.gsm8k=results/llm/KEY.json

Folders of checkpoints are merged file by file and evaluated by lm-evaluation-harness, `pip install 'fusionbench_lite[llm]'`: on the
sets of doGe's Table 10, on the harness' own tasks by name, and on tasks of one's own in `task_dir`. The record holds value,
standard error, interval and number of examples per set, scores of single examples, the hash of the model and the harness' version.

Table 10's models; some have an entry [PAD] more than the base, whose row `resize=mean` fills as the DARE code does:
"""

SETS = """
Scores relative to an individual model are merged / individual × 100: `individual=published` divides by what Table 10's solve, the
record of a model that was evaluated here by what it solves on the same examples.
"""

NOTES = """
## Notes

Records repeat those of their checkpoints and tasks.
"""


def page() -> str:
    """Return the page in Markdown."""
    tables = (
        START, _sizes(), "", _releases(), TASKS, _tasks(), PROTOCOLS, _protocols(), PROMPTS, _prompts(), RECIPES, _recipes(),
        PRESETS, _presets(), LARGE, _models(), SETS, _sets(), "",
    )
    parts = [line for part in tables for line in ([part] if isinstance(part, str) else pages.table(part))]
    return "\n".join([*parts, *_large(), NOTES, *_notes(), ""])


def _sizes() -> Iterator[list[object]]:
    yield ["model", "transformers' name", "blocks", "width", "heads", "tokens at most", "tensors", "parameters", "of the blocks"]
    for name, size in SIZES.items():
        whole, blocks = (of_size(name, size, tensors=tensors) for tensors in ("all", "blocks"))
        layers = f"{size.layers} + {size.layers}" if size.kind == "t5" else size.layers
        longest = "any number" if size.kind == "t5" else size.positions - (2 if size.kind == "roberta" else 0)
        yield [
            name, size.kind, layers, size.width, size.heads, longest, whole.count, f"{whole.parameters:,}",
            f"{blocks.parameters:,}",
        ]


def _releases() -> Iterator[list[object]]:
    yield ["model", "checkpoints", "experts", "an expert", "tasks", "pretrained model", "its weights"]
    for one in _released():
        places = ["/".join(filter(None, one.place("TASK"))), *(f"{task}: {folder}" for task, folder in one.folders.items())]
        kind = "LoRA" if one.form == "adapter" else "full"
        yield [
            one.model, one.family, ", ".join(places), f"{size_text(one.about)}, {kind}", len(one.tasks), one.base,
            size_text(one.base_about),
        ]


def _released() -> Iterator[releases.Release]:
    for family in releases.families():
        yield from (releases.release(family, model) for model in MODELS if family in releases.families_of(model))


def _recipes() -> Iterator[list[object]]:
    yield [
        "recipe", "optimizer", "learning rate", "batch", "length", "schedule", "adapters", "held out", "kept", "source",
        "not confirmed",
    ]
    for name in recipes.names():
        one = recipes.recipe(name)
        rates = [f"{one.lr:g}", *(f"{task} {rate:g}" for task, rate in one.lrs.items())]
        length = f"{one.epochs} epochs" if one.steps is None else f"{one.steps:,} steps"
        lora = "–" if one.lora is None else f"rank {one.lora.r} on {', '.join(one.lora.targets)}"
        warmup = f", {one.warmup:.0%} warm-up" if one.warmup else ""
        yield [
            name, one.optimizer, ", ".join(rates), one.batch, length, one.schedule + warmup, lora, f"{one.held_out:.0%}",
            one.select.replace("_", " "), one.source, one.unconfirmed,
        ]


def _presets() -> Iterator[list[object]]:
    yield ["methods", "models", "tasks", "sets", "source"]
    for entry in yaml.safe_load((config_dir() / "presets.yaml").read_text(encoding="utf-8")):
        when = {key: value if isinstance(value, list) else [value] for key, value in entry["when"].items()}
        if not set(when.get("model", ())) & set(MODELS):
            continue
        name = f" ({entry['name']})" if "name" in entry else ""
        models, tasks = (", ".join(map(str, when.get(key, ("all",)))) for key in ("model", "tasks"))
        values = ", ".join(f"{key}={value}" for part in ("set", "suite") for key, value in entry.get(part, {}).items())
        yield [", ".join(when.get("method", ("all",))) + name, models, tasks, values, entry["source"].replace("<", "\\<")]


def _models() -> Iterator[list[object]]:
    yield ["model", "repository", "the same elsewhere", ""]
    for name, one in sets.models().items():
        yield [name, one["repo"], one.get("elsewhere", ""), one.get("about", "")]


def _sets() -> Iterator[list[object]]:
    yield ["set", "items", "the harness' task", "metric", "individual model", "it solves", "Table 10's protocol", "the harness'"]
    for one in sets.published().values():
        solved = f"{one.reference.value:.2%}" + (f", {one.reference.correct}" if one.reference.correct else "")
        metric = "–" if one.metric is None else f"{one.metric}, {one.filter}"
        yield [
            one.title, f"{one.items:,}", "none" if one.refused else one.task, metric, one.reference.model, solved, one.published,
            one.here or "–",
        ]


def _large() -> Iterator[str]:
    yield from (f"- {text}." for text in (sets.PROTOCOL, sets.INDIVIDUAL))
    yield from (f"- {one.refused}." for one in sets.published().values() if one.refused)
    unsafe = " and ".join(one.title for one in sets.published().values() if one.unsafe)
    yield f"- {unsafe} run what the model writes and are refused without `unsafe_code=true`."


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
    for one in _released():
        yield from (f"- {one.family}, {one.model}: {text}" for text in one.caveats)
    for name in protocols.names():
        for model in protocols.models(name):
            for note in protocols.protocol(name, model).notes.values():
                yield f"- {name}, {model}: {note}"
