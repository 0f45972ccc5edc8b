"""What the passes of a transformer cost, from the numbers of its architecture: bytes and operations."""

from __future__ import annotations

import dataclasses
import math

from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import WORK

SAVED, SAVED_OUTSIDE = 20.03, 3.0
"""States [tokens, width] that autograd keeps of a block, whose weights take gradients, and of what surrounds the blocks.

Of a block: its input and the normalised one, q, k and v, the attention's output, its projection's sum and that normalised,
and in the perceptron three times four: what QuickGELU reads, its sigmoid, what it puts out."""

SAVED_FROZEN = 15.0
"""The same where the weights take no gradients: what linear layers read is not needed then."""

MATH_COPIES = {"packed": 2.0, "separate": 0.0}
"""Further states that attention without fused kernels keeps, beside its weights [heads, tokens, tokens]."""

BACKWARD = 8.0
"""States in use during a backward pass beyond those kept: gradients inside a perceptron."""

FORWARD = 16.0
"""States in use at the fullest moment of a pass without gradients: inside a perceptron."""


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The passes of a transformer of an architecture; "images" are what it reads, texts where it reads tokens."""

    of: Architecture

    def states(self, images: int, size: float = WORK) -> int:
        """Return the bytes of [images, tokens, width]."""
        return int(images * self.of.tokens * self.of.width * size)

    def attention(self, images: int, size: float = WORK) -> int:
        """Return the bytes of the attention weights of one block."""
        return int(images * self.of.heads * self.of.tokens**2 * size)

    def inputs(self, images: int) -> int:
        """Return the bytes of images [images, 3, image, image] in float32, or of int64 ids and masks [images, tokens]."""
        if not self.of.image:
            return images * self.of.tokens * 2 * 8
        return images * 3 * self.of.image**2 * 4

    def saved(self, images: int, *, bf16: bool = False, frozen: bool = False, plain: bool = False) -> int:
        """Return the bytes that autograd keeps of a forward pass.

        `frozen`: weights take no gradients; `plain`: attention runs without fused kernels. In mixed precision the
        separate layout's norms stay in float32.
        """
        states = (self.of.kept or SAVED) * (SAVED_FROZEN / SAVED if frozen else 1)
        size = (2.4 if self.of.layout == "separate" else 2) if bf16 else WORK
        total = (states * self.of.blocks + SAVED_OUTSIDE) * self.states(images, size)
        if plain:
            extra = MATH_COPIES.get(self.of.layout, 2.0) * self.states(images, size) + self.attention(images, size)
            total += self.of.blocks * extra
        return int(total)

    def backward(self, images: int, *, bf16: bool = False) -> int:
        """Return the bytes that a backward pass needs beyond what is kept."""
        return int(BACKWARD * self.states(images, 2 if bf16 else WORK))

    def forward(self, images: int, *, bf16: bool = False) -> int:
        """Return the bytes that a pass without gradients takes, inputs aside."""
        return int(FORWARD * self.states(images, 2 if bf16 else WORK))

    @property
    def forward_flops(self) -> int:
        """The operations of a forward pass of one image: products of matrices and convolution; heads aside."""
        return 2 * (self._block_products() + self._patches() + self.of.width * self.of.output)

    @property
    def backward_flops(self) -> int:
        """The operations of a backward pass of one image, for inputs and weights; the images take no gradient."""
        attention = 2 * self.of.tokens**2 * self.of.width * self.of.blocks
        linear = self._block_products() - attention
        # Attention's backward pass makes its weights again: five products for the two of the forward pass.
        return 2 * (2 * linear + attention * 5 // 2 + self._patches() + 2 * self.of.width * self.of.output)

    def _block_products(self) -> int:
        """Return the multiplications of the blocks: 12 d² per token, and two products of queries, keys and values."""
        linear = self.of.products or 12 * self.of.width**2 * self.of.blocks
        return linear * self.of.tokens + 2 * self.of.tokens**2 * self.of.width * self.of.blocks

    def _patches(self) -> int:
        if not self.of.image:
            return 0
        # As many as the pixels times the width, however they are divided into patches.
        side = math.isqrt(self.of.tokens - 1)
        return 3 * (self.of.image // side * side) ** 2 * self.of.width
