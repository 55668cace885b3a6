"""Asking a model hub for something pinned, and saying what is wrong when it cannot be had.

The hub is asked by the operator's commands only, never by a job. With HF_HUB_OFFLINE, and where no hub
answers, what was downloaded before is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoclave.errors import InputError

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Wanted:
    """`file` None: the files of a model."""

    kind: Kind
    repo_id: str
    revision: str
    file: str | None = None

    def __str__(self) -> str:
        of = f"{self.file} of " if self.file else ""
        return f"{of}{self.repo_id} at revision {self.revision}"

    @property
    def command(self) -> str:
        file = f" {self.file}" if self.file else ""
        kind = "" if self.kind == "model" else f" --repo-type {self.kind}"
        return f"hf download {self.repo_id}{file}{kind} --revision {self.revision}"


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def asked(wanted: Wanted, *, look: Callable[[], int], fetch: Callable[[int, bool], Path]) -> Path:
    """What `fetch(num_bytes, local_only)` gives.

    `look` asks the hub first, returns how many bytes are missing here, and raises InputError for what
    cannot be used or has no room. Raises InputError that says what is wrong: no such repository, one that is
    gated, an unknown revision, no disk space, a hub that does not answer.
    """
    from huggingface_hub import errors, is_offline_mode

    offline = is_offline_mode()
    local_only, num_bytes = offline, 0
    refusals = (InputError, errors.HfHubHTTPError, errors.HFValidationError)
    try:
        if not offline:
            try:
                num_bytes = look()
            except refusals:
                raise
            except Exception:  # of whichever HTTP library the client uses: there is no connection
                local_only = True  # what was downloaded before will do
        return fetch(num_bytes, local_only)
    except errors.GatedRepoError:
        text = (
            f"{wanted.repo_id} is gated. Accept its terms on its page with your account, and give this "
            "command a token of that account (`hf auth login`, or HF_TOKEN)."
        )
    except errors.RevisionNotFoundError:
        text = (
            f"{wanted.repo_id} has no revision {wanted.revision}. Look up the commit on the page of its "
            "files."
        )
    except errors.RepositoryNotFoundError:
        text = (
            f"there is no {wanted.kind} {wanted.repo_id} on the hub, or it is private: then HF_TOKEN must be "
            "its owner's."
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub does not answer"
        text = (
            f"{wanted} is not, or not as a whole, in the local cache {cache_folder()}, and {reason}. "
            f"Download it where there is a network: {wanted.command}"
        )
    except errors.HFValidationError as error:
        text = f"{wanted.repo_id} is no name of a {wanted.kind}: {error}"
    except errors.HfHubHTTPError as error:
        text = f"the hub refuses {wanted}: {str(error).splitlines()[0]}"
    except InputError:
        raise
    except Exception as error:  # a disk, or a connection that broke, of whichever HTTP library
        raise InputError(
            f"{wanted} could not be downloaded to {cache_folder()}: {str(error) or type(error).__name__}. "
            "Whole files that came stay there: try again to fetch the others."
        ) from error
    raise InputError(text)
