"""Training of the adapters of all tasks on weights that stay as they are: MetaMerging on a given base, and its last stage."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import in_chunks
from fusionbench_lite.adaptation.engine.probe import example_of
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Procedure, Update
from fusionbench_lite.adaptation.learners.bottlenecks import Bottlenecks, portions
from fusionbench_lite.adaptation.learners.frozen import Frozen
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.weights.experts import Experts

LEARNED_FROM, KEPT_APART = 2000, 1000
"""Training examples of a task for inner steps and adapters, and for the steps on raw, as many as MetaMerging's code has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """What adapters are, `place`, `rank`, `loss` and `seed` as in `Bottlenecks`, and how they are trained: by Adam with `lr`,
    on `batch_size` examples of a task, None for the run's, of a `split` of the data. `positions`: by states at all positions of
    inputs that are padded to `length`, where it is given, instead of by features. `kept`: the judged model has them."""

    place: str
    rank: int
    loss: str
    seed: int
    lr: float
    batch_size: int | None
    positions: bool = False
    length: int | None = None
    split: str = "test"
    kept: bool = True


class Compared(contextlib.AbstractContextManager[None]):
    """A context in which a model puts out states at all positions, which it can be in time and again.

    Raises MergeError for a model that offers none.
    """

    def __init__(self, model: nn.Module, length: int | None) -> None:
        offered: Callable[[int | None], contextlib.AbstractContextManager[None]] | None = getattr(model, "at_positions", None)
        if offered is None:
            raise MergeError(
                f"{type(model).__name__} has no at_positions(length), a context in which it returns states [B, L, d] instead of "
                "features: set features to final"
            )
        self._offered, self._length = offered, length
        self._open: list[contextlib.AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._open.append(self._offered(self._length))
        self._open[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._open.pop().__exit__(*error)


class AdapterTraining(Procedure):
    """Adam on the adapters of all tasks, which bring the features of given weights close to those of the experts."""

    def __init__(self, experts: Experts, settings: Adapters, base: Mapping[str, Tensor], context: Context) -> None:
        self.experts, self.settings, self.chunk = experts, settings, context.chunk
        self.frozen = Frozen(context, experts, base)
        self.compared = Compared(context.model, settings.length) if settings.positions else contextlib.nullcontext()
        self.ragged = settings.positions and settings.length is None
        if settings.split == "train":
            self.split, self.most = "train", LEARNED_FROM + KEPT_APART
        self.adapters = Bottlenecks(
            self.frozen, settings.place, settings.rank, settings.loss, settings.seed, self.compared
        )
        self.learnables: nn.ModuleDict = nn.ModuleDict({"adapters": self.adapters})
        self.learnables.register_load_state_dict_pre_hook(self._accept)  # type: ignore[no-untyped-call]
        example = example_of(context, "metamerging")
        if example is not None:
            self.adapters.build(example)

    def _accept(self, module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Let `learnables.load_state_dict` take what `learned` returns as well."""
        self.adapters.accept(state, prefix, "adapters")

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam on the adapters."""
        self._of_adapters = torch.optim.Adam(self.adapters.parameters(), lr=self.settings.lr)
        return (self._of_adapters,)

    def precomputed(self, task: str, inputs: Inputs) -> Tensor:
        """Return the expert's features, or states at all positions."""
        with self.compared:
            return self.frozen.run(self.frozen.expert(task), inputs)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that the adapters sit on, which take no gradient."""
        return self.frozen.base

    def draws(self, step: int) -> Sequence[Draw]:
        """Return the batch of a step."""
        return (Draw(step, role="adapters", size=self.settings.batch_size, part=self.part("adapters")),)

    def part(self, role: str) -> tuple[float, float]:
        """Return which of the examples a role reads: of training examples some are kept apart for the outer batches."""
        if self.split == "test":
            return 0.0, 1.0
        border = LEARNED_FROM / (LEARNED_FROM + KEPT_APART)
        return (border, 1.0) if role == "outer" else (0.0, border)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step on the adapters."""
        (batch,) = batches
        weights = self.weights()
        self.adapters.clear()
        losses = self._split(
            batches, lambda task, size: self.adapters.accumulate(task, weights, batch[task], size), self.adapters.clear
        )
        update(losses, self._of_adapters)
        return losses

    def _split(
        self, batches: Sequence[Batch], accumulate: Callable[[str, int], Tensor], undo: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        """Return each task's loss, `accumulate(task, examples in one forward pass)`, in smaller passes if memory is short."""
        most = max((len(examples) for batch in batches for examples in batch.values()), default=1)
        losses, self.chunk = in_chunks(
            lambda size: {task: accumulate(task, size) for task in batches[-1]}, most, self.chunk, undo
        )
        return losses or {self.tasks[0]: self.frozen.zero()}

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return the features with the task's adapters, without them where they are not kept."""
        assert examples.inputs is not None
        if not self.settings.kept:
            return self.frozen.run(self.weights(), examples.inputs)
        self.adapters.build(examples.inputs)
        phi = self.adapters.of(task)
        return self.frozen.run(
            self.weights(), examples.inputs, lambda weights, part: self.adapters.features(weights, phi, part)
        )

    @torch.no_grad()
    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's distance with the adapters as they are."""
        weights = self.weights()

        def total(task: str, size: int) -> Tensor:
            phi, parts = self.adapters.of(task), portions(batch[task], size)
            return torch.stack([self.adapters.loss(weights, phi, part) * share for part, share in parts]).sum()

        return self._split([batch], total)

    def learned(self) -> dict[str, Tensor]:
        """Return the adapters, `<task>/<number>/{down,up,down_bias,up_bias}`."""
        return self.adapters.named()

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights that the adapters sit on."""
        return self.frozen.state_dict()
