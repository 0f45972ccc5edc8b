"""Tiny state dicts with the key sets of GPT-2 and T5: Conv1D weights, integer buffers, tied embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.support.helpers import State, clip_state, expert_of, rng


def _drawer(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    g = rng(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def gpt2_state(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 6, blocks: int = 2) -> State:
    """Conv1D weights are stored [in, out]; the causal mask is uint8, `lm_head.weight` is tied to `wte.weight`."""
    draw = _drawer(seed, dtype)
    state = {"transformer.wte.weight": draw(11, width), "transformer.wpe.weight": draw(5, width)}
    for i in range(blocks):
        block = f"transformer.h.{i}."
        state |= {
            block + "ln_1.weight": draw(width),
            block + "ln_1.bias": draw(width),
            block + "attn.bias": torch.ones(5, 5, dtype=torch.uint8).tril().view(1, 1, 5, 5),
            block + "attn.masked_bias": torch.tensor(-1e4, dtype=dtype),
            block + "attn.c_attn.weight": draw(width, 3 * width),
            block + "attn.c_attn.bias": draw(3 * width),
            block + "attn.c_proj.weight": draw(width, width),
            block + "attn.c_proj.bias": draw(width),
            block + "mlp.c_fc.weight": draw(width, 4 * width),
            block + "mlp.c_fc.bias": draw(4 * width),
            block + "mlp.c_proj.weight": draw(4 * width, width),
        }
    state |= {"transformer.ln_f.weight": draw(width), "transformer.position_ids": torch.arange(5).view(1, 5)}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def t5_state(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 6) -> State:
    """Three names of one embedding, an untied `lm_head`, relative position biases, layers without biases."""
    draw = _drawer(seed, dtype)
    shared = draw(9, width)
    state = {"shared.weight": shared, "encoder.embed_tokens.weight": shared.view(9, width)}
    for part in ("encoder", "decoder"):
        if part == "decoder":
            state["decoder.embed_tokens.weight"] = shared.detach()
        block = f"{part}.block.0.layer.0."
        state |= {
            block + "SelfAttention.q.weight": draw(width, width),
            block + "SelfAttention.v.weight": draw(width, width),
            block + "SelfAttention.relative_attention_bias.weight": draw(4, 2),
            block + "layer_norm.weight": draw(width),
            f"{part}.block.0.layer.1.DenseReluDense.wi_0.weight": draw(2 * width, width),
            f"{part}.block.0.layer.1.DenseReluDense.wo.weight": draw(width, 2 * width),
            f"{part}.final_layer_norm.weight": draw(width),
        }
    return state | {"lm_head.weight": draw(9, width)}


KEY_SETS: dict[str, Callable[..., State]] = {"clip": clip_state, "gpt2": gpt2_state, "t5": t5_state}


def tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of two or more names that share storage, in the order of `state`."""
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            groups.setdefault(tensor.data_ptr(), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def tied_expert_of(base: Mapping[str, Tensor], seed: int, size: float = 0.3) -> State:
    """`base` plus a random task vector, with the same names tied."""
    expert = expert_of(base, seed, size)
    for names in tied(base):
        expert |= dict.fromkeys(names[1:], expert[names[0]])
    return expert


def tied_experts_of(base: Mapping[str, Tensor], count: int = 3, seed: int = 100, size: float = 0.3) -> dict[str, State]:
    return {f"task{t}": tied_expert_of(base, seed + t, size) for t in range(count)}


def loosened(state: Mapping[str, Tensor]) -> State:
    """The same values, every name in memory of its own."""
    return {name: tensor.clone() for name, tensor in state.items()}


# ---------------------------------------------------------------- statistics that Fisher merging and RegMean take


def fisher_of(base: Mapping[str, Tensor], tasks: list[str], seed: int = 7) -> dict[str, State]:
    """A positive diagonal Fisher per task, of another size for each; equal under tied names."""
    out = {}
    for i, task in enumerate(tasks):
        noise = tied_expert_of({n: torch.zeros_like(v) for n, v in base.items()}, seed + i, 1.0)
        for names in tied(base):
            noise |= dict.fromkeys(names, noise[names[0]])
        floats = {n: v for n, v in noise.items() if v.is_floating_point()}
        out[task] = {n: 10.0**i * v.double().square().to(_wide(v)) for n, v in floats.items()}
    return out


def gram_of(
    base: Mapping[str, Tensor], tasks: list[str], names: list[str] | None = None, seed: int = 7, rank: int | None = None
) -> dict[str, State]:
    """Gram matrices of random inputs for 2-D tensors, equal under tied names; the inputs of GPT-2 blocks come first."""
    out: dict[str, State] = {task: {} for task in tasks}
    g = rng(seed)
    for name in names or [n for n, v in base.items() if v.ndim == 2 and v.numel() and v.is_floating_point()]:
        n = base[name].shape[0 if name.startswith("transformer.h.") else 1]
        for task in tasks:
            x = torch.randn(4 * n if rank is None else rank, n, generator=g, dtype=torch.float64)
            out[task][name] = (x.T @ x / len(x)).to(_wide(base[name]))
    for group in tied(base):
        for grams in out.values():
            listed = [name for name in group if name in grams]
            grams |= dict.fromkeys(listed[1:], grams[listed[0]])
    return out


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
