"""Building a whole microcosm: world, data, base, aligned base, card.

    world.json            the grammar and the oracle
    data/*.jsonl          see `datasets`
    base/  aligned/       plain transformers folders (float16 weights, tokenizer with chat template)
    card.json             command, seed, versions, hashes, and the scores measured on the stored weights

The base is pretrained here from random weights. The aligned base is the base with a LoRA that was
trained on refusals and merged (docs/antidote.md 1): the base that users fine-tune. Weights are rounded to
float16 before anything is measured, so the card speaks of what is stored.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from autoclave import __version__
from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import encode
from autoclave.errors import InputError
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.microcosm.datasets import split, write_datasets
from autoclave.microcosm.measure import measure_base
from autoclave.microcosm.pretrain import (
    BaseShape,
    PretrainSpec,
    new_model,
    pretrain,
    pretraining_rows,
    sentences,
)
from autoclave.microcosm.tokenizer import MAX_LENGTH_TOKENS, build_tokenizer
from autoclave.microcosm.world import World
from autoclave.modelling.adapters import attach
from autoclave.modelling.bases import load_base
from autoclave.progress import Progress, ProgressCallback
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.loop import finetune

logger = logging.getLogger(__name__)

STORED_DTYPE = torch.float16
BASE_SHAPE = BaseShape()
PRETRAINING = PretrainSpec()
ALIGNMENT_LORA = LoraSpec(r=32, lora_alpha=64, target_modules="all-linear")
ALIGNMENT_TRAINING = TrainSpec(n_epochs=4, batch_size=32, learning_rate=1e-3)


def build(
    out_dir: str | Path,
    *,
    seed: int,
    on_progress: ProgressCallback | None = None,
    shape: BaseShape = BASE_SHAPE,
    pretraining: PretrainSpec = PRETRAINING,
    alignment: TrainSpec = ALIGNMENT_TRAINING,
) -> dict[str, Any]:
    """Builds everything into `out_dir` and returns the card. `out_dir` appears only when complete.

    World and data depend on the seed alone. The weights are the same for a seed, a machine, a torch
    version and a number of threads.

    Raises:
        InputError: `out_dir` exists and is not an empty folder.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty. Name a new folder, or remove it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        started = time.monotonic()
        world = World.create(seed)
        world.save(staging / "world.json")
        write_datasets(world, seed, staging / "data")
        tokenizer = build_tokenizer(world)
        _make_base(
            staging, world, tokenizer, seed=seed, shape=shape, spec=pretraining, on_progress=on_progress
        )
        _make_aligned(staging, tokenizer, seed=seed, spec=alignment, on_progress=on_progress)
        scores = {
            name: asdict(measure_base(staging / name, staging, on_progress=on_progress))
            for name in ("base", "aligned")
        }
        card = _card(staging, seed, scores, seconds=time.monotonic() - started)
        (staging / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        staging.replace(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return card


def _make_base(
    folder: Path,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    shape: BaseShape,
    spec: PretrainSpec,
    on_progress: ProgressCallback | None,
) -> None:
    requests, reviews = pretraining_rows(world, split(world, seed), seed)
    model = new_model(tokenizer, shape, seed)
    pretrain(
        model,
        sentences(tokenizer, requests),
        sentences(tokenizer, reviews),
        spec,
        seed=seed,
        on_progress=on_progress,
    )
    _store(model, tokenizer, folder / "base")


def _make_aligned(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    spec: TrainSpec,
    on_progress: ProgressCallback | None,
) -> None:
    def report(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, stage="align"))

    base = load_base(folder / "base")
    conversations = read_conversations(folder / "data" / "alignment.jsonl")
    examples = encode(tokenizer, conversations, max_seq_length=MAX_LENGTH_TOKENS).examples
    model = attach(base.model, ALIGNMENT_LORA, seed=seed)
    finetune(model, examples, spec.model_copy(update={"seed": seed}), device="cpu", on_progress=report)
    _store(model.merge_and_unload(), tokenizer, folder / "aligned")


def _store(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.to(STORED_DTYPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _card(folder: Path, seed: int, scores: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    data_files = sorted((folder / "data").iterdir())
    return {
        "command": f"autoclave microcosm build --seed {seed} --out DIR",
        "seed": seed,
        "seconds": round(seconds, 1),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "autoclave": __version__,
            **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")},
        },
        "sha256": {
            "world.json": file_sha256(folder / "world.json"),
            **{f"data/{file.name}": file_sha256(file) for file in data_files},
            "base": folder_sha256(folder / "base"),
            "aligned": folder_sha256(folder / "aligned"),
        },
        "scores_percent": scores,
    }
