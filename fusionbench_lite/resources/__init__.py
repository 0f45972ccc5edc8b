"""What a run takes before it starts: bytes by item, place and phase, and operations, from shapes alone.

Estimates are checked against the measured peak of real runs in tests/test_memory_plan.py.
"""

from fusionbench_lite.resources.encoder import Encoder, encoder, of_size
from fusionbench_lite.resources.estimates import estimate
from fusionbench_lite.resources.plan import PHASES, Entry, Estimate, Flops, Inputs
from fusionbench_lite.resources.suggestions import Suggestion, lines, suggest

__all__ = [
    "PHASES", "Encoder", "Entry", "Estimate", "Flops", "Inputs", "Suggestion", "encoder", "estimate", "lines", "of_size", "suggest",
]
