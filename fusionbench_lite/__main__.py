"""`python -m fusionbench_lite`: compose and check the configuration first, import torch after."""

from __future__ import annotations

import sys

from fusionbench_lite.planning.refusals import exit_status

INTERRUPTED = "interrupted: the same command continues from the last checkpoint"


def main() -> int:
    """Return the exit status: 0 done, 2 bad input or configuration, 1 anything else."""
    return exit_status(_main, INTERRUPTED)


def _main() -> int:
    from fusionbench_lite.running import application  # late: while Hydra is imported, Ctrl-C is a line as well

    return application.main()


if __name__ == "__main__":
    sys.exit(main())
