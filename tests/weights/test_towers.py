"""Image towers are found under any prefix, with wrappers' parts anywhere in their names; two that differ are refused."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights import clip_keys, foreign, prefixes
from tests.support import vision_files
from tests.support.clip_models import input_refused
from tests.support.helpers import State
from tests.support.vision_files import TINY

WHOLE = vision_files.base_state(TINY)
TOWER = {name[7:]: tensor for name, tensor in WHOLE.items() if name.startswith("visual.")}
THEIRS = vision_files.transformers_model(WHOLE)
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "_checkpoint_wrapped_module.")
SCRIPTS = ("net.", "model.", "clip.", "image_encoder.model.", "state_dict.model.", "0.", "backbone.clip_model.")


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


BEFORE = [*SCRIPTS, *WRAPPERS, *(a + b for a, b in itertools.permutations((*WRAPPERS[:3], "model."), 2)), "state_dict.module.net."]


@pytest.mark.parametrize("prefix", BEFORE)
def test_a_whole_model_under_a_prefix(prefix: str) -> None:
    for state, layout in ((WHOLE, "packed"), (THEIRS, "separate")):
        parts, expected = clip_keys.split(prefixed(state, prefix)), clip_keys.split(state)
        assert parts.layout == layout
        assert same(parts.visual, expected.visual)
        assert same(parts.rest, expected.rest)
        assert parts.taken == (prefix,)
        assert expected.taken == ()
    assert same(clip_keys.text_to_open_clip(prefixed(THEIRS, prefix)), clip_keys.text_to_open_clip(THEIRS))


@pytest.mark.parametrize("prefix", ["net.", "module.", "model._orig_mod.", "state_dict.encoder."])
def test_a_bare_tower_under_a_prefix(prefix: str) -> None:
    separate = clip_keys.to_separate(TOWER)
    unnamed = {name.removeprefix("vision_model."): tensor for name, tensor in separate.items()}
    for state in (TOWER, separate, unnamed):
        parts = clip_keys.split(prefixed(state, prefix))
        assert same(clip_keys.as_layout(parts.visual, "packed"), TOWER)
        assert not parts.rest
        assert parts.taken == (prefix,)


def test_parts_of_wrappers_inside_names() -> None:
    """Blocks, the tower and the whole model may each be wrapped, some of them or all, in any order."""
    generator = random.Random(0)
    for state in (WHOLE, THEIRS):
        expected = clip_keys.split(state)
        for _ in range(10):
            wrapped = {}
            for name, tensor in state.items():
                parts = name.split(".")
                for _ in range(generator.randrange(3)):
                    parts.insert(generator.randrange(len(parts)), generator.choice(WRAPPERS)[:-1])
                wrapped[".".join(parts)] = tensor
            found = clip_keys.split(wrapped)
            assert same(found.visual, expected.visual)
            assert same(found.rest, expected.rest)
    compiled = {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in prefixed(WHOLE, "module.").items()}
    assert clip_keys.split(compiled).taken == ("module.", "._orig_mod.")


def test_what_lies_beside_keeps_its_name() -> None:
    head = {"classification_head.weight": torch.zeros(10, 16), "n_averaged": torch.tensor(3)}
    parts = clip_keys.split({**prefixed(WHOLE, "image_encoder.model."), **head})
    assert set(parts.rest) == {name for name in WHOLE if not name.startswith("visual.")} | {"classification_head.weight"}
    twice = clip_keys.split({**prefixed(WHOLE, "model."), "logit_scale": torch.tensor(9.0)})
    assert {float(twice.rest[name]) for name in ("logit_scale", "model.logit_scale")} == {9.0, float(WHOLE["logit_scale"])}


def test_a_projection_nearest_above_belongs_to_the_tower() -> None:
    separate = clip_keys.to_separate(TOWER)
    projection = separate.pop("visual_projection.weight")
    for place in ("", "model.", "model.clip."):
        state = {**prefixed(separate, "model.clip."), f"{place}visual_projection.weight": projection}
        assert same(clip_keys.to_packed(clip_keys.split(state).visual), TOWER)
    other = clip_keys.split({**prefixed(separate, "model.clip."), "text.visual_projection.weight": projection})
    assert "visual_projection.weight" not in other.visual
    assert "text.visual_projection.weight" in other.rest


@pytest.mark.parametrize(("first", "second"), [
    ("student.", "teacher."), ("state_dict.", "state_dict_ema."), ("model.", "ema.module."), ("", "teacher."), ("0.", "1."),
])
def test_two_towers_that_differ(first: str, second: str) -> None:
    other = {name: tensor + 1 for name, tensor in WHOLE.items()}
    both = {**prefixed(WHOLE, first), **prefixed(other, second)}
    one, two = (prefix.replace("module.", "") + "visual" for prefix in (first, second))
    with input_refused("two image towers that differ", f"at '{one}' and at '{two}'", f"tower={one}` or tower={two}$"):
        clip_keys.split(both)
    for choice, state in ((one, WHOLE), (two, other)):  # the fix
        kept = prefixes.chosen(both, choice, "the file")
        assert same(clip_keys.split(kept).visual, clip_keys.split(state).visual)
    shorter = second.rstrip(".").split(".")[0]
    assert same(clip_keys.split(prefixes.chosen(both, shorter, "the file")).visual, clip_keys.split(other).visual)


def test_two_layouts_and_two_bare_towers_in_one_file() -> None:
    with input_refused("two image towers", "'visual'", "'hf.vision_model'"):
        clip_keys.split({**WHOLE, **prefixed(THEIRS, "hf.")})
    both = {**TOWER, **prefixed({name: tensor + 1 for name, tensor in TOWER.items()}, "teacher.")}
    with input_refused(r"at the top of the file \('\.'\) and at 'teacher'", r"tower=\.` or tower=teacher"):
        clip_keys.split(both)
    assert same(clip_keys.split(prefixes.chosen(both, ".", "the file")).visual, TOWER)
    with input_refused("nothing at tower=teahcer", "did you mean 'teacher'?"):
        prefixes.chosen(both, "teahcer", "the file")


def test_one_tower_under_two_names_is_one_tower() -> None:
    """As of a module that keeps its encoder beside the model that has it too."""
    parts = clip_keys.split({**prefixed(WHOLE, "model."), **prefixed(TOWER, "image_encoder.")})
    assert same(parts.visual, TOWER)
    assert set(parts.rest) == {name for name in WHOLE if not name.startswith("visual.")}
    assert parts.twins == ("'image_encoder'",)
    separate = {name: tensor for name, tensor in THEIRS.items() if name.startswith("vision_model.") and "position_ids" not in name}
    parts = clip_keys.split({**prefixed(separate, "encoder."), **prefixed(THEIRS, "model.")})
    assert "visual_projection.weight" in parts.visual  # of the two, the one with the projection beside it
    assert parts.twins == ("'encoder.vision_model'",)


def test_two_names_that_wrappers_make_one() -> None:
    with input_refused("'module.visual.proj'", "'visual.proj'", "under another prefix"):
        clip_keys.split({**WHOLE, "module.visual.proj": WHOLE["visual.proj"]})


@pytest.mark.parametrize(("names", "what"), [
    ({"visual.trunk.blocks.0.attn.qkv.weight": (24, 8), "visual.head.proj.weight": (4, 8)}, "one of timm's"),
    ({"embeddings.cls_token": (1, 1, 8)}, "DINOv2"), ({"vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4)}, "ViT"),
    ({"patch_embed.proj.weight": (8, 3, 4, 4), "blocks.0.attn.qkv.weight": (24, 8)}, "timm or DINO"),
    ({"conv_proj.weight": (8, 3, 4, 4)}, "torchvision"), ({"layer1.0.conv1.weight": (8, 8, 1, 1)}, "a ResNet"),
    ({"visual.blocks.0.mlp.w1.weight": (8, 8)}, "EVA"),
    ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8)}, "text side"),
    ({"token_embedding.weight": (9, 8), "transformer.resblocks.0.ln_1.weight": (8,)}, "text side"),
    ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "a language model"), ({"lm_head.weight": (9, 8)}, "a language model"),
    ({"model.diffusion_model.out.0.weight": (8,)}, "a diffusion model"), ({"state.0.exp_avg": (3,)}, "an optimizer"),
    ({"module._flat_param": (99,)}, "FSDP"), ({"0": (2,), "1": (2,)}, "a list of 2 tensors"),
    ({"fc1.lora_A.weight": (2, 8), "fc1.lora_B.weight": (8, 2)}, "a LoRA adapter"),
])
def test_files_of_other_models_are_known(names: dict[str, tuple[int, ...]], what: str) -> None:
    with input_refused("no image tower of CLIP", what):
        clip_keys.split({name: torch.zeros(shape) for name, shape in names.items()})


@pytest.mark.parametrize(("layout", "changes", "parts"), [
    ("packed", {"conv1.weight": None}, ("lacks 'a.visual.conv1.weight'", "half a tower")),
    ("packed", {"conv1.weight": (384,)}, ("(384,)", "FULL_STATE_DICT", "zero_to_fp32.py")),
    ("packed", {"conv1.weight": (0,)}, ("(0,)", "zero_to_fp32.py")),
    ("packed", {"conv1.weight": (8, 3, 2, 4, 4)}, ("(8, 3, 2, 4, 4)", "[width, 3, patch, patch]")),
    ("packed", {"conv1.bias": (8,)}, ("'a.visual.conv1.bias'", "SigLIP")),
    ("packed", {"attnpool.q_proj.weight": (8, 8)}, ("ResNet",)),
    ("packed", {"transformer.resblocks.0.mlp.c_fc.lora_A.default.weight": (2, 8)}, ("LoRA", "merge_and_unload")),
    ("separate", {"vision_model.embeddings.patch_embedding.weight": None}, ("lacks 'a.visual.embeddings.patch_embedding.weight'",)),
    ("separate", {"vision_model.head.probe": (1, 1, 8)}, ("SigLIP",)),
    ("separate", {"vision_model.encoder.layers.0.self_attn.qkv.weight": (24, 8)}, ("BLIP",)),
])
def test_halves_and_other_towers(layout: str, changes: dict[str, tuple[int, ...] | None], parts: tuple[str, ...]) -> None:
    tower = TOWER if layout == "packed" else clip_keys.to_separate(TOWER)
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.items()}
    assert foreign.half(shapes, layout, "a.visual.") is None
    changed = {name: shape for name, shape in {**shapes, **changes}.items() if shape is not None}
    found = foreign.half(changed, layout, "a.visual.")
    assert found is not None
    for part in parts:
        assert part in ": ".join(found)


def test_whole_models_are_no_halves() -> None:
    for state in (WHOLE, THEIRS):
        parts = clip_keys.split(state)
        assert foreign.half({name: tuple(tensor.shape) for name, tensor in parts.visual.items()}, parts.layout, parts.place) is None
    with pytest.raises(InputError, match="0 tensors"):
        clip_keys.split({})
