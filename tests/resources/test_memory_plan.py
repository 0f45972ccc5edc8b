"""Plans of memory and operations against what real runs take."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.resources import PHASES, Inputs, Transformer, encoder, estimate, lines, of_size, suggest
from fusionbench_lite.weights.experts import Experts
from tests.conftest import ROOT

MIDDLE = clip.ClipSize(image=224, patch=32, width=384, layers=6, heads=6, output=256, text_width=256, text_layers=2, text_heads=4)
SMALL = clip.ClipSize(image=64, patch=16, width=48, layers=3, heads=3, output=24, text_width=24, text_layers=2, text_heads=2)
GIB = 1 << 30
TOLERANCE = 0.2

measures = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads the peak from /proc (Linux)")
ATTN = {"matrices": "attn_mlp"}
ADAPTIVE = [id for id in registry.names() if registry.get(id, learning=True).adaptive]
CASES = [
    ("adamerging_layerwise", {}, {}),
    *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("adamerging_layerwise", {}, {"place": "disk"}), ("adamerging_layerwise", {}, {"chunk": 4, "experts": "cpu"}),
            ("adarank_cart", {"rank_ratio": 0.16}, {}), ("adarank_cart", {"rank_ratio": 0.16}, {"place": "disk"}),
            ("adarank_ta", {}, {"layout": "separate", "chunk": 8}), ("adarank_tsvm", {}, {}),
            ("doge_am", {**ATTN, "delta_steps": 2}, {}),
            ("surgery", {}, {}), ("metamerging", {"adapter_steps": 1}, {}),
            ("metamerging", {"adapter_steps": 1, "outer_batch_size": 1, "adapter_batch_size": 24}, {}),
            ("metamerging", {"adapter_steps": 1, "adapter_batch_size": 24}, {"chunk": 8}),
            ("metamerging", {"base": "task_arithmetic"}, {}), ("concrete_am", {"mask_steps": 1}, {}),
            ("pareto_merging", {}, {}), ("surgery_v2", {}, {}), ("twin_merging", {}, {}),
            ("twin_merging", {"router": "entropy"}, {}),
            ("adarank_iso_cts", {}, {"place": "disk"}), ("adamerging_cart", {"rank_ratio": 0.16}, {"place": "disk"}),
            ("adamerging_pp_layerwise", {}, {"place": "disk"}), ("concrete_am", {"mask_steps": 1}, {"place": "disk"}),
        )
    ),
]


def attn(method) -> dict[str, str]:
    """Select matrices by the names of CLIP's open_clip layout, where the method selects any."""
    return {name: value for name, value in ATTN.items() if name in registry.get(method, learning=True).defaults}


def name(case) -> str:
    if not isinstance(case, dict):
        return str(case)
    return "-".join(f"{key}={value}" for key, value in case.items()) or "plain"


def compare(method, values, settings, size, folder, *, tasks=4, batch=4):
    """Run a job in a process of its own and return the planned and the measured peak.

    glibc is told to give memory back at once: what its heap keeps beyond that, up to some tenths more, is not planned.
    """
    job = {
        "folder": str(folder), "size": dataclasses.asdict(size), "layout": "packed", "tasks": tasks, "method": method,
        "values": values, "batch": batch, "steps": 2, "chunk": None, "place": "device", "experts": "disk", "eval_batch": 8,
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.plan_job", json.dumps(job)], cwd=ROOT, check=False, capture_output=True, text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": str(256 << 10)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    planned = estimate(Inputs(
        encoder=of_size("measured", size, job["layout"]), method=method, tasks=tasks, values=values, batch_size=batch,
        chunk=job["chunk"], device="cpu", place=job["place"], experts=job["experts"], classes=(10,) * tasks,
        eval_batch=job["eval_batch"],
    ))
    return planned.peak("cpu"), max(json.loads(done.stdout).values())


@measures
@pytest.mark.parametrize(("method", "values", "settings"), CASES, ids=name)
def test_the_peak_is_planned_within_a_fifth(method, values, settings, tmp_path):
    planned, measured = compare(method, values, settings, MIDDLE, tmp_path)
    assert abs(planned / measured - 1) < TOLERANCE, f"planned {planned >> 20} MiB, measured {measured >> 20} MiB"


@measures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "values", "settings", "tasks"), [("adamerging_layerwise", {}, {}, 2), ("surgery", {}, {}, 4)], ids=name
)
def test_the_peak_of_a_full_size_model(method, values, settings, tasks, tmp_path):
    planned, measured = compare(method, values, settings, clip.SIZES["vit_b32"], tmp_path, tasks=tasks, batch=2)
    assert abs(planned / measured - 1) < TOLERANCE, f"planned {planned >> 20} MiB, measured {measured >> 20} MiB"


# ---------------------------------------------------------------- passes


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("layout", clip.LAYOUTS)
def test_what_autograd_keeps(layout, plain):
    model = clip.build(MIDDLE, layout).requires_grad_(False).eval()
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in model.state_dict().items()}
    weights, kept = {leaf.untyped_storage().data_ptr() for leaf in leaves.values()}, {}
    images = torch.rand(3, 3, 224, 224)

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() != images.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    backends = [SDPBackend.MATH] if plain else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), sdpa_kernel(backends):
        call(model, leaves, images)
    found = sum(nbytes for nbytes, _ in kept.values())
    planned = Transformer(of_size("middle", MIDDLE, layout)).saved(3, plain=plain)
    assert abs(planned / found - 1) < 0.05, planned / found


@pytest.mark.parametrize("layout", clip.LAYOUTS)
@pytest.mark.parametrize("size", [SMALL, MIDDLE], ids=["small", "middle"])
def test_operations_of_a_pass(size, layout):
    """Attention runs unfused, because torch counts no operations of a processor's fused one: products four, not five."""
    model, own = clip.build(size, layout).eval(), Transformer(of_size("counted", size, layout))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            features = model(torch.rand(2, 3, size.image, size.image))
        with FlopCounterMode(display=False) as backward:
            features.sum().backward()
    assert abs(2 * own.forward_flops / forward.get_total_flops() - 1) < 0.01
    assert abs(2 * own.backward_flops / backward.get_total_flops() - 1) < 0.05


@pytest.mark.parametrize(("method", "values"), [
    ("adamerging_layerwise", {}), ("adarank_cart", {"rank_ratio": 0.5}), ("metamerging", {"adapter_steps": 0, "rank": 4}),
    ("metamerging", {"adapter_steps": 0, "rank": 4, "outer_batch_size": 2}),
    ("metamerging", {"base": "task_arithmetic", "rank": 4, "adapter_batch_size": 9}), ("traditional_mtl", {}),
])  # fmt: skip
def test_operations_of_a_step(method, values):
    model = clip.build(SMALL, "packed").requires_grad_(False)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    experts = {task: {key: t + 0.01 * torch.randn_like(t) for key, t in base.items()} for task in ("one", "two", "three")}
    matrix, entry = torch.randn(24, 5), registry.get(method, learning=True)
    context = Context(
        model, dict.fromkeys(experts, lambda features: features @ matrix), 3, example=torch.rand(1, 3, 64, 64)
    )
    procedure = entry.function(Experts(base, experts), entry.configure(**values))(context)
    procedure.optimizers()

    def examples(task, size):
        images = torch.rand(size, 3, 64, 64)
        labels = torch.zeros(size, dtype=torch.int64) if procedure.reads_labels else None
        return Examples(images, procedure.precomputed(task, images), labels)

    batches = [{task: examples(task, draw.size or 6) for task in experts} for draw in procedure.draws(0)]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        procedure.step(0, batches, lambda *given: None)
    planned = estimate(Inputs(
        encoder=of_size("small", SMALL, "packed"), method=method, tasks=3, values=values, batch_size=6, device="cpu"
    )).flops.step
    elements = sum(t.numel() for t in base.values())
    merging = 4 * 3 * elements if method != "traditional_mtl" and "base" not in values else 0  # which torch does not count
    assert abs((planned - merging) / counter.get_total_flops() - 1) < 0.05


def test_operations_of_a_run_are_those_of_its_stages():
    def flops(steps, **values):
        return estimate(Inputs(
            encoder=of_size("small", SMALL, "packed"), method="metamerging", tasks=3, values=values, batch_size=6, steps=steps
        )).flops

    sizes = {"outer_batch_size": 2, "adapter_batch_size": 9}
    adapters = flops(1, base="task_arithmetic", **sizes).step
    both, none = flops(5, adapter_steps=2, **sizes), flops(0, **sizes)
    assert both.total - none.total == 3 * both.step + 2 * adapters
    assert flops(5, **sizes).total == both.total  # half of the steps, rounded down


# ---------------------------------------------------------------- MetaMerging's stages and shared tasks


def test_a_stage_that_does_not_run_takes_nothing():
    own, sizes = of_size("middle", MIDDLE, "packed"), {"outer_batch_size": 4, "adapter_batch_size": 256}

    def peak(**values):
        return estimate(Inputs(
            encoder=own, method="metamerging", tasks=4, values=values, batch_size=8, device="cpu"
        )).peak("cpu", "step")

    assert peak(adapters="none", **sizes) == peak(adapters="none", outer_batch_size=4)
    assert peak(adapter_steps=0, **sizes) == peak(adapter_steps=0, outer_batch_size=4) < peak(**sizes)
    assert peak(base="task_arithmetic", **sizes) == peak(base="task_arithmetic", adapter_batch_size=256)
    assert peak(base="task_arithmetic", **sizes) > peak(base="task_arithmetic", adapter_batch_size=1)
    run = Inputs(encoder=own, method="metamerging", tasks=4, values={"adapter_steps": 5}, batch_size=8, device="cpu", steps=5)
    assert estimate(run).peak("cpu", "step") < estimate(dataclasses.replace(run, steps=6)).peak("cpu", "step")


def test_passes_of_metamerging_are_cut_by_its_widest_batch():
    """Of one task alone, whose adapters read 128 images: a pass of 64 to 8 is tried before images go one by one."""
    inputs = Inputs(
        encoder=of_size("middle", MIDDLE, "packed"), method="metamerging", tasks=1,
        values={"outer_batch_size": 4, "adapter_batch_size": 128}, batch_size=8,
    )
    room = estimate(dataclasses.replace(inputs, chunk=32)).peak("device")
    assert suggest(inputs, room, 64 * GIB).chunk == 32


@pytest.mark.parametrize("processes", [1, 4])
def test_how_many_tasks_would_fit(processes):
    """Where a plan is refused it says with how many tasks it would not be, whatever part of them a process reads."""
    inputs = Inputs(
        encoder=of_size("middle", MIDDLE, "packed"), method="adamerging_layerwise", tasks=20, batch_size=64, processes=processes,
        chunk=1,
    )
    room = estimate(dataclasses.replace(inputs, tasks=7)).peak("device")
    with pytest.raises(InputError, match="7 tasks would fit"):
        suggest(inputs, room, 64 * GIB, places=("device",))


# ---------------------------------------------------------------- plans


def test_plans_need_no_torch():
    code = (
        "import sys, fusionbench_lite.resources as m; m.estimate(m.Inputs(m.encoder('vit_b32', 'separate'), 'adarank_ta', 8));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_adaptive_method_has_a_plan():
    assert all(registry.get(id, learning=True).cost and registry.get(id, learning=True).learned for id in ADAPTIVE)
    for method in registry.names():
        values = dict(registry.get(method, learning=True).defaults)
        found = estimate(Inputs(encoder=encoder("vit_mini"), method=method, tasks=8, values=values, classes=(10,) * 8))
        assert all(found.peak("device", phase) > 0 for phase in PHASES)
        assert all(entry.nbytes > 0 and set(entry.phases) <= set(PHASES) for entry in found.entries)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_more_of_anything_is_more_memory(method):
    given = Inputs(encoder=encoder("vit_mini"), method=method, tasks=8, batch_size=4, eval_batch=2, held_out=1, values=attn(method))
    least = estimate(given).peak("device")
    for change in ({"tasks": 16}, {"batch_size": 64, "held_out": 64}, {"encoder": of_size("middle", MIDDLE, "packed")}):
        assert estimate(dataclasses.replace(given, **change)).peak("device") > least, change
    if given.cost.placeable and given.cost.kind == "descent":
        on_cpu, on_disk = (estimate(dataclasses.replace(given, place=place)) for place in ("cpu", "disk"))
        assert on_cpu.peak("device") == on_disk.peak("device") < least
        assert on_disk.peak("cpu") < on_cpu.peak("cpu")
        assert on_disk.peak("disk") > 0 == on_cpu.peak("disk")


LARGE = [
    "adamerging_layerwise", "adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts", "doge_am", "awd_am", "metamerging",
]


@pytest.mark.parametrize("method", LARGE)
@pytest.mark.parametrize("gpu", [24, 40, 80])
def test_twenty_tasks_of_the_largest_model_fit(method, gpu):
    room = int(0.93 * gpu * GIB)
    given = Inputs(encoder=encoder("vit_l14"), method=method, tasks=20, values=attn(method), classes=(50,) * 20)
    found = suggest(given, room, 96 * GIB)
    assert found.estimate.peak("device") <= room
    assert found.estimate.peak("cpu") <= 96 * GIB
    if found.chunk is not None:  # and twice as many images would not
        assert estimate(dataclasses.replace(found.estimate.inputs, chunk=2 * found.chunk)).peak("device") > room


def test_the_first_place_that_fits():
    given = Inputs(encoder=encoder("vit_l14"), method="adamerging_layerwise", tasks=20)
    assert suggest(given, 141 * GIB, 96 * GIB).place == "device"
    assert suggest(given, 22 * GIB, 96 * GIB).place == "cpu"
    assert suggest(given, 22 * GIB, 8 * GIB).place == "disk"
    assert suggest(given, 22 * GIB, 96 * GIB, places=("disk",)).place == "disk"


def test_nothing_fits():
    given = Inputs(encoder=encoder("vit_l14"), method="adamerging_layerwise", tasks=20)
    with pytest.raises(InputError, match=r"merging_layerwise on vit_l14 with 20 tasks needs .*GPU memory against 3.00") as told:
        suggest(given, 3 * GIB, 96 * GIB)
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match=r"needs .* of memory against 8.00 GiB.*: \d+ tasks? would fit"):
        suggest(given, 22 * GIB, 8 * GIB, places=("cpu",))
    with pytest.raises(InputError, match=r"of disk against 10.00 GiB"):
        suggest(given, 22 * GIB, 8 * GIB, 10 * GIB)


def test_lines_say_what_is_where():
    given = Inputs(encoder=encoder("vit_l14"), method="adarank_cart", tasks=20, place="cpu", chunk=16, classes=(10,) * 20)
    text = "\n".join(lines(estimate(given)))
    assert text.isascii()
    for part in ("vit_l14 with 20 tasks", "singular components", "30.0", "peak on device", "peak on cpu", "a step", "16 images"):
        assert part in text


def test_unknown_settings():
    for change, match in (
        ({"place": "gpu"}, "unknown place 'gpu' in a memory plan"), ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "fp61"}, "unknown precision 'fp61'"),
    ):
        with pytest.raises(InputError, match=match):
            estimate(Inputs(encoder=encoder("vit_mini"), method="adarank_ta", tasks=8, **change))
    with pytest.raises(InputError, match="unknown model 'vit_b31': did you mean 'vit_b32'"):
        encoder("vit_b31")
