"""What the stages of one attempt share: the order, the storage, the loaded base, outputs of earlier stages.

Nothing is computed here. Each stage takes its input from stored files, whether the stage before ran in this
process or in one that died, so that a resumed attempt takes the same path.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autoclave.data.token_cache import TokenCache
from autoclave.data.tokens import Encoded
from autoclave.errors import AutoclaveError, DataError
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, detach, load_adapter, save_adapter
from autoclave.modelling.bases import LoadedBase, default_device, default_dtype, load_base, placed
from autoclave.training.finetune import encode_for
from service.jobs.states import Stage
from service.storage import Storage, private_prefix
from workers.order import FileOrder, Order
from workers.reporter import Reporter

logger = logging.getLogger(__name__)


class StageError(AutoclaveError):
    """The job cannot succeed. `code`, `message` and `param` go to its owner: no path, no operator data."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        safety_report: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, param, safety_report)
        self.code = code  # type: ignore[misc]  # each of these has its own
        self.message = message
        self.param = param
        self.safety_report = safety_report

    def __str__(self) -> str:
        return self.message


@contextmanager
def data_errors_of(file: FileOrder, param: str) -> Iterator[None]:
    """Turn a DataError into a StageError that names the uploaded file and not our copy of it."""
    try:
        yield
    except DataError as error:
        named = DataError(error.issues, error.num_issues, file.id)
        raise StageError(f"invalid_{param}", str(named), param=param) from error


class Attempt:
    def __init__(
        self,
        order: Order,
        storage: Storage,
        reporter: Reporter,
        *,
        device: str | None = None,
        base: LoadedBase | None = None,
    ) -> None:
        """`device`: the default one unless it is given. `base`: in host memory already, if it is that of the
        order; it is used once."""
        self.order = order
        self.storage = storage
        self.reporter = reporter
        self.spec = order.job_spec()
        self.profile = order.profile()
        self.scratch = Path(order.scratch)
        self.device = default_device() if device is None else device
        self.outputs: dict[str, Any] = dict(order.stage_outputs)
        self._base: LoadedBase | None = None
        self._resident = base
        self._adapted: Any = None
        self._training_set: Encoded | None = None
        self._validation_set: Encoded | None = None

    def _loaded(self) -> LoadedBase:
        """Raises StageError if the files of the base changed since the job was made."""
        if self._base is None:
            began = time.monotonic()
            path, dtype = Path(self.order.base.path), default_dtype(self.device)
            # Moved, not copied: once on a GPU it is not in host memory any more.
            resident, self._resident = self._resident, None
            if resident is not None and (resident.dir, resident.model.dtype) == (path, getattr(torch, dtype)):
                base, how = placed(resident, self.device), "was in host memory"
            else:
                base, how = load_base(path, dtype=dtype, device=self.device), "is loaded"
            if base.sha256 != self.order.base.sha256:
                text = f"the files of base model {self.order.base.id} are not those that were registered"
                raise StageError("base_mismatch", text, param="model")
            self._base = base
            logger.info("the base %s; ready after %.2f s", how, time.monotonic() - began)
        return self._base

    @property
    def trains_on_alignment(self) -> bool:
        """Whether the operator's safe answers are trained on, beside the user's data."""
        return self.spec.defence.name == "lisa" and self.order.starts_from is None

    @property
    def tokenizer(self) -> Any:
        return self._loaded().tokenizer

    def bare_base(self) -> LoadedBase:
        """The base with no adapter on it: takes off what `adapted` or `wear` put there."""
        base = self._loaded()
        if self._adapted is not None:
            detach(self._adapted)
            self._adapted = None
        return base

    def adapted(self, folder: Path) -> Any:
        """The base with the adapter in `folder`, in eval mode. Models handed out before are void."""
        self._adapted = load_adapter(self.bare_base(), folder)
        return self._adapted

    def wear(self, peft_model: Any) -> Any:
        """Remember an adapter that the caller attached to `bare_base()`, so that it comes off again."""
        self._adapted = peft_model
        return peft_model

    def forget_base(self) -> None:
        """Give its memory back."""
        self._base = self._adapted = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def training_set(self) -> Encoded:
        """The training file as tokens. Raises StageError for a file that breaks a rule."""
        if self._training_set is None:
            file = self.dataset(self.order.training_file)
            with data_errors_of(self.order.training_file, "training_file"):
                self._training_set = self._encoded(file)
        return self._training_set

    def validation_set(self) -> Encoded:
        """The validation file, if any, as tokens with the labels of training. Raises StageError as above."""
        order = self.order.validation_file
        if self._validation_set is None and order is not None:
            file = self.dataset(order)
            with data_errors_of(order, "validation_file"):
                self._validation_set = self._encoded(file)
        return self._validation_set or Encoded([], 0, 0)

    def _encoded(self, file: Path) -> Encoded:
        kept = self.order.token_cache
        cache = TokenCache(kept.folder, max_bytes=kept.max_bytes) if kept else None
        return encode_for(self.spec.train, self.tokenizer, file, cache)

    def dataset(self, file: FileOrder) -> Path:
        """A local copy of an uploaded file. Raises StageError if the bytes are not those of the upload."""
        path = self.scratch / "files" / file.id
        if not path.exists():
            partial = path.with_suffix(".partial")
            self.storage.download(file.storage_key, partial)
            if file_sha256(partial) != file.sha256:
                raise StageError("file_corrupted", f"the stored file {file.id} is not what was uploaded")
            partial.rename(path)
        return path

    def utility_file(self) -> Path | None:
        """What utility is measured on: the job's validation file, else the operator's, else nothing."""
        if self.order.validation_file is not None:
            return self.dataset(self.order.validation_file)
        return Path(self.profile.utility_eval) if self.profile.utility_eval else None

    def prefix(self, stage: Stage) -> str:
        """Where this attempt stores what `stage` makes. The fencing number keeps attempts apart."""
        return f"{private_prefix(self.order.job_id)}/{self.order.fencing_number}/{stage.value}"

    def saved_adapter(self, stage: Stage, model: Any, *, beside: str = "") -> Path:
        """The scratch folder with the adapter as it is now, under the public name of its base."""
        folder = self.scratch / f"{stage.value}{beside}"
        base = self.order.base
        save_adapter(model, folder, base_name=base.id, base_revision=base.revision, base_sha256=base.sha256)
        return folder

    def store(self, stage: Stage, folder: Path, *, beside: str = "") -> dict[str, str]:
        """Store an adapter folder; what `stored_adapter` needs to get it back. `beside`: under a prefix
        next to the stage's own."""
        prefix = f"{self.prefix(stage)}{beside}"
        self.storage.upload_folder(prefix, folder)
        return {"prefix": prefix, "adapter_sha256": file_sha256(folder / WEIGHTS_FILE)}

    def stored_adapter(self, stage: Stage) -> Path:
        """The adapter folder that `stage` made, in this attempt or an earlier one."""
        output = self.outputs[stage.value]
        folder = self.scratch / stage.value
        if not folder.exists():
            self.storage.download_folder(output["prefix"], folder)
        actual = file_sha256(folder / WEIGHTS_FILE)
        assert actual == output["adapter_sha256"], f"{stage}: adapter {actual} is not the one recorded"
        return folder
