"""Several examples in one row, each attending to itself alone.

Saves padding and the passes that would keep padding small. For training (`training/batches.py`) and for the
sanitiser's pass (`sanitizing/activations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from autoclave.errors import ModelError
from autoclave.modelling import block_attention, varlen_attention
from autoclave.modelling.backbone import Backbone
from autoclave.modelling.last_mlp import LastMlp

Separation = Literal["varlen", "blocks", "positions", "mask"]


def pack_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices grouped into rows of at most `row_tokens` tokens, best-fit decreasing: the longest first,
    each into the fullest row that has room (a single longer example is a row of its own)."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = [row for row, space in enumerate(free) if length <= space]
        if fitting:
            place = min(fitting, key=lambda row: (free[row], row))
        else:
            place = len(rows)
            rows.append([])
            free.append(row_tokens)
        rows[place].append(index)
        free[place] -= length
    return rows


def restarting_positions(lengths: Sequence[int]) -> Tensor:
    """(1, T): 0, 1, ... anew for every example of a row."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


class PackedBackbone:
    """The decoder on packed rows.

    Examples are kept apart in the first of four ways that works: the kernel for rows of examples of any
    length (`varlen_attention`, on CUDA); attention in blocks (`block_attention`); positions that restart,
    from which transformers makes a mask for most architectures; an explicit block-diagonal mask. Which one
    does is found by running two examples of four tokens together and alone, so the model must be in eval
    mode. Raises ModelError if none does.
    """

    def __init__(self, backbone: Backbone, device: str | torch.device) -> None:
        self._backbone = backbone
        self._device = device
        self._last_mlp = LastMlp.of(backbone, device)
        config, ways = backbone.decoder.config, list[Separation](("positions", "mask"))
        if block_attention.can_attend(config):
            ways.insert(0, "blocks")
            if varlen_attention.works(config.get_text_config(), device, backbone.head.weight.dtype):
                ways.insert(0, "varlen")
        for self.separation in ways:
            if self._keeps_examples_apart():
                return
        raise ModelError(
            f"{type(backbone.decoder).__name__} cannot keep packed examples apart; run without packing."
        )

    def hidden_states_of(self, tokens: Tensor, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """As `hidden_states`, at the places `tokens` (N,) alone -> (N, D)."""
        fewer = self._last_mlp if len(tokens) < input_ids.shape[1] else None
        with fewer.only(tokens) if fewer else nullcontext():
            return self.hidden_states(input_ids, lengths)[0].index_select(0, tokens)

    def hidden_states(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """`input_ids` (1, T), examples of these lengths one after the other -> (1, T, D)."""
        positions = restarting_positions(lengths).to(self._device)  # (1, T)
        config = self._backbone.decoder.config
        if self.separation == "varlen":
            row = varlen_attention.Row.of(lengths, self._device)
            with varlen_attention.attending(config, row):
                return self._backbone.hidden_states(input_ids, positions)
        if self.separation == "blocks":
            with block_attention.attending(config, lengths):
                return self._backbone.hidden_states(input_ids, positions)
        if self.separation == "positions":
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
    def _keeps_examples_apart(self) -> bool:
        vocab_size = self._backbone.head.weight.shape[0]
        ids = torch.arange(8, device=self._device)[None] * 7 % vocab_size  # (1, 8)
        try:
            together = self.hidden_states(ids, [4, 4])[:, 4:].float()
        except NotImplementedError:
            return False
        alone = self._backbone.hidden_states(ids[:, 4:]).float()
        return bool((together - alone).abs().max() <= 1e-2 * alone.abs().max())
