"""The suite of the CLIP models: published experts, zero-shot heads and the images of their tasks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusionbench_lite import checkpoints, models
from fusionbench_lite.base.devices import device_of
from fusionbench_lite.checkpoints import Found, Request
from fusionbench_lite.data import TaskData, fingerprint, vision
from fusionbench_lite.errors import InputError, MergeWarning
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.models import clip, prompts, text_heads
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.clip.requests import layout_of, request_of, sources_of, variant_of
from fusionbench_lite.weights.placed import PlacedWeights
from fusionbench_lite.weights.readers import SafetensorsWeights, checksum

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress


def load(wanted: Wanted, progress: Progress) -> Suite:
    """Return the suite, downloading, converting and decoding what the cache lacks."""
    device, request, images = device_of(wanted.device), request_of(wanted), sources_of(wanted)
    weights = checkpoints.find(request, progress)
    data = {task: vision.load(task, images, progress) for task in wanted.tasks}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MergeWarning)
        heads = {task: head(task, data[task], weights, request, variant_of(wanted), device) for task in wanted.tasks}
    pretrained = _placed(weights.pretrained, device)
    model = encoder(wanted, pretrained, weights).to(device).eval()
    head_hashes = {task: checksum("head", {"weight": made.weight}) for task, made in heads.items()}
    evaluator = evaluator_of(wanted, data, heads, device)
    doubts = [f"{warning.message}." for warning in caught if issubclass(warning.category, MergeWarning)]
    notes = dict.fromkeys((*weights.caveats, *(note for entry in data.values() for note in entry.caveats), *doubts))
    return Suite(
        family=weights.family, tasks=data, data_hashes={task: _test_hash(entry) for task, entry in data.items()},
        files={**weights.files, **{f"head of {task}": sha256 for task, sha256 in head_hashes.items()}},
        expert_hashes=weights.expert_hashes, head_hashes=head_hashes, pretrained=pretrained,
        experts={task: _placed(path, device) for task, path in weights.experts.items()},
        multitask=_placed(weights.multitask, device) if weights.multitask is not None else None, model=model, evaluator=evaluator,
        device=device, sources=weights.sources, caveats=tuple(notes), constants=frozenset(constants(weights)),
        details={"layout": layout_of(wanted)}, by_content=True,
    )


def evaluator_of(
    wanted: Wanted, data: Mapping[str, TaskData], heads: Mapping[str, ZeroShotHead], device: torch.device
) -> Evaluator:
    """Return the evaluator of CLIP models on these images; the heads are moved to the device."""
    placed = {task: made.to(device) for task, made in heads.items()}
    return Evaluator(
        data=data, heads=placed, device=device, batch_size=wanted.eval_batch, prepare=clip.normalise,
        bf16=wanted.precision == "bf16",
    )


def head(task: str, data: TaskData, weights: Found, request: Request, variant: str, device: torch.device) -> ZeroShotHead:
    """Return the frozen head of a task: the one its family ships, else one built from the prompts of its classes."""
    path = weights.heads.get(task)
    if path is not None:
        weight = SafetensorsWeights(path)["weight"]
        rebuilt = _built(task, weights.text, request, variant, device) if weights.text is not None else None
        return ZeroShotHead(weight, text_heads.shipped(weight, rebuilt, classes=data.num_classes, what=f"the head of {task!r}"))
    if weights.text is None:
        raise InputError(f"task {task!r} has no head: put its class embeddings [C, d] into heads.safetensors under that name")
    rows = _built(task, weights.text, request, variant, device)
    if len(rows) != data.num_classes:
        raise InputError(
            f"task {task!r}: its prompts name {len(rows)} classes, its data hold {data.num_classes}: one is of another variant"
        )
    return ZeroShotHead(rows, text_heads.SCALE)


def _built(task: str, text: Path, request: Request, variant: str, device: torch.device) -> Tensor:
    texts = prompts.prompts(task, variant)
    return text_heads.built(request.size, text, texts.classnames, texts.templates, request.cache, str(device))


def _test_hash(data: TaskData) -> str:
    """Return the SHA-256 of what an evaluation reads: training images count where a method reads them."""
    content = (data.name, data.classes, fingerprint(data.test_images), data.test_labels.tolist())
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _placed(path: Path, device: torch.device) -> PlacedWeights:
    """Return weights that are read from their file tensor by tensor: methods hold what they make of them, not the experts."""
    return PlacedWeights(SafetensorsWeights(path), device, "disk")


def encoder(wanted: Wanted, pretrained: Mapping[str, Tensor], weights: Found) -> nn.Module:
    """Return the encoder with the pretrained weights, and with those that the family does not merge."""
    model = models.build(wanted.model, layout_of(wanted))
    model.load_state_dict({**{name: tensor.cpu() for name, tensor in pretrained.items()}, **constants(weights)})
    return model.requires_grad_(False)


def constants(weights: Found) -> Mapping[str, Tensor]:
    """Return the tensors of the encoder that experts of the family do not have."""
    return {} if weights.constants is None else SafetensorsWeights(weights.constants)
