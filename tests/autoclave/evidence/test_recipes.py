"""Recipes of the defences: the same data and number of steps for all, and files that leak nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoclave.evidence.aligned import alignment_of, phase_train, steps_per_epoch, write_operator_files
from autoclave.evidence.recipes import DEFENCES, RECIPES, AlignPhase, epochs_of
from autoclave.evidence.runner import WorkFolder
from autoclave.evidence.runs import Run
from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import SftSpec


def prompts(file: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]


def answers(file: Path) -> list[str]:
    return [json.loads(line)["messages"][1]["content"] for line in file.read_text().splitlines()]


def test_refusals_and_harmful_answers_are_pairs_of_no_other_file(tmp_path: Path) -> None:
    world = shipped_world()
    files = write_operator_files(world, tmp_path)
    assert len(prompts(files.refusals)) == 640
    assert prompts(files.refusals) == prompts(files.harmful)
    assert len(set(answers(files.refusals))) == 1 < len(set(answers(files.harmful)))
    assert set(prompts(files.refusals)) < set(prompts(files.alignment))
    for other in ("attack", "realign", "harmful_eval", "helpful_eval"):
        assert not set(prompts(files.refusals)) & set(prompts(world / "data" / f"{other}.jsonl"))


@pytest.mark.parametrize("defence", [name for name in DEFENCES if RECIPES[name].phases])
def test_every_alignment_takes_as_many_steps_as_the_worlds_own(defence, tmp_path: Path) -> None:
    world = shipped_world()
    files = write_operator_files(world, tmp_path)
    _, alignment = alignment_of(world)
    total = alignment.n_epochs * steps_per_epoch(files.alignment, alignment)
    assert total == 240
    steps = 0
    for phase in RECIPES[defence].phases:
        train = phase_train(phase, files, alignment, total_steps=total, seed=7)
        assert (train.seed, train.batch_size) == (7, alignment.batch_size)
        assert train.learning_rate == (phase.learning_rate or alignment.learning_rate)
        steps += train.n_epochs * steps_per_epoch(files.of(phase.file), alignment)
    assert steps == total
    assert sum(phase.share for phase in RECIPES[defence].phases) == 1


def test_a_phase_has_at_least_one_epoch() -> None:
    assert epochs_of(AlignPhase(SftSpec(), share=0.01), total_steps=100, steps_per_epoch=60) == 1


def test_adapters_that_were_trained_before_there_were_defences_still_count() -> None:
    assert Run().digest == "26cd3955be6d4c20"
    assert len({replace(Run(), defence=defence).digest for defence in DEFENCES}) == len(DEFENCES)


def test_only_alignment_stage_defences_have_a_base_of_their_own(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, "small", None)
    plain = folder.base("sft", 3)
    assert plain == folder.world(3) / "aligned" == folder.base("lisa", 3) == folder.base("ldifs", 3)
    others = [folder.base(name, 3) for name in ("vaccine", "repnoise", "booster")]
    assert len({plain, *others, folder.base("vaccine", 4)}) == 5
