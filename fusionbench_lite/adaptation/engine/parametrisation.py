"""The map from a few learnable numbers φ to all merged weights, and the way back for gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.parts import Factors, Part, Sum, TasksAlone
from fusionbench_lite.models.modes import unmixed
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.limits import beyond, is_finite


class Parametrisation(nn.Module):
    """Merged weights as a function of merging coefficients per tensor and task, and of what the parts learn.

    `coefficients` [L, T] holds λ, a row per floating-point tensor (with `shared` one row for all: task-wise
    coefficients), all `initial` at the start. `clamp` limits λ to [0, 1] inside the merge, with PyTorch's convention
    that the gradient passes at both ends; the raw λ is what is learned. Tensors without a part stay at `pretrained`,
    and their λ never changes. With `common`, rows have one λ more, before those of the tasks: that of what all tasks
    share, which only parts other than `TasksAlone` have. The module's own state is φ alone: weights and factors are constants.
    Merges and gradients of φ are in the work dtype where passes run in mixed precision too.
    """

    def __init__(
        self, experts: Experts, parts: Mapping[str, Part], initial: float, *, lr: float, clamp: bool = False,
        shared: bool = False, masks: Mapping[str, Tensor] | None = None, common: bool = False,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.lr = lr
        self.clamp = clamp
        self.parts = dict(parts)
        self.rows = {name: 0 if shared else row for row, name in enumerate(experts.floating)}
        like = next(part.origin for part in parts.values())
        self.common = int(common)
        shape = (1 if shared else len(experts.floating), self.common + len(experts))
        self.coefficients = nn.Parameter(torch.full(shape, initial, dtype=like.dtype, device=like.device))
        self.learned_parts = nn.ModuleDict(
            {name.replace(".", "/"): part for name, part in parts.items() if isinstance(part, nn.Module)}
        )
        self._frozen_masks = dict(masks or {})

    def tie(self, aliases: Mapping[str, str]) -> None:
        """Let names follow the merge, the coefficients and the mask of another: {name: the name to follow}."""
        for name, first in aliases.items():
            if name in self.rows:
                self.rows[name] = self.rows[first]
            _follow(self.parts, name, first)
            _follow(self._frozen_masks, name, first)
            if name.replace(".", "/") in self.learned_parts:
                del self.learned_parts[name.replace(".", "/")]

    @torch.no_grad()
    def write(self, targets: Mapping[str, Tensor]) -> None:
        """Write merged tensors into contiguous `targets`, rounded from the work dtype where theirs is another; they may be
        on another device than the parts. Raises MergeError for values beyond the range of a narrower dtype."""
        coefficients = self._effective()
        for name, target in targets.items():
            part = self.parts[name]
            target = target.view(part.origin.shape)  # (1,) where the tensor has no dimension
            out = target if target.dtype == part.origin.dtype else torch.empty_like(target, dtype=part.origin.dtype)
            with unmixed(out.device):
                part.combine(coefficients[self.rows[name]], out)
            if out is not target:
                target.copy_(out)
                check_range(name, out, target)

    @torch.no_grad()
    def pull_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the gradient of every learnable from G = ∂L/∂W; a tensor that is not listed contributes nothing."""
        coefficients = self._effective()
        gradient = torch.zeros_like(self.coefficients)
        for parameter in self.learned_parts.parameters():  # that of the last step would be added where nothing is listed
            parameter.grad = None
        for name, merged in gradients.items():
            row, part = self.rows[name], self.parts[name]
            with unmixed(merged.device):
                slope = part.pull_back(coefficients[row], merged.view_as(part.origin))
            gradient[row] += slope.to(gradient.device)
        if self.clamp:
            gradient *= (self.coefficients >= 0) & (self.coefficients <= 1)
        self.coefficients.grad = gradient if self.coefficients.requires_grad else None

    def _effective(self) -> Tensor:
        """Return the λ of the merge in the processor's memory: one transfer for all tensors."""
        coefficients = self.coefficients.detach().cpu()
        return coefficients.clamp(0, 1) if self.clamp else coefficients

    def named_coefficients(self) -> dict[str, Tensor]:
        """Return the raw λ of every floating-point tensor, {name: [T]}, and of common blocks, {name/common: [1]}."""
        learned = self.coefficients.detach().cpu()
        result = {name: learned[row, self.common :].clone() for name, row in self.rows.items()}
        for name, part in self.parts.items():
            if self.common and not isinstance(part, TasksAlone):
                result[f"{name}/common"] = learned[self.rows[name], :1].clone()
        return result

    def named_masks(self) -> dict[str, Tensor]:
        """Return the hard masks of the singular components, {name: bool [T, r]}; empty where there are none."""
        learned = {name: part.mask() for name, part in self._factors()}
        return {name: mask.cpu().clone() for name, mask in (self._frozen_masks | learned).items()}

    def spectra(self) -> dict[str, Tensor]:
        """Return the singular values behind the masks, {spectrum/name: [T, r]}."""
        return {f"spectrum/{name}": part.values.detach().cpu() for name, part in self._factors()}

    def _factors(self) -> Iterator[tuple[str, Factors]]:
        for name, part in self.parts.items():
            if isinstance(part, Factors):
                yield name, part
            elif isinstance(part, Sum):
                for suffix, piece in (("", part.own), ("/common", part.common)):
                    if isinstance(piece, Factors):
                        yield name + suffix, piece

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return the merged weights in the keys, order and dtypes of the pretrained model; tied tensors are tied again.

        Raises MergeError for values beyond the range of their dtype.
        """
        result = {}
        tied = self.experts.tied
        for name, base in self.experts.pretrained.items():
            if name not in tied:
                result[name] = base.detach().clone(memory_format=torch.contiguous_format)
        self.write(targets := {name: tensor for name, tensor in result.items() if name in self.parts})
        for name, tensor in targets.items():
            check_range(name, tensor, tensor)
        return {name: result[tied.get(name, name)] for name in self.experts.pretrained}


def check_range(name: str, merged: Tensor, stored: Tensor) -> None:
    """Raise MergeError where a merged tensor has values that its stored dtype cannot hold."""
    if not is_finite(stored):
        raise beyond("the adapted model", name, merged, stored.dtype, "scaling or lr")


def _follow(table: dict[str, Any], name: str, first: str) -> None:
    table.pop(name, None)
    if first in table:
        table[name] = table[first]
