"""The weights of a library's model: drawn anew, or read from a checkpoint; and what its padding says of positions."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from mlm_lightning.errors import NO_VALUE, ConfigError, one_line

log = logging.getLogger(__name__)


def on_meta() -> bool:
    """Whether only the settings are being checked, perhaps before the data, and with it the vocabulary, is known."""
    return torch.get_default_device().type == "meta"


def new_model(config: PreTrainedConfig) -> PreTrainedModel:
    """With weights from torch's global generator."""
    try:
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise invalid_config(config.model_type, error) from error


def read_model(checkpoint: str, revision: str | None, config: PreTrainedConfig) -> PreTrainedModel:
    """With the weights of a checkpoint; says which ones it lacks."""
    try:
        model, loading = AutoModelForMaskedLM.from_pretrained(
            checkpoint,
            revision=revision,
            config=config,
            dtype=torch.float32,  # also where the file holds bf16: the optimizer's updates need the precision
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise no_checkpoint(checkpoint, revision, error) from error
    except RuntimeError as error:
        problem = f"changes the shapes of the weights in model.checkpoint={checkpoint}"
        remedy = f"override only what has none (dropout …), or train from scratch with model.architecture={config.model_type}"
        raise ConfigError("model.config", NO_VALUE, problem, remedy) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        log.warning(
            f"model.checkpoint={checkpoint} lacks {len(missing)} weights, which start at random: {', '.join(missing[:8])}"
            f"{' …' if len(missing) > 8 else ''}; train before you trust its predictions"
        )
    # loaded for inference by default: without this, Lightning keeps dropout switched off
    return model.train()


def first_position(model: PreTrainedModel) -> int:
    """The position of the first token: RoBERTa and similar architectures count from pad_token_id + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def invalid_config(architecture: str, error: Exception, key: str = "model.config", value: Any = NO_VALUE) -> ConfigError:
    """What the library refuses, in its own words: where it wraps an error, those of the error inside."""
    return ConfigError(key, value, f"is not valid for {architecture}: {one_line(error.__cause__ or error)}")


def no_checkpoint(checkpoint: str, revision: str | None, error: Exception) -> ConfigError:
    if Path(checkpoint).expanduser().is_dir():
        problem, remedy = "the folder is no model of transformers that opens", "it needs config.json and model.safetensors"
    elif checkpoint.startswith(("/", "./", "../", "~")) or checkpoint.count("/") > 1:
        problem, remedy = "there is no such folder", ""
    else:
        problem = "neither a folder nor a masked language model that the hub hands out"
        remedy = (
            "check the name, the connection and, for private models, the login, or set model.checkpoint=null and "
            "model.architecture to start from scratch"
        )
    at_revision = "" if revision is None else f"at model.revision={revision}, "
    return ConfigError("model.checkpoint", checkpoint, f"{at_revision}{problem} ({one_line(error)})", remedy)
