"""LoRA adapters of the PEFT library as experts; `expert.py` folds them, the other files say what their tensors mean."""

from fusionbench_lite.weights.lora.expert import LoraExpert, read_adapter

__all__ = ["LoraExpert", "read_adapter"]
