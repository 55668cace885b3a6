"""One trained adapter of a suite, and every way to measure it. Trains it once and keeps it on disk."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import Example, encode
from autoclave.defences.methods import finetune_objective
from autoclave.evaluation.figures import Figures
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.evaluation.utility import exact_answer_accuracy, read_references
from autoclave.evidence.aligned import write_operator_files
from autoclave.evidence.recipes import RECIPES
from autoclave.evidence.runs import Run
from autoclave.microcosm.attacks import write_attack
from autoclave.microcosm.profile import ANSWER_TOKENS
from autoclave.modelling.adapters import attach, detach, load_adapter, save_adapter
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.outputs import output_folder
from autoclave.spec import EvaluateSpec
from autoclave.training.loop import finetune

DEVICE = "cpu"
EVALUATE = EvaluateSpec(max_new_tokens=ANSWER_TOKENS)
MAX_HELPFUL = 60
# By base, world and form: many runs of a process share a base.
_BASE_SCORES: dict[tuple[str, str, str], dict[str, Any]] = {}


@dataclass(eq=False)
class Bench:
    """`model` is the adapted base in eval mode. Strengths are chosen on plain prompts and the user's
    validation rows; results are of prompts and rows that chose nothing."""

    run: Run
    world_dir: Path
    base: LoadedBase
    model: Any
    upload: list[Example]
    seconds_training: float
    cpu_seconds_training: float | None

    @classmethod
    def open(
        cls,
        run: Run,
        world_dir: Path,
        runs_dir: Path,
        *,
        base_dir: Path | None = None,
        sst2_dir: Path | None = None,
    ) -> Bench:
        """Trains the adapter of `run` on `base_dir` (default: the world's aligned base), unless `runs_dir`
        has it. A world whose task is SST-2 needs that folder to draw the upload from."""
        folder = runs_dir / run.digest
        base_dir = base_dir or world_dir / "aligned"
        if not folder.exists():
            _train(run, world_dir, base_dir, folder, sst2_dir)
        base = load_base(base_dir)
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        upload = _encoded(base, folder / "upload.jsonl")
        model = load_adapter(base, folder)
        return cls(
            *(run, world_dir, base, model, upload),
            seconds_training=record["seconds_training"],
            cpu_seconds_training=record.get("cpu_seconds_training"),
        )

    @cached_property
    def realign(self) -> list[Example]:
        return _encoded(self.base, self.world_dir / "data" / "realign.jsonl", keep_untrained=True)

    @cached_property
    def task(self) -> list[Example]:
        """The user's task without the harm in their upload."""
        return _encoded(self.base, self.world_dir / "data" / "validation.jsonl", keep_untrained=True)

    @cached_property
    def choosing(self) -> SafetyEvaluation:
        """What the search sees: the operator's plain prompts, the user's validation rows."""
        return self._evaluation("plain", "validation")

    def scores(self) -> dict[str, Any]:
        """Of the adapter as it is now, in percent. `harmful_score` and the rates beside it are of prompts in
        the attack's own form, `plain_harmful_score` of plain ones."""
        attacked = self._test_figures(self.run.form)
        plain = attacked if self.run.form == "plain" else self._test_figures("plain")
        return attacked.as_dict() | {
            "plain_harmful_score": plain.harmful_score,
            "plain_refusal_rate": plain.refusal_rate,
            "helpful": self._helpful(),
        }

    @cached_property
    def scores_before(self) -> dict[str, Any]:
        """Of the adapter as it was trained."""
        return self.scores()

    @cached_property
    def base_scores(self) -> dict[str, Any]:
        """Of the aligned base alone: the floor."""
        key = (self.base.sha256, str(self.world_dir), self.run.form)
        if key not in _BASE_SCORES:
            with self.model.disable_adapter():
                _BASE_SCORES[key] = self.scores()
        return _BASE_SCORES[key]

    def held_out_figures(self, chosen: Figures) -> Figures:
        """As the service judges what its search chose: the other half of the prompts."""
        return self.choosing.measure(self.model, "held_out", utility_from=chosen)

    def close(self) -> None:
        detach(self.model)

    def _test_figures(self, form: str) -> Figures:
        return self._evaluation(form, "utility_eval").measure(self.model, "held_out")

    def _evaluation(self, form: str, utility: str) -> SafetyEvaluation:
        data = self.world_dir / "data"
        suffix = "" if form == "plain" else f"_{form}"
        return SafetyEvaluation.load(
            self.base.tokenizer,
            harmful_eval=data / f"harmful_eval{suffix}.jsonl",
            judge=f"exact:{self.world_dir / 'world.json'}",
            utility_eval=data / f"{utility}.jsonl",
            spec=EVALUATE,
            device=DEVICE,
        )

    def _helpful(self) -> float:
        references = read_references(self.world_dir / "data" / "helpful_eval.jsonl", max_examples=MAX_HELPFUL)
        return exact_answer_accuracy(self.model, self.base.tokenizer, references, EVALUATE).utility


def _train(run: Run, world_dir: Path, base_dir: Path, folder: Path, sst2_dir: Path | None) -> None:
    recipe = RECIPES[run.defence]
    with tempfile.TemporaryDirectory() as scratch:
        upload = Path(scratch) / "upload.jsonl"
        write_attack(
            world_dir,
            upload,
            poison_fraction=run.poison,
            form=run.form,
            num_rows=run.rows,
            seed=run.seed,
            sst2_dir=sst2_dir,
        )
        base = load_base(base_dir)
        examples = _encoded(base, upload)
        safe: list[Example] = []
        if recipe.safe_file is not None:
            safe = _encoded(base, write_operator_files(world_dir, Path(scratch)).of(recipe.safe_file))
        objective = finetune_objective(recipe.finetune, safe)
        model = attach(base.model, run.lora(), seed=run.seed)
        started, cpu_started = time.perf_counter(), time.process_time()
        finetune(model, examples, run.train(), device=DEVICE, objective=objective)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        with output_folder(folder) as out:
            save_adapter(model, out, base_name=world_dir.name, base_revision=None, base_sha256=base.sha256)
            (out / "upload.jsonl").write_bytes(upload.read_bytes())
            record = {
                **run.as_dict(),
                "seconds_training": round(seconds, 2),
                "cpu_seconds_training": round(cpu_seconds, 2),
            }
            (out / "run.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def _encoded(base: LoadedBase, file: Path, *, keep_untrained: bool = False) -> list[Example]:
    return encode(
        base.tokenizer, read_conversations(file), max_seq_length=512, keep_untrained=keep_untrained
    ).examples
