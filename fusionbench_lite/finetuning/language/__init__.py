"""Fine-tuning language models on labelled texts: all weights, or adapters."""

from fusionbench_lite.finetuning.language.experts import train_expert
from fusionbench_lite.finetuning.language.loop import Watcher, optimise
from fusionbench_lite.finetuning.language.recipes import LanguageRecipe, Lora, recipe

__all__ = ["LanguageRecipe", "Lora", "Watcher", "optimise", "recipe", "train_expert"]
