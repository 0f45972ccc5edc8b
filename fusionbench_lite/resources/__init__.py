"""What a run takes before it starts: bytes by item, place and phase, and operations, from shapes alone.

Estimates are checked against the measured peak of real runs in tests/resources/test_memory_plan.py.
"""

from fusionbench_lite.models.architectures import encoder, of_size
from fusionbench_lite.resources.estimates import estimate
from fusionbench_lite.resources.plan import PHASES, Entry, Estimate, Flops, Inputs
from fusionbench_lite.resources.suggestions import Suggestion, lines, suggest
from fusionbench_lite.resources.transformer import Transformer

__all__ = [
    "PHASES", "Entry", "Estimate", "Flops", "Inputs", "Suggestion", "Transformer", "encoder", "estimate", "lines", "of_size",
    "suggest",
]
