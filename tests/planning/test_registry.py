"""Methods are found by scanning files; hyperparameters are typed and have ranges."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import yaml

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.paths import config_dir
from tests.conftest import ROOT


def test_methods_is_a_sorted_list():
    assert fbl.methods() == sorted(fbl.methods())
    assert {"task_arithmetic", "adarank_tsvm"} <= set(fbl.methods())


@pytest.mark.parametrize("id", fbl.methods())
def test_every_method_has_a_config_with_its_hyperparameters(id):
    content = yaml.safe_load((config_dir() / "method" / f"{id}.yaml").read_text())
    method = registry.get(id)
    expected = {"id", *method.defaults} | ({"adaptation"} if method.adaptive else set())
    expected |= {"statistics"} if {"fisher", "gram", "gradients"} & set(method.inputs) else set()
    assert set(content) == expected
    given = {name: content[name] for name in method.defaults if content[name] is not None}
    for name, value in given.items():
        assert value == method.defaults[name], f"{name}: the config says {value}, the method {method.defaults[name]}"
    method.configure(**given)


@pytest.mark.parametrize("id", fbl.methods())
def test_every_method_says_what_it_computes(id):
    method = registry.get(id)
    assert method.function.__doc__
    if method.defaults:
        for name in method.defaults:
            owners = " ".join(cls.__doc__ or "" for cls in method.hyperparameters.__mro__)
            assert f"`{name}`" in owners, f"{name} is not documented"


ADAPTIVE = {id: {} for id in fbl.methods() if registry.get(id, learning=True).adaptive}
ADAPTIVE["doge_am"] = {"matrices": "all_2d"}  # the small model has nothing that is named as the default has it


@pytest.mark.parametrize(("id", "given"), [*ADAPTIVE.items(), ("twin_merging", {"router": "entropy"})])
def test_methods_declare_that_their_steps_read_training_images(id, given):
    from fusionbench_lite.adaptation.engine.procedure import Context
    from fusionbench_lite.weights.experts import Experts
    from tests.support.small_models import small_setting

    s, method = small_setting(steps=1), registry.get(id, learning=True)
    context = Context(s.model, s.heads, 1, example=s.batches["task0"][0])
    procedure = method.function(Experts(s.pretrained, s.experts), method.configure(**given))(context)
    assert method.reads_training({**method.defaults, **given}) == (procedure.split == "train")


def test_adding_a_method_touches_one_file_and_one_config(tmp_path):
    """A copy of the package with one Python file and one YAML more knows, configures and runs the method."""
    import shutil

    for name in ("fusionbench_lite", "conf", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fusionbench_lite" / "methods" / "halfway.py").write_text(
        '"""Half of the way to the average."""\n'
        "import dataclasses\n"
        "from fusionbench_lite.fields import real\n"
        "from fusionbench_lite.registry import method\n\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Halfway:\n"
        '    """`part`: of the way."""\n'
        "    part: float = real(0.5, low=0, high=1)\n\n\n"
        '@method("halfway", Halfway)\n'
        "def halfway(experts, h):\n"
        '    """θ = θ0 + part · mean τ."""\n'
        "    for name in experts.names:\n"
        "        yield name, experts.base(name) + h.part * experts.task_vectors(name).mean(0)\n"
    )
    (tmp_path / "conf" / "method" / "halfway.yaml").write_text("id: halfway\npart: 0.5\n")
    code = (
        "import fusionbench_lite as fbl, torch; assert 'halfway' in fbl.methods();"
        "p = {'w': torch.zeros(2)}; e = {'a': {'w': torch.ones(2)}};"
        "print(fbl.merge('halfway', p, e, part=0.25).state_dict()['w'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.25, 0.25]"
    refused = subprocess.run(
        [sys.executable, "-m", "fusionbench_lite", "method=halfway", "method.part=2"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )
    assert refused.returncode == 2
    assert "part must be a finite number in [0, 1], got 2" in refused.stderr


@pytest.mark.parametrize("value", [0.25, 1, np.float32(0.25), np.int64(1)])
def test_numbers_of_any_kind_are_accepted(value):
    assert registry.get("ties_merging").configure(keep=value).keep == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("id", "given"),
    [
        ("ties_merging", {"keep": 0}), ("ties_merging", {"keep": 1.01}), ("ties_merging", {"keep": True}),
        ("ties_merging", {"keep": None}), ("ties_merging", {"reduce": "median"}), ("ties_merging", {"virtual_zeros": -1}),
        ("ties_merging", {"virtual_zeros": 1.5}), ("tsv_m", {"rank_ratio": 0}), ("cart", {"rank_ratio": None}),
        ("adamerging_layerwise", {"clamp": 1}), ("adamerging_layerwise", {"lr": 0}),
        ("adarank_ta", {"temperature": float("inf")}), ("task_arithmetic", {"scaling": "0.3"}),
    ],
)
def test_values_out_of_range_are_refused(id, given):
    name = next(iter(given))
    with pytest.raises(fbl.MergeError, match=f"method '{id}': {name} must be "):
        registry.get(id).configure(**given)


def test_importing_the_methods_does_not_import_torch():
    code = "import sys, fusionbench_lite.registry as r; r.names(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    assert importlib.util.find_spec("torch") is not None


def test_a_later_hyperparameter_at_its_default_leaves_the_key_of_older_records():
    method = registry.get("adamerging_pp_layerwise")
    values = {**method.defaults}
    assert "virtual_zeros" in values
    assert method.known_by(values) == {name: value for name, value in values.items() if name != "virtual_zeros"}
    assert method.known_by({**values, "virtual_zeros": 5})["virtual_zeros"] == 5
    ties = registry.get("ties_merging")
    assert ties.known_by(ties.defaults) == ties.defaults


def test_families_follow_from_what_is_declared(monkeypatch):
    def family(**declared):
        monkeypatch.setattr(registry, "_REGISTERED", {})
        registry.method("made_up", **declared)(lambda experts, h: iter(()))
        return registry._REGISTERED["made_up"].label, registry._REGISTERED["made_up"].family

    for declared, expected in (
        ({}, registry.DATA_FREE), ({"adaptive": True}, registry.ADAPTIVE), ({"per_task": True}, registry.PER_TASK),
        ({"adaptive": True, "routed": True}, registry.ROUTED), ({"inputs": ("fisher",)}, registry.STATISTICS),
        ({"inputs": ("gradients",)}, registry.STATISTICS),
        ({"adaptive": True, "inputs": ("merged",)}, registry.ADAPTERS), ({"family": registry.SVD}, registry.SVD),
    ):
        assert family(**declared) == ("made_up", expected)
    assert family(label="Made up") == ("Made up", registry.DATA_FREE)
    with pytest.raises(ValueError, match="unknown family 'Date-free': did you mean 'Data-free'"):
        registry.method("made_up", family="Date-free")


def test_one_method_is_found_without_importing_the_others():
    code = (
        "import sys, fusionbench_lite.registry as r; print(r.find('wudi').label, r.find('nobody'));"
        "print('fusionbench_lite.methods.wudi' in sys.modules, 'fusionbench_lite.methods.regmean' in sys.modules);"
        "m = r.get('traditional_mtl'), r.get('traditional_mtl', learning=True); print(*(entry.adaptive for entry in m))"
    )
    # Whichever form is read first, learning is what is asked for.
    for first in ("", "import fusionbench_lite.adaptation.multitask; "):
        done = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["WUDI-Merging", "None", "True", "False", "False", "True"]
