"""What a run on texts asks of checkpoints and data. Never imports torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fusionbench_lite.suites import Wanted

if TYPE_CHECKING:
    from fusionbench_lite.checkpoints.language import Request
    from fusionbench_lite.data.text import Protocol


class Model(NamedTuple):
    """A model that is offered: transformers' name of its kind, the tasks it is best known for, whether it is trained here.

    `elsewhere`: of a model of published tables that is no run here, how it is merged and judged.
    """

    kind: str
    tasks: str
    embedded: bool = False
    elsewhere: str = ""


MODELS = {
    "gpt2": Model("gpt2", "glue7"), "roberta": Model("roberta", "glue7"), "flan_t5_base": Model("t5", "glue8"),
    "flan_t5_large": Model("t5", "glue8"), "minilm": Model("bert", "glue4", True),
    "text_mini_encoder": Model("roberta", "mini_text", True), "text_mini_decoder": Model("gpt2", "mini_text", True),
    "text_mini_seq2seq": Model("t5", "mini_text", True), "text_mini_llama": Model("llama", "mini_llm", True),
    "llama2_13b": Model(
        "llama", "llm",
        elsewhere="merge_files and evaluate_llm merge and judge such models (docs/large_models.md); AlpacaEval needs a model as "
        "its judge, HumanEval and MBPP run code",
    ),
}
SMALL = tuple(name for name in MODELS if name.startswith("text_mini"))
"""The models that are pretrained here too, on drawn tasks."""


def protocol_of(wanted: Wanted) -> Protocol:
    """Return how the tasks are read and judged; raises InputError for a protocol that there is not, or not of this model."""
    from fusionbench_lite.data.text import protocol

    return protocol(dict(wanted.data).get("protocol"), wanted.model)


def request_of(wanted: Wanted) -> Request:
    """Return what a run asks of the checkpoints."""
    from fusionbench_lite.checkpoints.language import Request

    return Request(
        model=wanted.model, kind=MODELS[wanted.model].kind, family=wanted.family, tasks=wanted.tasks, cache=wanted.cache,
        dir=wanted.checkpoints,
    )
