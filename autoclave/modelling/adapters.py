"""LoRA adapters on a base: attach a new one, load one from a PEFT folder, save one, take it off.

The folder is plain PEFT (adapter_model.safetensors, adapter_config.json) plus `autoclave.json`, which
records the digest of the base: an adapter is valid only on the exact base it was trained on
(docs/antidote.md 1), and the name in adapter_config.json cannot say that.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from autoclave.errors import BaseMismatchError, ModelError, UnsupportedAdapterError
from autoclave.modelling.bases import LoadedBase
from autoclave.spec import LoraSpec

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PROVENANCE_FILE = "autoclave.json"

# Options of peft.LoraConfig under which "prune A and B" is not defined or not enough.
_UNSUPPORTED_OPTIONS = {
    "use_dora": "DoRA learns magnitudes beside A and B",
    "modules_to_save": "it carries whole trained modules beside A and B",
    "trainable_token_indices": "it carries trained embeddings beside A and B",
    "target_parameters": "it adapts parameters that are no linear layers",
    "layer_replication": "it changes the layers of the base",
    "lora_bias": "it trains biases beside A and B",
    "alora_invocation_tokens": "it is active on part of the tokens only",
    "use_qalora": "QA-LoRA groups the inputs of A",
    "use_bdlora": "block-diagonal factors are not plain LoRA",
    "kasa_config": "KaSA is not plain LoRA",
    "monteclora_config": "MonteCLoRA is not plain LoRA",
    "arrow_config": "Arrow routes between adapters",
    "velora_config": "VeLoRA is not plain LoRA",
    "megatron_config": "Megatron layers are not supported",
    "fan_in_fan_out": "it adapts layers that are no torch.nn.Linear",
}
# Other initialisations (PiSSA, OLoRA, EVA, LoftQ, ...) change the base or the meaning of A and B.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", None)


def linear_layer_names(model: Any) -> dict[str, nn.Linear]:
    """Full name to layer of every nn.Linear except the output head."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def resolve_target_modules(model: Any, wanted: tuple[str, ...] | str) -> list[str]:
    """Sorted last parts of module names, "all-linear" written out. Raises ModelError for a name that
    matches no linear layer of the base."""
    available = {name.rsplit(".", 1)[-1] for name in linear_layer_names(model)}
    if wanted == "all-linear":
        return sorted(available)
    missing = sorted(set(wanted) - available)
    if missing or not wanted:
        raise ModelError(
            f"target modules {missing} are not linear layers of this base. Available: {sorted(available)}, "
            'or "all-linear".'
        )
    return sorted(set(wanted))


def attach(model: Any, lora: LoraSpec, *, seed: int) -> Any:
    """A PeftModel with a fresh trainable adapter: B zero, A uniform as PEFT draws it (Kaiming, a=sqrt(5)).

    The initial values depend on the seed only, not on the device, the order of modules or the state of
    the global generators (PEFT draws from those). The model is changed in place.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=_as_int_if_whole(lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        target_modules=resolve_target_modules(model, lora.target_modules),
        bias="none",
    )
    peft_model = _inject(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(peft_model.named_parameters()):
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)  # (r, in)
            parameter.data.copy_(values)
    return peft_model


def load_adapter(base: LoadedBase, dir: str | Path, *, trainable: bool = False) -> Any:
    """The PeftModel of `base` with the adapter in `dir`, which changes `base.model` in place.

    Raises UnsupportedAdapterError (by name) for anything but plain LoRA on linear layers,
    BaseMismatchError if `autoclave.json` names another base or the shapes do not fit, ModelError if a file
    is missing. A folder without `autoclave.json` (made by other software) is accepted as it is.
    """
    folder = Path(dir)
    config = _read_config(folder)
    recorded = read_provenance(folder).get("base_sha256")
    if recorded is not None and recorded != base.sha256:
        raise BaseMismatchError(
            f"the adapter in {folder} was made for the base with SHA-256 {recorded[:12]}..., but {base.dir} "
            f"is {base.sha256[:12]}.... Use the base it was trained on."
        )
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error
    try:
        peft_model = _inject(base.model, config)
    except ValueError as error:
        raise BaseMismatchError(f"the adapter in {folder} does not fit {base.dir}: {error}") from error
    expected = adapter_state(peft_model)
    _compare_shapes(folder, weights, expected)
    set_peft_model_state_dict(peft_model, weights)
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(trainable and ".lora_" in name)
    return peft_model.eval()


def detach(peft_model: Any) -> Any:
    """Takes the adapter off and returns the base model as it was before (weights were never merged)."""
    model = peft_model.unload()
    if hasattr(model, "peft_config"):
        del model.peft_config  # else PEFT warns at the next adapter that there already is one
    return model


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """Tensors of the adapter under the names of the PEFT file, sharing memory with the model."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return state


def save_adapter(
    peft_model: Any, dir: str | Path, *, base_name: str, base_revision: str | None, base_sha256: str
) -> None:
    """Writes a PEFT folder. `base_name` goes to `base_model_name_or_path` as it is: give the public
    name of the base, not a path of this machine, if the adapter will travel."""
    folder = Path(dir)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state(peft_model).items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = _jsonable(peft_model.peft_config["default"].to_dict())
    config |= {"base_model_name_or_path": base_name, "revision": base_revision, "inference_mode": True}
    _write_json(folder / CONFIG_FILE, config)
    provenance = {"base_name": base_name, "base_revision": base_revision, "base_sha256": base_sha256}
    _write_json(folder / PROVENANCE_FILE, provenance)


def read_provenance(folder: Path) -> dict[str, Any]:
    """`autoclave.json` of an adapter folder; empty if there is none."""
    file = folder / PROVENANCE_FILE
    if not file.is_file():
        return {}
    return _read_json(file)


def read_base_name(dir: str | Path) -> tuple[str, str | None]:
    """Name and revision of the base as adapter_config.json gives them ("" if it names none)."""
    values = _read_json(Path(dir) / CONFIG_FILE)
    return values.get("base_model_name_or_path") or "", values.get("revision")


def _inject(model: Any, config: LoraConfig) -> PeftModel:
    device_indices = range(torch.cuda.device_count())
    # PEFT's own draws must not shift the caller's generators, and its use of an old transformers name is
    # nothing that a user can act on.
    with torch.random.fork_rng(devices=device_indices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _read_config(folder: Path) -> LoraConfig:
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} is not an adapter folder: it has no {CONFIG_FILE}.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}. Pickled adapters (.bin) are never loaded.")
    values = _read_json(folder / CONFIG_FILE)
    peft_type = values.get("peft_type")
    if peft_type != "LORA":
        raise UnsupportedAdapterError(f"{folder} is a {peft_type} adapter; only LORA is supported.")
    for option, reason in _UNSUPPORTED_OPTIONS.items():
        if values.get(option):
            raise UnsupportedAdapterError(f"{folder} uses {option}: {reason}. Train plain LoRA instead.")
    if values.get("bias", "none") != "none":
        raise UnsupportedAdapterError(f'{folder} trains biases (bias="{values["bias"]}"); use bias="none".')
    initialisation = values.get("init_lora_weights", True)
    if initialisation not in _PLAIN_INITIALISATIONS:
        raise UnsupportedAdapterError(
            f'{folder} was initialised with "{initialisation}", which changes the base weights or what the '
            "entries of A and B mean, so that pruning them is not Antidote. Train with the default."
        )
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} is not a LoRA configuration: {error}") from error
    config.base_model_name_or_path = None  # else PEFT warns that the base is called otherwise
    return config


def _compare_shapes(
    folder: Path, weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    other = sorted(name for name in weights if ".lora_A." not in name and ".lora_B." not in name)
    if other:
        raise UnsupportedAdapterError(f"{folder} has tensors that are not lora_A or lora_B, e.g. {other[0]}.")
    missing = sorted(set(expected) - set(weights))
    surplus = sorted(set(weights) - set(expected))
    if missing or surplus:
        example = f"{missing[0]} is missing" if missing else f"{surplus[0]} has no place in the base"
        raise BaseMismatchError(f"the adapter in {folder} does not fit this base: {example}.")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise BaseMismatchError(
                f"the adapter in {folder} does not fit this base: {name} is {tuple(tensor.shape)}, "
                f"the base needs {tuple(expected[name].shape)}."
            )


def _as_int_if_whole(value: float) -> float | int:
    # PEFT and adapter servers write and read lora_alpha as an integer where it is one.
    return int(value) if value == int(value) else value


def _jsonable(value: Any) -> Any:
    """PEFT's configuration as plain JSON, sets sorted so that the same adapter gives the same file."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return getattr(value, "value", value)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object.")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
