"""Parameters and sizes of data sets that tables show without a run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.data.text import descriptions
from fusionbench_lite.data.vision import names, task
from fusionbench_lite.errors import InputError
from fusionbench_lite.models.architectures import of_size
from fusionbench_lite.models.clip_sizes import ClipSize
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.counts import learned, parameters
from fusionbench_lite.suites import kind_of

EIGHT = "model=vit_b32 tasks=8 checkpoints=ta"
SMALL = ClipSize(image=16, patch=8, width=21, layers=1, heads=3, output=11, text_width=12, text_layers=1, text_heads=2)
ADAPTER = "model=vit_l14 tasks=[sun397] checkpoints=ta method=metamerging method.base=weight_averaging method.adapters=final"


@pytest.mark.parametrize(
    ("line", "what", "expected"),
    [
        (f"{EIGHT} method=individual", "total", 8 * 113_448_705),  # AdaMerging, text
        (f"{EIGHT} method=adamerging_taskwise", "learned", 8),
        (f"{EIGHT} method=adamerging_layerwise", "learned", 8 * 158),
        (f"{EIGHT} method=adarank_ta", "learned", 8 * 158 + 8 * 12 * 4 * 768),  # AdaRank, Table 4, and its coefficients
        (f"{EIGHT} method=adarank_ta method.learn=masks", "learned", 294_912),
        ("model=vit_l14 tasks=8 checkpoints=ta method=adarank_ta method.learn=masks", "learned", 786_432),
        (f"{EIGHT} method=pretrained", "total", 113_448_705),
        ("model=vit_l14 tasks=8 checkpoints=fusionbench method=pretrained", "total", 303_179_776),  # MetaMerging, Table 4
        (ADAPTER, "extra", 99_136),
        (f"{EIGHT} method=individual", "relative", 8),
        (f"{EIGHT} method=adarank_cart", "relative", 1),
        (f"{EIGHT} method=task_arithmetic", "learned", 0),
        (f"{EIGHT} method=metamerging method.judged=merged", "extra", 0),
        (f"{EIGHT} method=task_arithmetic checkpoints.experts=3", "total", 3 * 113_448_705),
    ],
)
def test_parameters(line, what, expected):
    assert parameters(plan_of(line.split()), what) == expected


def test_parts_of_encoders():
    def number(method: str, what: str) -> float:
        return round(parameters(plan_of([*EIGHT.split(), f"method={method}"]), what), 3)

    assert number("tall_masks", "relative") == number("emr_merging", "relative") == 2.25
    assert number("adarank_ta", "share") == 0.033  # 0.032 of the masks alone
    assert number("wemoe", "relative") == 5.059


@pytest.mark.parametrize("method", ["emr_merging", "tall_masks", "tsv_c", "individual"])
def test_what_is_declared_is_what_is_stored(method):
    """`Merged.storage` counts bytes of the very tensors; of widths that are no multiples of 8."""
    of = of_size("small", SMALL, "packed")
    base = {name: torch.zeros(shape) for name, shape in of.tensors.items()}
    experts = {f"t{n}": {name: torch.randn(shape) for name, shape in of.tensors.items()} for n in range(3)}
    kept = fbl.merge(method, base, experts).storage
    declared = registry.get(method).learned(of, 3, registry.get(method).configure())
    spared = kept["pretrained"] if method != "individual" else 0
    in_parameters = (sum(kept.values()) - spared) / 4
    assert declared.extra + (of.parameters if method == "individual" else 0) == pytest.approx(in_parameters, abs=1)


def test_every_method_has_a_number_or_says_why():
    of = plan_of(EIGHT.split()).kind.counted(plan_of(EIGHT.split()).wanted)
    assert all(learned(of, 8, method).counts is not None for method in registry.names())


def test_sizes_are_those_that_runs_read():
    for name in names():
        entry, sizes = task(name, "tall"), kind_of("vit_b32").sizes("vit_b32", name, {})
        assert (sizes["train"][0], sizes["test"][0], sizes["classes"][0]) == (entry.train, entry.test, entry.classes)
    for name in descriptions.glue_names():
        entry, sizes = descriptions.glue(name), kind_of("roberta").sizes("roberta", name, {})
        assert sizes["train"][0] == entry.rows["train"]
        assert sizes["validation"][0] in entry.rows.values()


def test_a_task_that_is_not_of_the_kind_is_refused():
    with pytest.raises(InputError, match="did you mean 'sun397'"):
        kind_of("vit_b32").sizes("vit_b32", "sun379", {})


def test_an_unknown_number_is_refused():
    with pytest.raises(InputError, match="did you mean 'learned'"):
        parameters(plan_of(EIGHT.split()), "learnt")


def test_torch_stays_out():
    code = (
        "import sys; from fusionbench_lite.planning.counts import parameters; "
        "from fusionbench_lite.planning.command_line import plan_of; "
        f"parameters(plan_of('{EIGHT} method=adarank_ta'.split()), 'learned'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
