"""The methods that this package and mergekit 0.1.5 both have, and the settings under which their definitions are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A method by mergekit's `name` and by ours.

    `settings` are hyperparameters here, `parameters` mergekit's of the merge, `each` those of every expert, `weights` the
    weight of each of them. `based`: whether mergekit is given the pretrained model; `first_is_base`: its base is the first
    expert. `differs`: why values are not the same, empty where they are but for rounding. `same`: settings, parameters and each
    under which they are, where they are not under these.
    """

    name: str
    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    experts: int = 3
    based: bool = True
    first_is_base: bool = False
    differs: str = ""
    same: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]] | None = None

    def aligned(self) -> Case:
        """Return the case under the settings that make the definitions the same."""
        if self.same is None:
            return self
        settings, parameters, each = self.same
        return dataclasses.replace(
            self, settings={**self.settings, **settings}, parameters={**self.parameters, **parameters}, each={**self.each, **each}
        )

    def paths(self, folder: Path) -> dict[str, str]:
        """Return the experts by task."""
        return {f"expert{number}": str(folder / f"expert{number}") for number in range(1, self.experts + 1)}

    def configuration(self, folder: Path, dtype: str) -> dict[str, Any]:
        """Return mergekit's configuration."""
        models: list[dict[str, Any]] = []
        for number, path in enumerate(self.paths(folder).values()):
            given = dict(self.each)
            if self.weights is not None:
                given["weight"] = self.weights[number]
            models.append({"model": path, "parameters": given})
        configuration = {
            "merge_method": self.name, "models": models, "parameters": dict(self.parameters), "dtype": dtype,
            "out_dtype": "bfloat16",
        }
        if self.based:
            configuration["base_model"] = str(folder / "base")
        elif self.first_is_base:
            configuration["base_model"] = models[0]["model"]
        return configuration


_SUM = {"normalize": False, "rescale": False}
CASES = (
    Case(name="linear", method="weight_averaging", weights=(1.0, 1.0, 1.0), based=False),
    Case(name="task_arithmetic", method="task_arithmetic", settings={"scaling": 0.4}, parameters=_SUM, weights=(0.4, 0.4, 0.4)),
    Case(
        name="ties", method="ties_merging", settings={"scaling": 0.4, "keep": 0.2}, each={"density": 0.2},
        parameters=_SUM, weights=(0.4, 0.4, 0.4),
        differs="here one threshold for the whole model, as in the released code of TIES; mergekit keeps the same part of every "
        "tensor. With nothing trimmed only coordinates whose entries cancel differ: here they take the majority's sign, in "
        "mergekit the positive one",
        same=({"keep": 1.0}, {}, {"density": 1.0}),
    ),
    Case(
        name="dare_ties", method="ties_dare", settings={"scaling": 0.4, "keep": 1.0, "drop_rate": 0.5}, each={"density": 0.5},
        parameters={"normalize": False, "rescale": True}, weights=(0.4, 0.4, 0.4),
        differs="masks are drawn from other random streams, and what is kept is divided by 1 - p here, as in the paper, while "
        "mergekit scales it to the L1 norm before. With nothing dropped it is the case of TIES",
        same=({"drop_rate": 0.0}, {}, {"density": 1.0}),
    ),
    Case(
        name="slerp", method="slerp", settings={"t": 0.3}, parameters={"t": 0.3}, experts=2, based=False, first_is_base=True,
    ),
    Case(name="nuslerp", method="nuslerp", settings={"t": 0.3}, weights=(0.7, 0.3), experts=2),
    Case(
        name="breadcrumbs", method="breadcrumbs",
        settings={"scaling": 0.4, "keep": 0.9, "outliers": 0.01, "granularity": "tensor"}, each={"density": 0.9, "gamma": 0.01},
        parameters=_SUM, weights=(0.4, 0.4, 0.4),
        differs="which of several equal magnitudes at a border stays is arbitrary in mergekit; here the first counts as larger",
    ),
    Case(name="model_stock", method="model_stock", settings={"average": "cosines"}),
)
