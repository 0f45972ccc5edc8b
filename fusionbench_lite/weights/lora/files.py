"""The files of a PEFT LoRA adapter: where they are, and their tensors, read one at a time. Pickles are never read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.stored.elsewhere import ADAPTER, ADAPTER_CONFIG
from fusionbench_lite.weights.stored.folders import describe
from fusionbench_lite.weights.stored.indexes import SUFFIX

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = ADAPTER_CONFIG, ADAPTER + SUFFIX
FOLD = "fold it with peft's merge_and_unload and give the folder that save_pretrained then writes"
FLOATING = ("F64", "F32", "F16", "BF16")


class AdapterFile:
    """The tensors of an adapter. A file is opened for one tensor at a time, so that no mapping of it stays.

    Attributes: `folder`; `shapes` and `dtypes` (the names of the safetensors format) of every key.

    Raises MergeError: no adapter, a pickle only, a file that is missing or cannot be read, a key in two files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise self.error(f"there is no {CONFIG}: give the folder that peft's save_pretrained wrote")
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        found = describe(folder)
        if found.kind != "adapter":
            raise self.error(found.sentence.removeprefix(f"adapter {folder}: "))
        for path in found.files:
            with self._open(path) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    if key in self._files:
                        raise self.error(f"{self._files[key].name} and {path.name} both hold {key!r}: save the adapter again")
                    part = file.get_slice(key)
                    self._files[key], self.shapes[key], self.dtypes[key] = path, tuple(part.get_shape()), part.get_dtype()

    def error(self, text: str) -> MergeError:
        """Return the error that names this adapter."""
        return MergeError(f"adapter {self.folder}: {text}")

    def warn(self, text: str) -> None:
        """Warn of a result that one would not expect, naming this adapter."""
        warnings.warn(f"adapter {self.folder}: {text}", MergeWarning, stacklevel=3)

    def read(self, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a tensor in memory of its own. Raises MergeError where it is not finite in this dtype."""
        with self._open(self._files[key]) as file:
            stored = file.get_tensor(key)
        tensor: Tensor = stored.to(device=device, dtype=dtype, copy=True)
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad and bool(torch.isfinite(stored).all()):
            raise self.error(
                f"{key!r} has {float(stored.abs().max()):.6g}, beyond {torch.finfo(dtype).max:.6g}, the largest {dtype}: "
                "store the pretrained model in bfloat16 or float32"
            )
        if bad:
            raise self.error(f"{key!r} has {bad} non-finite of {tensor.numel()} values; repair or drop the adapter")
        return tensor

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise self.error(f"{path.name} cannot be read ({reason}): download or save the adapter again") from error
