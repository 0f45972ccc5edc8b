"""What `python -m fusionbench_lite --help` prints.

Hydra's own help copies its whole registry once for every group of options; composing the configuration once is enough.
Header and footer are those of `hydra.help` in conf/config.yaml, where Hydra finds them too.
"""

from __future__ import annotations

import re
import textwrap

from omegaconf import OmegaConf, open_dict

from fusionbench_lite import suites
from fusionbench_lite.paths import config_dir, experiments_dir
from fusionbench_lite.planning import config as configuration

WIDTH = 120
FLAGS = {"-h", "--help"}


def asked(arguments: list[str]) -> bool:
    """Say whether the command line asks for this help; combined with other flags, help stays Hydra's."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    return bool(flags) and flags <= FLAGS


def text(arguments: list[str]) -> str:
    """Return the help for a command line: options of every group, and the configuration that the line composes.

    Raises what Hydra raises for a line that does not compose.
    """
    config = configuration.composed([argument for argument in arguments if argument not in FLAGS], with_hydra=True)
    hydra_help = config.hydra.help
    with open_dict(config):
        del config.hydra
    groups = "\n".join(_options(name, options) for name, options in _groups().items())
    return (
        f"{hydra_help.header}\n\n== Groups (name=option; several with -m, as in -m method=tsv_m,cart) ==\n\n{groups}\n\n"
        f"== Configuration (name=value; method.name=value for the method's own) ==\n\n"
        f"{OmegaConf.to_yaml(config, resolve=False)}\n{hydra_help.footer}"
    )


def _groups() -> dict[str, list[str]]:
    """Return the options of every group by its name, and the experiments, which are chosen in the same way."""
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_dir().iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }
    groups["model"] = sorted({*groups["model"], *suites.model_names()})
    root = experiments_dir()
    groups["experiment"] = sorted(re.sub(r"\.yaml$", "", file.relative_to(root).as_posix()) for file in root.rglob("*.yaml"))
    return groups


def _options(name: str, options: list[str]) -> str:
    return textwrap.fill(f"{name}: {', '.join(options)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
