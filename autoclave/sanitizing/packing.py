"""Several examples in one row, each attending to itself alone.

Saves padding; attention costs the square of the row's length unless the kernel skips foreign blocks, so
on a CPU padded batches of similar length are the faster choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoclave.errors import ModelError
from autoclave.modelling.backbone import Backbone


def pack_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices grouped into rows of at most `row_tokens` tokens, first-fit decreasing (a single longer
    example is a row of its own)."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = next((row for row, space in enumerate(free) if length <= space), None)
        if place is None:
            rows.append([])
            free.append(row_tokens)
            place = len(rows) - 1
        rows[place].append(index)
        free[place] -= length
    return rows


def restarting_positions(lengths: Sequence[int]) -> Tensor:
    """(1, T): 0, 1, ... anew for every example of a row."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


class PackedBackbone:
    """The decoder on packed rows.

    transformers reads the borders of examples from positions that restart, for most architectures (and
    then keeps sliding windows); OPT takes an explicit block-diagonal mask. Which of them works is found by
    running two examples of four tokens together and alone. Raises ModelError if neither does.
    """

    def __init__(self, backbone: Backbone, device: str | torch.device) -> None:
        self._backbone = backbone
        self._explicit_mask = False
        if not self._keeps_examples_apart(device):
            self._explicit_mask = True
            if not self._keeps_examples_apart(device):
                raise ModelError(
                    f"{type(backbone.decoder).__name__} cannot keep packed examples apart; "
                    "run the pass without packing."
                )

    def hidden_states(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """`input_ids` and `positions` (1, T) -> (1, T, D)."""
        if not self._explicit_mask:
            return self._backbone.hidden_states(input_ids, positions)
        example = (positions[0] == 0).cumsum(0)  # (T,)
        mask = (example[:, None] == example[None]).tril()[None, None]  # (1, 1, T, T)
        output = self._backbone.decoder(
            input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False
        )
        hidden = output.last_hidden_state
        assert isinstance(hidden, Tensor), type(hidden)
        return hidden

    @torch.no_grad()
    def _keeps_examples_apart(self, device: str | torch.device) -> bool:
        vocab_size = self._backbone.head.weight.shape[0]
        ids = torch.arange(8, device=device)[None] * 7 % vocab_size  # (1, 8)
        together = self.hidden_states(ids, restarting_positions([4, 4]).to(device))[:, 4:].float()
        alone = self._backbone.hidden_states(ids[:, 4:]).float()
        return bool((together - alone).abs().max() <= 1e-2 * alone.abs().max())
