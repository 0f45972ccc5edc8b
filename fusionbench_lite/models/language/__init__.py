"""Language models: encoders inside transformers' own classes, their heads, and how both are built from files."""

from __future__ import annotations

from fusionbench_lite.models.language.answers import Answering
from fusionbench_lite.models.language.building import build, encoder_of, full_model, new_model
from fusionbench_lite.models.language.encoders import BertEncoder, Encoder, Gpt2Encoder, RobertaEncoder
from fusionbench_lite.models.language.heads import LinearHead, RobertaHead
from fusionbench_lite.models.language.llama import LlamaEncoder
from fusionbench_lite.models.language.t5 import T5Encoder
from fusionbench_lite.models.language_configs import read_config

__all__ = [
    "Answering", "BertEncoder", "Encoder", "Gpt2Encoder", "LinearHead", "LlamaEncoder", "RobertaEncoder", "RobertaHead",
    "T5Encoder", "build", "encoder_of", "full_model", "new_model", "read_config",
]
