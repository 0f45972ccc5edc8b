"""`python -m fusionbench_lite.tables.published`: record a change of results/published that is meant, in digests.json."""

from __future__ import annotations

import json
import sys

from fusionbench_lite.paths import atomic_file, published_dir
from fusionbench_lite.planning.refusals import exit_status
from fusionbench_lite.tables.published import reading, schema


def main() -> int:
    """Write the digests of the files as they are, after every other check; returns the exit status."""
    return exit_status(_main)


def _main() -> int:
    root = published_dir()
    lines = {name: reading.read_lines(root / name, columns) for name, columns in schema.COLUMNS.items()}
    with atomic_file(root / schema.DIGESTS) as temporary:
        temporary.write_text(json.dumps(schema.digests(lines), indent=1) + "\n", encoding="utf-8")
    schema.check(root, lines)
    print(f"written {root / schema.DIGESTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
