"""Coefficients of task vectors from metrics at drawn ones, without gradients: what MAP learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.adamerging import task_vectors
from fusionbench_lite.adaptation.draws import uniform
from fusionbench_lite.adaptation.engine.core import MergedEncoder
from fusionbench_lite.adaptation.engine.objectives import Logits, Objective, objective
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Head, Procedure, Update
from fusionbench_lite.weights.experts import Experts

SWEEPS = 1000
"""Coordinate descents end after so many passes at the latest."""


def error_rate(heads: Mapping[str, Head]) -> Objective:
    """Return the objective that is 1 for a wrong prediction and 0 for a right one; NaN where a logit is."""
    logits_by, checked = Logits(heads), objective("cross_entropy", heads)

    def wrong(task: str, features: Tensor, examples: Examples) -> Tensor:
        checked(task, features, examples)  # refuses labels that do not fit
        assert examples.labels is not None
        logits = logits_by(task, features)
        missed = (logits.argmax(1) != examples.labels).to(logits.dtype)
        return missed.masked_fill(logits.isnan().any(1), torch.nan)

    return wrong


class Known(nn.Module):
    """`values` [T] of the present step, and the `table` [steps, T] of those of the first `done` steps, all float64."""

    table: Tensor
    done: Tensor

    def __init__(self, steps: int, tasks: int, device: torch.device) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(tasks, dtype=torch.float64, device=device))
        self.register_buffer("table", torch.zeros((steps, tasks), dtype=torch.float64, device=device))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=device))


class Surrogates(Procedure):
    """Each step merges with drawn coefficients and notes every task's metric; the model served is at the surrogates' minimum.

    Values take the place of gradients, so that devices which share the tasks add them up: a step of 1 against -value.
    """

    reads_labels = True
    split = "train"
    differentiates = False

    def __init__(self, experts: Experts, high: float, metric: str, scaling: float, seed: int, context: Context) -> None:
        self.experts, self.high, self.scaling, self.seed = experts, high, scaling, seed
        parts = {name: task_vectors(experts, name) for name in experts.names}
        self.parametrisation = Parametrisation(experts, parts, scaling, lr=1.0, shared=True)
        self.encoder = MergedEncoder(context, self.parametrisation)
        self.objective = error_rate(context.heads) if metric == "error" else objective("cross_entropy", context.heads)
        self.known = self.learnables = Known(context.steps, len(experts), self.parametrisation.coefficients.device)

    def draws(self, step: int) -> Sequence[Draw]:
        """Return the first batch of every task, whichever the step."""
        return (Draw(0),)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one that notes values."""
        self._optimizer = torch.optim.SGD([self.known.values], lr=1.0)
        return (self._optimizer,)

    @torch.no_grad()
    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Note every task's metric at the coefficients of this step."""
        (batch,) = batches
        self._set(self.drawn(step))
        self.encoder.refresh()
        losses = self.encoder.losses(batch, self.objective)
        values = self.known.values
        values.zero_()
        values.grad = torch.zeros_like(values)
        for number, task in enumerate(self.tasks):
            if task in losses:
                values.grad[number] = -losses[task].to(values)
        update(losses, self._optimizer)
        self.known.table[step] = values
        self.known.done.fill_(step + 1)
        return losses

    def drawn(self, step: int) -> Tensor:
        """Return the coefficients [T] of a step, uniform in [0, high]."""
        return self.high * uniform((len(self.experts),), self.seed, "map", step).double()

    def chosen(self) -> Tensor:
        """Return the coefficients [T] that the values noted so far lead to."""
        done = int(self.known.done)
        if not done:
            return torch.full((len(self.experts),), self.scaling, dtype=torch.float64)
        points, values = torch.stack([self.drawn(step) for step in range(done)]), self.known.table[:done].cpu().sum(1)
        unknowns = (points.shape[1] + 1) * (points.shape[1] + 2) // 2
        if done < unknowns:
            return points[values.argmin()]
        return lowest(*quadratic(points, values), self.high, points)

    def refresh(self, step: int) -> None:
        """Merge with the chosen coefficients."""
        self._set(self.chosen())
        self.encoder.refresh()

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the merged model, the same for every task."""
        assert examples.inputs is not None
        return self.encoder.encode(examples.inputs)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's metric."""
        return self.encoder.losses(batch, self.objective)

    def coefficients(self) -> dict[str, Tensor]:
        """Return the chosen coefficients under the name of every tensor."""
        self._set(self.chosen())
        return self.parametrisation.named_coefficients()

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights."""
        self._set(self.chosen())
        return self.parametrisation.merged()

    @torch.no_grad()
    def _set(self, coefficients: Tensor) -> None:
        self.parametrisation.coefficients.copy_(coefficients[None])


def quadratic(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric A [T, T] and b [T] of the least squares fit cᵀAc + bᵀc + e of values [n] at points [n, T].

    The fit is linear in the values: that of a sum over tasks is the sum of the tasks' fits.
    """
    rows, columns = torch.triu_indices(points.shape[1], points.shape[1])
    features = torch.cat([points[:, rows] * points[:, columns], points, torch.ones_like(points[:, :1])], dim=1)
    weights = torch.linalg.lstsq(features, values[:, None], driver="gelsd").solution[:, 0]
    upper = torch.zeros((points.shape[1], points.shape[1]), dtype=points.dtype)
    upper[rows, columns] = weights[: len(rows)]
    return (upper + upper.T) / 2, weights[len(rows) : len(rows) + points.shape[1]]


def lowest(curvature: Tensor, slope: Tensor, high: float, starts: Tensor) -> Tensor:
    """Return where in [0, high]^T coordinate descents of cᵀAc + bᵀc from all starts [n, T] get lowest, [T]."""
    places = starts.clone()
    for _ in range(SWEEPS):
        before = places.clone()
        for i in range(len(slope)):
            bend = curvature[i, i]
            linear = 2 * (places @ curvature[i] - bend * places[:, i]) + slope[i]
            if bend > 0:
                places[:, i] = (-linear / (2 * bend)).clamp(0, high)
            else:
                places[:, i] = torch.where(bend * high + linear < 0, high, 0.0)
        if float((places - before).abs().max()) <= 1e-12 * high:
            break
    heights = ((places @ curvature) * places).sum(1) + places @ slope
    return places[heights.argmin()]
