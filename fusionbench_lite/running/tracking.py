"""One tracked run per record, in whatever `logger=` names: configuration, course, results (docs/tracking.md).

Loggers are Lightning's, so that any of them can be named by its `_target_`; those of `conf/logger/` know name, group and how an
interrupted run goes on. What is tracked is a copy: a tracker that fails in the middle of a run is left alone, and the run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from fusionbench_lite.planning.plan import Plan

log = logging.getLogger(__name__)

_LOGGERS = "lightning.pytorch.loggers."
CSV, TENSORBOARD, WANDB = f"{_LOGGERS}CSVLogger", f"{_LOGGERS}TensorBoardLogger", f"{_LOGGERS}WandbLogger"
STEP = "trainer/global_step"
"""The horizontal axis of charts, under the name that Lightning's logger gives it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where in an experiment a run stands. `column` is empty where the run answers several."""

    experiment: str | None = None
    row: str = ""
    column: str = ""

    def of_base(self, method: str) -> Place:
        """Return the place of the run that the adapters of this one sit on."""
        return dataclasses.replace(self, row=f"{self.row} (base {method})") if self.row else self

    def name(self, plan: Plan) -> str:
        """Return the name of a tracked run: row/column/seed, or method/model-tasks/seed outside of an experiment."""
        parts = [self.row, self.column] if self.row else [plan.method, f"{plan.model}-{plan.task_set}"]
        return "/".join([*filter(None, parts), str(plan.seed)])


class Tracker:
    """What is told of one run, step by step and at its end. `target` says which logger that is; None tracks nothing.

    `after`: the last step that the tracked run knows already, which is told again by no resumed run. `replays`: the tracked run
    begins anew when a run is resumed, and has to be told what the checkpoint holds.
    """

    def __init__(self, logger: Any = None, target: str = "", where: str = "", after: int = -1) -> None:
        self.logger, self.target, self.where, self.after = logger, target, where, after
        self.replays = target in (CSV, TENSORBOARD)

    @property
    def active(self) -> bool:
        """Whether anything is tracked."""
        return self.logger is not None

    def describe(self, content: Mapping[str, Any]) -> None:
        """Add entries to the run's configuration."""
        self._tell(lambda logger: logger.log_hyperparams(dict(content)))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers of the course after a number of finished steps."""
        if step > self.after:
            self._tell(lambda logger: logger.log_metrics(dict(values), step))

    def result(self, record: Mapping[str, Any]) -> None:
        """Tell what a record says: values with intervals and the average under every selection rule, seconds, versions."""
        last = record["selections"]["last"]["step"]
        self._tell(lambda logger: logger.log_metrics(_results(record), last))
        self.describe({name: record[name] for name in ("versions", "git_revision", "device", "device_name") if name in record})
        self.describe({"family": record["checkpoints"]["family"]})

    def end(self, *, finished: bool) -> None:
        """Close the tracked run, as failed where the run has not come to its end."""
        self._tell(lambda logger: logger.finalize("success" if finished else "failed"))
        if self.target == WANDB:  # Lightning leaves it open for the next run, which would go on with it
            self._tell(lambda logger: logger.experiment.finish(exit_code=0 if finished else 1))
        if self.active and finished:
            log.info("tracked in %s", self.where)
        self.logger = None

    def _tell(self, tell: Callable[[Any], None]) -> None:
        if self.logger is None:
            return
        try:
            tell(self.logger)
        except Exception as error:  # of a service or a disk, and of any kind: hours of adaptation are not lost to it
            log.warning("tracking in %s ends here, the run goes on: %s: %s", self.where, type(error).__name__, _line(error))
            self.logger = None


def _results(record: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float | None] = {"peak_bytes": record["peak_bytes"]}
    for rule, selection in record["selections"].items():
        numbers |= {f"{rule}/average": selection["average"], f"{rule}/step": selection["step"]}
        for task, cell in selection["per_task"].items():
            low, high = cell["interval"]
            numbers |= {f"{rule}/value/{task}": cell["value"], f"{rule}/low/{task}": low, f"{rule}/high/{task}": high}
    numbers |= {f"seconds/{stage}": seconds for stage, seconds in record["seconds"].items()}
    return {name: float(number) for name, number in numbers.items() if number is not None}


# Before a run --------------------------------------------------------------------------------------------------------


def check(logger: Mapping[str, Any] | None) -> None:
    """Raise InputError, before any work, where a logger's package or wandb's key is missing."""
    target = (logger or {}).get("_target_")
    if target == TENSORBOARD and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("logger=tensorboard needs the package tensorboard: pip install 'fusionbench_lite[tensorboard]'")
    if target == WANDB:
        if importlib.util.find_spec("wandb") is None:
            raise InputError("logger=wandb needs the package wandb: pip install 'fusionbench_lite[wandb]'")
        if _wandb_mode(bool((logger or {}).get("offline"))) in ("online", "run", "shared"):
            _check_key()


def _wandb_mode(offline: bool) -> str:
    """Return wandb's mode: WANDB_MODE, else offline where `logger.offline` says so, else that of wandb's settings."""
    import wandb

    try:
        mode = str(wandb.setup().settings.mode)
    except ValueError:  # pydantic's, of several lines
        raise InputError(
            f"WANDB_MODE={os.environ.get('WANDB_MODE')} is not known to wandb: set online, offline or disabled"
        ) from None
    return "offline" if offline and not os.environ.get("WANDB_MODE") else mode


def _check_key() -> None:
    import inspect

    import wandb

    fix = "run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline and upload later with wandb sync"
    try:
        if "prompt" in inspect.signature(wandb.login).parameters:
            there = wandb.login(prompt=False, verify=False)
        else:
            there = wandb.api.api_key is not None
    except wandb.errors.Error as error:
        raise InputError(f"logger=wandb: {_line(error)}: {fix}") from None
    if not there:
        raise InputError(f"logger=wandb finds no key of Weights & Biases: {fix}")


# A run ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tracked(plan: Plan, key: str, place: Place) -> Iterator[Tracker]:
    """Yield the tracker of a run that is about to begin; the tracked run ends with the block.

    Raises InputError where the tracked run cannot begin.
    """
    from fusionbench_lite.base.processes import is_first

    tracker = _begin(plan, key, place) if plan.logger.get("_target_") and is_first() else Tracker()
    try:
        tracker.describe(_description(plan, key, place))
        yield tracker
    except BaseException:
        tracker.end(finished=False)
        raise
    tracker.end(finished=True)


def _description(plan: Plan, key: str, place: Place) -> dict[str, Any]:
    chosen = {**plan.hyperparameters, **plan.settings}
    return {
        "record": key, "method": plan.method, "hyperparameters": {name: setting.value for name, setting in chosen.items()},
        "model": plan.model, "tasks": list(plan.tasks), "task_set": plan.task_set, "seed": plan.seed,
        "limit": plan.wanted.limit, "select": plan.select, **dataclasses.asdict(place), "config": dict(plan.config),
    }


def _begin(plan: Plan, key: str, place: Place) -> Tracker:
    options = dict(plan.logger)
    target = options["_target_"]
    name, group = options.pop("name", None) or place.name(plan), options.pop("group", None) or place.experiment
    try:
        if target == WANDB:
            return _wandb(options, key, name, group)
        if target in (CSV, TENSORBOARD):
            return _files(options, key, name, group)
        from hydra.utils import instantiate

        named = {"name": plan.logger["name"]} if plan.logger.get("name") else {}
        return Tracker(instantiate({**options, **named}), target, target)
    except Exception as error:  # of a service, a disk or a class that does not exist; nothing is lost yet
        fix = "set WANDB_MODE=offline and upload later with wandb sync" if target == WANDB else "or leave logger out"
        raise InputError(f"no run can be tracked with {target.rpartition('.')[2]}: {_line(error)}: {fix}") from error


def _files(options: dict[str, Any], key: str, name: str, group: str | None) -> Tracker:
    """Begin a tracked run in a folder of its own, emptied where it is there: a resumed run tells it everything again."""
    from hydra.utils import instantiate

    kind = "csv" if options["_target_"] == CSV else "tensorboard"
    parts = [re.sub(r"[^A-Za-z0-9_+.-]+", "_", part)[:120] for part in (group or "").split("/") if part.strip(".")]
    leaf = re.sub(r"[^A-Za-z0-9_+.-]+", "_", name)[:120]
    folder = Path(options.pop("save_dir")).joinpath(kind, *parts, f"{leaf}-{key}")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    # Folders end in the key, which no version_N does: no logger numbers them.
    return Tracker(
        instantiate({**options, "save_dir": str(folder.parent), "name": "", "version": folder.name}),
        options["_target_"], str(folder),
    )


def _wandb(options: dict[str, Any], key: str, name: str, group: str | None) -> Tracker:
    """Begin a run of wandb under the record's key, or go on with it."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    folder = Path(options.pop("save_dir"))
    folder.mkdir(parents=True, exist_ok=True)
    offline = _wandb_mode(bool(options.pop("offline", False))) == "offline"
    settings = {} if os.environ.get("WANDB_SILENT") else {"settings": wandb.Settings(silent=True)}
    run = wandb.init(**{
        "dir": str(folder), "name": name, "group": group, "id": key, "resume": "allow",
        **({"mode": "offline"} if offline else {}), **settings,
        **{option: value for option, value in options.items() if option != "_target_" and value is not None},
    })
    # What Lightning's logger says of a run that it begins itself; it would begin this one with an option that wandb warns of.
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    where = (None if offline else run.url) or str(Path(run.dir).parent)
    summary: Any = run.summary
    after = int(summary.get(STEP, -1)) if run.resumed else -1
    return Tracker(WandbLogger(experiment=run), WANDB, where, after)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
