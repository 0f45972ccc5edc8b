"""Random CLIP models and experts, written file by file as their publishers write them.

All of a seed and a size share one base. Experts differ from it in the image tower alone (FusionBench's: without the projection) by
small random numbers, so that merging them makes sense; the text side is the base's to the bit. `base_state` and `expert_state`
give the tensors that files are written from, under open_clip's names, to compare with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from fusionbench_lite.checkpoints.families import PACKAGED, family_of
from fusionbench_lite.models import clip
from fusionbench_lite.models.clip import ClipSize
from tests.support.legacy_modules import Legacy, save

State = dict[str, Tensor]
TINY = ClipSize(
    image=32, patch=16, width=32, layers=2, heads=2, output=16, text_width=24, text_layers=1, text_heads=2, vocabulary=64
)
"""Milliseconds to write and to read; set `vocabulary` to 49408 where heads are built from prompts."""
TEXT_FIRST, TEXT_LAST = ("positional_embedding", "text_projection", "logit_scale"), (
    "token_embedding.weight", "ln_final.weight", "ln_final.bias",
)


# ---------------------------------------------------------------- weights


def base_state(size: ClipSize, seed: int = 0) -> State:
    """A whole CLIP under open_clip's names, in float32 values that float16 can hold, as OpenAI's weights are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = clip.build(size, "packed").state_dict()
        text = clip.build_text(size).state_dict()
        state = {**{f"visual.{name}": tensor for name, tensor in visual.items()}, **text}
        for tensor in state.values():  # biases and norms start at 0 and 1, which would hide exchanged ones
            if tensor.dim() == 1:
                tensor += 0.05 * torch.randn_like(tensor)
    return {name: tensor.half().float() for name, tensor in state.items()}


def expert_state(size: ClipSize, task: str, seed: int = 0, spread: float = 0.02, frozen_projection: bool = False) -> State:
    """The base with small differences in the image tower, of the task's own."""
    state = base_state(size, seed)
    generator = torch.Generator().manual_seed(int(hashlib.sha256(f"{seed} {task}".encode()).hexdigest()[:8], 16))
    for name, tensor in state.items():
        if name.startswith("visual.") and not (frozen_projection and name == "visual.proj"):
            state[name] = tensor + spread * tensor.std().clamp_min(0.1) * torch.randn(tensor.shape, generator=generator)
    return state


def head_weight(size: ClipSize, task: str, classes: int, seed: int = 0, norm: float = 100.0) -> Tensor:
    """Rows of one norm [classes, output]."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(f"{seed} head {task}".encode()).hexdigest()[:8], 16))
    return norm * nn.functional.normalize(torch.randn(classes, size.output, generator=generator), dim=1)


def encoder_entries(state: State) -> State:
    """The 158 (B) or 302 (L) entries of an image encoder with prefix `model.`, in the releases' order."""
    visual = [name for name in state if name.startswith("visual.")]
    return {f"model.{name}": state[name].clone() for name in (*TEXT_FIRST, *visual, *TEXT_LAST)}


def transformers_tower(state: State, prefix: str = "vision_model.") -> State:
    """The image tower under transformers' names without projection; written apart from the package's own map."""
    tower = {name[7:]: tensor for name, tensor in state.items() if name.startswith("visual.") and name != "visual.proj"}
    return _transformers_side(tower, prefix)


def transformers_model(state: State) -> State:
    """A whole CLIPModel, with the position_ids that old files carry."""
    text = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    scale, projection = text.pop("logit_scale"), text.pop("text_projection")
    tower = transformers_tower(state)
    tokens = tower["vision_model.embeddings.position_embedding.weight"].shape[0]
    return {
        "logit_scale": scale, "text_model.embeddings.position_ids": torch.arange(text["positional_embedding"].shape[0])[None],
        **_transformers_side(text, "text_model."), "vision_model.embeddings.position_ids": torch.arange(tokens)[None], **tower,
        "visual_projection.weight": state["visual.proj"].T.contiguous(), "text_projection.weight": projection.T.contiguous(),
    }


_RENAMED = [
    (r"^transformer\.resblocks\.", "encoder.layers."), (r"\.ln_(\d)\.", r".layer_norm\1."), (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."), (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."), (r"^ln_final\.", "final_layer_norm."), (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"), (r"^(class_|token_)", r"embeddings.\1"),
]


def _transformers_side(state: State, prefix: str) -> State:
    out: State = {}
    for name, tensor in state.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        if "in_proj_" in name:
            rows = len(tensor) // 3
            for number, part in enumerate("qkv"):
                out[prefix + name.replace("in_proj_", f"{part}_proj.")] = tensor[number * rows:(number + 1) * rows].clone()
        else:
            out[prefix + name] = tensor.clone()
    return out


# ---------------------------------------------------------------- files of modules


def write_module_head(
    path: Path, weight: Tensor, modeling: str = "src.modeling", container: str = "zip", normalize: bool = True
) -> None:
    """A pickled ClassificationHead."""
    legacy = Legacy(modeling)
    with legacy.importable():
        save(legacy.ClassificationHead(normalize, weight), path, container)


def write_module_encoder(path: Path, state: State, size: ClipSize, modeling: str = "src.modeling", container: str = "zip") -> None:
    """A pickled ImageEncoder with its preprocessing."""
    legacy = Legacy(modeling)
    with legacy.importable():
        save(legacy.encoder(encoder_entries(state), size), path, container)


# ---------------------------------------------------------------- releases


def classes_of(task: str, variant: str = "tall") -> int:
    """The number of classes of a published task."""
    from fusionbench_lite.models.text_heads import prompts

    return len(prompts(task, variant).classnames)


def write_ta(
    root: Path, model: str, tasks: tuple[str, ...], size: ClipSize, seed: int = 0, *, container: str = "zip", heads: bool = True,
    zeroshot: bool = True, spread: float = 0.02,
) -> None:
    """<root>/ViT-B-32/{zeroshot.pt, head_MNIST.pt, MNIST/finetuned.pt}: the tree of Task Arithmetic and of its hub copy."""
    family = family_of("ta")
    folder = root / family.archs[model]
    if zeroshot:
        write_module_encoder(folder / "zeroshot.pt", base_state(size, seed), size, container=container)
    for task in tasks:
        name = family.tasks[task]
        write_module_encoder(folder / name / "finetuned.pt", expert_state(size, task, seed, spread), size, container=container)
        if heads:
            write_module_head(folder / f"head_{name}.pt", head_weight(size, task, classes_of(task), seed), container=container)


def write_tall(
    root: Path, model: str, tasks: tuple[str, ...], size: ClipSize, seed: int = 0, *, heads: bool = True, zeroshot: bool = True,
    model_name: bool = False, spread: float = 0.02, folder: str | None = None,
) -> None:
    """<root>/single_task/ViT-B-32/{head_MNISTVal.pt, MNISTVal/nonlinear_finetuned.pt}; `folder` spells the model's otherwise."""
    family = family_of("tall")
    top = root / "single_task" / (folder or family.archs[model])
    extra = {"model_name": family.archs[model]} if model_name else {}
    if zeroshot:
        save({**encoder_entries(base_state(size, seed)), **extra}, top / "MNISTVal" / "nonlinear_zeroshot.pt")
    for task in tasks:
        name = f"{family.tasks[task]}Val"
        entries = OrderedDict({**encoder_entries(expert_state(size, task, seed, spread)), **extra})
        save(entries, top / name / "nonlinear_finetuned.pt")
        if heads:
            write_module_head(top / f"head_{name}.pt", head_weight(size, task, classes_of(task), seed), "src.models.modeling")


def write_fusionbench(
    root: Path, model: str, tasks: tuple[str, ...], size: ClipSize, seed: int = 0, *, prefixed: bool = True, spread: float = 0.02
) -> None:
    """<root>/tanganke/clip-vit-base-patch32_mnist/{config.json, model.safetensors}; `prefixed` as transformers 4 writes them."""
    family = family_of("fusionbench")
    for task in tasks:
        folder = root / "tanganke" / f"{family.archs[model]}_{family.tasks[task]}"
        folder.mkdir(parents=True, exist_ok=True)
        state = transformers_tower(expert_state(size, task, seed, spread, True), "vision_model." if prefixed else "")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(vision_config(size), indent=1))


def vision_config(size: ClipSize) -> dict[str, Any]:
    """The config.json of a vision tower."""
    return {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_act": "quick_gelu",
        "hidden_size": size.width, "image_size": size.image, "intermediate_size": 4 * size.width, "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers, "patch_size": size.patch, "projection_dim": size.output, "torch_dtype": "float32",
    }


def write_timm(root: Path, model: str, size: ClipSize, seed: int = 0, *, form: str = "safetensors") -> None:
    """<root>/timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors, or with form="bin" open_clip_pytorch_model.bin."""
    folder = root / family_of("ta").bases[model].repo
    folder.mkdir(parents=True, exist_ok=True)
    state = base_state(size, seed)
    if form == "safetensors":
        save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    else:
        save(OrderedDict(state), folder / "open_clip_pytorch_model.bin")


def write_openai(root: Path, model: str, size: ClipSize, seed: int = 0, *, form: str = "bin") -> None:
    """<root>/openai/clip-vit-base-patch32/pytorch_model.bin, or with form="safetensors" model.safetensors; a whole CLIPModel."""
    folder = root / family_of("fusionbench").bases[model].repo
    folder.mkdir(parents=True, exist_ok=True)
    state = transformers_model(base_state(size, seed))
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        save(OrderedDict(state), folder / "pytorch_model.bin")


def write_manifests(folder: Path) -> Path:
    """Family files without the sizes and hashes of the published files, for `Request.manifest`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGED:
        content = yaml.safe_load(family_of(name).path.read_text())
        for place in content["places"]:
            place.pop("files", None)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder
