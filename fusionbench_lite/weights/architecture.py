"""An architecture by its numbers: the names and shapes of its tensors, and what they make together. Nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusionbench_lite.weights.matrices import is_factorised

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An encoder: `tensors` that are merged, in the order of its state dict, and `constants` that it reads besides.

    It has `blocks` of `width` and returns features of width `output`. `leftovers` are merged tensors that the forward
    pass never reads, such as the embeddings of a text tower that was cut off. `layout` says whose names the tensors have:
    "packed" (q, k, v in one matrix), "separate", or another in words. `policy` is the value of a method's `matrices` that
    selects the matrices of the blocks. Of a vision transformer `tokens` counts the class token, and `image` is the side of
    what it reads; where that is 0 the model reads tokens. `products` are the multiplications of a token in linear layers, 0 for
    12 d² of every block, and `kept` the states that autograd keeps of a block, 0 for those of a vision transformer.
    `itemsize` is that of the stored weights.
    """

    name: str
    layout: str
    tensors: Mapping[str, Shape]
    blocks: int
    width: int
    output: int
    policy: str = "attn_mlp"
    leftovers: frozenset[str] = frozenset()
    constants: Mapping[str, Shape] = field(default_factory=dict)
    heads: int = 0
    tokens: int = 0
    image: int = 0
    products: int = 0
    kept: float = 0.0
    itemsize: int = 4

    @property
    def count(self) -> int:
        """The number of floating-point tensors."""
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """The number of parameters that are merged."""
        return sum(map(math.prod, self.tensors.values()))

    @property
    def used(self) -> int:
        """The number of these that the forward pass reads."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if name not in self.leftovers)

    @property
    def stored(self) -> int:
        """The bytes of all weights as they are stored."""
        return (self.parameters + sum(map(math.prod, self.constants.values()))) * self.itemsize

    @property
    def leaves(self) -> int:
        """The bytes of the merged weights."""
        return self.parameters * self.itemsize

    @property
    def largest(self) -> int:
        """The elements of the largest tensor."""
        return max(map(math.prod, self.tensors.values()))

    @property
    def multiplied(self) -> int:
        """The elements of the tensors that products read."""
        return sum(math.prod(shape) for shape in self.tensors.values() if len(shape) > 1)

    @property
    def perceptrons(self) -> int:
        """The number of parameters in modules named mlp."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if ".mlp." in name)

    def matrices(self, policy: str | None = None) -> dict[str, Shape]:
        """Return the matrices that a method with this `matrices` policy factorises; None is that of the blocks' matrices."""
        policy = policy or self.policy
        return {name: shape for name, shape in self.tensors.items() if is_factorised(name, shape, policy)}
