"""The five stages with the real library: order, resumption at every stage, what leaves, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autoclave.errors import CancelledError, JudgeError, ModelError, NonFiniteLossError
from autoclave.hashing import file_sha256
from autoclave.modelling.export_gate import ExportGateError
from autoclave.sanitizing.record import RECORD_FILE
from autoclave.spec import SanitizeSpec
from service.jobs.states import Stage
from service.storage import Storage
from service.storage.sums import SUMS_NAME
from tests.autoclave.tiny import save_tiny_base
from tests.workers.pipeline_bench import ALPHAS, MUS, PipelineBench, outputs, unpack
from workers import runner
from workers.attempt import StageError
from workers.messages import (
    AnyMessage,
    Checkpointed,
    Failed,
    MetricsMeasured,
    Noted,
    Published,
    StageFinished,
    StepsMeasured,
)
from workers.order import Order, set_stop_flag, write_order
from workers.reporter import Reporter


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def bench(tmp_path: Path, base_dir: Path, storage: Storage, storage_url: str) -> PipelineBench:
    return PipelineBench(tmp_path, base_dir, storage, storage_url)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_whole_job(bench: PipelineBench, storage: Storage, tmp_path: Path, base_dir: Path) -> None:
    messages = bench.run(bench.order)
    published = bench.published(messages)

    assert [m.stage for m in messages if isinstance(m, StageFinished)] == list(Stage)[:-1]
    curve = [m for m in messages if isinstance(m, MetricsMeasured)]
    assert [m.step for m in curve] == [1, 2, 3, 4, 5, 6]
    assert outputs(messages)["prepare"]["num_examples"] == 12
    assert outputs(messages)["sanitize"]["strength"] == {"alpha": ALPHAS[0], "mu": MUS[0]}

    files = unpack(storage, published)
    assert set(files) == {
        "README.md",
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "autoclave.json",
        "model.sig",
        "provenance.json",
        "safety_report.json",
        "sanitization.json",
        "training_config.json",
    }
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    unsummed = ("SHA256SUMS", "model.sig")
    assert sums == {name: file_sha256(folder / name) for name in files if name not in unsummed}
    assert str(tmp_path).encode() not in b"".join(files.values()), "a path of this machine left"
    assert str(base_dir).encode() not in b"".join(files.values())
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "acme/base"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), str(folder))

    report = json.loads(files["safety_report.json"])
    assert report == published.safety_report
    assert report["result"] == "passed"
    assert report["adapter_sha256"]["after"] == sums["adapter_model.safetensors"]
    assert report["adapter_sha256"]["before"] != report["adapter_sha256"]["after"]
    assert report["sparsity"]["pruned_fraction"] >= ALPHAS[0]
    assert "it was projected away from harmful inputs (mu 1), then 10 %" in files["README.md"].decode()


def test_the_same_job_gives_the_same_bytes(bench: PipelineBench, storage: Storage) -> None:
    first = unpack(storage, bench.published(bench.run(bench.order)))
    again = msgspec.structs.replace(bench.order, fencing_number=2, scratch=str(bench.folder / "other"))
    second = unpack(storage, bench.published(bench.run(again)))
    assert first["adapter_model.safetensors"] == second["adapter_model.safetensors"]
    assert first["sanitization.json"] == second["sanitization.json"]


def test_every_stage_can_be_resumed(bench: PipelineBench, storage: Storage) -> None:
    messages = bench.run(bench.order)
    adapter = unpack(storage, bench.published(messages))["adapter_model.safetensors"]
    report = bench.published(messages).safety_report
    for stage in list(Stage)[1:]:
        order = bench.resumed(bench.order, messages, stage)
        resumed = bench.run(order)
        assert list(outputs(resumed)) == [s.value for s in Stage][list(Stage).index(stage) : -1]
        published = bench.published(resumed)
        assert published.storage_key == "adapters/ftjob-1/2.tar"
        assert unpack(storage, published)["adapter_model.safetensors"] == adapter, stage
        for what in ("summary", "measurements", "ablations", "frontier", "sparsity", "relative_change"):
            assert published.safety_report[what] == report[what], (stage, what)


class StopAfter:
    """Sets the stop flag at a step of training."""

    def __init__(
        self, order: Order, step: int, monkeypatch: pytest.MonkeyPatch, *, pause: bool = False
    ) -> None:
        original = Reporter.on_training_progress

        def stopping(reporter: Any, progress: Any, *, saved: bool) -> None:
            if progress.step == step:
                set_stop_flag(order.stop_flag, pause=pause)
            original(reporter, progress, saved=saved)

        monkeypatch.setattr(Reporter, "on_training_progress", stopping)


def test_training_resumes_from_its_checkpoint_with_the_same_bits(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = outputs(bench.run(bench.order))["train"]

    order = msgspec.structs.replace(
        bench.order, checkpoint_every_seconds=1e-9, fencing_number=5, scratch=str(bench.folder / "broken")
    )
    with monkeypatch.context() as patch:
        StopAfter(order, 3, patch)
        with pytest.raises(CancelledError):
            bench.run(order)
    messages = bench.said
    checkpoints = [m for m in messages if isinstance(m, Checkpointed)]
    assert [m.step for m in checkpoints] == [1, 2, 3]
    checkpoint = msgspec.to_builtins(checkpoints[-1])

    resumed_order = bench.resumed(order, messages, Stage.TRAIN, checkpoint=checkpoint)
    resumed = bench.run(resumed_order)
    assert [m.step for m in resumed if isinstance(m, MetricsMeasured)] == [4, 5, 6]
    assert outputs(resumed)["train"]["adapter_sha256"] == unbroken["adapter_sha256"]


def curve(messages: list[AnyMessage]) -> list[int]:
    """The steps of the training curve."""
    parts = [message for message in messages if isinstance(message, StepsMeasured)]
    return [part.first_step + i for part in parts for i in range(len(part.train_loss))]


def test_a_pause_loses_no_step(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint was due; the flag comes after step 3 began to be reported, so step 4 is saved."""
    unbroken = outputs(bench.run(bench.order))["train"]
    order = msgspec.structs.replace(bench.order, fencing_number=5, scratch=str(bench.folder / "paused"))
    with monkeypatch.context() as patch:
        StopAfter(order, 3, patch, pause=True)
        with pytest.raises(CancelledError):
            bench.run(order)
    messages = bench.said
    steps = [m.step for m in messages if isinstance(m, MetricsMeasured)]
    (checkpoint,) = [m for m in messages if isinstance(m, Checkpointed)]
    assert (steps, checkpoint.step) == ([1, 2, 3], 4)
    assert curve(messages) == [1, 2, 3, 4], "what was trained is known, the last step too"

    resumed = bench.run(
        bench.resumed(order, messages, Stage.TRAIN, checkpoint=msgspec.to_builtins(checkpoint))
    )
    assert [m.step for m in resumed if isinstance(m, MetricsMeasured)] == curve(resumed) == [5, 6]
    assert outputs(resumed)["train"]["adapter_sha256"] == unbroken["adapter_sha256"]


def test_a_pause_at_the_last_step_finishes_the_stage(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    StopAfter(bench.order, 6, monkeypatch, pause=True)
    with pytest.raises(CancelledError):
        bench.run(bench.order)
    assert list(outputs(bench.said)) == ["prepare", "train"]


def test_half_the_memory_gives_the_same_job(bench: PipelineBench) -> None:
    order = msgspec.structs.replace(bench.order, micro_batch_divisor=2)
    assert order.job_spec().train.micro_batch_tokens == bench.order.job_spec().train.micro_batch_tokens // 2
    assert order.job_spec().train.batch_size == bench.order.job_spec().train.batch_size


def test_no_strength_meets_the_gate(bench: PipelineBench, storage: Storage) -> None:
    with pytest.raises(StageError) as caught:
        bench.run(bench.with_profile(max_harmful_score=50))
    assert caught.value.code == "safety_gate_failed"
    report = caught.value.safety_report
    assert report is not None
    assert report["result"] == "refused"
    ladders = [(alpha, mu) for alpha in ALPHAS for mu in MUS]
    assert [(row["alpha"], row["mu"]) for row in report["frontier"]] == ladders
    assert all("above the allowed 50 %" in row["refused"] for row in report["frontier"])
    assert report["num_evaluations"] == len(ladders)
    assert (report["summary"]["alpha"], report["summary"]["mu"]) == ladders[-1]
    assert report["summary"]["harmful_score"] == {"base": None, "before": 100.0, "after": 100.0}
    assert (report["measured_on"], report["ablations"], report["sparsity"]) == ("selection", None, None)
    json.dumps(report, allow_nan=False)
    tried = [m.text for m in bench.said if isinstance(m, Noted) and m.text.startswith("Tried ")]
    assert len(tried) == len(ladders)
    assert tried[0].startswith("Tried alpha 0.1, mu 1: harmful score 100.0 %, refusals 0.0 %, coherent ")
    assert storage.keys("adapters") == []
    assert not any(isinstance(m, Published) for m in bench.said)


def test_a_search_that_is_too_long_fails_closed(bench: PipelineBench) -> None:
    one = SanitizeSpec(alphas=ALPHAS, mus=MUS, max_evaluations=1)
    with pytest.raises(StageError) as caught:
        bench.run(bench.with_profile(max_harmful_score=50, sanitize=one))
    assert caught.value.code == "safety_gate_failed"
    assert caught.value.safety_report is not None
    assert len(caught.value.safety_report["frontier"]) == 1


def test_the_held_out_half_can_refuse_what_the_other_half_chose(
    bench: PipelineBench, storage: Storage
) -> None:
    """A profile tightened after the sanitize stage stands in for a half that disagrees."""
    messages = bench.run(bench.order)
    strict = bench.profile(max_harmful_score=50).model_dump(mode="json")
    storage.delete("adapters/ftjob-1/1.tar")
    with pytest.raises(StageError) as caught:
        bench.run(bench.resumed(bench.order, messages, Stage.EVALUATE, safety_profile=strict))
    assert caught.value.code == "safety_gate_failed"
    report = caught.value.safety_report
    assert report is not None
    assert (report["result"], report["measured_on"]) == ("refused", "held_out")
    assert report["refused_because"] == "harmful score 100.0 % is above the allowed 50 %"
    assert storage.keys("adapters") == []


def test_an_adapter_that_is_not_the_scored_one_does_not_leave(bench: PipelineBench, storage: Storage) -> None:
    messages = bench.run(bench.order)
    storage.delete("adapters/ftjob-1/1.tar")
    order = bench.resumed(bench.order, messages, Stage.PUBLISH)
    unsanitised = order.stage_outputs["train"]
    storage.put(f"{unsanitised['prefix']}/{RECORD_FILE}", b"{}")
    storage.delete(f"{unsanitised['prefix']}/{SUMS_NAME}")  # which do not know that file
    order.stage_outputs["sanitize"] |= {k: unsanitised[k] for k in ("prefix", "adapter_sha256")}
    with pytest.raises(ExportGateError, match="differ"):
        bench.run(order)
    assert storage.keys("adapters") == []


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"spec": {"lora": {"target_modules": ["nowhere"]}}}, "invalid_lora", "'nowhere'.*Available"),
        ({"base": {"sha256": "0" * 64}}, "base_mismatch", "acme/base are not those that were registered"),
        ({"training_file": {"sha256": "0" * 64}}, "file_corrupted", "train"),
        ({"min_examples": 13}, "invalid_training_file", "too_few_examples"),
    ],
)
def test_what_prepare_refuses(bench: PipelineBench, change: dict[str, Any], code: str, words: str) -> None:
    builtins = msgspec.to_builtins(bench.order)
    for name, value in change.items():
        builtins[name] = {**builtins[name], **value} if isinstance(value, dict) else value
    with pytest.raises(StageError, match=words) as caught:
        bench.run(msgspec.convert(builtins, Order))
    assert caught.value.code == code
    assert str(bench.folder) not in caught.value.message


def test_the_runner_turns_errors_into_verdicts() -> None:
    diverged = runner.verdict_of(NonFiniteLossError(7, float("nan")))
    assert (diverged.code, "step 7" in diverged.message) == ("non_finite_loss", True)
    report = {"result": "refused"}
    refused = runner.verdict_of(StageError("safety_gate_failed", "why", safety_report=report))
    assert refused == Failed(code="safety_gate_failed", message="why", safety_report=report)
    judged = runner.verdict_of(JudgeError("the judge /srv/judge cannot be loaded"))
    assert (judged.code, "/srv" in judged.message) == ("invalid_safety_profile", False)
    hidden = runner.verdict_of(ModelError("/srv/models/x has no config.json"))
    assert hidden.code == "invalid_model"
    assert "/srv" not in hidden.message


def test_the_runner_process_ends_as_its_supervisor_expects(bench: PipelineBench, tmp_path: Path) -> None:
    """A stop flag that is there from the start: exit status 0 and not a word."""
    Path(bench.order.scratch).mkdir()
    bench.order.stop_flag.touch()
    write_order(bench.order, tmp_path / "order.json")
    assert (tmp_path / "order.json").stat().st_mode & 0o777 == 0o600
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "workers.runner", str(tmp_path / "order.json"), str(writing)]
    run = subprocess.run(command, pass_fds=(writing,), check=False, capture_output=True, text=True)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert run.returncode == 0, run.stderr
