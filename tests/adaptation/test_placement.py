"""Where task vectors and singular components live changes no bit, and leaves no memory and no file behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine import placement
from fusionbench_lite.adaptation.engine.parts import Factors, Sum, Vectors
from fusionbench_lite.adaptation.engine.placement import PLACES, forget, is_mapped, placing, put
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.adaptation.learners import component_masks
from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.experts import Experts
from tests.adaptation.test_adapt_engine_resume import same
from tests.adaptation.test_adapt_resume import SHORTER, Stopped, abandon
from tests.support import second_device
from tests.support.engine_job import RATES, Encoder, job
from tests.support.second_device import DEVICE, Machine, values

STEPS = 9
CASES = [
    ("adamerging_layerwise", {}), ("adamerging_taskwise", {}), ("adamerging_pp_layerwise", {}), ("adamerging_cart", {}),
    ("adarank_ta", {}), ("adarank_ta", {"rank_ratio": 0.4, "top_only": True}), ("adarank_cart", {}), ("adarank_tsvm", {}),
    ("adarank_cart", {"learn": "coefficients"}), ("adarank_iso_cts", {}), ("doge_am", {}), ("awd_am", {}), ("metamerging", {}),
    ("pareto_merging", {}), ("concrete_am", {}),
]
MAPPED: dict[str, bool] = {}
"""Methods of which no tensor moves; of all others some do."""


def name(case) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


@pytest.fixture
def every_size(monkeypatch):
    """Have tensors of any size moved, and count those that are mapped."""
    monkeypatch.setattr(placement, "SMALLEST", 1)
    made = []
    mapped = placement._mapped
    monkeypatch.setattr(placement, "_mapped", lambda *args: made.append(mapped(*args)) or made[-1])
    return made


@pytest.mark.parametrize("case", CASES, ids=name)
def test_no_bit_depends_on_the_place(case, every_size, tmp_path):
    method, given = case[0], {**SHORTER.get(case[0], {}), **case[1]}
    plain = job(method, STEPS, **given)
    assert len(plain["losses"]) == STEPS
    for place in PLACES:
        with placing(place, tmp_path):
            assert same(job(method, STEPS, **given), plain), place
        assert bool(every_size) == (place == "disk" and MAPPED.get(method, True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart", "adarank_tsvm"])
def test_a_run_goes_on_at_another_place(method, every_size, tmp_path):
    """Stopped with its constants in memory, started again with them on disk."""
    checkpoint = tmp_path / "last.ckpt"

    undisturbed = job(method, STEPS)
    with pytest.raises(Stopped), placing("cpu"):
        job(method, STEPS, checkpoint, 7, abandon)
    assert checkpoint.exists()
    with placing("disk", tmp_path / "scratch"):
        assert same(job(method, STEPS, checkpoint), undisturbed)
    assert every_size
    assert not list((tmp_path / "scratch").iterdir())


def test_the_place_holds_for_the_block_alone(tmp_path):
    with placing("disk", tmp_path):
        assert placement.place() == "disk"
        with placing("cpu"):
            assert placement.place() == "cpu"
        assert placement.place() == "disk"
    assert placement.place() == "device"


def test_sums_on_disk_are_kept_where_memory_is_short(monkeypatch, tmp_path):
    monkeypatch.setattr(component_masks.memory, "SHARE", 0.0)
    base = {"a.attn.weight": torch.randn(8, 6)}
    experts = Experts(base, {"one": {"a.attn.weight": torch.randn(8, 6)}})
    assert not component_masks.Masks(experts, "both", 10.0).keep
    with placing("disk", tmp_path):
        assert component_masks.Masks(experts, "both", 10.0).keep


# ---------------------------------------------------------------- files


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_mapped_tensors_take_no_memory_between_uses(tmp_path):
    size = 40 << 20
    deltas, origin = torch.randn(4, size // 16), torch.randn(size // 16)
    with placing("disk", tmp_path):
        part = Vectors(origin, deltas)
        plain = Vectors(origin.clone(), deltas.clone())  # mapped too
    del deltas
    out, gradient, weights = torch.zeros_like(origin), torch.randn(size // 16), torch.tensor([0.1, 0.2, 0.3, 0.4])
    out += 1  # now its memory is there
    before = resident()
    for _ in range(2):
        part.combine(weights, out)
        part.pull_back(weights, gradient)
        assert resident() - before < size // 8
    assert plain._flat.sum() == part._flat.sum()  # what is read without `forget` stays
    assert resident() - before > size
    forget(plain._flat, part._flat)
    assert resident() - before < size // 8


def test_what_others_hold_is_left_alone(tmp_path):
    """Dropping pages of memory that no file is behind would wipe it."""
    import numpy as np

    arrays = [torch.ones(1 << 16), torch.from_numpy(np.ones(1 << 16)), torch.frombuffer(bytearray(1 << 16), dtype=torch.uint8)]
    kept = [array.clone() for array in arrays]
    forget(*arrays)
    assert all(torch.equal(a, b) for a, b in zip(arrays, kept, strict=True))
    assert not any(map(is_mapped, arrays))


def test_small_tensors_stay_in_memory_and_mapped_ones_where_they_are(tmp_path):
    with placing("disk", tmp_path):
        assert not is_mapped(put(torch.zeros(16)))
        big = put(torch.arange(1 << 16, dtype=torch.float64).reshape(4, -1).T)
        assert is_mapped(big)
        assert big.is_contiguous()
        assert torch.equal(big, torch.arange(1 << 16, dtype=torch.float64).reshape(4, -1).T)
        assert put(big[2:]).data_ptr() == big[2:].data_ptr()


KILLED = """
import sys, time, torch
from pathlib import Path
from fusionbench_lite.adaptation.engine.placement import placing, put
with placing("disk", Path(sys.argv[1])):
    held = put(torch.ones(1 << 20))
print(float(held.sum()), flush=True)
time.sleep(60)
"""


@linux
def test_a_killed_process_leaves_no_file(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == str(float(1 << 20))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not list(tmp_path.iterdir())


def test_a_named_file_is_gone_once_it_is_mapped(tmp_path):
    held = placement._mapped_by_name(torch.Size([300, 400]), torch.float32, 480_000, tmp_path)
    held.fill_(2.0)
    assert is_mapped(held)
    assert not list(tmp_path.iterdir())
    assert float(held.sum()) == 240_000


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with placing("disk", tmp_path), pytest.raises(InputError, match=r"cannot keep 400,000 bytes .*No space left.*") as told:
        put(torch.zeros(100_000))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_bad_places_and_folders(tmp_path):
    with pytest.raises(InputError, match="unknown place 'dsk': did you mean 'disk'"), placing("dsk"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/scratch"), placing("disk", tmp_path / "file" / "scratch"):
        pass


# ---------------------------------------------------------------- two devices


def moved(procedure) -> None:
    """Move what is learned to the second device, as a trainer does; constants stay."""
    merge = procedure.parametrisation
    merge.coefficients = nn.Parameter(merge.coefficients.detach().to(DEVICE), requires_grad=merge.coefficients.requires_grad)
    for part in merge.modules():
        if isinstance(part, Factors):
            part.logits = nn.Parameter(part.logits.detach().to(DEVICE), requires_grad=part.logits.requires_grad)


def descend(method, device, on_device, steps=6, **given):
    """Run steps with model, leaves and batches on one device and the experts in memory; return losses and learnables."""
    generator = torch.Generator().manual_seed(3)
    model = Encoder()
    base = {key: torch.randn(t.shape, generator=generator) for key, t in model.state_dict().items()}
    experts = {
        task: {key: t + 0.3 * torch.randn(t.shape, generator=generator) for key, t in base.items()} for task in ("one", "two")
    }
    matrix = torch.randn(8, 5, generator=generator).to(device)
    inputs = {task: torch.randn(steps, 16, 12, generator=generator) for task in experts}
    configured = registry.get(method, learning=True).configure(**{**RATES.get(method, {"lr": 0.02}), **given})
    learner = registry.get(method, learning=True).function(Experts(base, experts), configured)
    procedure = learner(Context(model.to(device), dict.fromkeys(experts, lambda features: features @ matrix), steps))
    assert all(leaf.device == device for leaf in procedure.encoder.leaves.values())
    if on_device:
        moved(procedure)
    procedure.optimizers()
    found = []
    for step in range(steps):
        batch = {task: Examples(rows[step].to(device)) for task, rows in inputs.items()}
        losses = procedure.step(step, [batch], lambda losses, optimizer: optimizer.step())
        found.append([values(loss.detach()) for loss in losses.values()])
    procedure.refresh(steps)
    features = procedure.encode("one", Examples(inputs["one"][0].to(device))).detach()
    return found, procedure.learned(), procedure.merged(), procedure.masks(), values(features)


TWO_DEVICES = [
    ("adamerging_layerwise", {}), ("adamerging_cart", {}), ("adarank_ta", {}), ("adarank_ta", {"keep": False}),
    ("adarank_tsvm", {"extra": "none"}), ("adarank_iso_cts", {}), ("doge_am", {}),
]


@pytest.mark.parametrize("on_device", [True, False], ids=["learnables moved", "learnables not moved"])
@pytest.mark.parametrize("case", TWO_DEVICES, ids=name)
def test_constants_on_one_device_and_the_model_on_another(case, on_device, monkeypatch):
    """The second device is a pretence: it tells of operations across devices, not of a GPU's bits."""
    method, given = case[0], dict(case[1])
    if given.pop("keep", True) is False:
        monkeypatch.setattr(component_masks.memory, "SHARE", 0.0)
    plain = descend(method, torch.device("cpu"), False, **given)
    with Machine(), placing("cpu"):
        there = descend(method, DEVICE, on_device, **given)
    assert same(tuple(there), tuple(plain))


def test_the_second_device_refuses_what_a_gpu_would():
    with Machine():
        there, here = torch.ones(3).to(DEVICE), torch.ones(3)
        assert there.device == DEVICE
        assert torch.equal(there.cpu(), here)
        assert float((there * 2).sum()) == 6
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(here, here, out=there)
        with pytest.raises(RuntimeError, match="same device"):
            there[torch.tensor([True, False, True])]


def test_parts_built_on_the_device_leave_it():
    """Experts on the device, constants in memory: what is made there is copied away at once."""
    with Machine(), placing("cpu"):
        there = torch.randn(2, 5, 4).to(DEVICE)
        part = Vectors(there[0], there[1:])
        assert part.origin.device.type == part._flat.device.type == "cpu"
        factors = Factors(there[0], *(t.to(DEVICE) for t in (torch.randn(2, 4, 5), torch.rand(2, 4), torch.randn(2, 4, 4))), 3,
                          temperature=10.0)  # fmt: skip
        for tensor in (factors.origin, factors.left, factors.right, factors.values, factors._dense._flat):
            assert tensor.device.type == "cpu"
        out = torch.empty(5, 4, device=DEVICE)
        Sum(part, factors).combine(torch.tensor([1.0, 0.5, 0.2]), out)
        assert isinstance(out, second_device.Elsewhere)
