"""How long the rows of a base's alignment data are, which a job with the defence lisa trains on, too.

The file is the operator's: nothing but the length of its longest row is taken from it, and that shows only as
memory in an estimate. It lies where workers read it; this server may not have it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from autoclave.data.inspection import Inspector
from autoclave.data.light_tokenizer import LightTokenizer
from autoclave.spec import MAX_LOSS_TOKENS, JobSpec, LisaSpec
from service.datasets.sources import BaseInfo

_CHUNK_BYTES = 1 << 20


def longest_alignment_row(base: BaseInfo, spec: JobSpec, tokenizer: LightTokenizer) -> int:
    """Tokens, after the cut that the worker makes (`workers.profile_files.alignment`); the cut itself where
    the file is not here or too long to be counted. 0 for a job that is not trained on it."""
    if not isinstance(spec.defence, LisaSpec):
        return 0
    cut = max(spec.train.max_seq_length, MAX_LOSS_TOKENS)
    if base.alignment is None:
        return cut
    try:
        stat = base.alignment.stat()
        longest = _longest_row(base.alignment, stat.st_mtime_ns, stat.st_size, base.sha256, tokenizer)
    except OSError:
        return cut
    return cut if longest is None else min(longest, cut)


@lru_cache(maxsize=8)
def _longest_row(
    file: Path,
    mtime_ns: int,  # noqa: ARG001 - another time or size, another content
    num_bytes: int,  # noqa: ARG001
    base_sha256: str,  # noqa: ARG001
    tokenizer: LightTokenizer,
) -> int | None:
    inspector = Inspector(tokenizer=tokenizer, min_examples=1)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            inspector.feed(chunk)
    tokens = inspector.finish().tokens
    return tokens.per_row.max if tokens is not None and tokens.complete else None
