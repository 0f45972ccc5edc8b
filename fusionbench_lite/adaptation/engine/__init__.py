"""The adaptation engine: merged weights as leaves, gradients of the small parameters in closed form.

Lightning's metrics import torchvision, so the operators that torchvision may lack are defined before anything here.
"""

import fusionbench_lite.base.torchvision_ops  # noqa: F401
