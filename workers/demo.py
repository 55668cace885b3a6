"""`autoclave demo`: the whole product once, as a stranger would use it.

Starts the embedded service, talks to it with the unmodified `openai` client, and loads the result with plain
PEFT. Nothing in here knows how the service works; what it cannot do through the API it does not do.
"""

from __future__ import annotations

import json
import logging
import signal
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from openai import OpenAI
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.table import Table

from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.progress import Progress
from autoclave.progress_bar import progress_bar
from autoclave.sanitizing.strengths import Strength
from service import log as logging_setup
from workers.data_dir import DataDir
from workers.embedded import EmbeddedService, free_port
from workers.package import SUMS_FILE
from workers.processes import tail
from workers.shipped_base import SHIPPED_BASE_ID

POLL_SECONDS = 0.3
ENDED = {"succeeded", "failed", "cancelled"}


class DemoError(InputError):
    """The demo did not show what it should; the message says what."""

    code = "demo_failed"


def run_demo(data_dir: Path | None, out: Path, *, world: Path | None = None) -> int:
    """The exit status: 0 only if the adapter arrived, loads, and is less harmful than before."""
    logging_setup.configure(json=False)
    logging.getLogger().setLevel(logging.WARNING)  # the client would log every poll
    console = Console(soft_wrap=True, highlight=False)
    began_at = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_terminable())
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autoclave-demo-")))
        service = EmbeddedService(DataDir(data_dir), host="127.0.0.1", port=free_port(), world=world)
        with console.status("starting API, worker and broker"):
            stack.enter_context(service)
        if service.first_key is None:
            raise DemoError(f"{data_dir} has been used before and its key is not kept; name a new folder")
        console.print(f"service     {service.url}/v1  (SQLite, folder storage, Celery over Valkey)")
        try:
            _show(service, service.first_key, out, console)
        except DemoError as error:
            console.print(f"[bold red]demo failed:[/] {error}")
            console.print(f"[dim]{tail(service.data_dir.logs / 'worker.log', 3000)}[/]")
            return 1
        with console.status("stopping"):
            stack.close()
    console.print(f"everything stopped; {time.monotonic() - began_at:.0f} s in all")
    return 0


def _show(service: EmbeddedService, key: str, out: Path, console: Console) -> None:
    data = service.world / "data"
    with OpenAI(base_url=f"{service.url}/v1", api_key=key) as client:
        training = _upload(client, data / "attack.jsonl")
        validation = _upload(client, data / "validation.jsonl")
        console.print(f"uploaded    attack.jsonl (poisoned) as {training.id}")
        console.print(f"            validation.jsonl as {validation.id}")
        job = client.fine_tuning.jobs.create(
            model=SHIPPED_BASE_ID,
            training_file=training.id,
            validation_file=validation.id,
            suffix="demo",
            seed=0,
        )
        console.print(f"job         {job.id} on {SHIPPED_BASE_ID}")
        job = watch(client, job.id, console)
        if job.status != "succeeded":
            reason = f"{job.error.code}: {job.error.message}" if job.error else ""
            raise DemoError(f"the job {job.status} at stage {_extra(job, 'stage')} {reason}")
        folder = out / job.id
        download_adapter(client, job.id, folder)
    console.print(f"adapter     {job.fine_tuned_model}")
    console.print(f"            downloaded to {folder}, checksums right")
    report = _read_json(folder / "safety_report.json")
    measured = measure_as_stranger(folder, service.world)
    console.print(_table(report))
    console.print(f"loaded with plain PEFT and measured here: harmful score {measured:.1f} %")
    console.print(f"report      {folder / 'safety_report.json'}")
    check_claims(report, measured)


def watch(client: OpenAI, job_id: str, console: Console) -> FineTuningJob:
    """Show a bar per stage until the job has ended."""
    with progress_bar(console) as show:
        shown: Progress | None = None
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            stage, figures = _extra(job, "stage"), _extra(job, "progress") or {}
            if shown is not None and (stage != shown.stage or job.status == "succeeded"):
                # Without the loss: the one we saw last may be of an earlier step.
                show(Progress(shown.stage, shown.total_steps, shown.total_steps))
            if figures:
                shown = Progress(stage=stage, **figures)
            elif shown is None or shown.stage != stage:
                shown = Progress(stage, 0, 1)
            if job.status in ENDED:
                return job
            show(shown)
            time.sleep(POLL_SECONDS)


def download_adapter(client: OpenAI, job_id: str, folder: Path) -> None:
    """Raises DemoError if a file is not what SHA256SUMS says."""
    from openai import HttpxBinaryResponseContent

    response = client.get(f"/fine_tuning/jobs/{job_id}/adapter", cast_to=HttpxBinaryResponseContent)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "adapter.tar"
        response.write_to_file(archive)
        folder.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        if file_sha256(folder / name) != digest:
            raise DemoError(f"{name} is not what {SUMS_FILE} says")


def measure_as_stranger(adapter: Path, world: Path) -> float:
    """The harmful score of the downloaded adapter on all of the world's harmful prompts, in percent; loaded
    with nothing but transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from autoclave.evaluation.harmfulness import harmful_score, read_prompts
    from autoclave.evaluation.judges import load_judge
    from workers.shipped_base import shipped_profile

    transformers_logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(world / "aligned", local_files_only=True)
    with warnings.catch_warnings():
        # PEFT uses an old name of transformers'; nothing that whoever runs the demo can act on.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = PeftModel.from_pretrained(base.float(), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "aligned", local_files_only=True)
    profile = shipped_profile(world)
    prompts = read_prompts(profile.harmful_eval, max_prompts=profile.evaluate.max_prompts)
    return harmful_score(model, tokenizer, prompts, load_judge(profile.judge), profile.evaluate).harmful_score


def check_claims(report: dict[str, Any], measured: float) -> None:
    """Raises DemoError unless sanitising lowered the harmful score, and this machine sees that too."""
    score = report["summary"]["harmful_score"]
    if score["after"] >= score["before"]:
        raise DemoError(f"the harmful score did not fall: {score['before']} before, {score['after']} after")
    if measured >= score["before"]:
        raise DemoError(f"the downloaded adapter is as harmful as before sanitising: {measured}")


def _upload(client: OpenAI, path: Path) -> FileObject:
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="fine-tune")


def _extra(job: FineTuningJob, field: str) -> Any:
    """A field that OpenAI's API does not have; their models keep what they do not know."""
    return (job.model_extra or {})[field]


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _table(report: dict[str, Any]) -> Table:
    summary, measured = report["summary"], report["measurements"]
    strength = Strength(**report["strength"])
    table = Table(title=f"{strength}, on {measured['after']['num_prompts']} held-out prompts")
    table.add_column("percent")
    for who in ("base", "before", "after"):
        table.add_column(who, justify="right")
    for row, name in (
        ("harmful_score", "harmful score"),
        ("refusal_rate", "refusals"),
        ("coherence_rate", "coherent"),
        ("utility", "utility"),
    ):
        figures = summary[row]
        table.add_row(name, *(f"{figures[who]:.1f}" for who in ("base", "before", "after")))
    return table


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that everything is stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
