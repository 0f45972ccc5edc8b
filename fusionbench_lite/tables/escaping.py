"""Text that a format prints as it stands, whatever signs names are made of."""

from __future__ import annotations

import re
import unicodedata

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "≠": r"$\neq$",
    "⚑": r"$|\mkern-3mu\triangleright$",
    "◇": r"$\diamond$",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "−": "$-$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi . pi rho . sigma tau upsilon phi chi psi omega"
_CAPITALS = {
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi",
    "Ω": "Omega",
}  # fmt: skip
_LATEX |= {chr(0x3B1 + place): rf"$\{name}$" for place, name in enumerate(_GREEK.split()) if name != "."}
_LATEX |= {letter: rf"$\{name}$" for letter, name in _CAPITALS.items()}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}


def latex(text: object) -> str:
    """Text for LaTeX without further packages: signs become their commands, Latin letters keep their accents.

    A character that no font of plain LaTeX has becomes its code, such as U+4E2D, because pdfLaTeX stops at it. Signs that
    would be read with what stands before the text (`\\\\ [`, `\\\\ *`) and ligatures of hyphens are kept apart.
    """
    escaped = "".join(_of_latex(character) for character in str(text).replace("--", "-\0-").replace("--", "-\0-"))
    return "{}" * escaped.startswith(("[", "*")) + escaped


def _of_latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character == "\0":
        return "{}"
    if character.isascii():
        return character if character.isprintable() else " "
    decomposed = unicodedata.normalize("NFD", character)
    if len(decomposed) == 2 and decomposed[1] in _ACCENTS and decomposed[0].isascii():
        return rf"\{_ACCENTS[decomposed[1]]}{{{decomposed[0]}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"


def markdown(text: object) -> str:
    """Text for a cell of a table of GitHub's Markdown, on one line."""
    return re.sub(r"([\\|*_<>`\[\]~$&#])", r"\\\1", " ".join(str(text).split()))
