"""`python -m tests.support.counting_job ...`: the command line, noting in $COMPUTED which process computes which method."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fusionbench_lite import __main__ as command
from fusionbench_lite.running import run


def main() -> int:
    """Run the command line with `run._compute` watched."""
    compute = run._compute

    def noted(plan, *given):
        with Path(os.environ["COMPUTED"]).open("a", encoding="utf-8") as file:
            file.write(f"{os.environ.get('LOCAL_RANK', '0')} {plan.method}\n")
        return compute(plan, *given)

    run._compute = noted
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
