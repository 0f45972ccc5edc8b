"""Text tasks: the user's own files, GLUE, and tasks drawn by code, as the tokens that a model reads."""

from __future__ import annotations

from fusionbench_lite.data.text.descriptions import glue_names
from fusionbench_lite.data.text.loading import Reading, TextTask, load
from fusionbench_lite.data.text.protocols import Protocol, protocol
from fusionbench_lite.data.text.sizes import sizes
from fusionbench_lite.data.text.stock import inventory, names
from fusionbench_lite.data.text.tokenizing import Tokenizer
from fusionbench_lite.data.text.tokens import Tokens

__all__ = [
    "Protocol", "Reading", "TextTask", "Tokenizer", "Tokens", "glue_names", "inventory", "load", "names", "protocol", "sizes",
]
