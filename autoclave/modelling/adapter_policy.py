"""Which adapters are taken: plain LoRA on linear layers, and all that computes exactly that.

Pruning A and B is defined for W + s B A, where W is the base as it stands, s a fixed scale and A, B are all
that was trained (docs/antidote.md 5, item 4). rsLoRA and patterns change only s and the rank, so they are
exact. Everything else is refused by name. Every option of peft's LoraConfig is in one of the tables
below, so that an option of a later PEFT which nobody has thought about is refused unless it is off.
No files and no weights here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from autoclave.errors import ModelError, UnsupportedAdapterError

# Taken over as they are: together they say which layers, what rank and what scale.
CARRIED = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "task_type",
    "init_lora_weights",
)
# Without influence on what a loaded adapter computes, whatever the value. Two of them only qualify an option
# that is refused itself: megatron_core and qalora_group_size.
WITHOUT_EFFECT = (
    "peft_type",  # judged on its own
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
)
# Refused unless off, with the reason.
UNSUPPORTED = {
    "use_dora": "DoRA learns magnitudes beside A and B",
    "bias": "it trains biases beside A and B",
    "lora_bias": "it trains biases beside A and B",
    "modules_to_save": "it carries whole trained modules beside A and B",
    "trainable_token_indices": "it carries trained embeddings beside A and B",
    "target_parameters": "it adapts parameters that are no linear layers",
    "layer_replication": "it changes the layers of the base",
    "fan_in_fan_out": "it adapts layers that are no torch.nn.Linear",
    "ensure_weight_tying": "it ties adapters of the embeddings and of the output head",
    "alora_invocation_tokens": "aLoRA is active on part of the tokens only",
    "use_qalora": "QA-LoRA groups the inputs of A",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "kasa_config": "KaSA truncates the base and learns a diagonal between A and B",
    "monteclora_config": "MonteCLoRA samples around A and B",
    "arrow_config": "Arrow routes between adapters",
    "velora_config": "VeLoRA replaces what flows through A in training",
    "megatron_config": "Megatron layers are no torch.nn.Linear",
    "loftq_config": "LoftQ starts from a base with other weights",
    "eva_config": "EVA gives the entries of A another meaning",
    "corda_config": "CorDA changes the weights of the base",
    "lora_ga_config": "LoRA-GA changes the weights of the base",
}
# Those that leave the base as it is and start with B A = 0. True is PEFT's default; null is read as it.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", None)


def lora_config(values: Mapping[str, Any], source: str) -> LoraConfig:
    """The configuration in `values` (the JSON of an adapter_config.json), for adding to a base.

    Raises UnsupportedAdapterError naming the option that is more than plain LoRA and why that matters, and
    ModelError for values of the wrong type. `source` names the folder in messages. Order within the
    patterns is kept: where two match a layer, PEFT takes the first.
    """
    _refuse_other_types(values, source)
    for option, value in values.items():
        if option in CARRIED or option in WITHOUT_EFFECT or _is_off(option, value):
            continue
        reason = UNSUPPORTED.get(option)
        if reason is None:
            raise UnsupportedAdapterError(
                f"{source} sets {option}, which this version does not know and PEFT may act on. Train plain "
                "LoRA without it, or delete it from adapter_config.json if the adapter does not depend on it."
            )
        shown = f'{option} "{value}"' if isinstance(value, str) else option
        raise UnsupportedAdapterError(f"{source} uses {shown}: {reason}. Train plain LoRA instead.")
    _check_values(values, source)
    try:
        return LoraConfig(**{name: values[name] for name in CARRIED if values.get(name) is not None})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source}: adapter_config.json is not a LoRA configuration: {error}") from error


def refuse_other_layers(model: Any, config: LoraConfig, source: str) -> None:
    """Raises UnsupportedAdapterError if `config` adapts anything but the linear layers of the decoder.

    Changes nothing: PEFT itself would notice with half of the layers replaced, or not at all.
    """
    head = model.get_output_embeddings()
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        # By PEFT's definition, which counts the transposed layers of GPT-2 among them.
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        config = dataclasses.replace(config, target_modules=linear)
    for name, module in model.named_modules():
        if not name or not check_target_module_exists(config, name):
            continue
        if module is head:
            raise UnsupportedAdapterError(
                f"{source} adapts the output head ({name}), which is never sanitised. "
                "Train without it in target_modules."
            )
        if not isinstance(module, nn.Linear):
            kind = "embeddings" if isinstance(module, nn.Embedding) else f"a {type(module).__name__}"
            raise UnsupportedAdapterError(
                f"{source} adapts {name}, which is {kind} and no torch.nn.Linear. "
                "Train with linear layers in target_modules only."
            )


def _refuse_other_types(values: Mapping[str, Any], source: str) -> None:
    peft_type = values.get("peft_type")
    if peft_type != "LORA":
        raise UnsupportedAdapterError(f"{source} is a {peft_type} adapter; only LORA is supported.")
    task_type = values.get("task_type")
    if task_type not in (None, "CAUSAL_LM"):
        raise UnsupportedAdapterError(
            f"{source} was made for the task {task_type}, which adds heads of its own; only CAUSAL_LM is "
            "supported."
        )
    initialisation = values.get("init_lora_weights", True)
    if initialisation not in _PLAIN_INITIALISATIONS:
        raise UnsupportedAdapterError(
            f'{source} was initialised with "{initialisation}" (init_lora_weights), which changes the base '
            "weights or what the entries of A and B mean, so that pruning them is not Antidote. Train with "
            "the default."
        )
    if not values.get("target_modules"):
        raise UnsupportedAdapterError(
            f"{source} has no target_modules, so that the version of PEFT decides what it adapts. "
            "Name the layers in adapter_config.json."
        )


def _is_off(option: str, value: Any) -> bool:
    """Absent in effect: null, false, an empty list, or PEFT's own default."""
    if value is None or value is False or value == []:
        return True
    return any(f.name == option and _default(f) == value for f in dataclasses.fields(LoraConfig))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _check_values(values: Mapping[str, Any], source: str) -> None:
    """What PEFT would find out late, in other words, or not at all (a NaN scale). Raises ModelError."""
    numbers = ("r", "lora_alpha", "lora_dropout")
    wrong = [name for name in numbers if values.get(name) is not None and not _is_valid(name, values[name])]
    for pattern, of in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        entries = values.get(pattern) or {}
        if not isinstance(entries, dict) or not all(
            _is_expression(key) and _is_valid(of, entry) for key, entry in entries.items()
        ):
            wrong.append(pattern)
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        names = values.get(name) or []
        if not (_is_expression(names) if isinstance(names, str) else _is_list_of(str, names)):
            wrong.append(name)
    layers = values.get("layers_to_transform") or []
    if not (isinstance(layers, int) or _is_list_of(int, layers)):
        wrong.append("layers_to_transform")
    if not isinstance(values.get("use_rslora") or False, bool):
        wrong.append("use_rslora")
    if wrong:
        raise ModelError(
            f"{source}: {wrong[0]} in adapter_config.json has a value that is not allowed. Ranks are whole "
            "numbers from 1, alphas and dropout finite numbers, modules names or a regular expression."
        )


def _is_valid(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if name == "r":
        return isinstance(value, int) and value >= 1
    return name != "lora_dropout" or 0.0 <= value < 1.0


def _is_list_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
