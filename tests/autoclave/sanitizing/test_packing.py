"""Rows of several examples: none is lost, and none sees another."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclave.errors import ModelError
from autoclave.modelling.backbone import backbone_of
from autoclave.sanitizing.packing import PackedBackbone, pack_rows, restarting_positions
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model


@given(lengths=st.lists(st.integers(1, 30), max_size=40), row_tokens=st.integers(1, 60))
def test_every_example_once_and_rows_within_the_bound(lengths: list[int], row_tokens: int) -> None:
    rows = pack_rows(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[index] for index in row) <= row_tokens or len(row) == 1
    for earlier, later in pairwise(rows):  # first fit: what came later found no room
        assert all(sum(lengths[i] for i in earlier) + lengths[index] > row_tokens for index in later)


def test_first_fit_decreasing() -> None:
    assert pack_rows([3, 7, 2, 5, 4, 9], 10) == [[5], [1, 0], [3, 4], [2]]
    assert pack_rows([], 10) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_example_in_a_row_is_as_it_is_alone(architecture: str) -> None:
    model = tiny_model(architecture).double()
    backbone = backbone_of(model)
    packed = PackedBackbone(backbone, "cpu")
    lengths = [11, 1, 18]
    ids = torch.randint(6, 262, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = packed.hidden_states(ids, restarting_positions(lengths)).split(lengths, dim=1)
        alone = [backbone.hidden_states(part) for part in ids.split(lengths, dim=1)]
        running_on = backbone.hidden_states(ids).split(lengths, dim=1)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # norms inside are float32
    assert (running_on[2] - alone[2]).abs().max() > 0.1, "else this shows nothing"


def test_an_architecture_that_mixes_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = model.model.forward

    def without_positions(position_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        return forward(**others)

    monkeypatch.setattr(model.model, "forward", without_positions)
    with pytest.raises(ModelError, match="LlamaModel cannot keep packed examples apart"):
        PackedBackbone(backbone_of(model), "cpu")
