"""Statistics of experts on unlabelled inputs, for the methods that weigh experts by them."""

from fusionbench_lite.statistics.fisher import diagonal_fisher
from fusionbench_lite.statistics.gram import gram_matrices

__all__ = ["diagonal_fisher", "gram_matrices"]
