"""The suite of language models: experts, heads and the texts of their tasks, on the device of the run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.checkpoints import language as checkpoints
from fusionbench_lite.checkpoints.language import Found
from fusionbench_lite.data import fingerprint
from fusionbench_lite.data import text as texts
from fusionbench_lite.data.text import Protocol, Reading, TextTask, Tokenizer
from fusionbench_lite.data.text.tokenizing import FILES
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.models import language
from fusionbench_lite.models.language import Answering, Encoder
from fusionbench_lite.models.language.answers import ANSWER
from fusionbench_lite.models.language.names import HEADS
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.text import checks
from fusionbench_lite.suites.text.judging import GeneratingEvaluator
from fusionbench_lite.suites.text.requests import protocol_of, request_of
from fusionbench_lite.weights.placed import PlacedWeights
from fusionbench_lite.weights.readers import checksum

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress


def load(wanted: Wanted, progress: Progress) -> Suite:
    """Return the suite of a checked request."""
    if wanted.family == "embedded":
        from fusionbench_lite.suites.text import trained

        return load_from(trained.folder_of(wanted, progress), wanted, progress)
    return suite_of(wanted, checkpoints.find(request_of(wanted), progress), progress)


def load_from(folder: Path, wanted: Wanted, progress: Progress, base: Path | None = None) -> Suite:
    """Return the suite of experts in a folder of the own arrangement; `base` is the pretrained model's where it lies elsewhere."""
    request = dataclasses.replace(request_of(wanted), family=checkpoints.OWN, dir=folder)
    return suite_of(wanted, checkpoints.find(request, progress, base), progress, folder)


def suite_of(wanted: Wanted, found: Found, progress: Progress, folder: Path | None = None) -> Suite:
    """Return the suite of weights that were found."""
    device, protocol = device_of(wanted.device), protocol_of(wanted)
    encoder = encoder_of(found, wanted)
    tokenizer = Tokenizer(found.folder, pad=getattr(found.model.config, "pad_token_id", None))
    reading = Reading(
        tokenizer=tokenizer, protocol=protocol, cache=wanted.cache, data_dir=wanted.data_dir, limit=wanted.limit,
        seed=wanted.checkpoints_seed,
    )
    data = {task: texts.load(task, reading, progress) for task in wanted.tasks}
    for task, place in found.folders.items():
        _check_tokenizer(task, place, tokenizer)
        checks.class_order(data[task], place)
    if isinstance(encoder, Answering):
        checks.answers_fit(data, tokenizer)
    kind = found.model.config.model_type
    heads = {task: _head(task, data[task], encoder, found.heads[task], kind).to(device) for task in wanted.tasks}
    names = merged_names(encoder, found.pretrained, wanted)
    head_hashes = {task: checksum("head", dict(tensors)) for task, tensors in found.heads.items()}
    encoder = encoder.to(device)
    pretrained = _placed(found.pretrained, names, device)
    experts = {task: _placed(weights, names, device) for task, weights in found.experts.items()}
    notes = dict.fromkeys((*found.caveats, *protocol.caveats, *(note for entry in data.values() for note in entry.caveats)))
    return Suite(
        family=wanted.family, tasks=data, data_hashes={task: _test_hash(entry) for task, entry in data.items()},
        files=found.files, expert_hashes=found.expert_hashes, head_hashes=head_hashes, pretrained=pretrained, experts=experts,
        multitask=None, model=encoder, evaluator=_evaluator(wanted, data, heads, encoder, tokenizer, device), device=device,
        folder=folder, sources=found.sources, caveats=tuple(notes), constants=frozenset(set(encoder.state_dict()) - set(names)),
        details=details(wanted, protocol), by_content=True,
        beside=_beside(found, wanted),
    )


def encoder_of(found: Found, wanted: Wanted) -> Encoder:
    """Return the frozen encoder; that of a model which generates has its vocabulary inside."""
    options: dict[str, Any] = {"vocabulary": True} if found.model.config.model_type == "llama" else {}
    if found.model.config.model_type == "t5":
        options = {"vocabulary": True, "start": wanted.option("first_token", 0)}
    encoder = language.encoder_of(found.model, **options).eval().requires_grad_(False)
    if wanted.tensors == "blocks_on_mean":
        merged = set(merged_names(encoder, found.pretrained, wanted))
        state = encoder.state_dict()
        for name in (name for name in found.pretrained if name not in merged):
            state[name].copy_(torch.stack([weights[name].double() for weights in found.experts.values()]).mean(0))
    return encoder


def merged_names(encoder: Encoder, pretrained: Mapping[str, Tensor], wanted: Wanted) -> list[str]:
    """Return the names of the tensors that are merged; the others are constants of the encoder."""
    if wanted.tensors in ("auto", "all"):
        return list(pretrained)
    return [name for name in pretrained if name.startswith(encoder.BODY)]


def details(wanted: Wanted, protocol: Protocol) -> dict[str, Any]:
    """Return what a record is known by beside the model's name."""
    tensors = "all" if wanted.tensors == "auto" else wanted.tensors
    return {"protocol": protocol.name, "longest": protocol.longest, "tensors": tensors, **dict(wanted.options)}


def _placed(weights: Mapping[str, Tensor], names: list[str], device: torch.device) -> PlacedWeights:
    """Return weights that are read from their file tensor by tensor: methods hold what they make of them, not the experts."""
    part = weights.only(names) if hasattr(weights, "only") else weights
    return PlacedWeights(part, device, "disk")


def _evaluator(
    wanted: Wanted, data: Mapping[str, TextTask], heads: Mapping[str, nn.Module], encoder: Encoder, tokenizer: Tokenizer,
    device: torch.device,
) -> Evaluator:
    given: dict[str, Any] = {
        "data": data, "heads": heads, "device": device, "batch_size": wanted.eval_batch, "prepare": dict,
        "bf16": wanted.precision == "bf16",
    }
    if isinstance(encoder, Answering):
        return GeneratingEvaluator(model=encoder, tokenizer=tokenizer, longest=ANSWER, **given)
    return Evaluator(**given)


def _head(task: str, data: TextTask, encoder: Encoder, weights: Mapping[str, Tensor], kind: str) -> nn.Module:
    """Return the frozen head of a task; raises InputError for one of another number of classes, or that is not finite."""
    classes = len(weights[HEADS[kind]]) if kind in HEADS and HEADS[kind] in weights else data.num_classes
    if classes != data.num_classes:
        names = ", ".join(data.classes[:4])
        raise InputError(
            f"task {task!r}: the head of its expert has {classes} classes, its data {data.num_classes} ({names}): the expert is "
            "of another task, or the description of this one is wrong"
        )
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"task {task!r}: {name!r} of its expert has values that are not finite: repair or drop the expert")
    return encoder.head(weights).requires_grad_(False)


def _check_tokenizer(task: str, place: Path, tokenizer: Tokenizer) -> None:
    """Raise InputError where the tokenizer beside an expert gives other ids than the pretrained model's."""
    if not any(all((place / file).is_file() for file in files) for files in FILES):
        return
    difference = tokenizer.difference(Tokenizer(place, pad=tokenizer.pad))
    if difference is not None:
        raise InputError(
            f"task {task!r}: the tokenizer in {place} is another than the pretrained model's ({difference}): the expert is of "
            "another model, or its tokenizer files are"
        )


def _beside(found: Found, wanted: Wanted) -> str:
    """Return what stands for the weights of an expert's model that its own files do not hold."""
    others = sorted(found.expert_hashes.items()) if wanted.tensors == "blocks_on_mean" else ()
    return hashlib.sha256(repr((found.base_hash, others)).encode()).hexdigest()


def _test_hash(data: TextTask) -> str:
    """Return the SHA-256 of what an evaluation reads: training texts count where a method reads them."""
    answers = None if data.test_targets is None else data.test_targets.tolist()
    content = (data.name, data.classes, fingerprint(data.test_images), np.asarray(data.test_labels).tolist(), answers)
    return hashlib.sha256(repr(content).encode()).hexdigest()
