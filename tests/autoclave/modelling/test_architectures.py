"""What `config.json` alone says against a base, by name."""

from typing import Any

import pytest

from autoclave.errors import ModelError
from autoclave.modelling.architectures import quantisation, refusal, refuse_architecture
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, tiny_model


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder model"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel .*transposed"),
        (
            {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM .*recurrent state",
        ),
        ({"model_type": "new", "layer_types": ["full_attention", "linear_attention"]}, "new .*recurrent"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 16}}, "gemma3 .*images"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"quantised \(bitsandbytes, 4 bits\)",
        ),
        ({"quantization_config": {"load_in_8bit": True}}, r"quantised \(bitsandbytes, 8 bits\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bits\)"),
        ({"quantization_config": "odd"}, "quantised .in an unknown way"),
    ],
)
def test_named_with_the_reason(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"models/x: .*{words}"):
        refuse_architecture(config, "models/x")


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_nothing_is_said_against_what_is_tested(architecture: str) -> None:
    config = tiny_model(architecture).config.to_dict()
    assert refusal(config) is None
    assert quantisation(config) is None
