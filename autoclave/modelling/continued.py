"""One LoRA for alignment and fine-tuning: an alignment adapter that is kept, and adapters continued from it.

`autoclave align --adapter-out` writes the alignment LoRA unmerged, valid on the base that was aligned, and
says in its `autoclave.json` what made it; `autoclave finetune --continue-from` trains that LoRA further and
says there which one it began with. Booster needs this (git-disl/Booster, issue 2): merged and followed by a
new LoRA it is weaker. An adapter that was continued carries its alignment in the same factors, so what zeroes
entries would prune that, too; `sanitizing.rewind` sets them back instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from autoclave.errors import InputError, UnsupportedAdapterError
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, read_config, read_provenance
from autoclave.spec import LoraSpec

_ALIGNMENT, _CONTINUED = "alignment_method", "continued_from"


@dataclass(frozen=True)
class ContinuedFrom:
    """The alignment adapter that an adapter was trained on from: the hash of its weights, and the method."""

    adapter_sha256: str
    alignment_method: str

    def as_provenance(self) -> dict[str, Any]:
        """For `adapters.write_adapter`."""
        return {_CONTINUED: asdict(self)}


def alignment_provenance(method: str) -> dict[str, Any]:
    """What `autoclave.json` of an alignment adapter says besides its base."""
    return {_ALIGNMENT: method}


def alignment_adapter(folder: str | Path) -> tuple[ContinuedFrom, LoraSpec]:
    """What an adapter continued from this one has to say of it, and the shape of both. Raises InputError for
    an adapter that `align` did not write, ModelError for a folder that is none."""
    config = read_config(Path(folder))
    method = read_provenance(Path(folder)).get(_ALIGNMENT)
    if not isinstance(method, str):
        raise InputError(
            f"{folder} is no alignment adapter: training is continued from what `autoclave align "
            "--adapter-out` wrote, so that it can be set back to its alignment. Leave --continue-from out to "
            "train a new adapter."
        )
    assert config.target_modules is not None, folder
    shape = LoraSpec(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=tuple(sorted(config.target_modules)),
    )
    return ContinuedFrom(file_sha256(Path(folder) / WEIGHTS_FILE), method), shape


def continued_from(folder: str | Path) -> ContinuedFrom | None:
    """None for an adapter that began anew."""
    values = read_provenance(Path(folder)).get(_CONTINUED)
    return None if values is None else ContinuedFrom(**values)


def aligned_factors(adapter: str | Path, aligned: str | Path) -> dict[str, Tensor]:
    """The factors that `adapter` was continued from, by the names of `activations.factor_layers`, out of the
    folder `aligned`. Raises UnsupportedAdapterError if it was continued from none, or from another."""
    began = continued_from(adapter)
    if began is None:
        raise UnsupportedAdapterError(
            f"the adapter in {adapter} was not continued from an aligned one (finetune --continue-from), so "
            "there is nothing to set it back to. Leave --aligned-adapter out."
        )
    found = file_sha256(Path(aligned) / WEIGHTS_FILE)
    if found != began.adapter_sha256:
        raise UnsupportedAdapterError(
            f"the adapter in {adapter} was continued from the one with SHA-256 "
            f"{began.adapter_sha256[:12]}..., and {aligned} is {found[:12]}.... "
            "Give the one that it began with."
        )
    weights: dict[str, Tensor] = load_file(Path(aligned) / WEIGHTS_FILE)
    return {name.removesuffix(".weight"): tensor for name, tensor in weights.items()}
