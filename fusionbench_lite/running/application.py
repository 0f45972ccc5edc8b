"""The application of Hydra behind `python -m fusionbench_lite`: one job, the jobs of a sweep, or help."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import traceback
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite.errors import InputError, WriteError
from fusionbench_lite.paths import config_dir, mended
from fusionbench_lite.planning import arguments, mistakes, usage
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning.refusals import TRACEBACKS, refuse
from fusionbench_lite.running.job import Lost, in_a_job

configuration.register()

KEYS = frozenset(field.name for field in dataclasses.fields(configuration.Config))

_refused: list[InputError] | None = None
"""What jobs of this process refused; None where the exception itself has to travel on: where HYDRA_FULL_ERROR asks for
tracebacks, and in a launcher's worker, which imports this module anew."""
_process: int | None = None
"""The process that prints what was refused. In a worker of a launcher, which may be a copy of it, the exception travels on."""


@hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
def application(config: DictConfig) -> None:
    """Run one job: a single record, or a whole experiment."""
    try:
        with in_a_job(config, HydraConfig.get()):
            _job(config)
    except InputError as error:
        if _refused is None or os.getpid() != _process:
            raise
        _refused.append(error)


def _job(config: DictConfig) -> None:
    from fusionbench_lite.planning import plan

    overrides = list(HydraConfig.get().overrides.task)  # in a sweep those of this job
    if config.plan:
        from fusionbench_lite.running import planning

        planning.main(config, overrides)
        return
    from fusionbench_lite.running import tracking

    tracking.check(config.logger)
    if config.run is not None and config.experiment is None:
        raise InputError(f"run={config.run} is one run of an experiment: add experiment=NAME, or leave it out")
    if config.run is not None:
        from fusionbench_lite.running import sweep

        sweep.one(config, overrides)
        return
    if config.experiment is not None:
        from fusionbench_lite.planning import experiments
        from fusionbench_lite.running import all_tables, experiment, table

        by_name = dict.fromkeys(experiments.names(), table) | {experiments.ALL: all_tables}
        by_name.get(config.experiment, experiment).main(config, overrides)
        return
    if config.scale != "published":
        raise InputError(f"scale={config.scale} is the twin of a published table: add experiment=PAPER/TABLE, or leave it out")
    resolved = plan.resolve(config, overrides)
    from fusionbench_lite.running import run

    run.main(resolved)


def main() -> int:
    """Run the command line and return the exit status: 0 done, 1 where jobs of a sweep left no record, 2 where some were refused.

    Raises InputError for a line that is refused.
    """
    global _process, _refused
    _process = os.getpid()
    before = os.environ.get(TRACEBACKS)
    _refused = None if before == "1" else []
    os.environ[TRACEBACKS] = "1"  # hand exceptions to us instead of printing them
    try:
        sys.argv[1:] = _by_run(_for_every_method(_flags_first(arguments.prepared(sys.argv[1:]))))
        _check_flags(sys.argv[1:])
        if usage.asked(sys.argv[1:]):
            print(usage.text(sys.argv[1:]))
        else:
            application()
    except Lost as lost:
        print(f"fusionbench_lite: {lost}", file=sys.stderr)
        return 1
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raised_here = type(error) is ValueError and str(error).startswith("Config group override")
        if before == "1" or not (raised_here or isinstance(error, (HydraException, OmegaConfBaseException))):
            raise
        raise mistakes.explain(error, sys.argv[1:]) from None
    except OSError as error:  # Hydra makes the folders of a sweep before its jobs
        if before == "1" or _in_a_job(error) or not isinstance(error.filename, str):
            raise
        raise WriteError(f"cannot write {error.filename}: {error.strerror}; {mended(error)}") from None
    finally:
        if before is None:
            del os.environ[TRACEBACKS]
        else:
            os.environ[TRACEBACKS] = before
    for refused in _refused or []:
        refuse(refused)
    return 2 if _refused else 0


def _in_a_job(error: BaseException) -> bool:
    """Say whether an error comes out of a job's own code."""
    return any(frame.f_code is _job.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _check_flags(given: list[str]) -> None:
    """Raise InputError for what Hydra's parser of flags does not take; it would print its usage."""
    parser = get_args_parser()

    def refused(message: str) -> NoReturn:
        unknown = [one for one in given if one.startswith("--") and one.lstrip("-").partition("=")[0] in KEYS]
        hint = f"write {unknown[0].lstrip('-').partition('=')[0]}=VALUE" if unknown else "--help lists keys, --hydra-help flags"
        raise InputError(f"{message}: {hint}")

    parser.error = refused  # type: ignore[method-assign]
    parser.parse_args([one for one in given if one != "--version"])  # which prints and ends


def _flags_first(arguments: list[str]) -> list[str]:
    """Return the command line with -m in front: Hydra's parser takes no keys on both sides of a flag."""
    several = [one for one in arguments if one in ("-m", "--multirun")]
    return [*several[:1], *(one for one in arguments if one not in several)]


def _by_run(line: list[str]) -> list[str]:
    """Return the command line with the sweeper of experiments, where it is a sweep of some and names no sweeper and no run.

    Slurm's launcher is taken with values that are safe, conf/hydra/launcher/slurm.yaml.
    """
    line = ["hydra/launcher=slurm" if one == "hydra/launcher=submitit_slurm" else one for one in line]
    keys = {one.partition("=")[0] for one in line}
    of_experiments = arguments.sweeps(line) and "experiment" in keys and "plan=true" not in line
    return [*line, "hydra/sweeper=experiments"] if of_experiments and keys.isdisjoint({"run", "hydra/sweeper"}) else line


def _for_every_method(arguments: list[str]) -> list[str]:
    """Return the command line with settings of a swept method marked as additions.

    Hydra checks the settings of a sweep against the default method first, which may have none of that name. Marked with
    ++ they are not checked there; each job's own method checks them (`plan.resolve`).
    """
    swept = {"-m", "--multirun"} & set(arguments) and any(re.match(r"method=.*,", one) for one in arguments)
    return [f"++{one}" if swept and one.startswith("method.") else one for one in arguments]
