"""Zero-shot heads: class embeddings from prompts and CLIP's text side, and checks of those that come with checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.base.file_hashes import remembered
from fusionbench_lite.errors import InputError, MergeWarning, did_you_mean
from fusionbench_lite.models.prompts import Prompts, check_order, prompts

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.models.clip import ClipSize

__all__ = ["ALIKE", "SCALE", "Prompts", "built", "check_order", "prompts", "shipped"]

log = logging.getLogger(__name__)

SCALE = 100.0
"""exp(logit_scale) of OpenAI's models, the factor of the cosines."""

ALIKE = 0.999
"""The least cosine between a shipped head's row and the rebuilt one that passes without a warning."""


def built(
    size: ClipSize, text_weights: Path, classnames: Sequence[str], templates: Sequence[str], cache: Path, device: str = "cpu",
    *, batch: int = 256,
) -> Tensor:
    """Return the head [C, output] of unit rows on the CPU, float32: per class the normalised mean of normalised embeddings.

    The text side of `text_weights` (safetensors, open_clip's names) embeds every template with every class name put in
    for `{c}`, `batch` prompts at a time. The result lies in `cache`/heads under a hash of weights, size and prompts; a
    damaged entry is built again. Raises InputError: no classes or templates, a template without `{c}`, a prompt that is
    longer than the model's context, weights of another architecture.
    """
    from fusionbench_lite.weights.tensor_cache import cached

    if not classnames or not templates:
        raise InputError(f"a head needs class names and templates, got {len(classnames)} and {len(templates)}")
    for template in templates:
        if "{c}" not in template:
            raise InputError(f"the template {template!r} has no place for the class: put {{c}} where the name belongs")
    key = {
        "what": "zero-shot head", "version": 1, "text": _sha256(text_weights, cache), "size": dataclasses.asdict(size),
        "classnames": list(classnames), "templates": list(templates),
    }

    def compute() -> Mapping[str, Tensor]:
        log.info("building a zero-shot head of %d classes from %d templates", len(classnames), len(templates))
        texts = [template.replace("{c}", name) for name in classnames for template in templates]
        return {"weight": _embeddings(size, text_weights, texts, len(templates), device, batch)}

    return cached(cache / "heads", key, compute)["weight"]


def _sha256(path: Path, cache: Path) -> str:
    try:
        return remembered(path, cache)
    except OSError as error:
        raise InputError(f"no text weights at {path}: {error.strerror}; convert the pretrained checkpoint again") from error


def _embeddings(size: ClipSize, text_weights: Path, texts: Sequence[str], each: int, device: str, batch: int) -> Tensor:
    """Return the normalised mean [C, output] of the normalised embeddings of `each` texts in a row."""
    import torch
    from torch.nn.functional import normalize

    tokens = _tokens(texts, size)
    tower = _tower(size, text_weights).to(device).eval()
    # What follows the end of a text reaches nothing before it: the mask is causal.
    longest = int((tokens != 0).sum(1).max())
    tower.attn_mask = tower.attn_mask[:longest, :longest]
    with torch.inference_mode(False), torch.no_grad():
        parts = [tower(part.to(device)) for part in torch.split(tokens[:, :longest], batch)]
        embeddings = normalize(torch.cat(parts).float(), dim=-1)
        head = normalize(embeddings.view(-1, each, size.output).mean(1), dim=-1).cpu()
    if not bool(torch.isfinite(head).all()):
        raise InputError(f"the head from {text_weights} is not finite: the text weights are damaged")
    return head


def _tokens(texts: Sequence[str], size: ClipSize) -> Tensor:
    """Return the tokens [N, context] of texts. Raises InputError for one that is too long, which would be cut."""
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before open_clip, which imports torchvision)

    # isort: split

    from open_clip import tokenize

    tokens: Tensor = tokenize(list(texts), context_length=size.context + 1)
    for row in (tokens[:, -1] != 0).nonzero().flatten().tolist():
        raise InputError(f"the prompt {texts[row]!r} has more than {size.context} tokens, the model's context: shorten it")
    return tokens[:, :-1]


def _tower(size: ClipSize, text_weights: Path) -> Any:
    """Return the text side with these weights. Raises InputError for names or shapes of another architecture."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fusionbench_lite.models import clip

    try:
        weights = load_file(text_weights)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read the text weights {text_weights}: {error}; convert the checkpoint again") from error
    for name, shape in clip.text_shapes(size).items():
        if name not in weights:
            raise InputError(f"the text weights {text_weights} lack {name!r}: {did_you_mean(name, weights)}")
        if tuple(weights[name].shape) != shape:
            stored = tuple(weights[name].shape)
            raise InputError(f"{name!r} of the text weights {text_weights} is {stored}, the model's is {shape}: take its own")
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
        tower: Any = clip.build_text(size)
    unknown = sorted(tower.load_state_dict(weights, strict=False, assign=True).unexpected_keys)
    if unknown:
        raise InputError(f"the text weights {text_weights} have {unknown[0]!r}, which is not of the text side: leave it out")
    tower.attn_mask = tower.build_causal_mask()
    return tower.float().requires_grad_(False)


def shipped(weight: Tensor, rebuilt: Tensor | None = None, *, classes: int | None = None, what: str = "the head") -> float:
    """Check a head [C, d] as shipped and return the factor of its cosines: its rows' norm, or 100 where that is 1.

    With a `rebuilt` head a MergeWarning names the first row whose cosine to it is not above 0.999. Raises InputError:
    another number of classes or width, values that are not finite, rows whose norms differ or are neither 100 nor 1.
    """
    import torch

    if weight.dim() != 2 or (classes is not None and len(weight) != classes):
        expected = "[classes, width]" if classes is None else f"[{classes}, width]"
        raise InputError(f"{what} is {tuple(weight.shape)}, {expected} is needed: take the head of this task")
    if rebuilt is not None and weight.shape != rebuilt.shape:
        raise InputError(f"{what} is {tuple(weight.shape)}, the model and prompts ask for {tuple(rebuilt.shape)}: take theirs")
    weight = weight.detach().double().cpu()
    norms = weight.norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{what} has values that are not finite: get the file again")
    if high - low > 1e-3 * high or min(abs(high / SCALE - 1), abs(high - 1)) > 0.01:
        raise InputError(f"{what} has rows of norm {low:.6g} to {high:.6g}, 100 or 1 for all is needed: take a zero-shot head")
    if rebuilt is not None:
        cosines = torch.nn.functional.cosine_similarity(weight, rebuilt.detach().double().cpu())
        for row in (cosines <= ALIKE).nonzero().flatten().tolist()[:1]:
            warnings.warn(
                f"{what}: row {row} and the one rebuilt from the prompts have a cosine of {float(cosines[row]):.4f}, more "
                f"than {ALIKE} is expected: other prompts or another text model; the shipped head is used",
                MergeWarning, stacklevel=2,
            )
    return float(norms.mean()) if high > 2 else SCALE
