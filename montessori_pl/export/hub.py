"""Pushes what was exported to the Hugging Face hub, as a data set or as a model, through the hub's own client."""

from pathlib import Path
from typing import Literal

from montessori_pl.export.source import ExportError


def check_repository(repository: str) -> None:
    """Look, before anything is written, at the repository's name and at whether there is a token.

    Raises:
        ExportError: the name is none, or nobody has logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ExportError(f"--push_to_hub: {repository!r} is no name of a repository ({error})") from error
    if get_token() is None:
        raise ExportError("--push_to_hub needs your token for the hub: run `hf auth login`, or set HF_TOKEN")


RepositoryKind = Literal["dataset", "model"]


def push(directory: Path, repository: str, kind: RepositoryKind, private: bool) -> str:
    """Upload all files of a directory in one commit, to a repository that is made if it is not there.

    Args:
        directory: what was exported.
        repository: `name`, or `organization/name`.
        kind: what it holds.
        private: whether a repository that is made is closed to others; one that is there stays as it is.

    Returns:
        the repository's address.

    Raises:
        ExportError: the hub was not reached, or it refused; what was exported stays where it is.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        made = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            repo_type=kind,
            folder_path=directory,
            commit_message="Exported by Montessori PL",
        )
    except (HTTPError, OSError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(
            f"{directory} was written, and not pushed to {repository} ({why}); push it later with `hf upload "
            f"{repository} {directory} --repo-type {kind}`"
        ) from error
    return str(made)
