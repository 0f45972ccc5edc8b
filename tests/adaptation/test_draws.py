"""Random numbers of the methods: functions of their key, the same bits as ever on the processor, drawn where they are used."""

from __future__ import annotations

import pytest
import torch

from fusionbench_lite.adaptation import draws
from fusionbench_lite.adaptation.learners import concrete


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_the_processor_draws_what_it_always_drew(device):
    """Records of Concrete's methods keep their numbers."""
    want = torch.rand(7, 5, generator=torch.Generator().manual_seed(draws.seed_of(3, "concrete", "conv1.weight", 0) % 2**63))
    assert torch.equal(draws.uniform((7, 5), 3, "concrete", "conv1.weight", 0, device=device), want)
    assert torch.equal(draws.open_uniform((7, 5), 3, "concrete", "conv1.weight", 0, device=device), want.clamp(2**-24, 1 - 2**-24))
    assert not torch.equal(draws.uniform((7, 5), 3, "concrete", "conv1.weight", 1, device=device), want)


def test_a_mask_is_drawn_on_the_device_of_its_tensor(monkeypatch):
    seen = []

    def uniform(shape, *key, device=None):
        seen.append((tuple(shape), key, device))
        return draws.open_uniform(shape, *key)

    monkeypatch.setattr(concrete, "open_uniform", uniform)
    origin = torch.zeros(3, 2)
    masked = concrete.Masked(origin, torch.ones(2, 3, 2), 0.5, (0, "concrete", "w"))
    masked.sample(4)
    masked.sample(4)
    assert seen == [((3, 2), (0, "concrete", "w", 4), origin.device)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_by_the_key_as_well():
    device = torch.device("cuda")
    first, again, other = (draws.open_uniform((1000,), 0, "w", number, device=device) for number in (1, 1, 2))
    assert first.device.type == "cuda"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 < float(first.min()) < float(first.max()) < 1
