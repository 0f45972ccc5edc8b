"""Names and shapes of language models without torch: those of the encoders that transformers' classes give."""

from __future__ import annotations

import math

import pytest
import torch

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)
from fusionbench_lite import resources
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import language, language_shapes
from fusionbench_lite.planning.counts import learned
from fusionbench_lite.resources import Inputs
from fusionbench_lite.weights.architecture import Architecture

CONFIGS = {
    "gpt2": {"model_type": "gpt2"}, "roberta": {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1,
                                                "vocab_size": 50265},
    "minilm": {
        "model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12,
    },
    "flan_t5_base": {
        "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "flan_t5_large": {
        "model_type": "t5", "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
}  # fmt: skip
"""What the published config.json files say of the sizes."""
ODD = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 3, "n_inner": 40, "n_positions": 20, "vocab_size": 30},
    "t5": {"model_type": "t5", "d_model": 20, "d_kv": 3, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 30},
    "bert": {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "vocab_size": 30},
}


def built(config: dict) -> tuple[dict[str, tuple[int, ...]], language.Encoder]:
    """Names and shapes of the tensors that a checkpoint merges, each once, on torch's meta device, which allocates nothing."""
    options = {"vocabulary": True} if config["model_type"] == "t5" else {}
    with torch.device("meta"):
        encoder = language.build(config, **options)
    merged = encoder.merged(dict(encoder.named_parameters()))
    return {name: tuple(tensor.shape) for name, tensor in merged.items()}, encoder


@pytest.mark.parametrize("config", [*CONFIGS.values(), *ODD.values()], ids=[*CONFIGS, *(f"odd {name}" for name in ODD)])
def test_names_and_shapes_are_those_of_transformers(config):
    real, encoder = built(config)
    size = language_shapes.size_of(config)
    ours = language_shapes.of_size("x", size)
    assert ours.tensors == real
    assert not ours.constants
    blocks = language_shapes.of_size("x", size, tensors="blocks")
    assert set(blocks.tensors) == set(encoder.merged(real, embeddings=False))
    assert blocks.tensors | blocks.constants == real
    assert blocks.stored == ours.stored
    assert language_shapes.BODIES[size.kind] == encoder.BODY


def test_the_named_models_have_the_published_sizes():
    for name, config in CONFIGS.items():
        assert language_shapes.SIZES[name] == language_shapes.size_of(config), name
    counts = {name: language_shapes.of_size(name, language_shapes.SIZES[name]).parameters for name in CONFIGS}
    assert counts == {
        "gpt2": 124_439_808, "roberta": 124_055_040, "minilm": 22_713_216, "flan_t5_base": 247_577_856,
        "flan_t5_large": 783_150_080,
    }
    with pytest.raises(InputError, match="unknown language model 'gpt3': did you mean 'gpt2'"):
        language_shapes.size_of({"model_type": "gpt3"})


def blocks_of(name: str) -> Architecture:
    return language_shapes.of_size(name, language_shapes.SIZES[name], tensors="blocks", tokens=512)


@pytest.mark.parametrize(("model", "coefficients", "logits"), [("gpt2", 1_022, 258_048), ("roberta", 1_344, 387_072)])
def test_what_adarank_learns_is_what_its_code_learns(model, coefficients, logits):
    counts = learned(blocks_of(model), 7, "adarank_cart").counts
    assert counts == {"coefficients": coefficients, "mask logits": logits}


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "bert", "t5"])
def test_states_that_autograd_keeps_are_those_that_it_keeps(kind):
    """The estimate of what a block keeps, on small models of two depths."""
    wide, tokens, examples = 48, 24, 3
    of = {
        "gpt2": {"n_positions": 40, "n_embd": wide, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
        "t5": {"d_model": wide, "d_kv": 12, "d_ff": 128, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    }.get(kind, {"hidden_size": wide, "num_attention_heads": 4, "intermediate_size": 4 * wide, "max_position_embeddings": 40})
    ids = torch.randint(2, 20, (examples, tokens), generator=torch.Generator().manual_seed(0))

    def kept(layers: int) -> int:
        depth = {"gpt2": "n_layer", "t5": "num_layers"}.get(kind, "num_hidden_layers")
        encoder = language.build({"model_type": kind, "vocab_size": 50, **of, depth: layers}).eval()
        own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
        seen: dict[int, int] = {}
        alive = []

        def keep(tensor):
            alive.append(tensor)
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        return sum(nbytes for place, nbytes in seen.items() if place not in own)

    found = (kept(3) - kept(1)) / 2
    size = language_shapes.size_of({"model_type": kind, "vocab_size": 50, **of})
    estimate = language_shapes.of_size("x", size, tokens=tokens).kept * examples * tokens * wide * 4
    assert found == pytest.approx(estimate, rel=0.1)


def test_a_plan_of_a_language_model():
    """Operations by hand: 2 per product, of AdaRank's GPT-2 at 512 tokens about 15 TFLOP a step with its gradient."""
    of = blocks_of("gpt2")
    plan = resources.estimate(Inputs(
        encoder=of, method="adarank_cart", tasks=7, batch_size=8, steps=10, device="cpu", test_images=100, classes=(2,) * 7,
    ))
    linear, attention = 12 * 7_077_888 * 512, 12 * 2 * 512**2 * 768
    assert plan.flops.image == 2 * (linear + attention + 768**2)
    passes = 56 * 3 * plan.flops.image
    assert passes == pytest.approx(15e12, rel=0.15)
    assert plan.flops.step > passes * 0.9
    inputs = next(entry for entry in plan.entries if entry.what == "images of a step")
    assert inputs.nbytes == 2 * 56 * 512 * 16
    t5 = language_shapes.of_size("t5", language_shapes.SIZES["flan_t5_base"], tokens=64)
    encoder = sum(math.prod(s) for n, s in t5.tensors.items() if n.startswith("encoder.block") and len(s) == 2 and "bias" not in n)
    assert t5.products == encoder + 12 * 2 * 768**2
    assert resources.estimate(Inputs(encoder=t5, method="task_arithmetic", tasks=8, device="cpu")).peak() > t5.stored
