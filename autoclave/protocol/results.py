"""Where the results of a protocol's steps lie, once they are done. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoclave.protocol import sets
from autoclave.protocol.config import ProtocolConfig
from autoclave.protocol.steps import ADAPTER_FOLDER, Done

ALIGNED, FINETUNED = "aligned", "fine-tuned"
MODEL_FOLDER = "model"


@dataclass
class Results:
    """`done` is by name of the step."""

    config: ProtocolConfig
    done: dict[str, Done]

    @property
    def states(self) -> list[str]:
        return [ALIGNED, FINETUNED, *(each.label for each in self.config.sanitize)]

    def base_dir(self) -> Path:
        done = self.done["base"]
        return done.folder / str(done.result["base"])

    def aligned_dir(self) -> Path:
        return self.done["align"].folder / MODEL_FOLDER if self.config.align else self.base_dir()

    def world_path(self, name: str) -> Path:
        done = self.done["world"]
        own = done.folder / name
        return own if own.is_file() else done.folder / done.result["world"] / name

    def rows(self, step: str) -> Path:
        return self.done[step].folder / sets.FILE

    def finetuned_dir(self) -> Path:
        return self.done["finetune"].folder / ADAPTER_FOLDER

    def adapter_dir(self, state: str) -> Path | None:
        if state == ALIGNED:
            return None
        if state == FINETUNED:
            return self.finetuned_dir()
        return self.done[f"sanitize-{state}"].folder / ADAPTER_FOLDER

    def judge_name(self) -> str:
        kind, _, rest = self.config.judge.partition(":")
        if not rest.startswith("world:"):
            return self.config.judge
        return f"{kind}:{self.world_path(rest.removeprefix('world:'))}"

    def is_released(self, state: str) -> bool:
        done = self.done.get(f"sanitize-{state}")
        return done is None or bool(done.result["released"])
