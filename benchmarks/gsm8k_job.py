"""A real upload through the whole job: GSM8K's training set (7,473 rows) on the shipped base, one epoch.

    python benchmarks/gsm8k_job.py --gsm8k train.jsonl --out benchmarks/results

Starts the embedded service, converts and uploads the file with the `openai` client, runs the job and writes
`gsm8k_job.json`: wall time per stage, tokens, peak resident memory of API, worker and child. Accuracy means
nothing here (the base knows a few hundred made-up words); that every stage takes real text, real lengths
and real volume is the point. One run, no ratios: absolute times are of the machine named in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from machine import folder_for, machine
from openai import OpenAI

from autoclave.data.convert import convert_file
from workers.data_dir import DataDir
from workers.embedded import EmbeddedService
from workers.shipped_base import SHIPPED_BASE_ID

POLL_SECONDS = 0.25
MODULES = {"api": "service.main", "worker": "workers.worker", "child": "workers.runner"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K train.jsonl (question, answer)")
    parser.add_argument("--out", type=folder_for, required=True, help="folder for gsm8k_job.json")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoclave-gsm8k-") as folder:
        result = measure(arguments.gsm8k, Path(folder), arguments.port)
    (arguments.out / "gsm8k_job.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if result["job"]["status"] == "succeeded" else 1


def measure(gsm8k: Path, folder: Path, port: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    # A fresh process, so that its memory is its own; there is no second job anyway.
    os.environ["RESIDENT_BASE_SECONDS"] = "0"
    started = time.perf_counter()
    dataset = folder / "gsm8k.jsonl"
    convert_file(gsm8k, dataset, "gsm8k")
    seconds["convert"] = time.perf_counter() - started
    with EmbeddedService(DataDir(folder / "data"), host="127.0.0.1", port=port) as service:
        client = OpenAI(base_url=f"{service.url}/v1", api_key=service.first_key)
        started = time.perf_counter()
        with dataset.open("rb") as file:
            training = client.files.create(file=file, purpose="fine-tune")
        seconds["upload"] = time.perf_counter() - started
        job_id = client.fine_tuning.jobs.create(
            model=SHIPPED_BASE_ID,
            training_file=training.id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        ).id
        job, peaks = follow(client, job_id, seconds)
    return {
        "command": "python benchmarks/gsm8k_job.py --gsm8k train.jsonl --out benchmarks/results",
        "rows": sum(1 for _ in dataset.open("rb")),
        "bytes": dataset.stat().st_size,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_resident_mib": {name: round(value / 2**20) for name, value in sorted(peaks.items())},
        "job": job,
        "machine": {
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            **machine("torch", "transformers", "peft", "celery", "fastapi"),
        },
    }


def follow(client: OpenAI, job_id: str, seconds: dict[str, float]) -> tuple[dict[str, Any], dict[str, int]]:
    """Poll until the job ends. Adds the wall time of each stage to `seconds`, as seen from outside."""
    peaks: dict[str, int] = {}
    stage_began = time.perf_counter()
    stage = "queue"
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id).to_dict()
        for name, resident in resident_bytes().items():
            peaks[name] = max(peaks.get(name, 0), resident)
        now = time.perf_counter()
        current = "queue" if job["status"] in ("validating_files", "queued") else str(job["stage"])
        ended = job["status"] in ("succeeded", "failed", "cancelled")
        if current != stage or ended:
            seconds[stage] = seconds.get(stage, 0.0) + now - stage_began
            stage, stage_began = current, now
        if ended:
            break
        progress = job.get("progress") or {}
        steps = f"{progress.get('step', 0)}/{progress.get('total_steps', '?')}"
        print(f"\r{stage:10s} {steps:14s} {now - stage_began:6.0f} s ", end="", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    print(file=sys.stderr)
    kept = ("status", "error", "trained_tokens", "hyperparameters", "attempts", "safety")
    return {key: job.get(key) for key in kept}, peaks


def resident_bytes() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            for name, module in (
                ("api", "service.main"),
                ("worker", "workers.worker"),
                ("child", "workers.runner"),
            ):
                if module in line:
                    sizes[name] = sizes.get(name, 0) + process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return sizes


if __name__ == "__main__":
    sys.exit(main())
