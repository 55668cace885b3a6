"""LoRA adapters on a base: attach a new one, load one from a PEFT folder, save one, take it off.

The folder is plain PEFT (adapter_model.safetensors, adapter_config.json) plus `autoclave.json`, which
records the digest of the base: an adapter is valid only on the exact base it was trained on
(docs/antidote.md 1), and the name in adapter_config.json cannot say that.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autoclave.errors import BaseMismatchError, ModelError, UnsupportedAdapterError
from autoclave.modelling.adapter_policy import lora_config, refuse_other_layers
from autoclave.modelling.bases import LoadedBase
from autoclave.modelling.finite_weights import refuse_non_finite
from autoclave.modelling.target_modules import linear_layer_names, resolve_target_modules
from autoclave.spec import LoraSpec

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PROVENANCE_FILE = "autoclave.json"


def attach(model: Any, lora: LoraSpec, *, seed: int) -> Any:
    """A PeftModel with a fresh trainable adapter: B zero, A uniform as PEFT draws it (Kaiming, a=sqrt(5)).

    The initial values depend on the seed only, not on the device, the order of modules or the state of
    the global generators (PEFT draws from those). The model is changed in place.
    """
    peft_model = _inject(model, _config(model, lora))
    parameters = {name: p for name, p in peft_model.named_parameters() if ".lora_A." in name}
    _draw(parameters, seed)
    return peft_model


def fresh_adapter(
    model: Any, lora: LoraSpec, *, seed: int
) -> tuple[dict[str, torch.Tensor], LoraConfig, list[str]]:
    """The adapter that `attach` would put on the model, without putting it there: its tensors under the names
    of the PEFT file, its configuration, and the full names of its layers. Raises ModelError."""
    config = _config(model, lora)
    assert config.target_modules is not None
    state: dict[str, torch.Tensor] = {}
    drawn: dict[str, torch.Tensor] = {}
    layers = [
        (name, layer)
        for name, layer in linear_layer_names(model).items()
        if name.rsplit(".", 1)[-1] in config.target_modules
    ]
    for name, layer in layers:
        full = f"base_model.model.{name}"
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        A = torch.empty(lora.r, layer.in_features, dtype=dtype, device=layer.weight.device)
        drawn[f"{full}.lora_A.default.weight"] = state[f"{full}.lora_A.weight"] = A
        state[f"{full}.lora_B.weight"] = A.new_zeros(layer.out_features, lora.r)
    _draw(drawn, seed)
    return state, config, [name for name, _ in layers]


def _config(model: Any, lora: LoraSpec) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=_as_int_if_whole(lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        target_modules=resolve_target_modules(model, lora.target_modules),
        bias="none",
    )


def _draw(factors: dict[str, torch.Tensor], seed: int) -> None:
    """The start of every A (r, in), in the order of the names that PEFT gives its parameters."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(factors.items()):
        bound = 1 / math.sqrt(parameter.shape[1])
        values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)  # (r, in)
        parameter.data.copy_(values)


def load_adapter(base: LoadedBase, dir: str | Path, *, trainable: bool = False) -> Any:
    """The PeftModel of `base` with the adapter in `dir`, which changes `base.model` in place.

    Raises UnsupportedAdapterError (by name) for anything but plain LoRA on linear layers
    (`adapter_policy`), BaseMismatchError if `autoclave.json` names another base or the shapes do not fit,
    NonFiniteWeightsError for NaN or infinite entries, ModelError if a file is missing or unreadable. After
    any of them `base.model` is as it was. A folder without `autoclave.json` (made by other software) is
    accepted as it is.
    """
    folder = Path(dir)
    config = read_config(folder)
    recorded = read_provenance(folder).get("base_sha256")
    if recorded is not None and recorded != base.sha256:
        raise BaseMismatchError(
            f"the adapter in {folder} was made for the base with SHA-256 {recorded[:12]}..., but {base.dir} "
            f"is {base.sha256[:12]}.... Use the base it was trained on."
        )
    weights = _read_weights(folder)
    refuse_other_layers(base.model, config, str(folder))
    try:
        peft_model = _inject(base.model, config)
    except ValueError as error:
        raise BaseMismatchError(f"the adapter in {folder} does not fit {base.dir}: {error}") from error
    try:
        _compare_shapes(folder, weights, adapter_state(peft_model))
    except ModelError:
        detach(peft_model)
        raise
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
    peft_model: Any,
    dir: str | Path,
    *,
    base_name: str,
    base_revision: str | None,
    base_sha256: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a PEFT folder. `base_name` goes to `base_model_name_or_path` as it is: give the public
    name of the base, not a path of this machine, if the adapter will travel. `provenance` joins
    `autoclave.json`."""
    write_adapter(
        adapter_state(peft_model),
        peft_model.peft_config["default"],
        dir,
        base_name=base_name,
        base_revision=base_revision,
        base_sha256=base_sha256,
        provenance=provenance,
    )


def write_adapter(
    state: dict[str, torch.Tensor],
    config: LoraConfig,
    dir: str | Path,
    *,
    base_name: str,
    base_revision: str | None,
    base_sha256: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """As `save_adapter`, for an adapter that is on no model: `state` has the names of the PEFT file."""
    folder = Path(dir)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = _jsonable(config.to_dict())
    values |= {"base_model_name_or_path": base_name, "revision": base_revision, "inference_mode": True}
    # Only the first level sorted: where two patterns match a layer, PEFT takes the one that stands first.
    _write_json(folder / CONFIG_FILE, dict(sorted(values.items())))
    of_base = {"base_name": base_name, "base_revision": base_revision, "base_sha256": base_sha256}
    _write_json(folder / PROVENANCE_FILE, {**of_base, **(provenance or {})})


def read_config(folder: Path) -> LoraConfig:
    """The checked configuration of an adapter folder. Raises as `load_adapter`, as far as it looks."""
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} is not an adapter folder: it has no {CONFIG_FILE}.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}. Pickled adapters (.bin) are never loaded.")
    return lora_config(_read_json(folder / CONFIG_FILE), str(folder))


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


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / WEIGHTS_FILE
    try:
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    other = sorted(name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    if other:
        raise UnsupportedAdapterError(f"{folder} has tensors that are not lora_A or lora_B, e.g. {other[0]}.")
    refuse_non_finite(weights, file)
    return weights


def _compare_shapes(
    folder: Path, weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
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
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
