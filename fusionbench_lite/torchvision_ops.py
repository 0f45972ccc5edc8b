"""The old name of `base.torchvision_ops`, which scripts of 0.4 import before torchvision."""

from fusionbench_lite.base import torchvision_ops  # noqa: F401
