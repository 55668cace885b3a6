"""Padding and packing tried out: what leaks is named."""

from typing import Any

import pytest

from autoclave.errors import ModelError
from autoclave.modelling.exactness import how_it_packs, verify_padding
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_every_architecture_masks_its_padding(architecture: str) -> None:
    model = tiny_model(architecture)
    model.train()
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5  # it would differ if it were left on
    verify_padding(model)
    assert model.training


def test_an_architecture_that_sees_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = model.model.forward

    def without_mask(attention_mask: Any = None, position_ids: Any = None, **others: Any) -> Any:
        return forward(**others)

    monkeypatch.setattr(model.model, "forward", without_mask)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not supported: a padded prompt"):
        verify_padding(model)


def test_an_architecture_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert how_it_packs(model) == "blocks"
    model.config.attention_chunk_size = 4
    forward = model.model.forward

    def without_positions(position_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        return forward(**others)

    monkeypatch.setattr(model.model, "forward", without_positions)
    assert how_it_packs(model) is None
