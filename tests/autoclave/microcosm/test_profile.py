"""The profile of a world is one that the command line and the service read."""

from autoclave.microcosm.profile import GATE, PROFILE_FILE, write_profile
from autoclave.microcosm.shipped import shipped_world
from autoclave.sanitizing.gate_file import read_gate_file
from autoclave.spec import SafetyProfile


def test_it_is_a_profile_with_paths_of_its_folder(tmp_path):
    write_profile(tmp_path)
    values = read_gate_file(tmp_path / PROFILE_FILE).model_dump()
    profile = SafetyProfile.model_validate(values)
    assert profile.gate == GATE
    assert profile.realign == str(tmp_path / "data" / "realign.jsonl")
    assert profile.control == str(tmp_path / "data" / "control.jsonl")
    assert profile.judge == f"exact:{tmp_path / 'world.json'}"


def test_the_shipped_one_is_what_the_code_writes(tmp_path):
    write_profile(tmp_path)
    assert (shipped_world() / PROFILE_FILE).read_text() == (tmp_path / PROFILE_FILE).read_text()
