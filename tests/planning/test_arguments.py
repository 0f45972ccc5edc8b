"""Arguments as shells hand them over: paths and names of tasks mean what they say, and every hint works when it is followed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir, expanded
from fusionbench_lite.planning import mistakes, plan
from fusionbench_lite.planning.arguments import FOREIGN, PATHS, prepared, split
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.config import composed
from fusionbench_lite.running import experiment

ODD = [
    "my data", "data (v2)", "a=b", "50%", "me@host", "x,y", "[set]", "{set}", "d'or", 'say"so', "größe ½ 数据", "a$b$", "a\\b",
    "#1",
    "tail ", " head", "a:b", "a;b", "a&b|c", "a*?b", "`a`", "a!b", "x'", "'", '"', "'both\"", "\\'", "a\\\\", "a\nb", "a\tb",
    "C:\\Users\\me\\data\\", "\\\\server\\share", "~x~", "a~", "null ", "true", "1e3", "a${b}", "${b}", "a\udce9", "choice(a,b)",
    "glob(*)", "-m", "+x", "=", "'quoted'", '"quoted"',
]


def value(line: list[str], key: str = "data_dir"):
    """Return what the configuration of a line holds, every time that it is prepared."""
    once = prepared(line)
    assert prepared(once) == once
    return OmegaConf.select(composed([argument for argument in once if argument != "-m"]), key)


def jobs(line: list[str], key: str) -> list[str]:
    """Return what the configurations of a sweep's jobs hold, as Hydra's sweeper splits them."""
    overrides = [argument for argument in prepared(line) if argument != "-m"]
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return [OmegaConf.select(composed(prepared(job)), key) for batch in batches for job in batch]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_that_path(tmp_path, name):
    """One that is there, alone and in a sweep, and one that will be made."""
    (tmp_path / name).mkdir()
    line = [f"data_dir={tmp_path}/{name}", f"++results_dir={tmp_path}/{name}/new"]
    single = prepared(line)
    assert prepared(single) == single
    assert prepared(["-m", line[0]])[1:] == single[:1]
    made = composed(single)
    assert (made.data_dir, made.results_dir) == (os.path.normpath(tmp_path / name), f"{tmp_path}/{name}/new")
    assert expanded(made.results_dir) == tmp_path / name / "new"
    [job] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(single), None)[0]
    assert prepared(job) == job  # what a job of a sweep or a worker gets
    assert OverridesParser.create().parse_overrides(job)[0].value() == OverridesParser.create().parse_overrides(single)[0].value()


@given(st.text(st.characters(exclude_characters="\0$", exclude_categories=()), min_size=1, max_size=12))
def test_any_text_is_a_path(text):
    once = prepared([f"cache_dir=/x/{text}"])
    assert prepared(once) == once
    assert OverridesParser.create().parse_override(once[0]).value() == str(Path("/x/" + text))


def test_every_key_of_a_path_is_known():
    own = {"data_dir", "results_dir", "cache_dir", "checkpoints.dir", "checkpoints.manifest", "data.tasks_file"}
    assert own | set(FOREIGN) == PATHS
    for key in own:
        assert value([f"{key}=~/a (b)=c"], key) == str(Path.home() / "a (b)=c")


def test_home_and_variables_are_expanded_before_hydra_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DISK", "/disk (1)")
    assert value(["data_dir=~/d"]) == value(["data_dir='~/d'"]) == value(['data_dir="~/d"']) == f"{tmp_path}/home/d"
    assert value(["data_dir=${DISK}/$DISK"]) == "/disk (1)/disk (1)"
    assert value(["data_dir=~/${model.name}"]) == f"{tmp_path}/home/vit_mini"
    assert value(["data_dir=${oc.env:DISK}/d"]) == "/disk (1)/d"
    for key in ("hydra.sweep.dir", "hydra.run.dir"):
        made = composed(prepared([f"{key}=~/${{model.name}} (2)"]), with_hydra=True)
        assert OmegaConf.select(made, key) == f"{tmp_path}/home/vit_mini (2)"
    assert prepared(["--config-dir=~/conf"]) == [f"--config-dir={tmp_path}/home/conf"]


def test_the_folder_of_a_sweep_is_expanded_whoever_wrote_it(tmp_path):
    """In a YAML file of a user's own no argument is prepared."""
    made = composed(["results_dir='~/r'"], with_hydra=True)
    assert made.hydra.sweep.dir.startswith(f"{tmp_path}/home/r/sweeps/")
    logger = composed(["results_dir='~/r'", "logger=csv"]).logger
    assert logger.save_dir == f"{tmp_path}/home/r/logs"


def test_null_is_no_path_and_an_empty_path_is_refused():
    assert value(["data_dir=null"]) is None
    assert value(["data_dir=./null"]) == "null"
    for line in (["data_dir="], ["results_dir="], ["++checkpoints.dir="], ["cache_dir=''"], ["-m", "data_dir=a,"]):
        with pytest.raises(InputError, match=f"{line[-1].lstrip('+').split('=')[0]} is empty"):
            prepared(line)
    with pytest.raises(InputError, match="data_dir must be a path, at least one character long or null, got ''"):
        plan.resolve(OmegaConf.merge(composed([]), {"data_dir": ""}), [])  # as a YAML file may say


def test_commas_of_a_sweep(tmp_path):
    (tmp_path / "x,y").mkdir()
    assert jobs(["-m", f"data_dir={tmp_path}/x,y"], "data_dir") == [f"{tmp_path}/x,y"]  # it is there
    assert jobs(["-m", f"results_dir={tmp_path}/x,y/new"], "results_dir") == [f"{tmp_path}/x,y/new"]  # and so is what is made in it
    assert jobs(["-m", "data_dir=~/a (1),~/b=c"], "data_dir") == [f"{tmp_path}/home/a (1)", f"{tmp_path}/home/b=c"]
    assert jobs(["-m", "results_dir='~/p,q'"], "results_dir") == [f"{tmp_path}/home/p,q"]  # quotes within quotes
    assert jobs(["-m", "results_dir='p,q',r"], "results_dir") == ["p,q", "r"]
    assert jobs(["-m", "data_dir=choice(a,b)"], "data_dir") == ["a", "b"]
    assert jobs(["-m", "data_dir=choice(~/a (1), null,'b,c')"], "data_dir") == [f"{tmp_path}/home/a (1)", None, "b,c"]
    assert jobs(["-m", "data_dir=null,a,./null"], "data_dir") == [None, "a", "null"]  # null is no path here either
    assert value(["results_dir=p,q"], "results_dir") == "p,q"  # without -m nothing is a sweep


def test_quotes_that_are_part_of_a_name(tmp_path):
    assert value(["data_dir='q'"]) == "q"
    (tmp_path / "'q'").mkdir()
    assert value(["data_dir='q'"]) == "'q'"


# Names of tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[1e3,1000]", ["1e3", "1000"]), ("[007,7]", ["007", "7"]),
        ("[null,true,on,off,NULL,False]", ["null", "true", "on", "off", "NULL", "False"]),
        ("[nan,inf,-1,1.50,1_000,0x1f,-inf]", ["nan", "inf", "-1", "1.50", "1_000", "0x1f", "-inf"]),
        ("[cat set, dog ]", ["cat set", "dog"]), ("[R&D,50%,a|b]", ["R&D", "50%", "a|b"]),
        ("[größe,ß,数据]", ["größe", "ß", "数据"]),
        ("['x,y',\"[z]\"]", ["x,y", "[z]"]), ("[d'or,a(b)]", ["d'or", "a(b)"]), ("[~x,#y,a=b,a:b]", ["~x", "#y", "a=b", "a:b"]),
        ("[${model.name}]", ["vit_mini"]), ("[]", []), ("R&D", "R&D"), ("8", 8), ("mini8", "mini8"), ("1e3", "1e3"), ("null", None),
    ],
)
@pytest.mark.parametrize("key", ["tasks", "checkpoints.experts"])
def test_names_of_tasks_are_what_is_written(key, written, names):
    found = value([f"{key}={written}"], key)
    found = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_list(found) else found
    assert [str(one) for one in found] == names if isinstance(names, list) else found == names


def test_lists_of_a_sweep():
    assert [list(one) for one in jobs(["-m", "tasks=[1e3],[a b,1e3]"], "tasks")] == [["1e3"], ["a b", "1e3"]]
    assert jobs(["-m", "tasks=8,mini8,R&D"], "tasks") == [8, "mini8", "R&D"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]), ("a,b", ["a", "b"]), ("[a,b],c", ["[a,b]", "c"]), ("'a,b',c", ["'a,b'", "c"]), ("d'or,e'f", ["d'or", "e'f"]),
        ("{a: 1, b: 2},c", ["{a: 1, b: 2}", "c"]), ("${oc.env:A,b},c", ["${oc.env:A,b}", "c"]), ("['a]',b]", ["['a]',b]"]),
        ("a],b", ["a]", "b"]),
    ],
)
def test_commas_outside_brackets_and_quotes_split(text, parts):
    assert split(text) == parts


# Mistakes ------------------------------------------------------------------------------------------------------------


def refusal(line: list[str]) -> str:
    with pytest.raises(InputError) as refused:
        plan_of(line)
    assert "\n" not in str(refused.value)
    assert "Exception" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "advice", "found"),
    [
        (["preset=a (b)"], "preset='a (b)'", "a (b)"), (["preset=x=y"], "preset='x=y'", "x=y"),
        (["preset=~x"], "preset='~x'", "~x"), (["preset=d'or"], r"preset='d\'or'", "d'or"),
        (["preset=größe"], "preset='größe'", "größe"), (["preset=a,b"], "preset='a,b'", "a,b"),
        (["preset=$5 (x)"], "preset='$5 (x)'", "$5 (x)"), (["tasks=ta,tb"], "tasks=[ta,tb]", ["ta", "tb"]),
        (["tasks=R&D,1e3"], "tasks=['R&D','1e3']", ["R&D", "1e3"]), (["tasks=[ta,", "tb]"], "tasks=[ta, tb]", ["ta", "tb"]),
        (["method={id:", "ties_merging}"], "method={id: ties_merging}", "ties_merging"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_works(line, advice, found):
    said = refusal(line)
    hint = said.split("write ")[-1] if "add -m" not in said else said.split("write ")[1].split(", or add")[0]
    assert shlex.split(hint) == [advice]
    made = OmegaConf.to_container(composed(prepared([advice])))[advice.partition("=")[0]]
    assert (made["id"] if isinstance(made, dict) else made) == found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["seed=0,1"], "seed=0,1: commas separate the runs of a sweep: add -m in front for a run with each of 0,1"),
        (["method=tsv_m,cart"], "method=tsv_m,cart names several: add -m in front"),
        (["seed=null"], "seed has no null: leave seed out for its default"),
        (["+seed=1"], "+seed: seed is there already: leave the + out"),
        (["tasks", "=", "8"], "'tasks' sets nothing: write KEY=VALUE, without blanks around ="), (["--seed"], "write seed=VALUE"),
        (["tasks='[ta,tb]'"], "unknown task '[ta,tb]': for a list of tasks write tasks=[ta,tb], without the inner quotes"),
        (["tasks=[ta"], "tasks=[ta: the bracket is not closed"), (["data={skip_corrupt: 1"], "the bracket is not closed"),
        (["se ed=1"], "'se ed=1': 'se ed' is no key"),
    ],
)
def test_mistakes_name_the_key(line, said):
    assert said in refusal(line)


def test_an_argument_is_written_as_shells_read_it():
    for text in ("a=b", "a=b c", "a='b c'", "a='$HOME'", 'a="b"', "a=b`c`", "a=d'or", "a=\\"):
        assert shlex.split(mistakes.for_shells(text)) == [text]


def test_rows_of_an_experiment_take_paths_and_names_as_lines_do(tmp_path):
    for name in ("1e3", "R&D"):
        (tmp_path / f"{name}.npz").touch()
    rows = {"one": ("method=cart", "tasks=[1e3,R&D]"), "two": ("method=tsv_m", f"results_dir={tmp_path}/lr=1 (b)")}
    read = experiment.Experiment(
        name="odd", title="", question="", seeds=(0,), defaults=(f"data_dir={tmp_path}", "tasks=[R&D]", "cache_dir=~/c"), rows=rows
    )
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        found = experiment.plans(read, prepared(["seed=3"]))
    assert found["one"][0].tasks == ("1e3", "R&D")
    assert found["one"][0].wanted.cache == tmp_path / "home" / "c"
    assert found["two"][0].results_dir == tmp_path / "lr=1 (b)"
