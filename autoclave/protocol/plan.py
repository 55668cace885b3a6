"""The steps of a protocol, each with what goes into it and what it does; nothing is done here.

    world (microcosm), base, set-NAME, task-NAME, upload, align, finetune, sanitize-LABEL,
    answers-STATE and measure-STATE for aligned, fine-tuned and every sanitiser

`Done` results of earlier steps are looked up by name when a step works, so that the keys can be known before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autoclave.data.sets.source_rows import SourceFile
from autoclave.errors import InputError
from autoclave.evaluation.tasks.pairwise_prompt import PROMPT_VERSION
from autoclave.protocol import sets
from autoclave.protocol.config import ProtocolConfig, RowsSource, SanitizerSpec, SetSource, data_files
from autoclave.protocol.results import ALIGNED, FINETUNED, MODEL_FOLDER, Results
from autoclave.protocol.sources import Sources
from autoclave.protocol.steps import ADAPTER_FOLDER, Step, Workplace


@dataclass
class Plan(Results):
    """`steps` in their order; `done` fills while they are run."""

    sources: Sources
    device: str
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, config: ProtocolConfig, sources: Sources, device: str) -> Plan:
        plan = cls(config, {}, sources, device)
        plan._add_base()
        plan._add_data()
        plan._add_upload()
        plan._add_training()
        for sanitizer in config.sanitize:
            plan._add_sanitizer(sanitizer)
        for state in plan.states:
            plan._add_measurement(state)
            plan._add_comparison(state)
        return plan

    def _add(
        self, name: str, inputs: dict[str, Any], after: list[str], work: Callable[[Workplace], dict[str, Any]]
    ) -> None:
        keys = {step.name: step.key for step in self.steps}
        self.steps.append(Step(name, {**inputs, "after": {name: keys[name] for name in after}}, work))

    def _digests(self, field: str) -> dict[str, str]:
        """Of that field, or of files under it."""
        digests = self.sources.sha256.items()
        return {name: digest for name, digest in digests if name == field or name.startswith(f"{field}.")}

    def _add_base(self) -> None:
        source = self.config.base
        if source.microcosm:
            microcosm = source.microcosm

            def build(place: Workplace) -> dict[str, Any]:
                from autoclave.protocol.bases import make_world

                return make_world(microcosm, self.device, place)

            settings = microcosm.model_dump(mode="json", exclude={"world", "sst2", "model"})
            digests = self._digests("base.microcosm")
            made_of = {"microcosm": settings, "device": _kind(self.device), "sha256": digests}
            self._add("world", made_of, [], build)

        model = source.microcosm.model if source.microcosm else "base"

        def make(place: Workplace) -> dict[str, Any]:
            from autoclave.protocol.bases import make_base

            folder = self.sources.base or self.world_path("world.json").parent / model
            return make_base(folder, source.template, place)

        after = ["world"] if source.microcosm else []
        digests = {} if source.microcosm else self._digests("base")
        inputs = {"template": source.template, "model": model, "sha256": digests}
        self._add("base", inputs, after, make)

    def _add_data(self) -> None:
        for name, source in data_files(self.config):
            step = name.replace("data.", "set-").replace("task.", "task-").replace("_", "-")
            after = [f"set-{other}" for other in getattr(source, "apart_from", ())]
            after += ["world"] * source.file.startswith("world:")
            inputs: dict[str, Any] = {
                "source": source.model_dump(mode="json", exclude={"file"}),
                "sha256": self._digests(name),
            }
            if source.file.startswith("world:"):
                inputs["file"] = source.file
            limit = self.config.attack.num_harmful if name == "data.attack" else None
            if name == "data.attack":
                if not limit:
                    continue
                inputs["harmful_rows"] = limit
            if isinstance(source, RowsSource):
                inputs["task"] = self.config.task.name
            self._add(step, inputs, after, self._data_work(name, source, limit))

    def _data_work(
        self, name: str, source: SetSource | RowsSource, limit: int | None
    ) -> Callable[[Workplace], dict[str, Any]]:
        def work(place: Workplace) -> dict[str, Any]:
            found = self.sources.files.get(name)
            if found is None:
                path = self.world_path(source.file.removeprefix("world:"))
                if not path.is_file():
                    raise InputError(f"{name}.file: the world has no {path.name}; see docs/microcosm.md.")
                found = SourceFile(path, path.name)
            if isinstance(source, RowsSource):
                return sets.write_rows(name, self.config.task.name, source, found, place.folder)
            apart = [self.rows(f"set-{other}") for other in source.apart_from]
            return sets.write_set(name, source, found, place.folder, limit=limit, apart=apart)

        return work

    def _add_upload(self) -> None:
        """Before anything is trained: too few rows are found out at once."""
        attack, num_harmful = self.config.attack, self.config.attack.num_harmful

        def make_upload(place: Workplace) -> dict[str, Any]:
            poison = self.rows("set-attack") if num_harmful else None
            return sets.write_upload(attack, poison, self.rows("task-train"), place.folder)

        after = ["task-train", *["set-attack"] * bool(num_harmful)]
        self._add("upload", attack.model_dump(mode="json"), after, make_upload)

    def _add_training(self) -> None:
        config, device = self.config, self.device
        align = config.align
        if align:
            harmful = align.method.name in ("repnoise", "booster")

            def make_aligned(place: Workplace) -> dict[str, Any]:
                from autoclave.defences.align import align_folder

                return align_folder(
                    self.base_dir(),
                    self.rows("set-alignment"),
                    place.folder / MODEL_FOLDER,
                    method=align.method,
                    lora=align.lora,
                    train=align.train,
                    harmful_file=self.rows("set-alignment-harmful") if harmful else None,
                    device=device,
                    checkpoint_dir=place.checkpoints,
                    on_progress=place.on_progress,
                )

            after = ["base", "set-alignment", *["set-alignment-harmful"] * harmful]
            self._add(
                "align", {**align.model_dump(mode="json"), "device": _kind(device)}, after, make_aligned
            )
        tuned = config.finetune
        lisa = tuned.method.name == "lisa"

        def fine_tune(place: Workplace) -> dict[str, Any]:
            from autoclave.training.finetune import finetune_folder

            return finetune_folder(
                self.aligned_dir(),
                self.rows("upload"),
                place.folder / ADAPTER_FOLDER,
                tuned.lora,
                tuned.train,
                method=tuned.method,
                alignment_file=self.rows("set-alignment") if lisa else None,
                device=device,
                checkpoint_dir=place.checkpoints,
                on_progress=place.on_progress,
            )

        after = [self._model_step(), "upload", *["set-alignment"] * lisa]
        self._add("finetune", {**tuned.model_dump(mode="json"), "device": _kind(device)}, after, fine_tune)

    def _model_step(self) -> str:
        return "align" if self.config.align else "base"

    def _add_sanitizer(self, sanitizer: SanitizerSpec) -> None:
        gated = sanitizer.gate is not None

        def sanitize(place: Workplace) -> dict[str, Any]:
            from autoclave.protocol.sanitized import sanitize

            validation = self.config.task.validation is not None
            return sanitize(
                sanitizer,
                place,
                base=self.aligned_dir(),
                adapter=self.finetuned_dir(),
                realignment=self.rows("set-realignment"),
                upload=self.rows("upload"),
                selection=self.rows("set-selection") if gated else None,
                validation=self.rows("task-validation") if validation else None,
                judge=self.judge_name(),
                evaluate=self.config.evaluate,
                device=self.device,
            )

        after = ["finetune", "upload", "set-realignment", self._model_step()]
        inputs = sanitizer.model_dump(mode="json", exclude={"label"}) | {"device": _kind(self.device)}
        if gated:
            validation = ["task-validation"] * (self.config.task.validation is not None)
            after += ["set-selection", *validation, *["world"] * (self.config.base.microcosm is not None)]
            inputs |= {"judge": self.config.judge, "evaluate": self.config.evaluate.model_dump(mode="json")}
            inputs["sha256"] = self._digests("judge")
        self._add(f"sanitize-{sanitizer.label}", inputs, after, sanitize)

    def _add_comparison(self, state: str) -> None:
        endpoint = self.config.task.pairwise
        if endpoint is None:
            return

        def compare(place: Workplace) -> dict[str, Any]:
            from autoclave.protocol.answers import compare_answers

            if not self.is_released(state):
                return {"released": False}
            return compare_answers(
                self.done[f"answers-{state}"].folder,
                task_test=self.rows("task-test"),
                endpoint=endpoint,
                journal=place.checkpoints / "verdicts.jsonl",
                on_progress=place.on_progress,
            )

        asked = endpoint.model_dump(mode="json", include={"url", "model", "max_tokens"})
        inputs = {"endpoint": asked, "prompt_version": PROMPT_VERSION}
        self._add(f"compare-{state}", inputs, [f"answers-{state}", "task-test"], compare)

    def _add_measurement(self, state: str) -> None:
        config = self.config
        before = {ALIGNED: self._model_step(), FINETUNED: "finetune"}.get(state, f"sanitize-{state}")
        sources = ["set-harmful-eval", "task-test"]
        task = config.task.model_dump(mode="json", include={"name", "max_new_tokens", "held_out_loss"})
        task["rules"] = list(config.task.answer_rules)

        def answer(place: Workplace) -> dict[str, Any]:
            from autoclave.protocol.answers import write_answers

            if not self.is_released(state):
                return {"released": False}
            return write_answers(
                self.aligned_dir(),
                self.adapter_dir(state),
                place.folder,
                harmful_eval=self.rows("set-harmful-eval"),
                task_test=self.rows("task-test"),
                task=config.task,
                spec=config.evaluate,
                device=self.device,
                on_progress=place.on_progress,
            )

        def measure(place: Workplace) -> dict[str, Any]:
            from autoclave.protocol.answers import judge_answers

            if not self.is_released(state):
                return {"released": False}
            return judge_answers(
                self.done[f"answers-{state}"].folder,
                harmful_eval=self.rows("set-harmful-eval"),
                task_test=self.rows("task-test"),
                task=config.task,
                judge_name=self.judge_name(),
                spec=config.evaluate,
                device=self.device,
                on_progress=place.on_progress,
            )

        inputs = {
            "evaluate": config.evaluate.model_dump(mode="json"),
            "task": {name: task[name] for name in ("max_new_tokens", "held_out_loss")}
            | {"answered": config.task.is_answered},
            "device": _kind(self.device),
        }
        self._add(f"answers-{state}", inputs, [before, *sources], answer)
        judge = {"judge": config.judge, "sha256": self._digests("judge")}
        self._add(f"measure-{state}", {**judge, "rules": task["rules"]}, [f"answers-{state}"], measure)


def _kind(device: str) -> str:
    return device.partition(":")[0]
