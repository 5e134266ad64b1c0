"""Packages on the Hugging Face hub: downloaded into its cache, and uploaded."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sidestep.errors import CheckpointError, OutputError, SidestepError, first_line
from sidestep.hub.package import CONFIG, WEIGHTS, read_config

HUB = "hf-hub:"
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")


def named(text: str) -> tuple[str, str | None]:
    """Return the repository and the revision, or None, behind `hf-hub:`.

    Raises:
        CheckpointError: for what is no name of a repository.
    """
    found = _NAME.fullmatch(text.removeprefix(HUB))
    if found is None or ".." in text:
        raise CheckpointError(
            f"a package on the hub must be named {HUB}org/name or {HUB}org/name@revision, got {text!r}"
        )
    return found["repo"], found["revision"]


def download(text: str) -> Path:
    """Return the folder in the hub's cache that holds a package, as it is at one commit.

    Where the hub cannot be reached, or HF_HUB_OFFLINE is set, what is in the cache is taken.

    Args:
        text: `hf-hub:org/name`, or `hf-hub:org/name@revision` for a branch, a tag or a commit.

    Raises:
        CheckpointError: when there is none, it cannot be had, or is damaged.
    """
    from huggingface_hub import hf_hub_download

    repo, revision = named(text)
    who: dict[str, Any] = {"library_name": "sidestep", "library_version": version("sidestep")}
    try:
        folder = Path(hf_hub_download(repo, CONFIG, revision=revision, **who)).parent
        read_config(folder)
        # The folder's name is the commit: weights are those that the configuration belongs to.
        hf_hub_download(repo, WEIGHTS, revision=folder.name, **who)
    except (SidestepError, MemoryError):
        raise
    except Exception as error:  # of many kinds: of the hub's library, of HTTP, of the disk
        raise CheckpointError(f"package {text} could not be downloaded: {_why(error)}") from error
    return folder


def upload(folder: Path, text: str, *, private: bool, message: str) -> str:
    """Upload the files of a folder as one commit, into a repository that is made if there is none.

    Args:
        folder: of a package.
        text: `hf-hub:org/name`, or `hf-hub:org/name@branch`.
        private: whether nobody else may see the repository.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        OutputError: when it cannot be uploaded; the repository is as it was then.
    """
    from huggingface_hub import HfApi

    repo, branch = named(text)
    api = HfApi(library_name="sidestep", library_version=version("sidestep"))
    try:
        url = str(api.create_repo(repo, private=True if private else None, exist_ok=True))
        if private and not api.repo_info(repo).private:
            raise OutputError(
                f"repository {repo} must be private to be pushed to with --private, and others can see it; "
                "make it private on the hub, or choose another name"
            )
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, revision=branch, commit_message=message)
    except (SidestepError, MemoryError):
        raise
    except Exception as error:  # of many kinds, as above
        raise OutputError(f"package {text} could not be uploaded: {_why(error)}") from error
    return url


def _why(error: Exception) -> str:
    """Return what an error of the hub's library means, and what can be done about it."""
    from huggingface_hub import constants, errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set, and it is not in the cache; download it once without"
        return "the hub cannot be reached, and it is not in the cache; check the connection"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; leave out what is behind @"
    if isinstance(error, errors.EntryNotFoundError):
        return f"it lacks {CONFIG} or {WEIGHTS}, and is no package that `sidestep push` has written"
    if isinstance(error, errors.GatedRepoError):
        return "its owner has to give you access; ask for it on its page"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return "there is no such repository, or no access; check its name, and `hf auth login` or HF_TOKEN"
    if status is not None:
        return f"the hub has answered with status {status}; try again later"
    return f"{first_line(error)}; check the connection and the disk, and try again"
