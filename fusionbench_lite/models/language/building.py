"""Language models of transformers' own classes, built from configurations and folders of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.language.answers import Answering
from fusionbench_lite.models.language.encoders import BertEncoder, Encoder, Gpt2Encoder, RobertaEncoder
from fusionbench_lite.models.language.llama import LlamaEncoder
from fusionbench_lite.models.language.names import HEADS, canonical
from fusionbench_lite.models.language.t5 import T5Encoder
from fusionbench_lite.models.language_configs import read_config
from fusionbench_lite.weights.readers import SafetensorsWeights
from fusionbench_lite.weights.stored.beside import CONFIG
from fusionbench_lite.weights.stored.folders import describe

ENCODERS = {"gpt2": Gpt2Encoder, "roberta": RobertaEncoder, "bert": BertEncoder, "t5": T5Encoder, "llama": LlamaEncoder}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification"), "roberta": ("RobertaConfig", "RobertaForSequenceClassification"),
    "bert": ("BertConfig", "BertForSequenceClassification"), "t5": ("T5Config", "T5ForConditionalGeneration"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
}
"""What transformers calls the configuration and the model of a kind."""


def build(config: Mapping[str, Any], **options: Any) -> Encoder:
    """Return the encoder of a checkpoint's config.json, with weights drawn from torch's generator.

    `options` are those of the encoder. Raises InputError for another `model_type`, or where transformers is missing.
    """
    return encoder_of(new_model(config), **options)


def generates(kind: str) -> bool:
    """Say whether models of a kind answer in words, and have no head of classes."""
    return issubclass(ENCODERS[_kind(kind)], Answering)


def encoder_of(model: Any, **options: Any) -> Encoder:
    """Return the encoder that a transformers model of one of the classes has inside, its own modules and not copies."""
    return ENCODERS[_kind(model.config.model_type)](model, **options)


def new_model(config: Mapping[str, Any], classes: int | None = None, *, tied: bool | None = None) -> Any:
    """Return a model of the class that a config.json names, with weights drawn from torch's generator.

    `classes` replaces the number of classes of the config; `tied` what it says of T5's lm_head. Errors are those of `build`.
    """
    kind = _kind(config.get("model_type"))
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)

    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError("language models need transformers: pip install 'fusionbench_lite[language]'") from error
    given = {key: value for key, value in config.items() if key != "model_type"}
    if classes is not None and not generates(kind):
        given = {key: value for key, value in given.items() if key not in ("id2label", "label2id", "_num_labels")}
        given["num_labels"] = classes
    if kind == "gpt2" and given.get("pad_token_id") is None:  # transformers asks for it where texts are padded
        given["pad_token_id"] = given.get("eos_token_id", transformers.GPT2Config().eos_token_id)
    settings, model_class = (getattr(transformers, name) for name in CLASSES[kind])
    try:
        model = model_class(settings(**given))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{CONFIG} describes no {kind}: {' '.join(str(error).split())}") from error
    if kind == "t5":
        scaled = given.get("scale_decoder_outputs")  # transformers 5 writes this and that everything is tied
        _tie(model, given.get("tie_word_embeddings", True) is not False if scaled is None else scaled, tied)
    return model


def full_model(folder: Path, classes: int | None = None) -> Any:
    """Return the model in a folder of config.json and safetensors, of its true class, in float32 and evaluation mode.

    A head that the files lack, as those of a pretrained model do, is drawn from torch's generator. T5's lm_head is tied where
    the files do not hold one that differs. Raises InputError for what is missing, foreign or of another shape, and for a head
    of another number of classes than `classes`.
    """
    config = read_config(folder)
    stored = SafetensorsWeights(describe(folder, adapters=False).checked())
    return filled(config, stored, classes, str(folder))


def filled(config: Mapping[str, Any], stored: Mapping[str, Tensor], classes: int | None, who: str) -> Any:
    """Return the model of a config with the tensors of its file, see `full_model`; `who` names the file in errors."""
    kind = _kind(config.get("model_type"))
    tensors = {name: stored[given] for given, name in canonical(kind, stored).items()}
    if kind == "t5" and is_tied(tensors):
        tensors.pop("lm_head.weight", None)
    model = new_model(config, classes, tied="lm_head.weight" not in tensors)
    check_names(kind, tensors, own_state(model), who)
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, strict=False)
    return model.eval()


def own_state(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model, each under one name: the one that files have."""
    state: dict[str, Tensor] = model.state_dict()
    kept = {name: state[name] for name in canonical(model.config.model_type, state)}
    embeddings = model.get_input_embeddings().weight
    if "lm_head.weight" in kept and model.lm_head.weight is embeddings:
        del kept["lm_head.weight"]
    return kept


class Shaped(Protocol):
    """A tensor, or what is known of one that is not read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


def check_names(kind: str, tensors: Mapping[str, Shaped], wanted: Mapping[str, Shaped], who: str) -> None:
    """Raise InputError where names or shapes are not those of the class; heads may be missing as a whole."""
    head = HEADS.get(kind)
    heads = ENCODERS[kind].HEAD
    for name, tensor in tensors.items():
        if name not in wanted:
            raise InputError(f"{who} has {name!r}, which a {kind} of its {CONFIG} lacks: {did_you_mean(name, wanted)}")
        if tensor.shape != wanted[name].shape:
            if name == head:
                count = wanted[name].shape[0]
                raise InputError(f"{who}: its head {name!r} has {tensor.shape[0]} classes, the task {count}: it is of another task")
            shapes = f"{tuple(tensor.shape)}, by its {CONFIG} {tuple(wanted[name].shape)}"
            raise InputError(f"{who}: {name!r} has shape {shapes}: the files are of two models")
    headless = not any(heads and name.startswith(heads) for name in tensors)
    missing = [name for name in wanted if name not in tensors and not (headless and heads and name.startswith(heads))]
    if missing:
        raise InputError(f"{who} lacks {missing[0]!r} and {len(missing) - 1} more tensors of a {kind}: fetch it again")


def _kind(name: Any) -> str:
    if name not in ENCODERS:
        raise InputError(f"unknown language model {name!r}: {did_you_mean(str(name), ENCODERS)}")
    return str(name)


def is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Say whether a file holds one tensor for T5's lm_head and embeddings, or the same twice."""
    head, shared = (tensors.get(name) for name in ("lm_head.weight", "shared.weight"))
    return head is None or (shared is not None and torch.equal(head, shared))


def _tie(model: Any, scaled: bool, tied: bool | None) -> None:
    """Tie or untie T5's lm_head; its factor is there where the config ties it.

    The stacks always share their embeddings; the setting is about the lm_head and its factor. From version 5 on, a new
    model ties the lm_head all the same, and 5.0 forgets the factor.
    """
    model.config.scale_decoder_outputs = scaled
    for stack in (model.encoder, model.decoder):
        stack.embed_tokens.weight = model.shared.weight
    if not (scaled if tied is None else tied):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    else:
        model.lm_head.weight = model.shared.weight
