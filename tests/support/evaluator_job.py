"""One process of an evaluation that several share: prints the number of passes it made and all predictions."""

from __future__ import annotations

import json
import sys

import torch

from fusionbench_lite.base.processes import connect
from tests.evaluation.test_evaluator import make


def main() -> None:
    evaluator, encode = make(batch_size=int(sys.argv[1]))
    passes = 0

    def counted(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return encode(inputs)

    assert connect()
    found = evaluator.evaluate(counted)
    said = {"passes": passes, "predictions": {task: r.predictions.tolist() for task, r in found.items()}}
    sys.stdout.write(json.dumps(said) + "\n")  # at once: both processes write to one pipe, and `print` ends its line afterwards
    sys.stdout.flush()


if __name__ == "__main__":
    main()
