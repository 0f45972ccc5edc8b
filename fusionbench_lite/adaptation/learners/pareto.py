"""Pareto Merging at work: steps on what `preferred` parts learn, for preferences that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fusionbench_lite.adaptation.draws import open_uniform
from fusionbench_lite.adaptation.engine.core import concatenated
from fusionbench_lite.adaptation.engine.descent import Descent
from fusionbench_lite.adaptation.engine.naming import rename_state
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Update
from fusionbench_lite.adaptation.learners.preferred import Distances, Preferred
from fusionbench_lite.base.processes import own_tasks
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import size_of
from fusionbench_lite.models.modes import unmixed


class ParetoMerging(Descent):
    """Each step draws a preference γ uniformly from the simplex and takes an Adam step on the objectives S_t, joined into
    one loss. They are entropies of a batch of every task, or (`mode` "distance") distances to the experts.

    `per_task`: the adapted model of a task is that of the preference for it alone; else all tasks weigh the same.
    """

    drops = False

    def __init__(
        self, parametrisation: Parametrisation, context: Context, *, mode: str, scalarisation: str, mu: float,
        per_task: bool, seed: int,
    ) -> None:
        super().__init__(parametrisation, context)
        self.reads_inputs = self.differentiates = mode == "entropy"
        self.distances = Distances(parametrisation) if mode == "distance" else None
        self.mu = mu if scalarisation == "tchebycheff" else None
        self.per_task, self.seed = per_task, seed
        self._preferred = {
            name: part for name, part in parametrisation.parts.items()
            if isinstance(part, Preferred) and name.replace(".", "/") in parametrisation.learned_parts
        }
        self._merged_for: str | None = None
        rename_state(parametrisation, {
            f"learned_parts.{name.replace('.', '/')}.{factor}": f"{name}/{factor}"
            for name in self._preferred for factor in ("left", "right", "core")
        })

    def draws(self, step: int) -> Sequence[Draw]:
        """One batch of every task; none for distances, which need no data."""
        return (Draw(step),) if self.distances is None else ()

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step and return each task's objective, without the preference."""
        drawn = -open_uniform((len(self.tasks),), self.seed, "pareto_merging", "preference", step).double().log()
        preference = drawn / drawn.sum()
        self._prefer(preference)
        if self.distances is None:
            losses = self._accumulate(batches[0], preference)
            self.parametrisation.pull_back(self.encoder.gradients())
        else:
            here = own_tasks(self.tasks)
            with unmixed(self.parametrisation.coefficients.device):
                values = self.distances.measure()
                weights = self._weights(values, preference)
                weights *= weights.new_tensor([task in here for task in self.tasks])
                self.distances.pull_back(weights)
            losses = {task: values[self.tasks.index(task)] for task in here}
        update(losses, self._optimizer)
        return losses

    def _weights(self, values: Tensor, preference: Tensor) -> Tensor:
        """Return ∂L/∂S [T] for L = Σ_t γ_t S_t or μ log Σ_t exp(γ_t S_t / μ)."""
        preference = preference.to(values)
        if self.mu is None:
            return preference
        return preference * torch.softmax(preference * values / self.mu, 0)

    def _accumulate(self, batch: Batch, preference: Tensor) -> dict[str, Tensor]:
        """Merge, add ∂L/∂W to the leaves, and return each task's entropy.

        All of them must be known before a backward pass. Where one forward pass takes the whole batch, its graph is kept
        for that; else there is a forward pass more.
        """
        self.encoder.refresh()
        groups = list(concatenated(batch))
        if len(groups) == 1 and (self.encoder.chunk or size_of(groups[0][0])) >= size_of(groups[0][0]):
            inputs, segments = groups[0]
            try:
                features = self.encoder.encode(inputs)
                graphs = {
                    task: self.objective(task, features[first:last], batch[task]).mean() for task, first, last in segments
                }
                losses = {task: graph.detach() for task, graph in graphs.items()}
                weights = self._task_weights(losses, preference)
                total = torch.stack([weights[task] * graph for task, graph in graphs.items()]).sum()
                torch.autograd.backward(total, inputs=list(self.encoder.leaves.values()))
                return losses
            except torch.OutOfMemoryError:
                self.encoder.chunk = -(-size_of(inputs) // 2)
            self.encoder.refresh()
        losses = self.encoder.losses(batch, self.objective)
        self.encoder.accumulate(batch, self.objective, self._task_weights(losses, preference))
        return losses

    def _task_weights(self, losses: Mapping[str, Tensor], preference: Tensor) -> dict[str, float]:
        values = torch.zeros(len(self.tasks), dtype=torch.float64)
        for task, loss in losses.items():
            values[self.tasks.index(task)] = float(loss)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = values.to(self.parametrisation.coefficients.device)
            torch.distributed.all_reduce(shared)
            values = shared.cpu()
        return dict(zip(self.tasks, self._weights(values, preference).tolist(), strict=True))

    def _prefer(self, preference: Tensor) -> None:
        for part in self._preferred.values():
            part.preference = preference.to(part.origin)

    def _prefer_task(self, task: str | None) -> None:
        """Set the preference that the model of a task is evaluated at; all tasks weigh the same for None."""
        tasks = self.tasks if task is None else [task]
        self._prefer(torch.tensor([(name in tasks) / len(tasks) for name in self.tasks], dtype=torch.float64))

    def _merge_for(self, task: str) -> None:
        if self.per_task and task != self._merged_for:
            self._prefer_task(task)
            self.encoder.refresh()
            self._merged_for = task

    def refresh(self, step: int) -> None:
        """Merge for the preference that weighs all tasks the same; with `per_task` that is done task by task."""
        self._merged_for = None
        if not self.per_task:
            self._prefer_task(None)
            self.encoder.refresh()

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the model merged for the task, or for all."""
        self._merge_for(task)
        return super().encode(task, examples)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's objective at the preference that its model is evaluated at."""
        result: dict[str, Tensor] = {}
        for task, examples in batch.items():
            if self.distances is None:
                self._merge_for(task)
                result |= self.encoder.losses({task: examples}, self.objective)
            else:
                self._prefer_task(task if self.per_task else None)
                result[task] = self.distances.measure()[self.tasks.index(task)]
        return result

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights for all tasks, or with `per_task` those for one."""
        if self.per_task and task is None:
            raise MergeError(
                'preference="task" merges a model for every task: name the task, one of ' + ", ".join(self.tasks)
            )
        self._prefer_task(task if self.per_task else None)
        return super().merged(task)
