"""The pages of the methods: every method says what they need, and they and the headers say what the records do."""

from __future__ import annotations

import re
import shutil

import pytest
from hydra import compose, initialize_config_dir

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config, plan
from fusionbench_lite.running import experiment as experiments
from fusionbench_lite.running.experiment import Experiment
from fusionbench_lite.tables.families import label
from fusionbench_lite.tables.rows import Row, Rows, write_rows
from tests.conftest import ROOT
from tests.support.record_factory import TASKS, store

config.register()

FOLDER = config_dir() / "method"
PLAN = Experiment(
    name="mini/demo", title="Methods", question="", seeds=(0, 1, 2), defaults=("model=vit_mini", "tasks=mini8"), rows={
        "Ablated": ("method=doge_ta", "method.steps=0"),
        "doGe": ("method=doge_ta",),
        "Two experts": ("method=slerp", "checkpoints.experts=2"),
        "Masks": ("method=tall_masks",),
        "Adapted": ("method=adarank_tsvm",),
        "TSV": ("method=tsv_m",),
        "CART | wide": ("method=cart", "method.scaling=3"),
    },
)
KEEPS = {"tall_masks": {"pretrained": 3_000_000, "shared": 3_000_000, "per_task": 750_000}}


@pytest.fixture(autouse=True)
def generator(monkeypatch):
    """Make docs/ importable, which is no package, and hand out its generator."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import generate

    return generate


@pytest.fixture
def results(tmp_path):
    """Records of three seeds of every row; CART is in no record, TSV-M in the manifest alone."""
    rows = []
    for number, (name, overrides) in enumerate(PLAN.rows.items()):
        method = overrides[0].removeprefix("method=")
        keys = [
            store(
                tmp_path / "results", method, dict.fromkeys(TASKS, 0.5 + 0.05 * number + 0.01 * seed), seed=seed,
                storage=KEEPS.get(method, {}), row=name,
            )
            for seed in PLAN.seeds
        ]
        rows.append(Row(name, method, ("0" * 16,) if name == "TSV" else tuple(keys)))
    write_rows(tmp_path / "results", Rows(PLAN.name, PLAN.title, tuple(rows[:-1])))
    return tmp_path / "results"


@pytest.fixture
def pages(results, monkeypatch, generator, tmp_path):
    """The pages that `make docs` writes for these records: {file name: text}."""
    monkeypatch.setattr(experiments, "read", lambda name: PLAN)
    generator.main(["--results-dir", str(results), "--experiment", PLAN.name, "--out", str(tmp_path / "docs")])
    return {path.name: path.read_text() for path in sorted((tmp_path / "docs" / "methods").iterdir())}


@pytest.fixture
def page(pages):
    """All pages in one."""
    return "\n".join(pages.values())


def _cells(page, start):
    line = next(line for line in page.splitlines() if line.startswith(start))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("id", registry.names())
def test_every_method_says_what_the_page_needs(id):
    from method_words import described

    found = described(registry.get(id), FOLDER)
    assert re.search(r"[θW]", found.formula)
    assert re.search(r"\b(19|20)\d\d\b", found.paper)
    assert found.cost.endswith(".")
    assert found.what.endswith(".")
    assert list(found.meanings) == list(registry.get(id).defaults)
    assert all(found.meanings.values())
    assert set(registry.get(id).accepted) == set(registry.get(id).defaults)
    assert label(id) != id, f"{id} declares no label"


@pytest.mark.parametrize("id", registry.names())
def test_the_command_of_every_header_runs_the_method(id):
    from method_words import described

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        assert plan.resolve(compose("config", overrides=list(described(registry.get(id), FOLDER).arguments))).method == id


@pytest.mark.parametrize("id", registry.names())
def test_the_experiment_of_all_methods_has_a_row_that_is_the_command(id):
    from method_words import described, main_row

    assert main_row(described(registry.get(id), FOLDER), experiments.read("mini/methods"))


def test_what_is_accepted_are_the_words_of_the_refusal():
    for id in registry.names():
        for name, accepts in registry.get(id).accepted.items():
            with pytest.raises(Exception, match=re.escape(accepts.split(", or such")[0])):
                registry.get(id).configure(**{name: object()})


def test_explanations_are_read_with_their_names():
    from method_words import explained

    text = "The settings. `a`: one, with `b` in it; `b`, `c`: of both.\n    `d`: the\n    last.\n\n    More."
    assert explained(text, "`c`: another") == {"a": "one, with `b` in it", "b": "of both", "c": "another", "d": "the last"}


def test_a_docstring_that_lacks_something_is_refused(tmp_path):
    from method_words import described

    def bare():
        """θ = θ0."""

    with pytest.raises(InputError, match="method bare: its docstrings lack Cost: sentence, paper"):
        described(registry.Method(id="bare", function=bare, hyperparameters=registry.NoHyperparameters), FOLDER)
    (tmp_path / "tsv_m.yaml").write_text("id: tsv_m\n")
    with pytest.raises(InputError, match="must start with '# python -m fusionbench_lite"):
        described(registry.get("tsv_m"), tmp_path)


def test_every_method_is_once_in_the_index_and_once_on_the_page_of_its_family(pages):
    from method_page import page_of

    assert set(pages) == {"index.md", *(page_of(registry.get(id).family) for id in registry.names())}
    for id in registry.names():
        own = page_of(registry.get(id).family)
        assert pages["index.md"].count(f"| [`{id}`]({own}#{id}) |") == 1
        assert [name for name, text in pages.items() if f"\n## {id}\n" in text] == [own]
        assert pages[own].count(f"\n## {id}\n") == 1


def test_scores_are_those_of_the_row_that_the_command_runs(page):
    doge = _cells(page, "| [`doge_ta`]")
    assert doge[-2:] == ["56.0 ± 1.0", "1.2"]
    assert _cells(page, "| [`slerp`]")[-2] == "61.0 ± 1.0"
    assert _cells(page, "| [`adarank_tsvm`]")[-3:-1] == ["", "71.0 ± 1.0"]


def test_storage_is_the_sum_of_what_is_kept(page):
    assert _cells(page, "| [`tall_masks`]")[5:7] == ["per task", "6.8"]
    assert "Storage in MB: pretrained 3.0, shared 3.0, per task 0.8." in page


def test_a_method_lists_all_its_rows(page):
    section = page.partition("\n## doge_ta\n")[2].partition("\n## ")[0]
    assert _cells(section, "| Ablated")[1:3] == ["`method=doge_ta method.steps=0`", "51.0 ± 1.0"]
    assert _cells(section, "| doGe")[1:3] == ["`method=doge_ta`", "56.0 ± 1.0"]
    assert _cells(section, "| `projection`")[1:3] == ["`orthogonal`", "one of orthogonal, none, onto"]


def test_what_has_no_record_is_left_open(page):
    assert _cells(page, "| [`tsv_m`]")[-3:] == ["–"] * 3
    assert _cells(page, "| TSV |")[2:] == ["–", "–"]
    assert _cells(page, "| [`cart`]")[-3:] == ["–"] * 3
    assert _cells(page, r"| CART \| wide")[1:] == ["`method=cart method.scaling=3`", "–", "–"]
    assert "No row of `experiment=mini/demo`." in page.partition("\n## wudi\n")[2].partition("\n## ")[0]


def test_tables_are_regular(page):
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_links_lead_to_pages_and_sections(pages):
    links = [link for text in pages.values() for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert "data-free.md#ties_merging" in links
    for link in links:
        name, _, section = link.partition("#")
        assert f"\n## {section}\n" in pages[name] if section else name in pages, link


def test_claims_and_differences_are_about_the_main_rows(results, generator):
    from method_words import main_rows

    rows, table = generator.read(PLAN.name, str(results))
    main = main_rows(PLAN, FOLDER)
    assert main == {
        "doge_ta": "doGe", "slerp": "Two experts", "tall_masks": "Masks", "adarank_tsvm": "Adapted", "tsv_m": "TSV",
    }
    statements = [
        ("same", lambda mean: round(mean["doge_ta"]) == 56), ("not", lambda mean: mean["slerp"] > 99),
        ("open", lambda mean: mean["tsv_m"] > 0),
    ]
    lines = list(generator.claims(table, main, statements))[-3:]
    assert lines == ["| same | holds |", "| not | **does not hold** |", "| open | – |"]
    assert len(list(generator.differences(rows, main, str(results)))) == 4, "no pair has records on both sides"


def test_without_records_the_page_stays_as_it_is(tmp_path, generator, capsys):
    generator.main(["--results-dir", str(tmp_path), "--out", str(tmp_path / "docs")])
    assert "methods: left as it is" in capsys.readouterr().out
    made = {page.name for page in (tmp_path / "docs").iterdir()}
    assert made == {"audit.md", "language.md", "vision.md"}, "they are made from no record"


def test_headers_carry_the_score_of_their_own_command(results, tmp_path, generator):
    folder = tmp_path / "method"
    shutil.copytree(FOLDER, folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    _, table = generator.read(PLAN.name, str(results))
    generator.stamp_headers(PLAN, table, folder)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert first["doge_ta.yaml"].splitlines()[2] == (
        "# mini8: 56.0 ± 1.0 over 3 seeds, 1 s of merging and adaptation on one core"
    )
    assert first["slerp.yaml"].splitlines()[2].startswith("# mini8: 61.0 ± 1.0")
    changed = {name for name in before if before[name] != first[name]}
    assert changed == {"doge_ta.yaml", "slerp.yaml", "tall_masks.yaml", "adarank_tsvm.yaml"}
    generator.stamp_headers(PLAN, table, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == first


def test_the_page_of_language_models_is_that_of_the_data_files(generator):
    assert (ROOT / "docs" / "language.md").read_text() == generator.language_page.page(), "run make docs"
