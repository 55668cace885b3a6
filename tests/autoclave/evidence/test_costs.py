"""The peak of tensors' bytes is what was alive at once, no more and no less."""

import torch

from autoclave.evidence.costs import peak_bytes


def test_the_peak_counts_what_is_alive_together() -> None:
    kept = torch.ones(1000, 1000)

    def work() -> None:
        first = torch.zeros(500, 1000)  # 2 MB
        second = first + 1  # 4 MB
        del first
        third = torch.cat([second, second])  # 2 + 4 MB
        del second, third
        kept.add_(torch.ones(1000, 1))

    assert peak_bytes(work) == 6_000_000
