"""What a file holds that is no image tower of CLIP, told from the names and shapes of its tensors, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

GIVE = "give a CLIP ViT-B/32, ViT-B/16 or ViT-L/14 of open_clip or transformers"
MERGE_FIRST = "add it to its model first (peft: merge_and_unload()) and save the state_dict() of that"
FULL = "save the full state dict (FSDP: FULL_STATE_DICT; DeepSpeed: its zero_to_fp32.py), and give that"
"""What helps where a process kept a part of every tensor, or all tensors in one."""
WHOLE = "give the file of the whole model"
_VIT = "a vision transformer that is no CLIP"
_INSIDE: tuple[tuple[str, str, str], ...] = (
    (r"(^|\.)(lora_(A|B|embedding_[AB]|magnitude_vector|up|down)|hada_w|lokr_w|oft_[rR])", "a LoRA adapter", MERGE_FIRST),
    (r"(^|\.)_?flat_param", "a model that FSDP keeps in one tensor", FULL),
    (r"(^|\.)visual\.attnpool\.|(^|\.)visual\.layer[1-4]\.", "a CLIP whose image tower is a ResNet", GIVE),
    (r"(^|\.)head\.probe$", "a SigLIP", GIVE),
    (r"(^|\.)vision_model\.encoder\.layers\.\d+\.self_attn\.qkv\.", "a BLIP", GIVE),
)
"""Pattern of a name, what the file is then, and what to do; the first that any name has counts. These may be in a tower."""
_OTHERS = (
    (r"(^|\.)(exp_avg(_sq)?|momentum_buffer)$", "the state of an optimizer, without a model", "give the checkpoint of the model"),
    (r"(^|\.)visual\.trunk\.", "a CLIP of open_clip whose image tower is one of timm's", GIVE),
    (r"(^|\.)layer[1-4]\.\d+\.conv1\.", "a ResNet", GIVE),
    (r"(^|\.)visual\.blocks\.", "an EVA-CLIP", GIVE),
    (r"(^|\.)(qformer|query_tokens|visual_encoder)\b", "a BLIP", GIVE),
    (r"(^|\.)layer_scale1\.lambda1$", f"DINOv2 of transformers, {_VIT}", GIVE),
    (r"(^|\.)embeddings\.(cls_token|patch_embeddings\.projection\.weight)$", f"DINOv2, ViT or DeiT of transformers, {_VIT}", GIVE),
    (r"(^|\.)(patch_embed\.proj\.weight|blocks\.\d+\.attn\.qkv\.weight)$", f"a ViT of timm or DINO, {_VIT}", GIVE),
    (r"(^|\.)(conv_proj\.weight|encoder\.layers\.encoder_layer_\d+\..*)$", f"a ViT of torchvision, {_VIT}", GIVE),
    (r"(^|\.)(down_blocks|mid_block|diffusion_model|first_stage_model)\.", "a diffusion model", GIVE),
    (r"(^|\.)(text_model\.|token_embedding\.weight$)", "the text side of a CLIP alone", WHOLE),
    (
        r"(^|\.)(lm_head|embed_tokens|wte|word_embeddings|shared)\.weight$|(^|\.)(layers|h|block)\.\d+\.(self_attn|attn|layer)\.",
        "a language model", "merge it as it is from Python, fbl.merge or fbl.merge_files; convert knows image encoders and heads",
    ),
)


def named(shapes: Shapes) -> tuple[str, str]:
    """Return what a file is that has no image tower, and what to do; both in words."""
    found = known(shapes)
    if found is not None:
        return found
    if shapes and all(name.isdecimal() for name in shapes):
        return f"a list of {len(shapes)} tensors without names", "give a state dict, which has them"
    shown = f"{len(shapes)} tensors" + (f", first {next(iter(shapes))!r}" if shapes else "")
    return (
        f"{shown}; neither visual.conv1.weight (open_clip) nor vision_model.embeddings.patch_embedding.weight (transformers) is "
        "among its names", GIVE,
    )


def known(names: Iterable[str]) -> tuple[str, str] | None:
    """Return what a file is by names that are none of CLIP's, and what to do; None where none is known."""
    names = list(names)
    for pattern, what, fix in (*_INSIDE, *_OTHERS):
        if any(re.search(pattern, name) for name in names):
            return what, fix
    return None


def half(shapes: Shapes, layout: str, prefix: str) -> tuple[str, str] | None:
    """Return what is wrong with the tower of a file, and what to do, before it is compared with a model: another library's
    tower of similar names, a tower without its patches, or one whose tensors are flat. None where nothing is.

    `shapes` have the tower's own names, `prefix` is what the file has before them.
    """
    before, patches = ("visual.", "conv1") if layout == "packed" else ("", "vision_model.embeddings.patch_embedding")
    for pattern, what, fix in _INSIDE:
        if any(re.search(pattern, f"{before}{name}") for name in shapes):
            return f"holds {what}", fix
    spelled = f"{prefix}{patches.removeprefix('vision_model.')}"
    if f"{patches}.bias" in shapes:
        return f"has {spelled + '.bias'!r}, as the towers of SigLIP and BLIP have and CLIP's have not", GIVE
    shape = shapes.get(f"{patches}.weight")
    if shape is None:
        return f"lacks {spelled + '.weight'!r} and is half a tower ({len(shapes)} tensors), as one shard of several is", WHOLE
    if len(shape) != 4:
        what, fix = (", as FSDP and ZeRO keep it", FULL) if len(shape) == 1 else ("", GIVE)
        return f"has {spelled + '.weight'!r} of shape {shape} instead of [width, 3, patch, patch]{what}", fix
    return None
