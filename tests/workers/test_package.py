"""The package of a real job as its owner gets it: signed, traced to its inputs, readable elsewhere."""

from __future__ import annotations

import getpass
import json
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest
import torch
from model_signing import verifying
from safetensors.torch import load_file

from autoclave.hashing import file_sha256
from autoclave.memory import weight_shapes
from service.storage import Storage, storage_from_url
from tests.autoclave.tiny import save_tiny_base
from tests.workers.pipeline_bench import PipelineBench, unpack
from workers.messages import Published

RANK = 4


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def make_bench(folder: Path, base_dir: Path) -> tuple[PipelineBench, Storage]:
    url = f"file://{folder}/storage"
    storage = storage_from_url(url)
    return PipelineBench(folder, base_dir, storage, url), storage


@dataclass(frozen=True)
class Package:
    bench: PipelineBench
    published: Published
    tar: bytes
    folder: Path
    """What was in the tar."""

    @property
    def digests(self) -> dict[str, str]:
        return {path.name: file_sha256(path) for path in self.folder.iterdir()}

    def json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / name).read_text())
        return value


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Package:
    folder = tmp_path_factory.mktemp("job")
    bench, storage = make_bench(folder, base_dir)
    published = bench.published(bench.run(bench.order))
    downloaded = folder / "downloaded"
    downloaded.mkdir()
    for name, content in unpack(storage, published).items():
        (downloaded / name).write_bytes(content)
    return Package(bench, published, b"".join(storage.stream(published.storage_key)), downloaded)


def test_the_checksums_and_the_signature_hold(package: Package, tmp_path: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=package.folder, check=True)
    assert package.published.signing_public_key is not None
    (tmp_path / "key.pub").write_text(package.published.signing_public_key)
    verify = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub")
    verify.verify(package.folder, package.folder / "model.sig")


def test_what_is_published_says_where_each_file_is(package: Package) -> None:
    assert {file.name: file.sha256 for file in package.published.files} == package.digests
    for file in package.published.files:
        content = package.tar[file.offset : file.offset + file.num_bytes]
        assert content == (package.folder / file.name).read_bytes()


def test_the_provenance_names_every_input(package: Package) -> None:
    statement, order, digests = package.json("provenance.json"), package.bench.order, package.digests
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    made_later = {"provenance.json", "SHA256SUMS", "model.sig"}
    assert subjects == {name: digest for name, digest in digests.items() if name not in made_later}
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"

    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "model": "acme/base",
        "spec": order.spec,
        "training_file": "train",
        "validation_file": "validation",
    }
    assert {d["name"]: d["digest"]["sha256"] for d in definition["resolvedDependencies"]} == {
        "acme/base": order.base.sha256,
        "train": file_sha256(package.bench.files["train"]),
        "validation": file_sha256(package.bench.files["validation"]),
    }
    assert definition["resolvedDependencies"][0]["annotations"]["revision"] == "7"
    profile = definition["internalParameters"]["safety_profile_sha256"]
    assert profile["realign"] == file_sha256(package.bench.files["realign"])
    run = statement["predicate"]["runDetails"]
    assert run["metadata"]["invocationId"] == "ftjob-1"
    assert set(run["builder"]["version"]) == {"autoclave", "torch", "transformers", "peft"}
    (safety_report,) = run["byproducts"]
    assert safety_report["digest"]["sha256"] == digests["safety_report.json"]


def test_the_provenance_tells_nothing_private(package: Package) -> None:
    text = (package.folder / "provenance.json").read_text() + (package.folder / "model.sig").read_text()
    private = [str(package.bench.folder), "/", socket.gethostname(), getpass.getuser()]
    prompts = ["zap", "held out", "question 1", "answer 1"]
    allowed = re.sub(r"https://\S+|acme/base|application/vnd\S+|[A-Za-z0-9+/=]{64,}", "", text)
    assert [word for word in private + prompts if word in allowed] == []


def test_servers_that_read_peft_folders_can_read_it(package: Package) -> None:
    """What vLLM's loader and llama.cpp's convert_lora_to_gguf.py ask for, and what they would pass over
    without a word: patterns, and (llama.cpp) the scale of rsLoRA."""
    config = package.json("adapter_config.json")
    assert (config["peft_type"], config["bias"], config["r"]) == ("LORA", "none", RANK)
    assert isinstance(config["lora_alpha"], int)
    assert all(isinstance(name, str) for name in config["target_modules"])
    for option in ("modules_to_save", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        assert not config.get(option), option
    pattern = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(package.folder / "adapter_model.safetensors").items():
        match = pattern.fullmatch(name)
        assert match is not None, name
        factors.setdefault(match[1], {})[match[2]] = tensor
    assert factors
    for module, pair in factors.items():
        assert module.rsplit(".", 1)[1] in config["target_modules"]
        assert pair["A"].shape[0] == pair["B"].shape[1] == RANK, "(r, in) and (out, r)"
        assert pair["A"].dtype == pair["B"].dtype


def test_llama_cpp_has_a_place_for_every_tensor(package: Package) -> None:
    """By the map of names in its own package, for the architecture that its converter finds in the base's
    config. benchmarks/adapter_readers.py runs the converter."""
    config, base = package.json("adapter_config.json"), package.bench.base_dir
    base_config = json.loads((base / "config.json").read_text())
    assert base_config["architectures"] == ["LlamaForCausalLM"]
    assert float(config["lora_alpha"]) == config["lora_alpha"] > 0, "written as adapter.lora.alpha"
    for option in ("alora_invocation_tokens", "invocation_string"):
        assert not config.get(option), option
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, base_config["num_hidden_layers"])
    heads = {"attn_q": base_config["num_attention_heads"], "attn_k": base_config["num_key_value_heads"]}
    shapes = weight_shapes(base)
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in load_file(package.folder / "adapter_model.safetensors").items():
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        theirs = known.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        assert theirs is not None, name
        factors.setdefault(theirs, {})[factor] = tuple(tensor.shape)
        out, into = shapes[f"{layer}.weight"]
        assert tuple(tensor.shape) == ((RANK, into) if factor == "A.weight" else (out, RANK))
        # It takes q and k apart by heads and their halves, to order them by its own rotary embedding.
        assert out % (2 * heads.get(theirs.split(".")[2], 1)) == 0
    num_layers = len(config["target_modules"]) * base_config["num_hidden_layers"]
    assert len(factors) == num_layers, "each has a place of its own"
    assert all(set(pair) == {"A.weight", "B.weight"} for pair in factors.values())


def test_without_a_key_nothing_is_signed(tmp_path: Path, base_dir: Path) -> None:
    bench, storage = make_bench(tmp_path, base_dir)
    published = bench.published(bench.run(msgspec.structs.replace(bench.order, signing_key_file=None)))
    files = unpack(storage, published)
    assert (published.signing_public_key, "model.sig" in files) == (None, False)
    assert "model.sig" not in files["SHA256SUMS"].decode()
    assert "provenance.json" in files["SHA256SUMS"].decode()


def test_a_key_that_is_gone_releases_nothing(tmp_path: Path, base_dir: Path) -> None:
    """The attempt dies and is tried again: it is not the job's fault, and unsigned is not what was asked."""
    bench, storage = make_bench(tmp_path, base_dir)
    (tmp_path / "signing-key.pem").unlink()
    with pytest.raises(ValueError, match=r"signing-key\.pem: cannot be read"):
        bench.run(bench.order)
    assert storage.keys("adapters") == []
