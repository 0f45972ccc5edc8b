"""State dicts and experts shared by the tests of the spectral and the optimised methods."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.support.helpers import State, expert_of, rng, touched


def _fill(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype, size: float) -> State:
    g = rng(seed)
    return {n: (size * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype) for n, s in shapes.items()}


def hf_clip_state(
    seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 12, layers: int = 1, size: float = 0.05
) -> State:
    """A state dict with the key names of the Hugging Face CLIP vision model, weights of a realistic scale."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 2, 2),
        "vision_model.embeddings.position_embedding.weight": (5, width),
        "vision_model.pre_layrnorm.weight": (width,),
        "vision_model.post_layernorm.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"vision_model.encoder.layers.{layer}."
        for part in ("q", "k", "v", "out"):
            shapes[f"{prefix}self_attn.{part}_proj.weight"] = (width, width)
            shapes[f"{prefix}self_attn.{part}_proj.bias"] = (width,)
        shapes[prefix + "layer_norm1.weight"] = (width,)
        shapes[prefix + "layer_norm1.bias"] = (width,)
        shapes[prefix + "mlp.fc1.weight"] = (2 * width, width)
        shapes[prefix + "mlp.fc1.bias"] = (2 * width,)
        shapes[prefix + "mlp.fc2.weight"] = (width, 2 * width)
    state = _fill(shapes, seed, dtype, size)
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    state["vision_model.encoder.empty.weight"] = torch.zeros(0, width, dtype=dtype)
    state["vision_model.encoder.scale.weight"] = torch.tensor(2.5, dtype=dtype)
    return state


def gpt2_state(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 8, size: float = 0.05) -> State:
    """The key names of GPT-2: Conv1D weights are [in, out], the causal mask is a boolean buffer."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (20, width), "transformer.wpe.weight": (6, width)}
    for layer in range(2):
        prefix = f"transformer.h.{layer}."
        shapes[prefix + "ln_1.weight"] = (width,)
        shapes[prefix + "attn.c_attn.weight"] = (width, 3 * width)
        shapes[prefix + "attn.c_attn.bias"] = (3 * width,)
        shapes[prefix + "attn.c_proj.weight"] = (width, width)
        shapes[prefix + "mlp.c_fc.weight"] = (width, 2 * width)
        shapes[prefix + "mlp.c_proj.weight"] = (2 * width, width)
    shapes["transformer.ln_f.weight"] = (width,)
    state = _fill(shapes, seed, dtype, size)
    state["transformer.h.0.attn.bias"] = torch.ones(6, 6).tril().bool()[None, None]
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4, dtype=dtype)
    return state


TIED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def t5_state(
    seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 8, size: float = 0.05, tied: bool = False
) -> State:
    """The key names of T5; with `tied`, three embedding names are one tensor as in a real state dict."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(TIED, (14, width))
    for side, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for i, attention in enumerate(attentions):
            prefix = f"{side}.block.0.layer.{i}."
            for part in ("q", "k", "v", "o"):
                shapes[f"{prefix}{attention}.{part}.weight"] = (width, width)
            shapes[prefix + "layer_norm.weight"] = (width,)
        prefix = f"{side}.block.0.layer.{len(attentions)}."
        shapes[prefix + "DenseReluDense.wi_0.weight"] = (2 * width, width)
        shapes[prefix + "DenseReluDense.wo.weight"] = (width, 2 * width)
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (6, 2)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    shapes["lm_head.weight"] = (14, width)
    state = _fill(shapes, seed, dtype, size)
    return tie(state) if tied else state


def tie(state: State) -> State:
    """The same state dict with the three embedding names of T5 sharing one tensor."""
    return {n: state[TIED[0]] if n in TIED else v for n, v in state.items()}


FAMILIES = {"hf_clip": hf_clip_state, "gpt2": gpt2_state, "t5": t5_state}


# ---------------------------------------------------------------- experts


def decades(base: State, count: int = 3, seed: int = 100, low: float = 1e-3, high: float = 1e-2) -> dict[str, State]:
    """Experts whose task vectors have the magnitudes of fine-tuned models, from `low` to `high` over the tasks."""
    steps = max(1, count - 1)
    return {f"task{t}": expert_of(base, seed + t, low * (high / low) ** (t / steps)) for t in range(count)}


def lora_experts(base: State, count: int = 3, rank: int = 2, seed: int = 300, size: float = 0.1) -> dict[str, State]:
    """Experts whose 2-D task vectors are products B A of the given rank; nothing else moves."""
    experts = {}
    for t in range(count):
        g, out = rng(seed + t), {n: v.clone() for n, v in base.items()}
        for name in touched(base):
            if base[name].ndim == 2:
                rows, columns = base[name].shape
                left = torch.randn(rows, rank, generator=g, dtype=torch.float64)
                right = torch.randn(rank, columns, generator=g, dtype=torch.float64)
                out[name] = (base[name].double() + size * left @ right).to(base[name].dtype)
        experts[f"task{t}"] = out
    return experts


def still(experts: Mapping[str, State], base: State, where: str) -> dict[str, State]:
    """The experts with zero task vectors: in one "tensor", in one "expert", or in "all"."""
    tasks = list(experts)
    matrices = [n for n in touched(base) if base[n].ndim == 2]
    chosen = matrices[len(matrices) // 2]

    def keep(task: str, name: str) -> bool:
        if where == "all":
            return False
        if where == "expert":
            return task != tasks[-1]
        assert where in ("tensor", "tensor of one expert")
        return name != chosen or (where == "tensor of one expert" and task != tasks[0])

    return {t: {n: v if keep(t, n) else base[n].clone() for n, v in e.items()} for t, e in experts.items()}


def single(tensor: Tensor, name: str = "w") -> State:
    return {name: tensor}
