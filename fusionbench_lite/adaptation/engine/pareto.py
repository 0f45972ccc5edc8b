"""Pareto Merging: low-rank updates of the matrices that depend on a preference among the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import open_uniform
from fusionbench_lite.adaptation.engine.core import MergedEncoder, concatenated
from fusionbench_lite.adaptation.engine.naming import rename_state
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Vectors
from fusionbench_lite.adaptation.engine.placement import forget
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Procedure, Update, size_of
from fusionbench_lite.errors import MergeError
from fusionbench_lite.processes import own_tasks


class Preferred(nn.Module):
    """W = θ0 + Σ_t λ_t τ_t + A C Bᵀ with C = Σ_t γ_t C_t (specification, section 9).

    `left` A [m, r], `right` B [n, r] and `core` C_t [T, r, r] are learned; γ is `preference` [T]. With G = ∂L/∂W:

        ∂L/∂A = G B Cᵀ        ∂L/∂B = Gᵀ A C        ∂L/∂C_t = γ_t Aᵀ G B        ∂L/∂λ_t = ⟨G, τ_t⟩
    """

    origin: Tensor

    def __init__(self, origin: Tensor, deltas: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.origin = origin.contiguous()
        self._vectors = Vectors(origin, deltas)
        self.deltas = self._vectors.flat
        tasks, rank = len(deltas), left.shape[1]
        self.left, self.right = nn.Parameter(left.to(origin)), nn.Parameter(right.to(origin))
        self.core = nn.Parameter(self.origin.new_zeros(tasks, rank, rank))
        self.preference = self.origin.new_full((tasks,), 1 / tasks)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A C [m, r] and B [n, r] for the present preference."""
        left, right, core = (parameter.detach().to(self.origin) for parameter in (self.left, self.right, self.core))
        return left @ torch.tensordot(self.preference, core, 1), right

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""
        self._vectors.combine(coefficients, out)
        left, right = self.factors()
        out.addmm_(left, right.T)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [T] and set the gradients of A, B and C."""
        self.pull_back_factors(gradient)
        return self._vectors.pull_back(coefficients, gradient)

    def pull_back_factors(self, gradient: Tensor) -> None:
        """Set the gradients of A, B and C."""
        left, right = self.left.detach(), self.right.detach()
        mixed = torch.tensordot(self.preference, self.core.detach(), 1)
        product = gradient @ right
        self.left.grad = product @ mixed.T
        self.right.grad = gradient.T @ (left @ mixed)
        self.core.grad = self.preference[:, None, None] * (left.T @ product)


class Distances:
    """S_t = Σ_l ‖W_l - θ_tl‖² over the merged tensors, and the gradient of Σ_t w_t S_t.

    Inner products of task vectors stand for the task vectors: with R_ts = λ_s - 1[s = t], K_st = ⟨τ_s, τ_t⟩ and
    U = A C Bᵀ, ‖W - θ_t‖² = (R K Rᵀ)_tt + 2 Σ_s R_ts ⟨τ_s, U⟩ + ‖U‖². Sums are in float64.
    """

    def __init__(self, parametrisation: Parametrisation) -> None:
        self.parametrisation = parametrisation
        experts, device = parametrisation.experts, parametrisation.coefficients.device
        # Names of one tensor share a part.
        parts = {id(part): (name, part) for name, part in reversed(parametrisation.parts.items())}.values()
        self.rows = torch.tensor([parametrisation.rows[name] for name, _ in parts], device=device)
        self.gram = torch.stack([experts.inner_products(name) for name, _ in parts]).to(device)
        self.preferred = [(number, part) for number, (_, part) in enumerate(parts) if isinstance(part, Preferred)]

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Return S [T] in float64 at the present learnables and preference."""
        coefficients = self.parametrisation.coefficients.to(self.gram)[self.rows]
        self._residual = coefficients[:, None, :] - torch.eye(coefficients.shape[1]).to(self.gram)
        self._slope = self._residual @ self.gram
        self._inner = torch.zeros_like(coefficients)
        total = (self._slope * self._residual).sum((0, 2))
        for number, part in self.preferred:
            left, right = part.factors()
            update = (left @ right.T).flatten()
            self._inner[number] = torch.mv(part.deltas, update.to(part.deltas.device)).to(self._inner)
            forget(part.deltas)
            total += torch.sum(update.square(), dtype=total.dtype)
        return total + 2 * torch.einsum("lts,ls->t", self._residual, self._inner)

    @torch.no_grad()
    def pull_back(self, weights: Tensor) -> None:
        """Set the gradients of all learnables, at the state of the last `measure`, from w [T]."""
        result = self.parametrisation.coefficients
        slope = 2 * (torch.einsum("t,lts->ls", weights, self._slope) + weights.sum() * self._inner)
        if result.requires_grad:
            result.grad = torch.zeros_like(result).index_add_(0, self.rows, slope.to(result))
        scales = 2 * torch.einsum("t,lts->ls", weights, self._residual)
        for number, part in self.preferred:
            left, right = part.factors()
            gradient = torch.mv(part.deltas.T, scales[number].to(part.deltas)).view_as(part.origin).to(part.origin)
            forget(part.deltas)
            gradient.addmm_(left * (2 * weights.sum()).to(left), right.T)
            part.pull_back_factors(gradient)


class ParetoMerging(Procedure):
    """Each step draws a preference γ uniformly from the simplex and takes an Adam step on the objectives S_t, joined into
    one loss. They are entropies of a batch of every task, or (`mode` "distance") distances to the experts.

    `per_task`: the adapted model of a task is that of the preference for it alone; else all tasks weigh the same.
    """

    def __init__(
        self, parametrisation: Parametrisation, context: Context, *, mode: str, scalarisation: str, mu: float,
        per_task: bool, seed: int,
    ) -> None:
        self.parametrisation = self.learnables = parametrisation
        self.experts = parametrisation.experts
        self.encoder = MergedEncoder(context, parametrisation)
        self.objective = objective("entropy", context.heads)
        self.reads_inputs = mode == "entropy"
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

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam on A, B, C and, where it is learned, λ."""
        learnable = [parameter for parameter in self.learnables.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(learnable, lr=self.parametrisation.lr)
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step and return each task's objective, without the preference."""
        drawn = -open_uniform((len(self.tasks),), self.seed, "pareto_merging", "preference", step).double().log()
        preference = drawn / drawn.sum()
        self._prefer(preference)
        if self.distances is None:
            losses = self._accumulate(batches[0], preference)
            self.parametrisation.pull_back(self.encoder.gradients())
        else:
            own = own_tasks(self.tasks)
            values = self.distances.measure()
            weights = self._weights(values, preference)
            weights *= weights.new_tensor([task in own for task in self.tasks])
            self.distances.pull_back(weights)
            losses = {task: values[self.tasks.index(task)] for task in own}
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
            device = next(iter(losses.values())).device
            shared = values.to(device)
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
        assert examples.inputs is not None
        self._merge_for(task)
        return self.encoder.encode(examples.inputs)

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

    def coefficients(self) -> dict[str, Tensor]:
        """Return λ."""
        return self.parametrisation.named_coefficients()

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights for all tasks, or with `per_task` those for one."""
        if self.per_task and task is None:
            raise MergeError(
                'preference="task" merges a model for every task: name the task, one of ' + ", ".join(self.tasks)
            )
        self._prefer_task(task if self.per_task else None)
        return self.parametrisation.merged()
