"""The methods as plain data: what each does, and of which strengths it is a function. Torch-free."""

from __future__ import annotations

from autoclave.spec import SanitizerName

ABOUT: dict[SanitizerName, str] = {
    "antidote": "arXiv 2408.09600: prune what matters most on harmful examples",
    "antidote-protected": "the same mask, sparing what matters on the user's own data",
    "projection": "ridge projection away from harmful inputs; prunes nothing",
    "pipeline": "projection, then Antidote's mask at the weakest alpha that meets the gate",
}

# The fields of a Strength that a method needs; the others must be None.
STRENGTH_OF_METHOD: dict[SanitizerName, tuple[str, ...]] = {
    "antidote": ("alpha",),
    "antidote-protected": ("alpha",),
    "projection": ("mu",),
    "pipeline": ("alpha", "mu"),
}
