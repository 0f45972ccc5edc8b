"""The classes of packages that are gone, for the length of a pickling: what published modules were made of."""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize

State = dict[str, Tensor]


def _module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
        if isinstance(value, type) or callable(value):
            value.__module__, value.__qualname__ = name, attribute
    return module


class Legacy:
    """The legacy classes, made anew for every file so that none outlives its package."""

    def __init__(self, modeling: str) -> None:
        class ClassificationHead(nn.Linear):
            def __init__(self, normalize: bool, weights: Tensor) -> None:
                super().__init__(weights.shape[1], weights.shape[0])
                self.normalize = normalize
                self.weight = nn.Parameter(weights.clone())
                self.bias = nn.Parameter(torch.zeros_like(self.bias))

        def _convert_to_rgb(image: Any) -> Any:
            return image.convert("RGB")

        names = ("CLIP", "VisualTransformer", "Transformer", "ResidualAttentionBlock", "LayerNorm", "QuickGELU")
        self.open_clip = {name: type(name, (nn.LayerNorm if name == "LayerNorm" else nn.Module,), {}) for name in names}
        self.ImageEncoder, self.ClassificationHead = type("ImageEncoder", (nn.Module,), {}), ClassificationHead
        self.rgb = _convert_to_rgb
        self.modules = {
            "src": _module("src"), "src.models": _module("src.models"),
            modeling: _module(modeling, ImageEncoder=self.ImageEncoder, ClassificationHead=ClassificationHead),
            "open_clip.model": _module("open_clip.model", **self.open_clip),
            "open_clip.transform": _module("open_clip.transform", _convert_to_rgb=self.rgb),
        }

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """The classes can be found by pickle during the block, and not after it."""
        import open_clip  # noqa: F401

        before = {name: sys.modules.get(name) for name in self.modules}
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name, module in before.items():
                if module is None:
                    sys.modules.pop(name)
                else:
                    sys.modules[name] = module

    def encoder(self, entries: State, size: ClipSize) -> nn.Module:
        """The image encoder of the release with these entries."""
        make = self.open_clip
        visual = make["VisualTransformer"]()
        visual.input_resolution, visual.output_dim = size.image, size.output
        visual.conv1 = nn.Conv2d(3, size.width, size.patch, stride=size.patch, bias=False)
        tokens = (size.image // size.patch) ** 2 + 1
        visual.class_embedding = nn.Parameter(torch.zeros(size.width))
        visual.positional_embedding = nn.Parameter(torch.zeros(tokens, size.width))
        visual.ln_pre, visual.transformer = make["LayerNorm"](size.width), make["Transformer"]()
        visual.transformer.resblocks = nn.ModuleList(self._block(size) for _ in range(size.layers))
        visual.ln_post, visual.proj = make["LayerNorm"](size.width), nn.Parameter(torch.zeros(size.width, size.output))
        model = make["CLIP"]()
        model.visual, model.vocab_size = visual, size.vocabulary
        model.token_embedding = nn.Embedding(size.vocabulary, size.text_width)
        model.positional_embedding = nn.Parameter(torch.zeros(size.context, size.text_width))
        model.ln_final = make["LayerNorm"](size.text_width)
        model.text_projection = nn.Parameter(torch.zeros(size.text_width, size.output))
        model.logit_scale = nn.Parameter(torch.zeros([]))
        model.register_buffer("attn_mask", torch.full((size.context, size.context), float("-inf")).triu_(1), persistent=False)
        encoder = self.ImageEncoder()
        encoder.model, encoder.cache_dir = model, None
        encoder.train_preprocess, encoder.val_preprocess = self._transform(size, True), self._transform(size, False)
        encoder.load_state_dict(entries)
        return encoder

    def _block(self, size: ClipSize) -> nn.Module:
        make, block = self.open_clip, self.open_clip["ResidualAttentionBlock"]()
        block.ln_1, block.attn = make["LayerNorm"](size.width), nn.MultiheadAttention(size.width, size.heads)
        block.ln_attn, block.ln_2 = nn.Identity(), make["LayerNorm"](size.width)
        parts = [("c_fc", nn.Linear(size.width, 4 * size.width)), ("ln", nn.Identity()), ("gelu", make["QuickGELU"]()),
                 ("c_proj", nn.Linear(4 * size.width, size.width))]
        block.mlp = nn.Sequential(OrderedDict(parts))
        return block

    def _transform(self, size: ClipSize, train: bool) -> Any:
        from torchvision import transforms as T

        bicubic = T.InterpolationMode.BICUBIC
        first = [T.RandomResizedCrop(size.image, scale=(0.9, 1.0), interpolation=bicubic)] if train else [
            T.Resize(size.image, interpolation=bicubic), T.CenterCrop(size.image),
        ]
        return T.Compose([*first, self.rgb, T.ToTensor(), T.Normalize(clip.MEAN, clip.STD)])


def save(content: Any, path: Path, container: str = "zip") -> None:
    """Write a pickled file: "zip" and "legacy" are torch.save's formats, "pickle" is pickle's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the old format looks for the source code of every class
            torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
