"""`python -m fusionbench_lite.evaluate_llm FOLDER tasks=gsm8k,math [KEY=VALUE ...]`: a merged language model's scores.

FOLDER holds config.json, weights and tokenizer, as merge_files leaves them. lm-evaluation-harness evaluates it; the record is
results/llm/KEY.json, and a second call with the same model and settings reads it. tasks are gsm8k, math, humaneval and mbpp (doGe,
Table 10), tasks of the harness by its own names, or tasks of your own in task_dir.

    individual=published         scores relative to the individual models of doGe's Table 10 (merged / individual x 100)
    individual.gsm8k=FILE        relative to the record of a model evaluated here, by set; individual=FILE for all sets
    unsafe_code=true             humaneval and mbpp run the programs that the model writes: say so
    task_dir=FOLDER              NAME.yaml in the harness' form; one of the harness' own names takes that one's place
    limit=20                     so many examples per task; the record is marked as a trial
    shots=0                      worked examples in the prompt; default: the task's own number
    chat_template=true           the tokenizer's chat template around every prompt
    dtype=auto, batch=8, device=auto, seed=0, results_dir=results, out=FILE, cache_dir=FOLDER, overwrite=true
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import choice, device, flag, integer, location, word
from fusionbench_lite.paths import cache_dir, expanded
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status

USAGE = f"usage: python -m fusionbench_lite.evaluate_llm FOLDER tasks=NAME[,NAME ...] [KEY=VALUE ...]\n\n{__doc__}"
PREFIX = "individual."


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated and how; see the module's text."""

    tasks: str | None = word(None, optional=True)
    individual: str | None = location(None, optional=True)
    task_dir: str | None = location(None, optional=True)
    limit: int | None = integer(None, low=1, optional=True)
    shots: int | None = integer(None, low=0, optional=True)
    chat_template: bool = flag(False)
    unsafe_code: bool = flag(False)
    dtype: str = choice("auto", ("auto", "float32", "bfloat16", "float16"))
    batch: int = integer(8, low=1)
    device: str = device("auto")
    seed: int = integer(0, low=0)
    results_dir: str = location("results")
    out: str | None = location(None, optional=True)
    cache_dir: str | None = location(None, optional=True)
    overwrite: bool = flag(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return exit_status(lambda: _main(given))


def _main(given: Sequence[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    folders = [argument for argument in given if "=" not in argument]
    keys = [argument for argument in given if argument not in folders]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise InputError(f"give one FOLDER, got {' '.join(folders) or 'none'}: --help lists the keys")
    chosen = options_of([key for key in keys if not key.startswith(PREFIX)], "", Options)
    if chosen.tasks is None:
        raise InputError("no task is named: write tasks=gsm8k,math, or tasks of the harness or of task_dir by name")
    _show(*_evaluated(expanded(folders[0]), chosen, _individual(keys, chosen.individual)))
    return 0


def _evaluated(folder: Path, chosen: Options, individual: Mapping[str, str]) -> tuple[Mapping[str, Any], Path]:
    from fusionbench_lite.harness.course import Request, evaluated
    from fusionbench_lite.harness.running import Settings

    names = [field.name for field in dataclasses.fields(Settings)]
    request = Request(
        tasks=str(chosen.tasks), settings=Settings(**{name: getattr(chosen, name) for name in names}), individual=individual,
        task_dir=expanded(chosen.task_dir) if chosen.task_dir else None, results_dir=expanded(chosen.results_dir),
        out=expanded(chosen.out) if chosen.out else None, cache=cache_dir(chosen.cache_dir), overwrite=chosen.overwrite,
    )
    return evaluated(folder, request)


def _individual(keys: Sequence[str], of_all: str | None) -> dict[str, str]:
    """Return the references that were asked for by set; that of "" is for all others."""
    given = [key.removeprefix(PREFIX).partition("=")[::2] for key in keys if key.startswith(PREFIX)]
    empty = next((name for name, file in given if not name or not file), None)
    if empty is not None:
        raise InputError(f"individual.{empty} is empty: write individual.gsm8k=FILE or individual.gsm8k=published")
    return dict(given) | ({} if of_all is None else {"": of_all})


def _show(record: Mapping[str, Any], path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    relative = record.get("relative") or {"sets": {}, "caveats": []}
    heads = ["set", "metric", "shots", "examples", "value", "95 % interval"]
    heads += ["individual", "relative", "95 % interval"] * bool(relative["sets"])
    table = Table(*heads, title=f"{record['model']['folder']}{', TRIAL' if record['trial'] else ''}")
    for name, score in record["sets"].items():
        row = [name, score["metric"], str(score["shots"]), str(score["examples"])]
        row += [f"{score['value']:.4f}", _interval(score["interval"], 4)]
        if name in relative["sets"]:
            part = relative["sets"][name]
            row += [f"{part['individual']:.4f}", f"{part['value']:.1f}", _interval(part["interval"], 1)]
        table.add_row(*row)
    if len(relative["sets"]) > 1:
        table.add_row("mean", *[""] * 6, f"{relative['average']:.1f}", _interval(relative["interval"], 1))
    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    console.print(table)
    for line in (*relative["caveats"], f"record: {path}"):
        console.print(line, style="dim", highlight=False, soft_wrap=True)


def _interval(ends: Sequence[float] | None, decimals: int) -> str:
    return "" if ends is None else f"{ends[0]:.{decimals}f} to {ends[1]:.{decimals}f}"


if __name__ == "__main__":
    sys.exit(main())
