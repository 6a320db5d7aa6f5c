"""A model of transformers by its checkpoint or architecture: the configuration (settings, vocabulary, positions), the weights.

The library accepts any key and most values without a word; here, what it does not know is refused.
"""

import difflib
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar

from mlm_lightning.errors import NO_VALUE, ConfigError, one_line, refuse
from mlm_lightning.values import expanded, expanded_name

log = logging.getLogger(__name__)

_FROM_DATA = {"vocab_size", "pad_token_id", "id2label", "label2id"}
_SPECIAL_IDS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
_PLAIN_OUTPUT = {"return_dict", "output_attentions", "output_hidden_states"}  # of no use here; the first breaks the output
_NOT_ENCODERS = {"bart", "mbart", "mvp", "perceiver", "tapas", "layoutlm", "modernvbert", "ultravbert"}
"""They have a decoder, or need more than tokens."""


def build(
    checkpoint: str | None,
    revision: str | None,
    architecture: str | None,
    settings: dict[str, Any],
    vocab_size: int,
    seq_len: int,
    pad_token_id: int | None,
    class_names: Sequence[str] | None = None,
) -> PreTrainedModel:
    """The model, with a head for masked tokens or for `class_names`, in float32, with positions for rows of `seq_len`: from
    scratch it gets as many unless `settings` say how many. On the meta device no weights are read. Raises ConfigError."""
    _show_downloads_alone()
    if checkpoint is not None:
        config = _checkpoint_config(checkpoint, revision, architecture, settings, vocab_size)
    elif architecture is None:
        remedy = "set one: a hub name or a folder, or, to start from scratch, an architecture (distilbert, bert …)"
        raise ConfigError("model.checkpoint", None, "model.architecture is null, too", remedy)
    elif revision is not None:
        raise ConfigError("model.revision", revision, "belongs to a model.checkpoint, and there is none")
    else:
        config = _scratch_config(architecture, settings, vocab_size, pad_token_id)

    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit < (needed := seq_len + _position_offset(config)):
        if checkpoint is not None or "max_position_embeddings" in settings:
            problem = f"is too few for rows of {seq_len} tokens, which need {needed} with {config.model_type}"
            remedy = (
                f"use rows of at most {limit - needed + seq_len} tokens (data.chunk_size), or from scratch leave "
                "model.config.max_position_embeddings out"
            )
            raise ConfigError("model.config.max_position_embeddings", limit, problem, remedy)
        config.max_position_embeddings = needed
    if class_names is not None:
        if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            problem = f"{config.model_type} models label no rows in transformers"
            raise ConfigError("task", "classify", problem, "choose another architecture, such as distilbert or modernbert")
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: number for number, name in enumerate(class_names)}
    if checkpoint is None or _on_meta():
        return _new_model(config, class_names is not None)
    return read_model(checkpoint, revision, config, class_names is not None)


def first_position(model: PreTrainedModel) -> int:
    """The position of the first token: RoBERTa and similar architectures count from pad_token_id + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The `settings` that give this configuration again."""
    wanted = _fields(config) - _FROM_DATA - _PLAIN_OUTPUT
    return {key: value for key, value in config.to_dict().items() if key in wanted}


def _checkpoint_config(
    checkpoint: str, revision: str | None, architecture: str | None, settings: dict[str, Any], vocab_size: int
) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(expanded_name(checkpoint), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _no_checkpoint(checkpoint, revision, error) from error
    if config.model_type not in _architectures():
        problem = f"is a {config.model_type!r} model, which has no masked-LM head in transformers"
        raise ConfigError("model.checkpoint", checkpoint, problem, f"those that have one: {', '.join(_architectures())}")
    if architecture is not None and architecture != config.model_type:
        problem = f"contradicts model.checkpoint={checkpoint}, whose architecture is {config.model_type}"
        remedy = "set model.architecture=null, or model.checkpoint=null to start from scratch"
        raise ConfigError("model.architecture", architecture, problem, remedy)
    _check_keys(settings, config)
    for key, value in settings.items():
        try:
            setattr(config, key, value)
        except Exception as error:  # the library's validation raises classes of its own
            raise _invalid_config(config.model_type, error, f"model.config.{key}", value) from error
    sizes = f"the data's vocabulary has {vocab_size} tokens and the checkpoint's {config.vocab_size}"
    if vocab_size > config.vocab_size:
        remedy = "set data.tokenizer to the checkpoint's own (usually the same name as model.checkpoint)"
        raise ConfigError("data.tokenizer", NO_VALUE, f"{sizes}: the tokenizer is another model's", remedy)
    if vocab_size < 0.9 * config.vocab_size and not _on_meta():
        log.warning(f"{sizes}: unless data.tokenizer is the checkpoint's own, its embeddings stand for other tokens")
    return config


def _scratch_config(architecture: str, settings: dict[str, Any], vocab_size: int, pad_token_id: int | None) -> PreTrainedConfig:
    names = _architectures()
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=1)
        remedy = (f"did you mean {close[0]!r}? " if close else "") + f"choose one of {', '.join(names)}"
        raise ConfigError("model.architecture", architecture, "is no masked language model of transformers", remedy)
    defaults = AutoConfig.for_model(architecture)
    _check_keys(settings, defaults)
    if pad_token_id is None and _position_offset(defaults) > 0:
        if not _on_meta():
            problem = "counts positions from its padding token, and the data has none"
            raise ConfigError("model.architecture", architecture, problem, "choose another, such as bert or distilbert")
        pad_token_id = 0  # the settings are being checked before the data is known
    # ids of the architecture's published vocabulary mean nothing in another one
    no_token_ids = dict.fromkeys(_SPECIAL_IDS & set(_keys(defaults)))
    try:
        return type(defaults)(**{**no_token_ids, "vocab_size": vocab_size, "pad_token_id": pad_token_id, **settings})
    except Exception as error:  # the library's validation raises classes of its own
        raise _invalid_config(architecture, error) from error


def _auto(classifies: bool) -> Any:
    return AutoModelForSequenceClassification if classifies else AutoModelForMaskedLM


def _new_model(config: PreTrainedConfig, classifies: bool = False) -> PreTrainedModel:
    """With weights from torch's global generator."""
    try:
        return _auto(classifies).from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise _invalid_config(config.model_type, error) from error


def read_model(checkpoint: str, revision: str | None, config: PreTrainedConfig, classifies: bool = False) -> PreTrainedModel:
    """With the weights of a checkpoint; says which ones it lacks."""
    try:
        model, loading = _auto(classifies).from_pretrained(
            expanded_name(checkpoint),
            revision=revision,
            config=config,
            dtype=torch.float32,  # also where the file holds bf16: the optimizer's updates need the precision
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise _no_checkpoint(checkpoint, revision, error) from error
    except RuntimeError as error:
        problem = f"changes the shapes of the weights in model.checkpoint={checkpoint}"
        remedy = f"override only what has none (dropout …), or train from scratch with model.architecture={config.model_type}"
        raise ConfigError("model.config", NO_VALUE, problem, remedy) from error
    if (missing := sorted(loading["missing_keys"])) and not classifies:  # where a new head is meant
        log.warning(
            f"model.checkpoint={checkpoint} lacks {len(missing)} weights, which start at random: {', '.join(missing[:8])}"
            f"{' …' if len(missing) > 8 else ''}; train before you trust its predictions"
        )
    # loaded for inference by default: without this, Lightning keeps dropout switched off
    return model.train()


def _show_downloads_alone() -> None:
    """Weights are read and written in a moment: transformers' bars would only break into ours. The hub's are for downloads."""
    disable_progress_bar()  # and the hub's with it
    if sys.stderr.isatty():
        enable_progress_bars()


def _on_meta() -> bool:
    """Whether only the settings are being checked, perhaps before the data, and with it the vocabulary, is known."""
    return torch.get_default_device().type == "meta"


def _position_offset(config: PreTrainedConfig) -> int:
    """How many position embeddings precede that of the first token."""
    with torch.device("meta"):
        return first_position(_new_model(config))


def _architectures() -> list[str]:
    """Bidirectional encoders with a masked-LM head, by their `model_type`."""
    return sorted(set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) & set(CONFIG_MAPPING) - _NOT_ENCODERS)


def _fields(config: PreTrainedConfig) -> set[str]:
    return {field.name for field in fields(type(config)) if not field.name.startswith("_")}


def _keys(config: PreTrainedConfig) -> list[str]:
    """The settings of an architecture: its fields, and those common names ("hidden_size") that it translates."""
    return sorted((_fields(config) | set(config.attribute_map)) - _PLAIN_OUTPUT)


def _check_keys(settings: dict[str, Any], config: PreTrainedConfig) -> None:
    names, found = _keys(config), []
    for key in sorted(settings):
        if key in _FROM_DATA:
            found.append(ConfigError(f"model.config.{key}", NO_VALUE, "comes from the data", "remove it"))
        elif key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"its keys are {', '.join(names)}"
            found.append(ConfigError(f"model.config.{key}", NO_VALUE, f"unknown key of {config.model_type}", remedy))
    refuse(found)


def _invalid_config(architecture: str, error: Exception, key: str = "model.config", value: Any = NO_VALUE) -> ConfigError:
    """What the library refuses, in its own words: where it wraps an error, those of the error inside."""
    return ConfigError(key, value, f"is not valid for {architecture}: {one_line(error.__cause__ or error)}")


def _no_checkpoint(checkpoint: str, revision: str | None, error: Exception) -> ConfigError:
    if expanded(checkpoint).is_dir():
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
