"""Building a whole microcosm: world, data, base, aligned base, card.

    world.json            the grammar and the oracle
    data/*.jsonl          see `datasets`
    profile.json          what sanitises, measures and gates on this base (`profile`)
    base/  aligned/       plain transformers folders (float16 weights, tokenizer with chat template)
    card.json             command, seed, size, versions, hashes, and the scores measured on the stored weights

The base is pretrained here from random weights. The aligned base is the base with a LoRA that was
trained on refusals and merged (docs/antidote.md 1): the base that users fine-tune. Weights are rounded to
float16 before anything is measured, so the card speaks of what is stored.
"""

from __future__ import annotations

import json
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
from autoclave.microcosm.control import CONTROL_FILE, CONTROL_ROWS, write_control
from autoclave.microcosm.datasets import write_datasets
from autoclave.microcosm.measure import measure_base
from autoclave.microcosm.pretrain import new_model, pretrain, pretraining_rows, sentences
from autoclave.microcosm.profile import PROFILE_FILE, write_profile
from autoclave.microcosm.reviews import GrammarReviews, Reviews, Sst2Reviews
from autoclave.microcosm.sizes import Size, named_size, refuse_hours_on_cpu
from autoclave.microcosm.splits import split
from autoclave.microcosm.tokenizer import MAX_LENGTH_TOKENS, build_tokenizer
from autoclave.microcosm.world import World
from autoclave.modelling.adapters import attach
from autoclave.modelling.bases import load_base, resolve_device
from autoclave.progress import Progress, ProgressCallback
from autoclave.training.loop import finetune

STORED_DTYPE = torch.float16


def build(
    out_dir: str | Path,
    *,
    seed: int,
    size: str | Size = "small",
    sst2_dir: str | Path | None = None,
    device: str = "cpu",
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Builds everything into `out_dir` and returns the card. `out_dir` appears only when complete.

    `size` is tiny, small, medium (`sizes.SIZES`) or one of your own. With `sst2_dir` the user's task is
    SST-2, read from that folder (`reviews`), not the reviews of the grammar.

    World and data depend on size, seed and SST-2 alone. On CPU the weights are the same for a seed, a
    machine, a torch version and a number of threads. Trains and measures in float32 on every device.

    Raises:
        InputError: `out_dir` exists and is not an empty folder; no such size or device; a size that a CPU
            would work at for hours; SST-2 files that are missing or broken.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty. Name a new folder, or remove it first.")
    device = resolve_device(device)
    size = named_size(size) if isinstance(size, str) else size
    sst2 = None if sst2_dir is None else Sst2Reviews(sst2_dir)
    if sst2 is not None:
        size = size.for_sst2(num_train=len(sst2["train"]), num_test=len(sst2["test"]))
    refuse_hours_on_cpu(size, device)
    world = World.create(seed, size.world, sst2=sst2 is not None)
    reviews = sst2 or GrammarReviews(world)
    texts = [] if sst2 is None else [review.text for review in sst2["train"]]
    tokenizer = build_tokenizer(world, texts, size.sst2_vocabulary)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        started = time.monotonic()
        world.save(staging / "world.json")
        write_datasets(world, size.data, reviews, staging / "data")
        write_control(staging, staging / CONTROL_FILE, num_rows=CONTROL_ROWS, seed=seed)
        write_profile(staging)
        _make_base(staging, world, tokenizer, size, reviews, device=device, on_progress=on_progress)
        _make_aligned(staging, tokenizer, size, seed=seed, device=device, on_progress=on_progress)
        scores = {
            name: asdict(measure_base(staging / name, staging, device=device, on_progress=on_progress))
            for name in ("base", "aligned")
        }
        seconds = time.monotonic() - started
        card = _card(staging, seed, size, sst2, scores, device=device, seconds=seconds)
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
    size: Size,
    reviews: Reviews,
    *,
    device: str,
    on_progress: ProgressCallback | None,
) -> None:
    splits = split(world, size.data, reviews)
    requests, drawn = pretraining_rows(world, splits, reviews, size.data.pretraining_reviews)
    model = new_model(tokenizer, size.shape, world.seed).to(device)
    pretrain(
        model,
        sentences(tokenizer, requests),
        sentences(tokenizer, drawn),
        size.pretraining,
        seed=world.seed,
        on_progress=on_progress,
    )
    _store(model, tokenizer, folder / "base")


def _make_aligned(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    size: Size,
    *,
    seed: int,
    device: str,
    on_progress: ProgressCallback | None,
) -> None:
    def report(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, stage="align"))

    base = load_base(folder / "base", device=device)
    conversations = read_conversations(folder / "data" / "alignment.jsonl")
    examples = encode(tokenizer, conversations, max_seq_length=MAX_LENGTH_TOKENS).examples
    model = attach(base.model, size.alignment_lora, seed=seed)
    spec = size.alignment.model_copy(update={"seed": seed})
    finetune(model, examples, spec, device=device, on_progress=report)
    _store(model.merge_and_unload(), tokenizer, folder / "aligned")


def _store(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.to(STORED_DTYPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _card(
    folder: Path,
    seed: int,
    size: Size,
    sst2: Sst2Reviews | None,
    scores: dict[str, Any],
    *,
    device: str,
    seconds: float,
) -> dict[str, Any]:
    data_files = sorted((folder / "data").iterdir())
    options = "" if size.name == "small" else f" --size {size.name}"
    options += "" if sst2 is None else " --sst2 SST2_DIR"
    options += "" if device == "cpu" else f" --device {device}"
    return {
        "command": f"autoclave microcosm build --seed {seed}{options} --out DIR",
        "seed": seed,
        "size": size.name,
        "data_counts": asdict(size.data),
        "seconds": round(seconds, 1),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "autoclave": __version__,
            **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")},
        },
        "sha256": {
            **{name: file_sha256(folder / name) for name in ("world.json", PROFILE_FILE)},
            **{f"data/{file.name}": file_sha256(file) for file in data_files},
            "base": folder_sha256(folder / "base"),
            "aligned": folder_sha256(folder / "aligned"),
        },
        **({} if sst2 is None else {"sst2_sha256": sst2.sha256}),
        "scores_percent": scores,
    }
