"""Layouts of CLIP's models: open_clip's, transformers', and the own one.

Where the text side of the pretrained model is at hand a folder holds the whole CLIP, else the image tower alone. Heads of the tasks
are in heads.safetensors (`<task>/weight` [C, d], rows of length 1) with the names of their classes in heads.json.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusionbench_lite import checkpoints
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import encoders, heads
from fusionbench_lite.exporting.layouts import Layout, own_layout, transformers_quietly
from fusionbench_lite.exporting.own import alone, read
from fusionbench_lite.exporting.proving import Loaded
from fusionbench_lite.models.clip import MEAN, STD
from fusionbench_lite.models.clip_sizes import SIZES, ClipSize
from fusionbench_lite.suites.clip.requests import layout_of, request_of
from fusionbench_lite.weights.clip_keys import as_layout, text_to_separate
from fusionbench_lite.weights.readers import SafetensorsWeights

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.exporting.forms import Form
    from fusionbench_lite.exporting.remaking import Remade

OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
CLASSES = "heads.json"
Text = Mapping[str, Tensor]


def layouts(made: Remade, progress: Progress) -> tuple[Layout, ...]:
    """Return open_clip's layout, where there is a text side, which its class needs, transformers', and the own one."""
    size = SIZES[made.plan.model]
    path = checkpoints.find(request_of(made.plan.wanted), progress).text
    text = None if path is None else dict(SafetensorsWeights(path))
    own = own_layout(encoders.of_images(made.plan, made.suite))
    if text is None:
        said = "The text side of the pretrained model is not at hand: this is the image tower alone."
        return (
            dataclasses.replace(_transformers(size, None), says=(said,)), dataclasses.replace(own, says=(said, *own.says)),
        )
    open_clip = Layout(
        name="open_clip", write=functools.partial(_write_open_clip, size, text), load=_load_open_clip, usage=_usage_open_clip,
        says=("The image tower is the merged one, the text side that of the pretrained model.",),
    )
    return open_clip, _transformers(size, text), own


def _transformers(size: ClipSize, text: Text | None) -> Layout:
    return Layout(
        name="transformers", write=functools.partial(_write_transformers, size, text),
        load=functools.partial(_load_transformers, text is not None),
        usage=functools.partial(_usage_transformers, text is not None),
        says=("The image tower is the merged one, the text side that of the pretrained model, whose tokenizer is CLIP's own.",),
    )


def _tower(made: Remade, form: Form, layout: str) -> dict[str, Tensor]:
    whole = encoders.whole_state(made.suite, form.weights)
    present = layout_of(made.plan.wanted)
    return dict(whole) if present == layout else as_layout(whole, layout, "the merged model")


def _write_heads(made: Remade, tasks: tuple[str, ...], folder: Path) -> None:
    from safetensors.torch import save_file

    chosen = {task: made.suite.heads[task] for task in tasks}
    save_file(heads.tensors(chosen), folder / heads.FILE)
    said = {task: heads.described(task, head, made.suite.tasks[task].classes) for task, head in chosen.items()}
    (folder / CLASSES).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _loaded(made: Remade, tasks: tuple[str, ...], folder: Path, encode: Any) -> dict[str, Loaded]:
    """Return models of all tasks from one encoder and the written heads."""
    said, stored = json.loads((folder / CLASSES).read_text(encoding="utf-8")), read(folder / heads.FILE)
    return {
        task: Loaded(encode=encode, head=heads.placed(heads.rebuilt(task, said[task], stored), made.suite.device)) for task in tasks
    }


# open_clip -----------------------------------------------------------------------------------------------------------


def _write_open_clip(size: ClipSize, text: Text, made: Remade, form: Form, tasks: tuple[str, ...], folder: Path) -> None:
    from safetensors.torch import save_file

    visual = {f"visual.{name}": tensor for name, tensor in _tower(made, form, "packed").items()}
    save_file(alone({**visual, **text}), folder / OPEN_CLIP, metadata={"format": "pt"})
    model = {
        "embed_dim": size.output, "quick_gelu": True,
        "vision_cfg": {
            "image_size": size.image, "layers": size.layers, "width": size.width, "patch_size": size.patch,
            "head_width": size.width // size.heads,
        },
        "text_cfg": {
            "context_length": size.context, "vocab_size": size.vocabulary, "width": size.text_width, "heads": size.text_heads,
            "layers": size.text_layers,
        },
    }
    preprocess = {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest", "size": size.image}
    content = json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}, indent=1)
    (folder / OPEN_CLIP_CONFIG).write_text(content + "\n", encoding="utf-8")
    _write_heads(made, tasks, folder)


def _load_open_clip(made: Remade, tasks: tuple[str, ...], folder: Path) -> dict[str, Loaded]:
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip, which imports torchvision)

    # isort: split

    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").to(made.suite.device).eval()
    return _loaded(made, tasks, folder, model.encode_image)


def _usage_open_clip(folder: str, task: str) -> str:
    return (
        "import open_clip\nfrom safetensors.torch import load_file\n\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms({'local-dir:' + folder!r})\n"
        "features = model.encode_image(images, normalize=True)  # of preprocess(image), [B, 3, H, W]\n"
        f"head = load_file({folder + '/' + heads.FILE!r})[{task + '/weight'!r}]  # [C, d], classes in heads.json\n"
        "logits = 100 * features @ head.T"
    )


# transformers --------------------------------------------------------------------------------------------------------


def _write_transformers(
    size: ClipSize, text: Text | None, made: Remade, form: Form, tasks: tuple[str, ...], folder: Path
) -> None:
    transformers = transformers_quietly()

    vision = transformers.CLIPVisionConfig(
        hidden_size=size.width, intermediate_size=4 * size.width, projection_dim=size.output, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, image_size=size.image, patch_size=size.patch, hidden_act="quick_gelu",
    )
    state = _tower(made, form, "separate")
    if text is None:
        model: Any = transformers.CLIPVisionModelWithProjection(vision)
    else:
        texts = transformers.CLIPTextConfig(
            hidden_size=size.text_width, intermediate_size=4 * size.text_width, projection_dim=size.output,
            num_hidden_layers=size.text_layers, num_attention_heads=size.text_heads, max_position_embeddings=size.context,
            vocab_size=size.vocabulary, hidden_act="quick_gelu", bos_token_id=size.vocabulary - 2, eos_token_id=size.vocabulary - 1,
            pad_token_id=size.vocabulary - 1,
        )
        model = transformers.CLIPModel(transformers.CLIPConfig(
            text_config=texts.to_dict(), vision_config=vision.to_dict(), projection_dim=size.output,
        ))
        state |= text_to_separate(text)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"transformers' class has other tensors than the merged model: {str(error).splitlines()[-1]}") from None
    model.save_pretrained(folder)
    sides = {"height": size.image, "width": size.image}
    transformers.CLIPImageProcessor(
        size={"shortest_edge": size.image}, crop_size=sides, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
    _write_heads(made, tasks, folder)


def _load_transformers(whole: bool, made: Remade, tasks: tuple[str, ...], folder: Path) -> dict[str, Loaded]:
    transformers = transformers_quietly()
    name = "CLIPModel" if whole else "CLIPVisionModelWithProjection"
    model = getattr(transformers, name).from_pretrained(folder).to(made.suite.device).eval()

    def encode(images: Any) -> Tensor:
        pooled = model.vision_model(pixel_values=images).pooler_output
        features: Tensor = model.visual_projection(pooled)
        return features

    return _loaded(made, tasks, folder, encode)


def _usage_transformers(whole: bool, folder: str, task: str) -> str:
    name = "CLIPModel" if whole else "CLIPVisionModelWithProjection"
    features = (
        "features = model.get_image_features(pixel_values=images).pooler_output" if whole
        else "features = model(pixel_values=images).image_embeds"
    )
    return (
        f"from safetensors.torch import load_file\nfrom transformers import CLIPImageProcessor, {name}\n\n"
        f"model = {name}.from_pretrained({folder!r})\n"
        f"images = CLIPImageProcessor.from_pretrained({folder!r})(image, return_tensors='pt')['pixel_values']\n"
        f"{features}  # [B, d]\n"
        f"head = load_file({folder + '/' + heads.FILE!r})[{task + '/weight'!r}]  # [C, d], classes in heads.json\n"
        "logits = 100 * features / features.norm(dim=-1, keepdim=True) @ head.T"
    )
