"""A folder on the Hugging Face hub. Whether that can be is asked before anything is made."""

import logging
import os
from pathlib import Path
from typing import Any

from mlm_lightning.errors import UserError, one_line

log = logging.getLogger(__name__)


def open_hub(repo: str) -> Any:
    """The hub, logged in; UserError where `repo` is no name, or the hub can't be reached or doesn't know who asks."""
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise UserError("--push: needs huggingface_hub: pip install 'mlm-lightning[hub]'") from error
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: is no name of the hub ({one_line(error)}); give USER/NAME") from error
    if repo.count("/") != 1:
        raise UserError(f"--push {repo}: does not say whose it is; give USER/NAME")
    if constants.is_offline_mode():
        raise UserError(f"--push {repo}: HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE')} keeps off the hub; unset it")
    api = HfApi()
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push {repo}: you are not logged in; call hf auth login, or set HF_TOKEN") from error
    except Exception as error:  # its own, and those of the library that connects
        remedy = "check the connection, and the login: hf auth login"
        raise UserError(f"--push {repo}: the hub does not answer ({one_line(error)}); {remedy}") from error
    return api


def push(api: Any, folder: Path, repo: str, public: bool) -> str:
    """Uploads the folder, in one commit; returns its address. A repository that is there stays as private as it is."""
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="mlm export")
    except Exception as error:
        remedy = f"the folder is complete: hf upload {repo} {folder} sends it again"
        raise UserError(f"--push {repo}: the hub refused it ({one_line(error)}); {remedy}") from error
    return str(address)
