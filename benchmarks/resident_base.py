"""How long a job waits for its first step: in a fresh process, and forked from one that keeps the base.

    python benchmarks/resident_base.py --out benchmarks/results

Two supervisors of this process over one SQLite database take turns: one whose jobs load their base, and one
with a resident base. Seconds from the claim until the event of the first training step is written, which is
at most a tenth of a second after the step; then the job is cancelled. Two bases: the shipped one, where the
imports are everything, and a random Llama whose weights are stored in bfloat16 and computed in float32, as
those of a real base are on a CPU. The first job of the second supervisor finds nothing resident; it is shown
apart ("first"), and so is what the process that keeps the base holds when it is idle.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog
from machine import folder_for, machine
from sqlalchemy import select

from autoclave.hashing import file_sha256, folder_sha256
from autoclave.microcosm.shipped import shipped_world
from service import auth, schema
from service.catalog import register_base
from service.db import Database
from service.jobs import service as jobs
from service.jobs.creation import create_job
from service.jobs.requests import CreateJob
from service.models import File, JobAttempt, JobEvent
from service.settings import Settings
from service.storage import storage_from_url
from workers.shipped_base import SHIPPED_BASE_ID, register_shipped_base, shipped_profile, shipped_spec
from workers.supervisor import Supervisor

NUM_EXAMPLES = 100
LLAMA_ID = "benchmark/llama"
# One example a step, so that it is the way to the step that is measured.
METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 1}}}
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Service:
    """A database with one tenant, his file and the bases."""

    database: Database
    settings: Settings
    project_id: str
    organization_id: str
    file_id: str

    def supervisor(self, name: str, *, resident_base_seconds: float) -> Supervisor:
        work_dir = Path(self.settings.work_dir) / name
        work_dir.mkdir(parents=True)
        return Supervisor(
            self.database,
            storage_from_url(self.settings.storage_url),
            self.settings.model_copy(update={"resident_base_seconds": resident_base_seconds}),
            owner=name,
            work_dir=work_dir,
            shutdown=threading.Event(),
        )


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    url = f"sqlite:///{folder}/autoclave.db"
    schema.upgrade(url)
    settings = Settings(database_url=url, storage_url=f"file://{folder}/storage", work_dir=folder / "work")
    lines = (shipped_world() / "data" / "benign.jsonl").read_text().splitlines(keepends=True)
    data = folder / "train.jsonl"
    data.write_text("".join(lines[:NUM_EXAMPLES]))
    storage_from_url(settings.storage_url).put("files/train", data)
    now = time.time()
    with closing(Database.from_url(url)) as database:
        register_shipped_base(database, shipped_world())
        with database.transaction() as session:
            organization = auth.create_organization(session, name="x", now=now)
            project = auth.create_project(session, organization_id=organization.id, name="x", now=now)
            session.add(
                File(
                    id="file-train",
                    project_id=project.id,
                    filename="train.jsonl",
                    purpose="fine-tune",
                    bytes=data.stat().st_size,
                    sha256=file_sha256(data),
                    storage_key="files/train",
                    status="processed",
                    num_examples=NUM_EXAMPLES,
                    created_at=now,
                )
            )
            found = Service(database, settings, project.id, organization.id, "file-train")
        yield found


def add_llama(parts: Service, folder: Path, *, hidden: int, layers: int) -> int:
    """Registers a random one with the shipped tokenizer; the number of its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shipped = shipped_world() / "aligned"
    tokens = json.loads((shipped / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=tokens["vocab_size"],
        pad_token_id=tokens["pad_token_id"],
        eos_token_id=tokens["eos_token_id"],
        bos_token_id=None,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(shipped / name, folder / name)
    sha256 = folder_sha256(folder)
    with parts.database.transaction() as session:
        register_base(
            session,
            id=LLAMA_ID,
            revision="1",
            path=str(folder),
            sha256=sha256,
            alignment_method="none",
            default_spec=shipped_spec(),
            safety_profile=shipped_profile(shipped_world()),
            now=time.time(),
        )
    return sum(weight.numel() for weight in model.parameters())


def until_first_step(parts: Service, supervisor: Supervisor, base_id: str) -> float:
    """Seconds from the claim. Raises SystemExit where the job comes to no step."""
    database = parts.database
    with database.transaction() as session:
        job_id = create_job(
            session,
            CreateJob.model_validate(
                {"model": base_id, "training_file": parts.file_id, "seed": 0, "method": METHOD}
            ),
            project_id=parts.project_id,
            organization_id=parts.organization_id,
            now=time.time(),
        )
    found: list[float] = []

    def watch() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        query = select(JobEvent.created_at).where(JobEvent.job_id == job_id, JobEvent.type == "metrics")
        while time.monotonic() < deadline and not found:
            time.sleep(0.05)
            with database.snapshot() as session:
                found.extend(session.scalars(query.order_by(JobEvent.sequence).limit(1)))
        with database.transaction() as session:
            jobs.cancel_job(session, project_id=parts.project_id, job_id=job_id, now=time.time())

    watcher = threading.Thread(target=watch)
    watcher.start()
    supervisor.run_next()
    watcher.join()
    if not found:
        raise SystemExit(f"{job_id} made no step")
    with database.snapshot() as session:
        began: float = session.scalars(select(JobAttempt.started_at).where(JobAttempt.job_id == job_id)).one()
    return found[0] - began


def kept_bytes() -> dict[str, int]:
    """Of the process that keeps the base, as far as it shares them with nobody, and all."""
    for process in psutil.Process().children():
        if "workers.resident_base" in process.cmdline():
            memory = process.memory_full_info()
            return {"own_bytes": memory.uss, "resident_bytes": memory.rss}
    raise SystemExit("no process keeps a base")


def measured(parts: Service, base_id: str, *, rounds: int) -> dict[str, Any]:
    name = base_id.replace("/", "-")
    with (
        closing(parts.supervisor(f"{name}-fresh", resident_base_seconds=0.0)) as fresh,
        closing(parts.supervisor(f"{name}-resident", resident_base_seconds=3600.0)) as resident,
    ):
        until_first_step(parts, fresh, base_id)  # files are in the page cache from here on
        first = until_first_step(parts, resident, base_id)
        seconds: dict[str, list[float]] = {"fresh": [], "resident": []}
        for _ in range(rounds):
            seconds["fresh"].append(until_first_step(parts, fresh, base_id))
            seconds["resident"].append(until_first_step(parts, resident, base_id))
            print(base_id, {key: round(each[-1], 2) for key, each in seconds.items()}, file=sys.stderr)
        kept = kept_bytes()
    medians = {key: statistics.median(each) for key, each in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["fresh"], seconds["resident"], strict=True)]
    return {
        "first": round(first, 2),
        "seconds": {key: [round(each, 2) for each in all_of] for key, all_of in seconds.items()},
        "median_seconds": {key: round(median, 2) for key, median in medians.items()},
        "times_sooner": round(statistics.median(ratios), 2),
        "kept": kept,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for resident_base.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=1024, help="of the random Llama")
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    out = arguments.out
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="autoclave-resident-") as name, service(Path(name)) as parts:
        folder = Path(name) / "llama"
        size = add_llama(parts, folder, hidden=arguments.hidden, layers=arguments.layers)
        results = {
            base_id: measured(parts, base_id, rounds=arguments.rounds)
            for base_id in (SHIPPED_BASE_ID, LLAMA_ID)
        }
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    results[LLAMA_ID] |= {"parameters": size, "stored_bytes": stored}
    result = {
        "command": f"python benchmarks/resident_base.py --rounds {arguments.rounds} --out benchmarks/results",
        "bases": results,
        "machine": machine("torch", "transformers", "peft"),
    }
    (out / "resident_base.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
