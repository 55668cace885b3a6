"""Rows of several examples: none is lost, and none sees another."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclave.errors import ModelError
from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.packing import PackedBackbone, pack_rows
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, EAGER, tiny_model


@given(lengths=st.lists(st.integers(1, 30), max_size=40), row_tokens=st.integers(1, 60))
def test_every_example_once_and_rows_within_the_bound(lengths: list[int], row_tokens: int) -> None:
    rows = pack_rows(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[index] for index in row) <= row_tokens or len(row) == 1
    for earlier, later in pairwise(rows):  # no row is begun while an earlier one has room
        assert sum(lengths[i] for i in earlier) + lengths[later[0]] > row_tokens


def test_best_fit_decreasing() -> None:
    assert pack_rows([3, 7, 2, 5, 4, 9], 10) == [[5], [1, 0], [3, 4], [2]]
    assert pack_rows([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]
    assert pack_rows([5, 6, 4], 10) == [[1, 2], [0]], "the fullest row that has room"
    assert pack_rows([], 10) == []


# A mask of our own knows no sliding window; OPT does not read borders from positions.
OTHER_WAYS = [(name, "mask" if name == "opt" else "positions") for name in ALL_ARCHITECTURES]
# Scores that are capped are not computed in blocks.
BLOCKS = [(name, "blocks") for name in ALL_ARCHITECTURES if name not in EAGER]


OWN_WAYS = BLOCKS + [(name, "varlen") for name, _ in BLOCKS]
SEPARATIONS = OWN_WAYS + OTHER_WAYS


@pytest.mark.parametrize(("architecture", "separation"), SEPARATIONS)
def test_an_example_in_a_row_is_as_it_is_alone(architecture: str, separation: str) -> None:
    model = tiny_model(architecture).double()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the other one takes no float64
    attention = model.config._attn_implementation
    backbone = backbone_of(model)
    packed = PackedBackbone(backbone, "cpu")
    assert packed.separation == ("positions" if architecture in EAGER else "blocks")
    packed.separation = separation  # type: ignore[assignment]
    lengths = [11, 1, 18, 4, 9]
    ids = torch.randint(6, 262, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = packed.hidden_states(ids, lengths).split(lengths, dim=1)
        alone = [backbone.hidden_states(part) for part in ids.split(lengths, dim=1)]
        running_on = backbone.hidden_states(ids).split(lengths, dim=1)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # norms inside are float32
    assert (running_on[2] - alone[2]).abs().max() > 0.1, "else this shows nothing"
    assert model.config._attn_implementation == attention, "and it is put back"


def test_an_architecture_with_other_masks_is_packed_another_way() -> None:
    model = tiny_model("llama")
    model.config.attention_chunk_size = 4
    assert PackedBackbone(backbone_of(model), "cpu").separation == "positions"


def test_an_architecture_that_mixes_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.config.attention_chunk_size = 4  # in blocks, rotary positions need not restart
    forward = model.model.forward

    def without_positions(position_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        return forward(**others)

    monkeypatch.setattr(model.model, "forward", without_positions)
    with pytest.raises(ModelError, match="LlamaModel cannot keep packed examples apart"):
        PackedBackbone(backbone_of(model), "cpu")
