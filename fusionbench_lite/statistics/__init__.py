"""Statistics of training examples, for the methods that weigh experts, or their coordinates, by them."""

from fusionbench_lite.statistics.fisher import diagonal_fisher
from fusionbench_lite.statistics.gradients import absolute_gradients
from fusionbench_lite.statistics.gram import gram_matrices

__all__ = ["absolute_gradients", "diagonal_fisher", "gram_matrices"]
