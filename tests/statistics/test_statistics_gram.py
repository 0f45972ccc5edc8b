"""Gram matrices of the inputs of linear layers against loops written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusionbench_lite import models
from fusionbench_lite.statistics import gram_matrices
from tests.support.small_models import inputs, perceptron


def test_gram_equals_a_loop_over_tokens():
    torch.manual_seed(0)
    model, x = models.build("vit_mini"), torch.randn(5, 3, 32, 32)
    found = gram_matrices(model, x.split(2))
    assert set(found) == {f"transformer.resblocks.{i}.mlp.{part}.weight" for i in range(4) for part in ("c_fc", "c_proj")}
    block, seen = model.transformer.resblocks[0], []
    handle = block.ln_2.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    model.eval()(x)
    handle.remove()
    tokens = seen[0].reshape(-1, 128).double().numpy()
    assert len(tokens) == 5 * 17
    hidden = block.mlp.gelu(block.mlp.c_fc(seen[0])).detach().reshape(-1, 512).double().numpy()
    for part, rows in (("c_fc", tokens), ("c_proj", hidden)):
        expected = np.zeros((rows.shape[1], rows.shape[1]))
        for row in rows:
            expected += np.outer(row, row)
        gram = found[f"transformer.resblocks.0.mlp.{part}.weight"]
        assert gram.dtype == torch.float32
        assert torch.equal(gram, gram.T)
        np.testing.assert_allclose(gram, expected / len(rows), rtol=1e-4, atol=1e-5)


def test_gram_does_not_depend_on_batches_or_order():
    model, x = perceptron(), inputs(9)
    one, other = gram_matrices(model, [x]), gram_matrices(model, x.flip(0).split(2))
    np.testing.assert_allclose(one["first.weight"], (x.T @ x / 9), rtol=1e-6)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_gram_of_conv1d_has_the_size_of_its_first_dimension():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model, x = nn.Sequential(pytorch_utils.Conv1D(6, 4), nn.Linear(6, 2)), torch.randn(3, 5, 4)
    found = gram_matrices(model, [x])
    assert model[0].weight.shape == (4, 6)
    torch.testing.assert_close(found["0.weight"], sum(torch.outer(row, row) for row in x.reshape(-1, 4)) / 15)
    assert found["1.weight"].shape == (6, 6)


def test_gram_lists_the_layers_that_are_called():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.idle, self.used = nn.MultiheadAttention(4, 2), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.again = self.used
            self.tied = nn.Linear(4, 4, bias=False)
            self.tied.weight = self.used.weight

        def forward(self, x):
            return self.used(input=self.attention(x, x, x)[0]), self.tied(x)

    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(2, 3, 4)
    found = gram_matrices(model, [x])
    assert set(found) == {"used.weight", "again.weight", "tied.weight"}
    y = model.attention(x, x, x)[0].detach()
    rows = torch.cat([y.reshape(-1, 4), x.reshape(-1, 4)])  # all that the one weight sees
    for gram in found.values():
        torch.testing.assert_close(gram, rows.T @ rows / 12)
