"""Write the result pages and the scores in the configuration headers from records: `make docs`.

    python docs/generate.py [--results-dir results] [--experiment mini/methods] [--out docs]

Nothing here is typed by hand: a page or a header whose experiment has no records stays as it is. The experiment is that
of the pages of the methods and of the headers, which are written only where the pages go to docs/.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import adaptive_page
import audit_page
import experiment_headers
import language_page
import method_page
import method_words
import minilm_page
import pages
import real32_page
import text_page
import twins_page
import vision_page

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.measures import shared
from fusionbench_lite.paths import atomic_file, config_dir
from fusionbench_lite.running import experiment as experiments
from fusionbench_lite.running.experiment import Experiment
from fusionbench_lite.tables import output, render
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.frame import Table, build
from fusionbench_lite.tables.rows import Rows, load_records, read_rows

Claim = tuple[str, Callable[[Mapping[str, float]], bool]]
DOCS = Path(__file__).resolve().parent
SUITE = [
    ("The pretrained model lies between 40 and 75", lambda mean: 40 <= mean["pretrained"] <= 75),
    ("The experts reach 93 on average", lambda mean: mean["individual"] >= 93),
    ("The pretrained model is at least 20 below the experts", lambda mean: mean["individual"] - mean["pretrained"] >= 20),
    ("Task arithmetic is at least 8 below the experts", lambda mean: mean["individual"] - mean["task_arithmetic"] >= 8),
    (
        "Layer-wise AdaMerging is at least 3 above task arithmetic",
        lambda mean: mean["adamerging_layerwise"] - mean["task_arithmetic"] >= 3,
    ),
    (
        "The best AdaRank is at least 1 above layer-wise AdaMerging",
        lambda mean: max(v for k, v in mean.items() if k.startswith("adarank")) - mean["adamerging_layerwise"] >= 1,
    ),
]
"""What the embedded suite was built to show."""

ORDERINGS = [
    ("TSV-M is above task arithmetic", lambda mean: mean["tsv_m"] > mean["task_arithmetic"]),
    ("CART is above weight averaging", lambda mean: mean["cart"] > mean["weight_averaging"]),
    ("TIES-Merging is above task arithmetic", lambda mean: mean["ties_merging"] > mean["task_arithmetic"]),
    ("AdaRank from TA is above layer-wise AdaMerging", lambda mean: mean["adarank_ta"] > mean["adamerging_layerwise"]),
    ("AdaRank from CART is above static CART", lambda mean: mean["adarank_cart"] > mean["cart"]),
    ("AdaRank from TSV-M is above static TSV-M", lambda mean: mean["adarank_tsvm"] > mean["tsv_m"]),
    (
        "Layer-wise AdaMerging is above task-wise AdaMerging",
        lambda mean: mean["adamerging_layerwise"] > mean["adamerging_taskwise"],
    ),
    (
        "Layer-wise AdaMerging is above task arithmetic",
        lambda mean: mean["adamerging_layerwise"] > mean["task_arithmetic"],
    ),
]
"""Orderings of the papers' tables."""

ABOVE = [
    ("ties_merging", "task_arithmetic", "AdaMerging, Table 1"), ("regmean", "fisher_merging", "AdaMerging, Table 1"),
    ("pcb_merging", "ties_merging", "doGe, Table 1"), ("consensus_ta", "task_arithmetic", "doGe, Table 1"),
    ("awd_ta", "task_arithmetic", "doGe, Table 1"), ("doge_ta", "pcb_merging", "doGe, Table 1"),
    ("doge_ta", "doGe TA, no optimisation", "doGe, Table 6"), ("doge_ta", "doGe TA, no subspace", "doGe, Table 6"),
    ("doge_ta", "doGe TA, onto the subspace", "doGe, text"), ("doge_ta", "doGe TA, uniform scaling", "doGe, Table 6"),
    ("tsv_m", "consensus_ta", "AdaRank, Table 1"), ("cart", "tsv_m", "AdaRank, Table 1"),
    ("iso_cts", "cart", "AdaRank, Table 1"), ("tall_masks", "emr_merging", "AdaRank, Table 9"),
    ("tall_masks", "tsv_c", "AdaRank, Table 9"),
]
"""First row above second in the published table of ViT-B/32 with eight tasks (methods by id, other rows by name)."""

COMPARED = [
    ("tsv_m", "task_arithmetic"), ("adamerging_layerwise", "task_arithmetic"), ("adarank_ta", "adamerging_layerwise"),
    ("adarank_cart", "adamerging_layerwise"), ("adarank_tsvm", "adamerging_layerwise"), ("adarank_tsvm", "tsv_m"),
    ("doge_ta", "task_arithmetic"), ("iso_cts", "iso_c"), ("iso_cts", "tsv_m"), ("cart", "tsv_m"), ("pcb_merging", "ties_merging"),
    ("consensus_ta", "task_arithmetic"), ("doge_ta", "pcb_merging"), ("tall_masks", "emr_merging"),
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", default="results")
    parser.add_argument("--experiment", default="mini/methods")
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args(arguments)
    results = {
        "mini8": ("mini/three_seeds", "The embedded suite", DOCS / "mini8.png", [*SUITE, *ORDERINGS]),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    pages.write(given.out / "audit.md", audit_page.page())
    if given.out.resolve() == DOCS:
        experiment_headers.stamp()
    pages.write(given.out / "vision.md", vision_page.page())
    pages.write(given.out / "language.md", language_page.page())
    pages.write(given.out / "audit.md", audit_page.page())
    for page, (experiment, title, sheet, statements) in results.items():
        if found := _found(page, experiment, given.results_dir):
            write_page(given.out / f"{page}.md", title, *found, given.results_dir, sheet, statements)
    if found := _found(adaptive_page.NAME, "mini/adaptive", given.results_dir):
        adaptive_page.write(given.out, *found, given.results_dir)
        if given.out.resolve() == DOCS:
            stamp_headers(experiments.read("mini/adaptive"), found[1], config_dir() / "method")
    texts = [found for name in text_page.EXPERIMENTS if (found := _found(text_page.NAME, name, given.results_dir))]
    if texts:
        text_page.write(given.out, texts, given.results_dir)
    if found := _found(real32_page.NAME, "mini/real32", given.results_dir):
        real32_page.write(given.out, *found, given.results_dir)
    if found := _found(minilm_page.NAME, "mini/minilm", given.results_dir):
        minilm_page.write(given.out, *found, given.results_dir)
    if not twins_page.write(given.out / f"{twins_page.NAME}.md", given.results_dir):
        print(f"{twins_page.NAME}: left as it is: no run of a twin has a record in {given.results_dir}; run make twins first")
    found = _found("methods", given.experiment, given.results_dir)
    if found is None:
        return
    rows, table = found
    plan = experiments.read(given.experiment)
    for name, text in method_page.pages(plan, rows, load_records(given.results_dir, rows), table).items():
        pages.write(given.out / "methods" / name, text)
    if given.out.resolve() == DOCS:
        stamp_headers(plan, table, config_dir() / "method")


def _found(page: str, experiment: str, results_dir: str) -> tuple[Rows, Table] | None:
    """Return the rows of an experiment and their table, None where there are no records: what a page has of them stays then."""
    try:
        return read(experiment, results_dir)
    except InputError as error:
        print(f"{page}: left as it is: {error}")
        return None


def read(experiment: str, results_dir: str) -> tuple[Rows, Table]:
    """Read the rows of an experiment and their table; raises InputError where there are no records."""
    rows = read_rows(results_dir, experiment)
    return rows, build(rows, load_records(results_dir, rows))


def write_page(
    path: Path, title: str, rows: Rows, table: Table, results_dir: str, sheet: Path | None, statements: list[Claim]
) -> None:
    """Write a result page and its picture beside it."""
    picture = path.with_name(f"{path.stem}_results.png")
    output.save(table, "png", picture)
    best = build(rows, load_records(results_dir, rows), "best_test")
    main = method_words.main_rows(experiments.read(rows.experiment), config_dir() / "method")
    lines = [f"# {title}", "", f"Generated by `make docs` from the records of `experiment={rows.experiment}`.", ""]
    if sheet is not None:
        lines += [f"![Examples of every task]({sheet.name})", ""]
    lines += ["## Results at the last step", "", f"![{table.title}]({picture.name})", "", render.to_markdown(table)]
    lines += ["", "## Results at the step that is best on the test labels", ""]
    lines += ["As AdaRank's code reports them; not comparable with methods that do not look.", "", render.to_markdown(best)]
    statements = [*statements, *(_above(first, second, source, main) for first, second, source in ABOVE)]
    lines += ["", "## Claims", "", *claims(table, main, statements)]
    lines += ["", "## Paired differences", "", *differences(rows, main, results_dir), ""]
    pages.write_lines(path, lines)


def claims(table: Table, main: Mapping[str, str], statements: list[Claim]) -> Iterator[str]:
    """Yield which orderings of the papers, and which properties the suite was built to have, hold in the table.

    A method's average is that of its `main` row, {id: row}; a claim about a method without records stays open.
    """
    there = table.frame[table.frame["seeds"] > 0]["average"]
    mean = {id: float(there[row]) for id, row in main.items() if row in there.index} | there.to_dict()
    yield "Averages of this table; a difference smaller than its interval below decides nothing."
    yield ""
    yield "| claim | here |"
    yield "|---|---|"
    for claim, holds in statements:
        try:
            verdict = "holds" if holds(mean) else "**does not hold**"
        except (KeyError, ValueError):
            verdict = method_page.ABSENT
        yield f"| {claim} | {verdict} |"


def _above(first: str, second: str, source: str, main: Mapping[str, str]) -> Claim:
    """Return the claim that one row is above another."""
    return f"{main.get(first, first)} is above {main.get(second, second)} ({source})", lambda mean: mean[first] > mean[second]


def differences(rows: Rows, main: Mapping[str, str], results_dir: str) -> Iterator[str]:
    """Yield paired differences of the methods' `main` rows on the same test examples, where both have records."""
    records = load_records(results_dir, rows)
    there = {row.name for row in rows.rows if any(record.key in row.keys for record in records)}
    measure = shared(each for record in records for each in record.measures().values())
    named = measure.label if measure else "value"
    yield f"Points of average {named}, 95 % paired bootstrap interval over test examples within tasks."
    yield ""
    yield "| first | second | difference | interval | seeds |"
    yield "|---|---|---|---|---|"
    for first, second in ((main.get(a), main.get(b)) for a, b in COMPARED):
        if first not in there or second not in there:
            continue
        result = compare(rows, records, str(first), str(second))
        points, low, high = result.points
        yield f"| {result.a} | {result.b} | {points:+.2f} | {low:+.2f} to {high:+.2f} | {result.seeds} |"


def stamp_headers(experiment: Experiment, table: Table, folder: Path) -> None:
    """Write score and cost into the third line of each method's configuration: those of the row that the method's own
    command runs, never of another row of the method. Where that row has no records the header stays as it is."""
    for id, name in method_words.main_rows(experiment, folder).items():
        if name not in table.frame.index or not table.frame.loc[name, "seeds"]:
            continue
        row = table.frame.loc[name]
        spread = f" ± {row['average_std']:.1f} over {row['seeds']} seeds" if row["seeds"] > 1 else ", one seed"
        score = f"# mini8: {row['average']:.1f}{spread}, {row['seconds']:.0f} s of merging and adaptation on one core"
        path = folder / f"{id}.yaml"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# mini8:")]
        with atomic_file(path) as temporary:
            temporary.write_text("\n".join([*lines[:2], score, *lines[2:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
