"""`python -m benchmarks`: all measurements of this package."""

from benchmarks.adaptation_step import main

if __name__ == "__main__":
    main()
