"""A model that is stored quantised is told from the names and types of its tensors."""

from __future__ import annotations

import pytest

from fusionbench_lite.weights.quantised import sign

QUANTISED = {
    "bitsandbytes, 8 bits": ("fc.weight", {"ln.weight": "F32", "fc.weight": "I8", "fc.SCB": "F32", "fc.weight_format": "U8"}),
    "bitsandbytes, 4 bits": ("fc.weight", {"fc.weight": "U8", "fc.weight.absmax": "F32", "fc.weight.quant_map": "F32"}),
    "bitsandbytes, nested": (
        "fc.weight", {"fc.weight": "U8", "fc.weight.absmax": "U8", "fc.weight.quant_state.bitsandbytes__nf4": "U8"},
    ),
    "GPTQ": ("fc.qweight", {"fc.qweight": "I32", "fc.scales": "F16", "fc.qzeros": "I32", "fc.g_idx": "I32"}),
    "AWQ": ("fc.qweight", {"fc.bias": "F16", "fc.qweight": "I32", "fc.scales": "F16"}),
    "EETQ": ("fc.qweight", {"fc.qweight": "I8", "fc.weight_scales": "F16"}),
    "EXL2": ("fc.q_weight", {"fc.q_weight": "I32", "fc.q_scale": "I32", "fc.q_scale_max": "F16"}),
    "HQQ": ("fc.W_q", {"fc.W_q": "U8", "fc.scale": "F16", "fc.zero": "F16"}),
    "HQQ, packed": ("fc.W_q", {"fc.W_q": "I32"}),
    "compressed-tensors": ("fc.weight", {"fc.weight": "I8", "fc.weight_scale": "BF16"}),
    "compressed-tensors, packed": (
        "fc.weight_packed", {"fc.weight_packed": "I32", "fc.weight_scale": "BF16", "fc.weight_shape": "I64"},
    ),
    "torchao": ("fc.weight:_qdata", {"fc.weight:_qdata": "I8", "fc.weight:_scale": "F32"}),
    "torchao, flattened": ("fc._weight_qdata", {"fc._weight_qdata": "I8", "fc._weight_scale": "F32"}),
    "quanto": ("fc.weight._data", {"fc.weight._data": "I8", "fc.weight._scale": "F32", "fc.input_scale": "F32"}),
    "GGUF": ("blk.0.attn_q.weight", {"blk.0.attn_norm.weight": "F32", "blk.0.attn_q.weight": "U8"}),
    "MXFP4": ("mlp.up_proj_blocks", {"mlp.up_proj_blocks": "U8", "mlp.up_proj_scales": "U8", "mlp.up_proj_bias": "BF16"}),
    "MLX": ("fc.weight", {"fc.weight": "U32", "fc.scales": "F16", "fc.biases": "F16"}),
    "NVFP4": ("fc.weight", {"fc.weight": "U8", "fc.weight_scale": "F8_E4M3", "fc.weight_scale_2": "F32"}),
    "AQLM": ("fc.codes", {"fc.codes": "I8", "fc.codebooks": "F16", "fc.scales": "F16"}),
    "QuIP#": ("fc.Qidxs", {"fc.Qidxs": "I64", "fc.SU": "F16"}),
    "packed projections": ("attn.in_proj_weight", {"attn.in_proj_weight": "I8", "attn.in_proj_scale": "F32"}),
    "words of 16 bits": ("fc.weight", {"fc.weight": "I16", "fc.weight.scale": "F32"}),
    "no module": ("weight", {"weight": "I8", "SCB": "F32"}),
    "zero points": ("fc.weight", {"fc.weight": "I8", "fc.weight_zero_point": "I8"}),
    "a name of its own": ("table", {"table": "I8", "table_scale": "F32"}),
    "fp8 with a scale": ("fc.weight", {"fc.weight_scale": "F32", "fc.weight": "F8_E4M3"}),
    **{kind: ("x", {"y": "F64", "x": kind}) for kind in ("F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F6_E2M3", "F4")},
}
PLAIN = {
    "CLIP": {"visual.proj": "F32", "logit_scale": "F32", "embeddings.position_ids": "I64"},
    "BatchNorm": {"bn.weight": "F32", "bn.running_var": "F32", "bn.num_batches_tracked": "I64", "bn.scale": "F32"},
    "Swin": {"attn.relative_position_index": "I64", "attn.logit_scale": "F32"},
    "an index of 32 bits beside a scale": {"attn.relative_position_index": "I32", "attn.scale": "F32"},
    "masks beside a scale": {"attn.bias": "U8", "attn.causal_mask": "U8", "attn.scale": "F32"},
    "counters beside a scale": {"ema.steps": "I32", "ema.num_updates": "I32", "ema.scale": "F32"},
    "codebook of a tokeniser": {"quantizer.codebook": "F32", "quantizer.indices": "I64"},
    "ActNorm of VQGAN and Glow": {"norm.loc": "F32", "norm.scale": "F32", "norm.initialized": "U8"},
    "scales of other modules": {"a.scale": "F32", "b.position_ids": "I32", "b.table": "U8"},
    "every wide type": {kind: kind for kind in ("F64", "F32", "F16", "BF16", "BOOL", "I64", "C64")},
    "nothing": {},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_are_told_by_the_first_tensor_of_codes(kind: str) -> None:
    expected, dtypes = QUANTISED[kind]
    found = sign(dtypes)
    assert found is not None
    assert found[0] == expected
    assert dtypes[expected] in found[1]


def test_the_evidence_names_the_scale() -> None:
    assert sign({"fc.weight": "I8", "fc.SCB": "F32"}) == ("fc.weight", "I8 values beside 'fc.SCB'")
    assert sign({"fc.weight": "F8_E4M3"}) == ("fc.weight", "F8_E4M3 values")


@pytest.mark.parametrize("kind", PLAIN)
def test_buffers_of_full_precision_models_are_no_codes(kind: str) -> None:
    assert sign(PLAIN[kind]) is None
