"""How methods are grouped and named in tables and pictures. An id that is not known here still gets a sensible place."""

from __future__ import annotations

REFERENCE, DATA_FREE, SVD, ADAPTIVE = "Reference", "Data-free", "Data-free, SVD-based", "Test-time adaptive"
STATISTICS, PER_TASK, SOME = "Training statistics", "One model per task", "Some of the experts"
ADAPTERS, ROUTED = "Adapters per task", "Routed per example"
FAMILIES = (REFERENCE, DATA_FREE, SVD, STATISTICS, ADAPTIVE, ADAPTERS, ROUTED, PER_TASK, SOME)
UNRANKED = (REFERENCE, ADAPTERS, ROUTED, PER_TASK, SOME)
"""Rows that do not answer the question of the others: one model, as large as one expert, that does what all do."""

_KNOWN = {
    "pretrained": ("Pretrained", REFERENCE),
    "individual": ("Individual experts", REFERENCE),
    "traditional_mtl": ("Traditional MTL", REFERENCE),
    "weight_averaging": ("Weight averaging", DATA_FREE),
    "task_arithmetic": ("Task arithmetic", DATA_FREE),
    "slerp": ("SLERP", DATA_FREE),
    "nuslerp": ("NuSLERP", DATA_FREE),
    "ties_merging": ("TIES-Merging", DATA_FREE),
    "ta_dare": ("Task arithmetic w/ DARE", DATA_FREE),
    "ties_dare": ("TIES-Merging w/ DARE", DATA_FREE),
    "tall_masks": ("TALL-masks", PER_TASK),
    "consensus_ta": ("Consensus TA", DATA_FREE),
    "consensus_ties": ("Consensus TIES", DATA_FREE),
    "emr_merging": ("EMR-Merging", PER_TASK),
    "pcb_merging": ("PCB-Merging", DATA_FREE),
    "breadcrumbs": ("Model Breadcrumbs", DATA_FREE),
    "magmax": ("MagMax", DATA_FREE),
    "metagpt": ("MetaGPT", DATA_FREE),
    "model_stock": ("Model Stock", DATA_FREE),
    "awd_ta": ("AWD TA", DATA_FREE),
    "wudi": ("WUDI-Merging", DATA_FREE),
    "doge_ta": ("doGe TA", DATA_FREE),
    "tsv_m": ("TSV-M", SVD),
    "tsv_c": ("TSV-C", PER_TASK),
    "cart": ("CART", SVD),
    "iso_c": ("Iso-C", SVD),
    "iso_cts": ("Iso-CTS", SVD),
    "star": ("STAR", SVD),
    "knots_ta": ("KnOTS-TA", SVD),
    "knots_ties": ("KnOTS-TIES", SVD),
    "fisher_merging": ("Fisher merging", STATISTICS),
    "regmean": ("RegMean", STATISTICS),
    "adamerging_taskwise": ("AdaMerging (task-wise)", ADAPTIVE),
    "adamerging_layerwise": ("AdaMerging (layer-wise)", ADAPTIVE),
    "adarank_ta": ("AdaRank (TA)", ADAPTIVE),
    "adarank_cart": ("AdaRank (CART)", ADAPTIVE),
    "adarank_tsvm": ("AdaRank (TSV-M)", ADAPTIVE),
    "adarank_iso_cts": ("AdaRank (Iso-CTS)", ADAPTIVE),
    "adamerging_pp_taskwise": ("AdaMerging++ (task-wise)", ADAPTIVE),
    "adamerging_pp_layerwise": ("AdaMerging++ (layer-wise)", ADAPTIVE),
    "adamerging_tsvm": ("AdaMerging (TSV-M)", ADAPTIVE),
    "adamerging_cart": ("AdaMerging (CART)", ADAPTIVE),
    "adamerging_iso_cts": ("AdaMerging (Iso-CTS)", ADAPTIVE),
    "concrete_ta": ("Concrete TA", ADAPTIVE),
    "concrete_am": ("Concrete AM", ADAPTIVE),
    "doge_am": ("doGe AM", ADAPTIVE),
    "awd_am": ("AWD AM", ADAPTIVE),
    "pareto_merging": ("Pareto Merging", ADAPTIVE),
    "surgery": ("Surgery", ADAPTERS),
    "surgery_v2": ("SurgeryV2", ADAPTERS),
    "prob_surgery": ("ProbSurgery", ADAPTERS),
    "metamerging": ("MetaMerging", ADAPTERS),
    "wemoe": ("WEMoE", ROUTED),
    "twin_merging": ("Twin-Merging", ROUTED),
}

_ADAPTIVE = ("adamerging", "adarank")
_SVD = ("tsv_", "iso_", "knots_")


def family(method: str, adapted: bool = False) -> str:
    """The family of a method id; `adapted` (did its record take steps?) decides for ids that are not known here."""
    if method in _KNOWN:
        return _KNOWN[method][1]
    if adapted or method.startswith(_ADAPTIVE) or method.endswith("_am"):
        return ADAPTIVE
    return SVD if method.startswith(_SVD) else DATA_FREE


def label(method: str) -> str:
    """A method's name for people: the papers' spelling where it is known, else the id itself."""
    return _KNOWN[method][0] if method in _KNOWN else method


def is_known(method: str) -> bool:
    """Whether a method id is listed here, so that its name and its family are not a guess."""
    return method in _KNOWN
