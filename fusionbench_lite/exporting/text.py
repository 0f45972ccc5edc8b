"""Layouts of language models: transformers' folders, one per task where heads are, and the own one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fusionbench_lite.checkpoints import language as checkpoints
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import adapter, encoders
from fusionbench_lite.exporting.layouts import Layout, own_layout, transformers_quietly
from fusionbench_lite.exporting.proving import Loaded
from fusionbench_lite.methods.companions import MODEL
from fusionbench_lite.models import language
from fusionbench_lite.models.language.building import generates, own_state
from fusionbench_lite.suites.text.requests import request_of
from fusionbench_lite.weights.stored.beside import CONFIG, TOKENIZER

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.checkpoints.language import Found
    from fusionbench_lite.exporting.forms import Form
    from fusionbench_lite.exporting.remaking import Remade

SEQUENCE = "AutoModelForSequenceClassification"


def layouts(made: Remade, progress: Progress) -> tuple[Layout, ...]:
    """Return transformers' layout, peft's for models that generate, and the own one."""
    request = request_of(made.plan.wanted)
    if made.suite.folder is not None:  # of experts that are trained on first use
        request = dataclasses.replace(request, family=checkpoints.OWN, dir=made.suite.folder)
    found = checkpoints.find(request, progress)
    answers, described = generates(found.model.config.model_type), _described(made, found)
    own = own_layout(described)
    adapters = (adapter.layout(found, described["options"], _auto(found)),) if answers else ()
    offered = (
        Layout(
            name="transformers", write=functools.partial(_write, found), load=functools.partial(_load, found),
            usage=functools.partial(_usage, _auto(found)), per_task=not answers,
        ),
        *adapters,
        dataclasses.replace(
            own, write=functools.partial(_write_own, found, own.write), usage=functools.partial(_usage_own, answers)
        ),
    )
    said = f"Texts are put to the model as under the protocol {made.suite.details['protocol']} of the run."
    return tuple(dataclasses.replace(layout, says=(*layout.says, said)) for layout in offered)


def _auto(found: Found) -> str:
    """Return transformers' class that loads the model."""
    kind = found.model.config.model_type
    return {"t5": "AutoModelForSeq2SeqLM", "llama": "AutoModelForCausalLM"}.get(kind, SEQUENCE)


def _described(made: Remade, found: Found) -> dict[str, Any]:
    """Return what builds the encoder again."""
    encoder, config = made.suite.model, found.model.config
    options: dict[str, Any] = {}
    if config.model_type in ("t5", "llama"):
        options = {"vocabulary": getattr(encoder, "lm_head", None) is not None}
    if config.model_type == "t5":
        options["start"] = encoder.start
    tied = config.model_type == "t5" and found.model.lm_head.weight is found.model.get_input_embeddings().weight
    content = language.read_config(found.folder)
    return {"kind": encoders.TEXT, "config": dict(content), "tied": tied, "options": options}


def _whole(made: Remade, found: Found, form: Form, task: str | None) -> Any:
    """Return transformers' model with the merged weights, and the head of a task where there are heads.

    Raises InputError where it has a tensor that is in neither.
    """
    state: dict[str, Tensor] = encoders.whole_state(made.suite, form.weights)
    if task is None:
        model = copy.deepcopy(found.model).cpu()
    else:
        classes = made.suite.tasks[task].classes
        model = language.new_model(language.read_config(found.folder), len(classes))
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: number for number, name in enumerate(classes)}
        state |= {name: tensor.detach().cpu() for name, tensor in found.heads[task].items()}
    lacking = [name for name in own_state(model) if name not in state]
    if lacking:
        raise InputError(f"transformers' {type(model).__name__} has {lacking[0]!r}, which neither the merge nor a head holds")
    model.load_state_dict(state, strict=False)
    return model.eval()


def _write(found: Found, made: Remade, form: Form, tasks: tuple[str, ...], folder: Path) -> None:
    transformers_quietly()
    answers = generates(found.model.config.model_type)
    model = _whole(made, found, form, None if answers else tasks[0])
    model.save_pretrained(folder)
    if found.model.config.model_type == "t5":  # version 5 says tied whatever it is, and 4 believes that
        path = folder / CONFIG
        content = json.loads(path.read_text(encoding="utf-8"))
        content["tie_word_embeddings"] = model.lm_head.weight is model.get_input_embeddings().weight
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _copy(found.folder, folder, [name for name in (*TOKENIZER, *MODEL) if name != CONFIG])


def _copy(source: Path, folder: Path, names: list[str]) -> None:
    """Copy the tokenizer, and what else lies beside the pretrained weights."""
    for name in names:
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def _load(found: Found, made: Remade, tasks: tuple[str, ...], folder: Path) -> dict[str, Loaded]:
    transformers = transformers_quietly()
    auto = getattr(transformers, _auto(found))
    if generates(found.model.config.model_type):
        encoder = language.encoder_of(auto.from_pretrained(folder), **_described(made, found)["options"])
        encoder = encoder.to(made.suite.device).eval()
        return {task: Loaded(encode=_named(encoder), head=nn.Identity(), model=encoder) for task in tasks}
    model = auto.from_pretrained(folder).to(made.suite.device).eval()

    def logits(inputs: Any) -> Tensor:
        made_of: Tensor = model(**inputs).logits
        return made_of

    return {task: Loaded(encode=logits, head=nn.Identity()) for task in tasks}


def _named(encoder: nn.Module) -> Any:
    return lambda inputs: encoder(**inputs)


def _write_own(found: Found, write: Any, made: Remade, form: Form, tasks: tuple[str, ...], folder: Path) -> None:
    write(made, form, tasks, folder)
    _copy(found.folder, folder, [*TOKENIZER, CONFIG])  # which tells transformers the kind of its tokenizer


def _usage(auto: str, folder: str, task: str) -> str:
    lines = (
        f"from transformers import AutoTokenizer, {auto}\n\n"
        f"{_tokenizer(folder)}"
        f"model = {auto}.from_pretrained({folder!r})\n"
    )
    if auto == SEQUENCE:
        return lines + "logits = model(**tokenizer(texts, padding=True, return_tensors='pt')).logits  # model.config.id2label"
    return lines + "answers = model.generate(**tokenizer(prompts, padding=True, return_tensors='pt'), max_new_tokens=10)"


def _usage_own(answers: bool, folder: str, task: str) -> str:
    last = f"logits = model.logits(inputs, {task!r})  # [B, C], names in model.classes[{task!r}]"
    if answers:
        last = f"ids = model.answers(inputs, {task!r})\nanswers = tokenizer.batch_decode(ids, skip_special_tokens=True)"
    return (
        "import fusionbench_lite as fbl\nfrom transformers import AutoTokenizer\n\n"
        f"model = fbl.load_exported({folder!r})\n"
        f"{_tokenizer(folder)}"
        "inputs = tokenizer(texts, padding=True, return_tensors='pt')\n"
        "inputs = {name: inputs[name] for name in ('input_ids', 'attention_mask')}\n"
        f"{last}"
    )


def _tokenizer(folder: str) -> str:
    return (
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token\n"
    )
