"""What an export is asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for; see the command."""

    record: str
    out: str
    results_dir: str = "results"
    cache_dir: str | None = None
    select: str | None = None
    layout: str | None = None
    compact: bool = True
    limit: int | None = None
    verify: bool = True
