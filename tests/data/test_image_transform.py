"""The transform of images: open_clip's to the bit where it is open_clip's, transformers' to one grey level."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data.vision import decoding

# ---------------------------------------------------------------- the transform


def images_of_all_kinds():
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (60, 91, 3), dtype=np.uint8)
    smooth = Image.fromarray(rgb).resize((180, 120), Image.Resampling.BICUBIC)
    yield "rgb", smooth
    yield "large", Image.fromarray(rng.integers(0, 256, (501, 376, 3), dtype=np.uint8))
    yield "odd", smooth.resize((225, 301))
    yield "even", smooth.resize((224, 226))
    yield "grey", smooth.convert("L")
    yield "grey with alpha", smooth.convert("LA")
    alpha = smooth.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (120, 180), dtype=np.uint8)))
    yield "rgba", alpha
    yield "palette", smooth.convert("P", palette=Image.Palette.ADAPTIVE)
    yield "one bit", smooth.convert("1")
    yield "cmyk", smooth.convert("CMYK")
    yield "tiny", Image.fromarray(rgb[:1, :1])
    yield "two pixels", Image.fromarray(rgb[:1, :2])
    yield "wide", Image.fromarray(np.tile(rgb, (1, 20, 1)))
    yield "high", Image.fromarray(np.tile(rgb, (20, 1, 1))[:, :7])


KINDS = dict(images_of_all_kinds())


@pytest.fixture(scope="module")
def open_clip_transform():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    import open_clip

    return open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def processors():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    import transformers

    wanted = [getattr(transformers, name, None) for name in ("CLIPImageProcessorPil", "CLIPImageProcessor")]
    return [kind(do_normalize=False, do_rescale=False) for kind in wanted if kind is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_those_of_open_clip(open_clip_transform, kind):
    expected = (open_clip_transform(KINDS[kind].convert("RGB")) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(decoding.square(KINDS[kind]), expected)


# Where the margin is odd, transformers rounds the place of the crop down and torchvision to even: up to one pixel apart.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "odd"])
def test_squares_are_those_of_transformers_to_one_grey_level(processors, kind):
    ours = decoding.square(KINDS[kind]).astype(int)
    for processor in processors:
        # Newer versions lay transparent images on white; the training code dropped the alpha channel.
        given = KINDS[kind].convert("RGB") if kind == "rgba" else KINDS[kind]
        found = np.asarray(processor(given, return_tensors="np")["pixel_values"][0])
        assert np.abs(found.transpose(1, 2, 0).round() - ours).max() <= 1, type(processor).__name__


def test_an_extreme_line_does_not_fill_the_memory():
    line = np.zeros((1, 6000, 3), np.uint8)
    line[0, 2990:3010] = np.random.default_rng(0).integers(0, 256, (20, 3))
    whole = Image.fromarray(line[:, 2900:3100]).resize((200 * 224, 224), Image.Resampling.BICUBIC)
    middle = (200 * 224 - 224) // 2
    expected = np.asarray(whole.crop((middle, 0, middle + 224, 224))).astype(int)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = decoding.square(Image.fromarray(line)).astype(int)
    assert np.abs(ours - expected).max() <= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes; the whole line takes 900 MB
