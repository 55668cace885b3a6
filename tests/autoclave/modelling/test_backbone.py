"""Decoder and head together are the model, through the PEFT wrapper and across architectures."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from autoclave.errors import ModelError
from autoclave.modelling.adapters import attach
from autoclave.modelling.backbone import backbone_of, verify_backbone
from autoclave.spec import LoraSpec
from tests.autoclave.tiny import tiny_config

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def models() -> list[Any]:
    torch.manual_seed(0)
    neox = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return [
        LlamaForCausalLM(tiny_config()),
        LlamaForCausalLM(tiny_config(tie_word_embeddings=True)),
        Qwen2ForCausalLM(Qwen2Config(**SMALL)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**neox)),
    ]


def test_the_parts_give_the_logits_of_the_whole() -> None:
    for model in models():
        verify_backbone(model)
        input_ids = torch.arange(10)[None] + 3
        backbone = backbone_of(model)
        with torch.no_grad():
            assert torch.equal(
                backbone.head(backbone.hidden_states(input_ids)), model(input_ids=input_ids).logits
            )


def test_through_the_peft_wrapper() -> None:
    torch.manual_seed(0)
    model = attach(LlamaForCausalLM(tiny_config()), LoraSpec(r=4, lora_dropout=0.5), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.train()
    verify_backbone(model)  # would differ by the dropout if it were left on
    assert model.training


@pytest.mark.parametrize(
    "model",
    [
        Gemma2ForCausalLM(
            Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5)
        ),
        CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
        GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
    ],
    ids=["soft-capped", "scaled", "divided"],
)
def test_scaled_and_soft_capped_logits_are_those_of_the_whole(model: Any) -> None:
    model.eval()
    verify_backbone(model)
    input_ids = torch.arange(10)[None] + 3
    backbone = backbone_of(model)
    with torch.no_grad():
        hidden = backbone.hidden_states(input_ids)
        torch.testing.assert_close(backbone.logits(hidden), model(input_ids=input_ids).logits)
        assert not torch.allclose(backbone.head(hidden), backbone.logits(hidden))


class Shifted(LlamaForCausalLM):
    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits + 1.0
        return output


def test_models_that_do_anything_else_to_their_logits_are_refused() -> None:
    with pytest.raises(ModelError, match="Shifted does more to its logits"):
        verify_backbone(Shifted(tiny_config()))


def test_a_decoder_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="no output embeddings"):
        backbone_of(LlamaModel(tiny_config()))
