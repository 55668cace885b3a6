"""What a judge said about two answers. Torch-free."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["A", "B", "TIE"]

# Emphasis, quotes and brackets around the words, as models write them.
_MARKS = r"[ \t*_#>`\"'\[\]:=.!-]*"
_LINE = re.compile(rf"^{_MARKS}VERDICT{_MARKS}(A|B|TIE){_MARKS}$", re.IGNORECASE | re.MULTILINE)


def read_verdict(text: str) -> Verdict | None:
    """The last line that is a verdict and nothing else, with or without emphasis; None if there is none."""
    found = _LINE.findall(text)
    if not found:
        return None
    verdict: Verdict = "TIE" if found[-1].upper() == "TIE" else "A" if found[-1].upper() == "A" else "B"
    return verdict
