"""What a vision transformer costs, from the numbers of its architecture: bytes of its passes and operations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.clip_sizes import SIZES, Size
from fusionbench_lite.weights.matrices import is_factorised

Shape = tuple[int, ...]

WORK = 4
"""Bytes of an element in which weights are merged and learned: float32."""

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
class Encoder:
    """A vision transformer: `tensors` that are merged, `constants` that it reads besides, and its architecture.

    `tokens` counts the class token; `layout` is "packed" (q, k, v in one matrix) or "separate"; `itemsize` is that of
    the stored weights.
    """

    name: str
    tensors: Mapping[str, Shape]
    tokens: int
    width: int
    layers: int
    heads: int
    output: int
    image: int
    layout: str = "packed"
    constants: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    itemsize: int = 4

    @property
    def elements(self) -> int:
        """The number of elements that are merged."""
        return sum(map(math.prod, self.tensors.values()))

    @property
    def stored(self) -> int:
        """The bytes of all weights as they are stored."""
        return (self.elements + sum(map(math.prod, self.constants.values()))) * self.itemsize

    @property
    def leaves(self) -> int:
        """The bytes of the merged weights."""
        return self.elements * self.itemsize

    @property
    def matrix_elements(self) -> int:
        """The elements of the tensors that products read."""
        return sum(math.prod(shape) for shape in self.tensors.values() if len(shape) > 1)

    @property
    def largest(self) -> int:
        """The elements of the largest tensor."""
        return max(map(math.prod, self.tensors.values()))

    def matrices(self, policy: str) -> dict[str, Shape]:
        """Return the matrices that an SVD method with this policy factorises."""
        return {name: shape for name, shape in self.tensors.items() if is_factorised(name, shape, policy)}

    def states(self, images: int, size: float = WORK) -> int:
        """Return the bytes of [images, tokens, width]."""
        return int(images * self.tokens * self.width * size)

    def attention(self, images: int, size: float = WORK) -> int:
        """Return the bytes of the attention weights of one block."""
        return int(images * self.heads * self.tokens**2 * size)

    def inputs(self, images: int) -> int:
        """Return the bytes of images [images, 3, image, image] in float32."""
        return images * 3 * self.image**2 * 4

    def saved(self, images: int, *, bf16: bool = False, frozen: bool = False, plain: bool = False) -> int:
        """Return the bytes that autograd keeps of a forward pass.

        `frozen`: weights take no gradients; `plain`: attention runs without fused kernels. In mixed precision the
        separate layout's norms stay in float32.
        """
        own = SAVED_FROZEN if frozen else SAVED
        size = (2.4 if self.layout == "separate" else 2) if bf16 else WORK
        total = (own * self.layers + SAVED_OUTSIDE) * self.states(images, size)
        if plain:
            extra = MATH_COPIES[self.layout] * self.states(images, size) + self.attention(images, size)
            total += self.layers * extra
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
        return 2 * (self._block_products() + self._patches() + self.width * self.output)

    @property
    def backward_flops(self) -> int:
        """The operations of a backward pass of one image, for inputs and weights; the images take no gradient."""
        attention = 2 * self.tokens**2 * self.width * self.layers
        linear = self._block_products() - attention
        # Attention's backward pass makes its weights again: five products for the two of the forward pass.
        return 2 * (2 * linear + attention * 5 // 2 + self._patches() + 2 * self.width * self.output)

    def _block_products(self) -> int:
        """Return the multiplications of the blocks: 12 d² per token, and two products of queries, keys and values."""
        return self.layers * (12 * self.width**2 * self.tokens + 2 * self.tokens**2 * self.width)

    def _patches(self) -> int:
        # As many as the pixels times the width, however they are divided into patches.
        side = math.isqrt(self.tokens - 1)
        return 3 * (self.image // side * side) ** 2 * self.width


def encoder(model: str, layout: str | None = None, *, tower_alone: bool = False) -> Encoder:
    """Return the encoder of a model of the suite: vit_mini, vit_b32, vit_b16 or vit_l14.

    `tower_alone`: the projection is not merged, as in FusionBench's checkpoints. Raises InputError for another model.
    """
    if model == "vit_mini":
        from fusionbench_lite.resources.inventories import MINI, inventory

        return _encoder(model, MINI, "packed", inventory(model).tensors, set())
    if model not in SIZES:
        raise InputError(f"unknown model {model!r}: {did_you_mean(model, ['vit_mini', *SIZES])}")
    return of_size(model, SIZES[model], layout or "packed", tower_alone=tower_alone)


def of_size(name: str, size: Size, layout: str, *, tower_alone: bool = False) -> Encoder:
    """Return the encoder of an architecture of CLIP."""
    from fusionbench_lite.models import clip

    apart = {"proj", "visual_projection.weight"} if tower_alone else set()
    return _encoder(name, size, layout, clip.shapes(size, layout), apart)


def _encoder(name: str, size: Size, layout: str, tensors: Mapping[str, Shape], apart: set[str]) -> Encoder:
    return Encoder(
        name, {key: shape for key, shape in tensors.items() if key not in apart}, (size.image // size.patch) ** 2 + 1,
        size.width, size.layers, size.heads, size.output, size.image, layout,
        {key: shape for key, shape in tensors.items() if key in apart},
    )
