"""The key maps between open_clip and transformers: equal outputs, round trips to the bit, errors that name the key."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize
from fusionbench_lite.weights import clip_keys
from tests.support import vision_files
from tests.support.vision_files import TINY

SIZES = [
    TINY, dataclasses.replace(TINY, width=48, heads=3, layers=3, output=40), ClipSize(
        image=28, patch=7, width=64, layers=1, heads=4, output=64, text_width=32, text_layers=2, text_heads=4, vocabulary=50
    ),
]


def visual(size: ClipSize, seed: int = 0) -> dict[str, torch.Tensor]:
    state = vision_files.base_state(size, seed)
    return {name[7:]: tensor for name, tensor in state.items() if name.startswith("visual.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def outputs(size: ClipSize, layout: str, state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    model = clip.build(size, layout)
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        return model.eval()(images)


@pytest.mark.parametrize("size", SIZES)
def test_towers_agree(size: ClipSize) -> None:
    state, images = visual(size), torch.randn(3, 3, size.image, size.image, generator=torch.Generator().manual_seed(1))
    packed, separate = (outputs(size, "packed", state, images), outputs(size, "separate", clip_keys.to_separate(state), images))
    assert float((packed - separate).abs().max()) < 1e-5
    assert float(packed.std()) > 0.05


def test_exact_gelu_differs() -> None:
    """The control: with another activation the comparison above would fail."""
    from open_clip.transformer import VisionTransformer

    state, images = visual(TINY), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exact = VisionTransformer(
        image_size=32, patch_size=16, width=TINY.width, layers=TINY.layers, heads=TINY.heads, mlp_ratio=4.0, output_dim=TINY.output,
    )
    exact.load_state_dict(state)
    with torch.inference_mode():
        other = exact.eval()(images)
    assert float((other - outputs(TINY, "separate", clip_keys.to_separate(state), images)).abs().max()) > 1e-4


@pytest.mark.parametrize("swap", [("q_proj", "k_proj"), ("k_proj", "v_proj")])
def test_exchanged_parts_differ(swap: tuple[str, str]) -> None:
    """A map that took q, k and v by position of transformers' state dict (k, v, q) would not agree."""
    state, images = visual(TINY), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mapped = clip_keys.to_separate(state)
    exchanged = {}
    for name in mapped:
        other = name.replace(swap[0], "?").replace(swap[1], swap[0]).replace("?", swap[1])
        exchanged[name] = mapped[other]
    difference = outputs(TINY, "separate", exchanged, images) - outputs(TINY, "packed", state, images)
    assert float(difference.abs().max()) > 1e-4


def test_text_towers_agree() -> None:
    from transformers import CLIPConfig, CLIPModel

    size = dataclasses.replace(TINY, vocabulary=100)
    state = vision_files.base_state(size)
    full = vision_files.transformers_model(state)
    config = CLIPConfig(
        text_config={
            "vocab_size": 100, "hidden_size": size.text_width, "intermediate_size": 4 * size.text_width, "hidden_act": "quick_gelu",
            "num_hidden_layers": size.text_layers, "num_attention_heads": size.text_heads, "max_position_embeddings": size.context,
            "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 1,
        },
        vision_config=vision_files.vision_config(size), projection_dim=size.output,
    )
    theirs = CLIPModel(config)
    missing, unexpected = theirs.load_state_dict(full, strict=False)
    assert not missing
    assert all(name.endswith("position_ids") for name in unexpected)
    ours = clip.build_text(size)
    ours.load_state_dict(clip_keys.text_to_open_clip(full), strict=True)
    tokens = torch.randint(2, 90, (4, size.context), generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(4), torch.tensor([5, 9, 30, 76])] = 99  # the end of the text is the largest token
    with torch.inference_mode():
        expected = theirs.eval().get_text_features(input_ids=tokens).pooler_output
        found = ours.eval()(tokens)
    assert float((found - expected).abs().max()) < 1e-5
    assert same(clip_keys.text_of_open_clip(state), clip_keys.text_to_open_clip(full))


@given(
    width=st.integers(1, 9), layers=st.integers(0, 4), output=st.integers(1, 7), patch=st.integers(1, 3), projection=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_round_trip_is_exact(width: int, layers: int, output: int, patch: int, projection: bool, dtype: torch.dtype) -> None:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    packed = {
        "class_embedding": draw(width), "positional_embedding": draw(5, width), "conv1.weight": draw(width, 3, patch, patch),
        **{f"ln_{end}.{kind}": draw(width) for end in ("pre", "post") for kind in ("weight", "bias")},
    }
    for i in range(layers):
        p = f"transformer.resblocks.{i}."
        for name, shape in {
            "ln_1": (width,), "ln_2": (width,), "attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            packed |= {f"{p}{name}.weight": draw(*shape), f"{p}{name}.bias": draw(shape[0])}
        packed |= {f"{p}attn.in_proj_weight": draw(3 * width, width), f"{p}attn.in_proj_bias": draw(3 * width)}
    if projection:
        packed["proj"] = draw(width, output)
    separate = clip_keys.to_separate(packed)
    assert same(clip_keys.to_packed(separate), packed)
    assert same(clip_keys.to_separate(clip_keys.to_packed(separate)), separate)
    assert len(separate) == len(packed) + 4 * layers


def test_counts_and_names_are_the_models() -> None:
    for name, size in clip.SIZES.items():
        packed, separate = clip.shapes(size, "packed"), clip.shapes(size, "separate")
        assert (len(packed), len(separate)) == ((296, 392) if name == "vit_l14" else (152, 200))
        meta = {key: torch.empty(shape, device="meta") for key, shape in packed.items()}
        assert {key: tuple(value.shape) for key, value in clip_keys.to_separate(meta).items()} == separate
        meta = {key: torch.empty(shape, device="meta") for key, shape in separate.items()}
        assert {key: tuple(value.shape) for key, value in clip_keys.to_packed(meta).items()} == packed


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual.", "module.model.visual."])
def test_prefixes_of_open_clip(prefix: str) -> None:
    state = visual(TINY)
    prefixed = {prefix + name: tensor for name, tensor in state.items()} | {prefix + "attn_mask": torch.zeros(2)}
    parts = clip_keys.split(prefixed)
    assert parts.layout == "packed"
    assert not parts.rest
    assert same(parts.visual, state)
    assert same(clip_keys.to_separate(prefixed), clip_keys.to_separate(state))


@pytest.mark.parametrize("prefix", ["", "vision_model.", "model.vision_model."])
@pytest.mark.parametrize("projection", [True, False])
def test_prefixes_of_transformers(prefix: str, projection: bool) -> None:
    state = visual(TINY)
    separate = clip_keys.to_separate(state)
    proj = separate.pop("visual_projection.weight")
    prefixed = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in separate.items()}
    prefixed[prefix + "embeddings.position_ids"] = torch.arange(5)
    if projection:
        prefixed["visual_projection.weight"] = proj
    packed = clip_keys.to_packed(prefixed)
    assert same(packed, {name: tensor for name, tensor in state.items() if projection or name != "proj"})


def test_whole_models_are_taken_apart() -> None:
    state = vision_files.base_state(TINY)
    ours, theirs = clip_keys.split(state), clip_keys.split(vision_files.transformers_model(state))
    assert (ours.layout, theirs.layout) == ("packed", "separate")
    assert same(clip_keys.to_separate(ours.visual), theirs.visual)
    assert set(ours.rest) == set(clip.text_shapes(TINY))
    assert not any(name.startswith("vision") for name in theirs.rest)
    encoder = clip_keys.split(vision_files.encoder_entries(state))
    assert set(encoder.rest) == set(clip_keys.TEXT_SIDE)
    assert same(encoder.visual, ours.visual)


def test_as_layout_checks_what_it_leaves() -> None:
    state = visual(TINY)
    assert same(clip_keys.as_layout(state, "packed"), state)
    assert same(clip_keys.as_layout(clip_keys.to_separate(state), "packed"), state)
    del state["transformer.resblocks.1.ln_2.bias"]
    with refusal("ln_2.bias"):
        clip_keys.as_layout(state, "packed")


def refusal(*parts: str):  # type: ignore[no-untyped-def]
    import contextlib

    @contextlib.contextmanager
    def check():  # type: ignore[no-untyped-def]
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message, message

    return check()


def test_bad_keys_are_named() -> None:
    state = visual(TINY)
    block = "transformer.resblocks.0."

    def without(name: str) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in state.items() if key != name}

    def renamed(name: str, other: str) -> dict[str, torch.Tensor]:
        return {other if key == name else key: tensor for key, tensor in state.items()}

    with refusal("lacks 'ln_post.bias'", "an expert"):
        clip_keys.to_separate(without("ln_post.bias"), "an expert")
    with refusal(f"lacks '{block}mlp.c_fc.weight'", f"did you mean '{block}mlp.cfc.weight'?"):
        clip_keys.to_separate(renamed(f"{block}mlp.c_fc.weight", f"{block}mlp.cfc.weight"))
    with refusal("'lora.weight'"):
        clip_keys.to_separate(state | {"lora.weight": torch.zeros(1)})
    with refusal("'transformer.resblocks.1."):  # a gap in the numbers of the blocks
        clip_keys.to_separate({name.replace("resblocks.1.", "resblocks.7."): tensor for name, tensor in state.items()})
    with refusal("in_proj_weight", "(95, 32)"):
        clip_keys.to_separate(state | {f"{block}attn.in_proj_weight": torch.zeros(95, 32)})
    with refusal("in_proj_bias"):
        clip_keys.to_separate(state | {f"{block}attn.in_proj_bias": torch.zeros(96, 1)})
    with refusal("'proj'", "(32,)"):
        clip_keys.to_separate(state | {"proj": torch.zeros(32)})
    separate = clip_keys.to_separate(state)
    name = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    with refusal("k_proj.weight", "(32, 31)", "(32, 32)"):
        clip_keys.to_packed(separate | {name: torch.zeros(32, 31)})
    with refusal("separate layout, not the packed one"):
        clip_keys.to_separate(separate)
    with refusal("packed layout, not the separate one"):
        clip_keys.to_packed(state)
    with refusal("no image tower of CLIP", "2 tensors"):
        clip_keys.split({"weight": torch.zeros(1), "bias": torch.zeros(1)})
    with refusal("no image tower of CLIP", "0 tensors"):
        clip_keys.split({})
    with refusal("under another prefix"):
        clip_keys.split(state | {"module.proj": state["proj"]})
    with refusal("'model.proj', which is no tensor of this tower", "keep one of the two"):
        clip_keys.to_separate(state | {"model.proj": state["proj"]})
    with refusal("beside its image tower"):
        clip_keys.to_separate(vision_files.base_state(TINY))
    with refusal("text_projection.weight"):
        clip_keys.text_to_open_clip(separate)
    full = vision_files.transformers_model(vision_files.base_state(TINY))
    del full["text_model.final_layer_norm.bias"]
    with refusal("text_model.final_layer_norm.bias"):
        clip_keys.text_to_open_clip(full)
    with refusal("transformer.resblocks.0."):
        clip_keys.text_of_open_clip(vision_files.encoder_entries(vision_files.base_state(TINY)))
