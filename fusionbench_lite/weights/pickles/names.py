"""The allow-list of names in pickles of checkpoints, and what is said of a name that is not on it."""

from __future__ import annotations

import re

from fusionbench_lite.weights import quantised
from fusionbench_lite.weights.foreign import FULL, GIVE

SCRIPT = "save its weights: torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')"
"""What helps against a TorchScript program."""
STUBS = re.compile(
    r"src\.(modeling|models\.modeling|heads|args|utils)\.[A-Z]\w*"
    r"|(open_clip|clip)\.(model|transformer|modified_resnet|timm_model|hf_model|coca_model|modeling)\.[A-Z]\w*"
    r"|open_clip\.transform\.(_convert_to_rgb|_convert_image_to_rgb|[A-Z]\w*)"
    r"|clip\.clip\.(_convert_image_to_rgb|_convert_to_rgb)"
    r"|torch\.nn\.modules\.[a-z_]+\.(_LinearWithBias|[A-Z]\w*)"
    r"|torch\.nn\.parallel\.(data_parallel|distributed)\.[A-Z]\w*"
    r"|torch\.(Tensor|torch_version\.TorchVersion|(optim|amp|cuda\.amp)(\.[a-z_]+)*\.[A-Z]\w*)"
    r"|(pytorch_lightning|lightning|lightning_fabric|omegaconf|ml_collections|yacs|easydict|addict|munch)(\.\w+)*\.[A-Z]\w*"
    r"|(typing|types)\.(Any|SimpleNamespace)|datetime\.(datetime|date|timedelta)"
    r"|(builtins|__builtin__)\.(int|long|float|str|unicode|bool|bytes|tuple)"
    r"|torchvision\.transforms\.(transforms|functional|_functional_pil|autoaugment)\.[A-Z]\w*"
    r"|torch\.(_C\._nn\.gelu|nn\.functional\.(gelu|relu|silu))"
    r"|argparse\.Namespace|PIL\.Image\.Resampling|pathlib\.(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(core|_core)\.multiarray\.scalar|numpy\.(dtype|ndarray)"
)
"""Names, fully matched, that become inert stubs: the legacy classes of published experts, torch's and torchvision's own, and what
training scripts keep beside the weights, such as configurations and optimizers."""
FOREIGN = (
    (r"torch\.distributed\.", "one process's part of tensors that several share", FULL),
    (
        r"torch\.(float[468]|[a-z]*int\d)|torch\._utils\._rebuild_(qtensor|tensor_v3)|(torchao|bitsandbytes|optimum)\.",
        "tensors of 8-bit floats or codes, as quantised models have", quantised.FIX,
    ),
    (r"torch\._utils\._rebuild_(sparse|nested)", "sparse or nested tensors", "save dense ones, tensor.to_dense()"),
    (r"torch\.Complex", "complex tensors", f"no CLIP has any: {GIVE}"),
    (r"torch\._(dynamo|inductor)\.", "a module of torch.compile with its compiler", "save its state_dict()"),
    (r"torch\._utils\._rebuild_meta", "tensors without values, of the device meta", "load the model whole and save it again"),
    (r"torch\.jit\.", "a TorchScript program", SCRIPT),
    (r"transformers\.training_args\.", "the arguments of a training", "give the model.safetensors beside it"),
)
"""Pattern of a name, what a file that has it holds, and what to do."""


def refusal(full: str, shown: str) -> tuple[str, str]:
    """Return why a name that is not on the list ends the reading, and what to do."""
    for pattern, what, fix in FOREIGN:
        if re.match(pattern, full):
            return f"it holds {what} ({shown})", fix
    return (
        f"it asks for {shown}, which is not on the list of classes that checkpoints need",
        "if you know who made it, save the state_dict() of its model with the code that made it, else use another file",
    )
