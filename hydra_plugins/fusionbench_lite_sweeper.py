"""Hydra's sweeper of experiments: `-m experiment=NAME` sends a job per run that has no record.

It lies here because Hydra takes plugins from the package `hydra_plugins` alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ExperimentSweeper(Sweeper):
    """Expands experiments into their runs, for whatever launcher is configured. At most `max_batch_size` jobs are sent at once."""

    def __init__(self, max_batch_size: int | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.launcher: Launcher
        self.hydra: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.config, self.hydra = hydra_context, config, config.hydra
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Send what is missing, wait, and write the tables."""
        from fusionbench_lite.running import sweep

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        lines = [list(line) for line in itertools.product(*map(_values, parser.parse_overrides(arguments)))]
        folder = Path(self.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        sweep.main(lines, sweep.Sending(launcher=self.launcher, hydra=self.hydra, at_once=self.max_batch_size))


def _values(override: Override) -> Iterator[str]:
    """Yield what an override stands for: itself, as it was written, or one for each of the values that it sweeps over."""
    if not override.is_sweep_override():
        yield str(override.input_line)
    elif override.is_discrete_sweep():
        for value in override.sweep_string_iterator():
            yield f"{override.get_key_element()}={value}"
    else:
        raise HydraException(f"{override.input_line}: write the values that are swept over one by one")
