"""`create`: uploads, what ends up in the job, and what is refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from service.db import Database
from service.jobs.service import cancel_job
from service.models import Job
from tests.builders import BASE_ID, dataset, get_job, make_base
from tests.workers.jobs_cli.conftest import Meanwhile, Terminal


@pytest.fixture
def base(database: Database) -> None:
    with database.transaction() as session:
        make_base(session)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(dataset(12))
    return path


@pytest.mark.usefixtures("base")
def test_create(terminal: Terminal, database: Database, training: Path, tmp_path: Path) -> None:
    validation = tmp_path / "valid.jsonl"
    validation.write_bytes(dataset(10, tag="valid"))
    request = tmp_path / "request.json"
    request.write_text(
        json.dumps(
            {
                "suffix": "replaced",
                "lora": {"r": 2},
                "training": {"packing": True},
                "defence": {"name": "lisa", "rho": 1},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 5}}},
            }
        )
    )
    made = terminal.run(
        *("create", "--model", BASE_ID, "--training-file", str(training)),
        *("--validation-file", str(validation), "--suffix", "mine", "--seed", "7", "--epochs", "2"),
        *("--learning-rate-multiplier", "0.5", "--metadata", "team=a", "--metadata", "x=y=z"),
        *("--request", str(request), "--defence", "ldifs", "--defence-setting", "strength=0.5"),
    )
    job = get_job(database, made.stdout.strip())
    assert re.fullmatch(r"uploaded train.jsonl as file-\w+\nuploaded valid.jsonl as file-\w+\n", made.stderr)
    assert (job.suffix, job.seed, job.user_metadata) == ("mine", 7, {"team": "a", "x": "y=z"})
    assert job.hyperparameters == {"n_epochs": 2, "batch_size": 5, "learning_rate_multiplier": 0.5}
    assert job.spec["lora"]["r"] == 2
    assert job.spec["train"]["packing"] is True
    assert job.validation_file_id is not None
    assert job.spec["defence"] == {"name": "ldifs", "strength": 0.5}
    # With the id of a file that is there already, as a script would.
    again = terminal.json("create", "--model", BASE_ID, "--training-file", job.training_file_id)
    assert again["training_file"] == job.training_file_id


@pytest.mark.usefixtures("base")
def test_create_and_watch(
    terminal: Terminal, database: Database, training: Path, meanwhile: Meanwhile
) -> None:
    def cancel_it() -> None:
        with database.transaction() as session:
            job = session.scalars(select(Job)).one()
            cancel_job(session, project_id=job.project_id, job_id=job.id, now=time.time())

    with meanwhile(cancel_it):
        result = terminal.run(
            *("create", "--model", BASE_ID, "--training-file", str(training), "--watch", "--interval", "0.1"),
            exit_code=2,
        )
    assert "queued, number 1 in the queue" in result.stdout
    assert result.stdout.splitlines()[0].startswith("ftjob-")


@pytest.mark.usefixtures("base")
def test_what_cannot_be_created(terminal: Terminal, training: Path, tmp_path: Path) -> None:
    arguments = ("create", "--model", BASE_ID, "--training-file")
    assert "neither a file nor the id of one" in terminal.refused(*arguments, str(tmp_path / "none"))
    assert "file-none" in terminal.refused(*arguments, "file-none")
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(dataset(12) + b'{"messages": []}\n')
    said = terminal.refused(*arguments, str(bad))
    assert "\n  line 13 at /messages: " in said
    request = tmp_path / "request.json"
    for text, words in (("{", "is no JSON"), ("[]", "must hold a JSON object"), ('{"method": 3}', "must be")):
        request.write_text(text)
        said = terminal.run(
            *arguments, str(training), "--epochs", "2", "--request", str(request), exit_code=3
        ).stderr
        assert words in said
    request.write_text('{"lern_rate": 3}')
    assert (
        "lern_rate" in terminal.run(*arguments, str(training), "--request", str(request), exit_code=3).stderr
    )
    with_no_base = ("create", "--model", "none", "--training-file", str(training))
    assert "none" in terminal.run(*with_no_base, exit_code=3).stderr


@pytest.mark.usefixtures("base")
def test_a_defence_that_cannot_be(terminal: Terminal, training: Path) -> None:
    for options, words in (
        (["--defence-setting", "rho=1"], "needs --defence"),
        (["--defence", "lisa", "--defence-setting", "rho"], "KEY=VALUE"),
        (["--defence", "lisa", "--defence-setting", "rho=much"], "takes a number"),
        (["--defence", "lisa"], "no alignment data"),
    ):
        arguments = ["create", "--model", BASE_ID, "--training-file", str(training), *options]
        assert words in terminal.run(*arguments, exit_code=3).stderr
