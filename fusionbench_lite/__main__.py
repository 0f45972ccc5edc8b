"""`python -m fusionbench_lite`: compose and check the configuration first, import torch after."""

from __future__ import annotations

import os
import re
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning import usage

configuration.register()

TRACEBACKS = "HYDRA_FULL_ERROR"
"""Hydra's own switch for tracebacks in place of one line."""

_refused: list[InputError] | None = None
"""What jobs of this process refused; None where the exception itself has to travel on: when HYDRA_FULL_ERROR asks for
tracebacks."""
_process: int | None = None
"""The process that prints what was refused. In a worker of a launcher, which may be a copy of it, the exception travels on."""


@hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
def application(config: DictConfig) -> None:
    """Run one job: a single record, or a whole experiment."""
    try:
        _job(config)
    except InputError as error:
        if _refused is None or os.getpid() != _process:
            raise
        _refused.append(error)


def _job(config: DictConfig) -> None:
    from fusionbench_lite.planning import plan

    overrides = list(HydraConfig.get().overrides.task)  # in a sweep those of this job
    if config.experiment is not None:
        from fusionbench_lite.running import experiment

        experiment.main(config, overrides)
        return
    resolved = plan.resolve(config, overrides)
    from fusionbench_lite.running import run

    run.main(resolved)


def main() -> int:
    """Return the exit status: 0 done, 2 bad input or configuration, 1 anything else."""
    global _process, _refused
    _process = os.getpid()
    verbose = os.environ.get(TRACEBACKS) == "1"
    _refused = None if verbose else []
    before = os.environ.get(TRACEBACKS)
    os.environ[TRACEBACKS] = "1"  # hand exceptions to us instead of printing them
    sys.argv[1:] = _for_every_method(_flags_first(sys.argv[1:]))
    try:
        if usage.asked(sys.argv[1:]):
            print(usage.text(sys.argv[1:]))
        else:
            application()
    except InputError as error:
        if verbose:
            raise
        return _refuse(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if verbose or (type(error) is ValueError and not str(error).startswith("Config group override")):
            raise
        return _refuse(configuration.explain(error, sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return 1
    finally:
        if before is None:
            del os.environ[TRACEBACKS]
        else:
            os.environ[TRACEBACKS] = before
    for refused in _refused or []:
        _refuse(refused)
    return 2 if _refused else 0


def _flags_first(arguments: list[str]) -> list[str]:
    """Return the command line with -m in front: Hydra's parser takes no keys on both sides of a flag."""
    several = [one for one in arguments if one in ("-m", "--multirun")]
    return [*several[:1], *(one for one in arguments if one not in several)]


def _for_every_method(arguments: list[str]) -> list[str]:
    """Return the command line with settings of a swept method marked as additions.

    Hydra checks the settings of a sweep against the default method first, which may have none of that name. Marked with
    ++ they are not checked there; each job's own method checks them (`plan.resolve`).
    """
    swept = {"-m", "--multirun"} & set(arguments) and any(re.match(r"method=.*,", one) for one in arguments)
    return [f"++{one}" if swept and one.startswith("method.") else one for one in arguments]


def _refuse(error: InputError) -> int:
    print(f"fusionbench_lite: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
