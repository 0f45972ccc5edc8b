"""Sizes of the methods: counts of the released checkpoints, the papers' figures, and those of given hyperparameters."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
from importlib import resources

import pytest

from fusionbench_lite import registry
from fusionbench_lite.models.architectures import MODELS, architecture
from fusionbench_lite.planning.counts import learned
from fusionbench_lite.resources.sizes import compare, methods, published, quantity, table
from fusionbench_lite.sizes import main

B32, L14, HF = architecture("vit_b32"), architecture("vit_l14"), architecture("vit_b32_hf")
ADAMERGING = [name for name in methods() if name.startswith("adamerging") and "taskwise" not in name and "iso" not in name]

ADARANK = ("adarank_ta", "adarank_cart", "adarank_tsvm")


def learned_of(method, of, tasks, **values):
    return learned(of, tasks, method, values)


@pytest.mark.parametrize(
    ("model", "tensors", "parameters", "matrices", "tasks", "coefficients"),
    [
        ("vit_b32", 158, 113_448_705, 48, 8, 1_264), ("vit_l14", 302, 342_562_049, 96, 8, 2_416),
        ("vit_b16", 158, 111_792_129, 48, 8, 1_264), ("vit_b16_hf", 199, 85_799_424, 72, 8, 1_592),
        ("vit_b32_hf", 199, 87_456_000, 72, 8, 1_592), ("roberta", 192, 85_054_464, 72, 7, 1_344),
        ("gpt2", 146, 85_056_000, 48, 7, 1_022),
    ],
)
def test_inventories(model, tensors, parameters, matrices, tasks, coefficients):
    """As counted in the checkpoints (docs/decisions.md, D13)."""
    of = architecture(model)
    assert (of.count, of.parameters, len(of.matrices().values())) == (tensors, parameters, matrices)
    for method in ADAMERGING:
        assert learned_of(method, of, tasks).total == coefficients


def test_what_is_read_and_blocks():
    """As counted in the checkpoints, block by block (docs/decisions.md, D13)."""
    assert (B32.used, L14.used) == (87_849_216, 303_966_208)
    assert {len(B32.leftovers), len(L14.leftovers)} == {6}
    assert (B32.count - 6, L14.count - 6) == (152, 296)
    assert {max(map(min, B32.matrices().values())), max(map(min, L14.matrices().values()))} == {768, 1024}
    block = [s for name, s in B32.tensors.items() if ".resblocks.3." in name]
    assert len(block) == 12
    assert sum(s[0] * (s[1] if len(s) == 2 else 1) for s in block) == 7_087_872
    assert sum(m * n for m, n in B32.matrices().values()) == 84_934_656 == 12 * 7_077_888
    assert architecture("vit_l14_hf").parameters == 303_179_776
    assert B32.perceptrons == 56_669_184
    assert B32.used - B32.perceptrons == 31_180_032


def test_coefficients_and_masks():
    """The arithmetic behind figures of AdaMerging and AdaRank (docs/decisions.md, D13)."""
    assert 8 * (B32.count - len(B32.leftovers)) == 1_216
    assert quantity(B32, 8, "", "tensors of complete CLIP") == 302
    assert quantity(L14, 8, "", "tensors of complete CLIP") == 446
    assert quantity(B32, 8, "", "task vectors") == 907_589_640
    assert quantity(L14, 8, "", "task vectors") == 2_740_496_392
    for method in ADARANK:
        for of, logits, total, unused in ((B32, 294_912, 296_176, 110), (L14, 786_432, 788_848, 206)):
            size = learned_of(method, of, 8)
            assert (size.counts["mask logits"], size.total, size.extra) == (logits, total, 0)
            assert size.parts == {"unused scalars of the released code": unused}
    assert learned_of("adarank_ta", architecture("roberta"), 7).counts == {"coefficients": 1_344, "mask logits": 387_072}
    assert learned_of("adarank_ta", architecture("gpt2"), 7).counts == {"coefficients": 1_022, "mask logits": 258_048}
    assert learned_of("adamerging_taskwise", B32, 8).total == 8
    assert learned_of("adamerging_iso_cts", B32, 8).total == 1_264 + 48
    assert learned_of("concrete_ta", HF, 8).total == 87_456_000
    assert learned_of("doge_am", HF, 8).counts["coefficients"] == 576
    assert learned_of("awd_am", B32, 8).counts["coefficients"] == 1_264


def test_adapters_and_routers():
    """Those of Surgery, SurgeryV2, ProbSurgery, MetaMerging and WEMoE, from their released shapes."""
    assert learned_of("surgery", B32, 8).parts["per task"] == 16_384
    assert learned_of("surgery", L14, 8).parts["per task"] == 24_576
    assert learned_of("surgery", B32, 8).extra == 131_072
    assert learned_of("surgery_v2", B32, 8).parts["per task"] == 311_296 == 12 * 2 * 768 * 16 + 2 * 512 * 16
    assert learned_of("surgery_v2", B32, 8).extra == 2_490_368
    assert learned_of("prob_surgery", B32, 8).parts["per task"] == 196_608
    assert learned_of("prob_surgery", B32, 8).extra == 1_048_576
    meta = learned_of("metamerging", B32, 8)
    assert (meta.parts["adapter"], meta.parts["per task"], meta.extra) == (99_136, 1_189_632, 9_517_056)
    assert meta.counts["coefficients"] == 8
    pareto = learned_of("pareto_merging", B32, 8)
    assert pareto.extra == sum(16 * (m + n) + 8 * 16**2 for m, n in B32.matrices().values())
    assert pareto.total == pareto.extra + 1_264
    router = learned_of("wemoe", B32, 8)
    assert (router.parts["router"], router.total) == (596_744, 7_160_928)
    assert router.parts["kept of what is read"] == 9 * 56_669_184 + 31_180_032 + 7_160_928
    for tasks, models in ((8, 4.8), (20, 10.8)):
        assert learned_of("wemoe", B32, tasks).parts["kept of what is read"] / B32.parameters == pytest.approx(models, abs=0.05)
    assert learned_of("wemoe", architecture("roberta"), 7).counts is None
    d = 768
    hidden = d * 2 * d + 2 * d + 4 * d * d + 2 * d
    assert learned_of("twin_merging", B32, 8).counts["router"] == hidden + 2 * d * 8 + 8
    assert learned_of("individual", B32, 8).extra == 7 * B32.parameters


def test_every_adaptive_method_of_the_package_has_a_size():
    adaptive = {name for name in registry.names() if registry.get(name).adaptive}
    assert set(methods()) == adaptive | {"individual", "traditional_mtl", "emr_merging", "tall_masks", "tsv_c"}
    assert list(table(B32, 8)["method"]) == methods()


def test_published_figures_are_the_computed_ones_or_say_why_not():
    for entry in published():
        assert set(entry["models"]) <= set(MODELS)
        for model in entry["models"]:
            for tasks in entry.get("tasks", [8]):
                computed = quantity(architecture(model), tasks, entry["method"], entry["quantity"])
                assert computed is not None, entry
                assert entry.get("why") or computed == pytest.approx(entry["value"], rel=1e-3), entry
        if "equals" in entry:
            assert _arithmetic(ast.parse(str(entry["equals"]), mode="eval").body) == entry["value"]
    why = {entry["printed"]: entry.get("why", "") for entry in published()}
    assert "1,264" in why["2,440"]
    assert "2.740B" in why["2.46B"]
    assert "three blocks" in why["92,185,089"]
    assert "1,189,632" in why["99,136"]


def _arithmetic(node):
    if isinstance(node, ast.Constant):
        return node.value
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
    return signs[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))


def test_the_figures_are_packaged():
    assert resources.files("fusionbench_lite.resources").joinpath("published_sizes.yaml").is_file()


def test_command_line(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for figure in ("1,264", "2,440", "296,176", "294,912", "1,189,632", "99,136", "460,514,400", "92,185,089"):
        assert figure in shown
    for arguments, needle in ((["model=vit_l14"], "2.46B"), (["format=markdown"], "| --- |"), (["format=csv"], "method,name")):
        assert main(arguments) == 0
        assert needle in capsys.readouterr().out
    assert main(["model=vit_mini", "tasks=mini8"]) == 0
    assert "8 tasks" in capsys.readouterr().out
    for argument, word in (("model=vit_b23", "vit_b32"), ("modl=x", "model"), ("tasks=0", "at least 1"), ("format=tex", "text")):
        assert main([argument]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
    assert not compare(B32, 14).empty


def test_given_hyperparameters(capsys):
    assert learned_of("surgery", B32, 8, rank=32).parts["per task"] == 32_768
    shared = learned_of("prob_surgery", B32, 8, shared=True)
    assert (shared.total, shared.extra) == (196_608, 131_072)
    assert learned_of("adarank_ta", B32, 8, learn="masks").counts == {"mask logits": 294_912}
    assert learned_of("adarank_ta", B32, 8, top_only=True, rank_ratio=0.25).counts["mask logits"] == 294_912 // 4
    assert main(["surgery.rank=32", "prob_surgery.shared=true"]) == 0
    assert "32,768 per task" in (shown := capsys.readouterr().out)
    assert "196,608 for all tasks" in shown
    for argument, word in (
        ("surgery.rnk=3", "no hyperparameter 'rnk': did you mean 'rank'"), ("surgery.rank=x", "rank must be an integer"),
        ("surgary.rank=3", "no method with a size: did you mean 'surgery'"), ("surgery.rank", "sets nothing"),
        ("ties_merging.keep=0.1", "no method with a size"),
    ):
        assert main([argument]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1


def test_no_torch():
    code = "import sys; from fusionbench_lite.sizes import main; main([]); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("False\n")
