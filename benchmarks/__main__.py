"""`python -m benchmarks`: all measurements of this package."""

from benchmarks import adaptation_step, merging, method_steps
from benchmarks.command import main

if __name__ == "__main__":
    main("python -m benchmarks", __doc__, [adaptation_step, method_steps, merging])
