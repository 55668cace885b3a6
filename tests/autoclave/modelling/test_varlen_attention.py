"""The kernel for rows of examples: what surrounds it, and that it is not used where it is wrong.

The kernel itself needs CUDA; `test_packing.py` runs whole models through the same interface with the plain
one in its place."""

from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.modelling import varlen_attention
from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.packing import PackedBackbone, restarting_positions
from autoclave.modelling.varlen_attention import Row, agrees, by_example, works
from tests.autoclave.tiny import tiny_config
from tests.autoclave.tiny_architectures import tiny_model

CPU = torch.device("cpu")


def test_where_examples_begin_is_where_positions_do() -> None:
    lengths = [3, 1, 7]
    row = Row.of(lengths, "cpu")
    assert row.cu_lengths.dtype == torch.int32
    assert row.cu_lengths.tolist() == [0, 3, 4, 11]
    assert row.longest == 7
    begins = torch.nonzero(restarting_positions(lengths)[0] == 0)[:, 0]
    assert row.cu_lengths[:-1].tolist() == begins.tolist()


def test_a_kernel_is_compared_before_it_is_used(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config()
    assert agrees(by_example, config, CPU, torch.float32)

    def without_window(*arguments: Any, window_size: Any, **settings: Any) -> Tensor:
        return by_example(*arguments, window_size=(-1, 0), **settings)

    def without_scale(*arguments: Any, scale: Any, **settings: Any) -> Tensor:
        return by_example(*arguments, scale=None, **settings)

    def wrong_gradient(*arguments: Any, **settings: Any) -> Tensor:
        output = by_example(*arguments, **settings)
        return output.detach() + (output - output.detach()) * 1.5

    def one_example(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *_: Any, **settings: Any
    ) -> Tensor:
        whole = ends[[0, -1]]
        return by_example(query, key, value, whole, whole, 0, 0, **settings)

    for wrong in (without_window, without_scale, wrong_gradient, one_example):
        assert not agrees(wrong, config, CPU, torch.float32), wrong.__name__

    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    caplog.clear()
    assert not agrees(fails, config, CPU, torch.float32)
    assert "no kernel image" in caplog.text


def test_a_cpu_and_a_model_with_dropout_do_without() -> None:
    assert not works(tiny_config(), "cpu", torch.bfloat16)
    assert not works(tiny_config(), "cuda", torch.float32)
    assert not works(tiny_config(attention_dropout=0.1), "cuda", torch.bfloat16)


def test_it_comes_first_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model's attention is what it was, after a row."""
    model = tiny_model("llama").double()
    backbone = backbone_of(model)
    monkeypatch.setattr(varlen_attention, "works", lambda *_: True)
    packed = PackedBackbone(backbone, "cpu")
    assert packed.separation == "varlen"
    ids = torch.arange(20)[None] + 7
    own = packed.hidden_states(ids, [9, 11])
    packed.separation = "blocks"
    torch.testing.assert_close(own, packed.hidden_states(ids, [9, 11]), rtol=0, atol=1e-10)
    assert model.config._attn_implementation == "sdpa"


def test_the_signature_is_the_one_that_torch_documents() -> None:
    """Called by name and place: with the versions of torch that CI has."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)
