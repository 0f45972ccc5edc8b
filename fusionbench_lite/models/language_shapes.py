"""The architectures of language models from their numbers: names and shapes of tensors. Never imports torch.

Checked against transformers in the tests. Names are those of `models.language`'s encoders, without heads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.weights.architecture import Architecture, Shape

Named = Iterator[tuple[str, Shape]]

BODIES = {
    "gpt2": ("transformer.h.", "transformer.ln_f."), "roberta": ("roberta.encoder.",), "bert": ("bert.encoder.",),
    "t5": ("encoder.block.", "encoder.final_layer_norm.", "decoder.block.", "decoder.final_layer_norm."),
    "llama": ("model.layers.", "model.norm."),
}
"""How the names of the blocks' tensors begin, and of a norm after them: those of `tensors="blocks"`."""

KEPT = {"gpt2": 28.2, "roberta": 16.2, "bert": 16.2, "t5": 30.7, "llama": 30.7}
"""States [tokens, width] that autograd keeps of a block (resources.transformer.SAVED), counted in transformers' models. T5's
decoder, which runs one position, adds its keys and values, and its attention is not fused: its weights are kept too. Llama's is
not counted: it is taken for T5's, whose perceptron is gated alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageSize:
    """`kind` is transformers' model_type. `inner` is the width inside a block's perceptron, `attention` that of all heads
    together, `keys` that of the heads of keys where several share one, `positions` the number of learned positions (of T5 the
    buckets of distances, of Llama the longest text), `types` that of segments."""

    kind: str
    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    types: int = 0
    attention: int | None = None
    gated: bool = True
    keys: int | None = None
    tied: bool = False

    @property
    def inside(self) -> int:
        """The width of all heads together."""
        return self.width if self.attention is None else self.attention


SIZES = {
    "gpt2": LanguageSize(kind="gpt2", layers=12, width=768, heads=12, inner=3072, vocabulary=50257, positions=1024),
    "roberta": LanguageSize(
        kind="roberta", layers=12, width=768, heads=12, inner=3072, vocabulary=50265, positions=514, types=1
    ),
    "minilm": LanguageSize(kind="bert", layers=6, width=384, heads=12, inner=1536, vocabulary=30522, positions=512, types=2),
    "flan_t5_base": LanguageSize(
        kind="t5", layers=12, width=768, heads=12, inner=2048, vocabulary=32128, positions=32, attention=768
    ),
    "flan_t5_large": LanguageSize(
        kind="t5", layers=24, width=1024, heads=16, inner=2816, vocabulary=32128, positions=32, attention=1024
    ),
    "text_mini_encoder": LanguageSize(
        kind="roberta", layers=2, width=64, heads=4, inner=128, vocabulary=504, positions=66, types=1
    ),
    "text_mini_decoder": LanguageSize(kind="gpt2", layers=2, width=64, heads=4, inner=128, vocabulary=502, positions=64),
    "text_mini_seq2seq": LanguageSize(
        kind="t5", layers=2, width=64, heads=4, inner=128, vocabulary=503, positions=16, attention=64, gated=False
    ),
    "text_mini_llama": LanguageSize(
        kind="llama", layers=2, width=64, heads=4, inner=128, vocabulary=503, positions=64, attention=64, keys=32
    ),
    "llama2_13b": LanguageSize(
        kind="llama", layers=40, width=5120, heads=40, inner=13824, vocabulary=32000, positions=4096, attention=5120, keys=5120
    ),
}


def size_of(config: Mapping[str, Any]) -> LanguageSize:
    """Return the numbers in a checkpoint's config.json, transformers' defaults where it has none.

    Raises InputError for another `model_type`.
    """
    kind, get = config.get("model_type"), config.get
    if kind == "gpt2":
        width = get("n_embd", 768)
        return LanguageSize(
            kind="gpt2", layers=get("n_layer", 12), width=width, heads=get("n_head", 12), inner=get("n_inner") or 4 * width,
            vocabulary=get("vocab_size", 50257), positions=get("n_positions", 1024),
        )
    if kind in ("roberta", "bert"):
        usual = {"roberta": 50265, "bert": 30522}[kind]
        return LanguageSize(
            kind=kind, layers=get("num_hidden_layers", 12), width=get("hidden_size", 768), heads=get("num_attention_heads", 12),
            inner=get("intermediate_size", 3072), vocabulary=get("vocab_size", usual),
            positions=get("max_position_embeddings", 512), types=get("type_vocab_size", 2),
        )
    if kind == "llama":
        width, heads = get("hidden_size", 4096), get("num_attention_heads", 32)
        a_head = get("head_dim") or width // heads
        return LanguageSize(
            kind="llama", layers=get("num_hidden_layers", 32), width=width, heads=heads, inner=get("intermediate_size", 11008),
            vocabulary=get("vocab_size", 32000), positions=get("max_position_embeddings", 2048), attention=heads * a_head,
            keys=(get("num_key_value_heads") or heads) * a_head, tied=bool(get("tie_word_embeddings", False)),
        )
    if kind == "t5":
        heads = get("num_heads", 8)
        return LanguageSize(
            kind="t5", layers=get("num_layers", 6), width=get("d_model", 512), heads=heads, inner=get("d_ff", 2048),
            vocabulary=get("vocab_size", 32128), positions=get("relative_attention_num_buckets", 32),
            attention=heads * get("d_kv", 64), gated=str(get("feed_forward_proj", "relu")).startswith("gated"),
            tied=get("tie_word_embeddings", True) is not False,
        )
    raise InputError(f"unknown language model {kind!r}: {did_you_mean(str(kind), BODIES)}")


def of_size(name: str, size: LanguageSize, *, tensors: str = "all", tokens: int = 128) -> Architecture:
    """Return the encoder of these numbers that reads so many tokens; a model that answers has its vocabulary inside.

    `tensors`: "all" that are no head's, or the "blocks" alone, beside which the others are constants ("blocks_on_mean" is
    the same for plans).
    """
    found = dict({"gpt2": _gpt2, "roberta": _bert, "bert": _bert, "t5": _t5, "llama": _llama}[size.kind](size))
    merged = {n: s for n, s in found.items() if tensors == "all" or n.startswith(BODIES[size.kind])}
    layout = "all but the head" if tensors == "all" else "blocks alone"
    weights = size.heads * tokens / size.width if size.kind == "t5" else 0.0
    return Architecture(
        name=name, layout=layout, tensors=merged, constants={n: s for n, s in found.items() if n not in merged},
        blocks=size.layers, width=size.width, output=size.vocabulary if size.kind in ("t5", "llama") else size.width,
        policy="block_linear", heads=size.heads, tokens=tokens, products=_products(size, found), kept=KEPT[size.kind] + weights,
    )


def _products(size: LanguageSize, tensors: Mapping[str, Shape]) -> int:
    """Return the multiplications of a token of the inputs; a decoder's one position counts with its keys and values alone."""
    return sum(
        math.prod(shape) for name, shape in tensors.items()
        if len(shape) == 2 and name.startswith(BODIES[size.kind]) and "bias" not in name
        and (not name.startswith("decoder.") or name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight")))
    )


def _affine(name: str, shape: Shape) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _conv1d(name: str, shape: Shape) -> Named:
    """transformers' Conv1D, whose weight is [inputs, outputs]."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[1:]


def _gpt2(size: LanguageSize) -> Named:
    width = size.width
    yield "transformer.wte.weight", (size.vocabulary, width)
    yield "transformer.wpe.weight", (size.positions, width)
    for number in range(size.layers):
        block = f"transformer.h.{number}"
        yield from _affine(f"{block}.ln_1", (width,))
        yield from _conv1d(f"{block}.attn.c_attn", (width, 3 * width))
        yield from _conv1d(f"{block}.attn.c_proj", (width, width))
        yield from _affine(f"{block}.ln_2", (width,))
        yield from _conv1d(f"{block}.mlp.c_fc", (width, size.inner))
        yield from _conv1d(f"{block}.mlp.c_proj", (size.inner, width))
    yield from _affine("transformer.ln_f", (width,))


def _bert(size: LanguageSize) -> Named:
    root, width = size.kind, size.width
    yield f"{root}.embeddings.word_embeddings.weight", (size.vocabulary, width)
    yield f"{root}.embeddings.position_embeddings.weight", (size.positions, width)
    yield f"{root}.embeddings.token_type_embeddings.weight", (size.types, width)
    yield from _affine(f"{root}.embeddings.LayerNorm", (width,))
    for number in range(size.layers):
        block = f"{root}.encoder.layer.{number}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _affine(f"{block}.{part}", (width, width))
        yield from _affine(f"{block}.attention.output.LayerNorm", (width,))
        yield from _affine(f"{block}.intermediate.dense", (size.inner, width))
        yield from _affine(f"{block}.output.dense", (width, size.inner))
        yield from _affine(f"{block}.output.LayerNorm", (width,))
    if root == "bert":
        yield from _affine("bert.pooler.dense", (width, width))


def _t5(size: LanguageSize) -> Named:
    width = size.width
    yield "shared.weight", (size.vocabulary, width)
    for stack, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for number in range(size.layers):
            block = f"{stack}.block.{number}.layer"
            for place, kind in enumerate(attentions):
                for part in ("q", "k", "v"):
                    yield f"{block}.{place}.{kind}.{part}.weight", (size.inside, width)
                yield f"{block}.{place}.{kind}.o.weight", (width, size.inside)
                if number == place == 0:
                    yield f"{block}.0.{kind}.relative_attention_bias.weight", (size.positions, size.heads)
                yield f"{block}.{place}.layer_norm.weight", (width,)
            place = len(attentions)
            for part in ("wi_0", "wi_1") if size.gated else ("wi",):
                yield f"{block}.{place}.DenseReluDense.{part}.weight", (size.inner, width)
            yield f"{block}.{place}.DenseReluDense.wo.weight", (width, size.inner)
            yield f"{block}.{place}.layer_norm.weight", (width,)
        yield f"{stack}.final_layer_norm.weight", (width,)
    if not size.tied:
        yield "lm_head.weight", (size.vocabulary, width)


def _llama(size: LanguageSize) -> Named:
    width, keys = size.width, size.inside if size.keys is None else size.keys
    yield "model.embed_tokens.weight", (size.vocabulary, width)
    for number in range(size.layers):
        block = f"model.layers.{number}"
        yield f"{block}.self_attn.q_proj.weight", (size.inside, width)
        for part in ("k_proj", "v_proj"):
            yield f"{block}.self_attn.{part}.weight", (keys, width)
        yield f"{block}.self_attn.o_proj.weight", (width, size.inside)
        for part in ("gate_proj", "up_proj"):
            yield f"{block}.mlp.{part}.weight", (size.inner, width)
        yield f"{block}.mlp.down_proj.weight", (width, size.inner)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{part}.weight", (width,)
    yield "model.norm.weight", (width,)
    if not size.tied:
        yield "lm_head.weight", (size.vocabulary, width)
