"""Architectures by their numbers against the libraries that build them."""

from __future__ import annotations

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.models.architectures import MODELS, architecture, encoder, of_size
from fusionbench_lite.models.clip_sizes import SIZES

SMALL = clip.ClipSize(image=64, patch=16, width=48, layers=3, heads=3, output=24, text_width=24, text_layers=2, text_heads=2)


def test_layouts_have_the_names_and_the_order_of_the_built_encoders():
    for layout in clip.LAYOUTS:
        own = of_size("small", SMALL, layout)
        assert list(own.tensors.items()) == list(clip.shapes(SMALL, layout).items())
        assert (own.tokens, own.heads, own.image, own.constants) == (17, 3, 64, {})
        alone = of_size("small", SMALL, layout, tower_alone=True)
        assert {**alone.tensors, **alone.constants} == own.tensors
        assert list(alone.constants.values()) == [(48, 24) if layout == "packed" else (24, 48)]
        assert alone.stored == own.stored == alone.leaves + 4 * 48 * 24
    assert of_size("small", SMALL, "packed").parameters == of_size("small", SMALL, "separate").parameters


def test_unknown_names_are_refused():
    for call, match in (
        (lambda: architecture("vit_b23"), "vit_b32"), (lambda: encoder("gtp2"), "unknown model 'gtp2'"),
        (lambda: of_size("x", SMALL, "paked"), "unknown layout 'paked' of a CLIP model: did you mean 'packed'"),
    ):
        with pytest.raises(InputError, match=match):
            call()


def test_what_an_architecture_counts():
    own = of_size("small", SMALL, "packed")
    assert (own.blocks, own.width, own.output, own.count) == (3, 48, 24, 8 + 3 * 12)
    assert list(own.matrices()) == list(own.matrices("attn_mlp"))
    assert len(own.matrices()) == 3 * 4
    assert len(own.matrices("all_2d")) == 3 * 4 + 2
    assert own.perceptrons == 3 * (2 * 4 * 48**2 + 5 * 48)
    assert own.largest == 48 * 3 * 16**2
    assert own.multiplied == own.parameters - sum(shape[0] for shape in own.tensors.values() if len(shape) == 1)
    assert architecture("vit_b32").used == encoder("vit_b32").parameters
    assert architecture("roberta").matrices().keys() == architecture("roberta").matrices("all_2d").keys()
    assert architecture("roberta").matrices().keys() == architecture("roberta").matrices("encoder_linear").keys()
    assert architecture("gpt2").matrices().keys() == architecture("gpt2").matrices("attn_mlp").keys()
    assert set(MODELS) >= {"vit_mini", *SIZES}


@pytest.mark.slow
@pytest.mark.parametrize("model", list(SIZES))
def test_image_towers_are_those_of_the_libraries(model):
    of, size = architecture(model), SIZES[model]
    text = {f"model.{name}": shape for name, shape in clip.text_shapes(size).items() if "transformer." not in name}
    assert of.tensors == text | {f"model.visual.{name}": shape for name, shape in clip.shapes(size, "packed").items()}
    assert of.leftovers == set(text)
    separate = clip.shapes(size, "separate")
    assert list(encoder(model, "separate").tensors.items()) == list(separate.items())
    del separate["visual_projection.weight"]
    assert architecture(f"{model}_hf").tensors == separate


@pytest.mark.slow
def test_the_embedded_encoder_is_built_as_it_is_described():
    """On torch's meta device, which allocates nothing."""
    import torch

    from fusionbench_lite.models.mini import build

    with torch.device("meta"):
        built = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    assert list(built.items()) == list(architecture("vit_mini").tensors.items())


@pytest.mark.slow
def test_the_others_are_those_of_transformers():
    import torch

    transformers = pytest.importorskip("transformers")
    vision = transformers.CLIPVisionConfig(patch_size=32)
    with torch.device("meta"):
        models = {
            "vit_b32_hf": transformers.CLIPVisionModel(vision),
        }
        for model, module in models.items():
            real = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
            ours = architecture(model).tensors
            # transformers 5 dropped CLIP's outer prefix.
            strip = {name.removeprefix("vision_model."): shape for name, shape in real.items()}
            for name, shape in ours.items():
                assert strip.get(name.removeprefix("vision_model.")) == shape, (model, name)
