"""Fine-tuning an expert, or one model on the labels of all tasks, from a pretrained encoder under frozen zero-shot heads."""

from fusionbench_lite.finetuning.callbacks import Status
from fusionbench_lite.finetuning.job import finetune
from fusionbench_lite.finetuning.recipes import FinetuneSettings

__all__ = ["FinetuneSettings", "Status", "finetune"]
