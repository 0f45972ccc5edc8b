"""A command on CLIP models of a small size in a process of its own: python -m tests.support.vision_job MODULE [KEY=VALUE ...]."""

import importlib
import sys

from fusionbench_lite.models import clip
from tests.support.vision_suite import SMALL

if __name__ == "__main__":
    clip.SIZES["vit_b32"] = SMALL
    module = importlib.import_module(sys.argv.pop(1))
    sys.argv[0] = "fusionbench_lite"
    sys.exit(module.main())
