"""How methods are grouped and named in tables and pictures. An id that is not known here still gets a sensible place."""

from __future__ import annotations

REFERENCE, DATA_FREE, SVD, ADAPTIVE = "Reference", "Data-free", "Data-free, SVD-based", "Test-time adaptive"
FAMILIES = (REFERENCE, DATA_FREE, SVD, ADAPTIVE)

_REFERENCES = ("pretrained", "individual", "traditional_mtl")
_ADAPTIVE = (
    "adamerging",
    "adarank",
    "concrete_",
    "surgery",
    "prob_surgery",
    "metamerging",
    "pareto_merging",
    "wemoe",
    "twin_merging",
)
_SVD = ("tsv_", "cart", "iso_c", "star", "knots_")

_LABELS = {
    "pretrained": "Pretrained",
    "individual": "Individual experts",
    "traditional_mtl": "Traditional MTL",
    "weight_averaging": "Weight averaging",
    "task_arithmetic": "Task arithmetic",
    "ties_merging": "TIES-Merging",
    "tsv_m": "TSV-M",
    "cart": "CART",
    "iso_c": "Iso-C",
    "iso_cts": "Iso-CTS",
    "adamerging_taskwise": "AdaMerging (task-wise)",
    "adamerging_layerwise": "AdaMerging (layer-wise)",
    "adarank_ta": "AdaRank (TA)",
    "adarank_cart": "AdaRank (CART)",
    "adarank_tsvm": "AdaRank (TSV-M)",
    "adarank_iso_cts": "AdaRank (Iso-CTS)",
}


def family(method: str, adapted: bool = False) -> str:
    """The family of a method id; `adapted` (did its record take steps?) decides for ids that are not known here."""
    if method in _REFERENCES:
        return REFERENCE
    if adapted or method.startswith(_ADAPTIVE) or method.endswith("_am"):
        return ADAPTIVE
    return SVD if method.startswith(_SVD) else DATA_FREE


def label(method: str) -> str:
    """A method's name for people: the papers' spelling where it is known, else the id itself."""
    return _LABELS.get(method, method)
