"""The library's configuration of a model, from a checkpoint or an architecture: its settings, its vocabulary, its positions.

transformers accepts any key and most values without a word; here, what it does not know is refused.
"""

import difflib
import logging
from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mlm_lightning.errors import NO_VALUE, ConfigError, refuse
from mlm_lightning.models.pretrained_weights import first_position, invalid_config, new_model, no_checkpoint, on_meta

log = logging.getLogger(__name__)

_FROM_DATA = ("vocab_size", "pad_token_id")
_SPECIAL_IDS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
_PLAIN_OUTPUT = ("return_dict", "output_attentions", "output_hidden_states")  # of no use here; the first breaks the output
_NOT_ENCODERS = {"bart", "mbart", "mvp", "perceiver", "tapas", "layoutlm", "modernvbert", "ultravbert"}
"""They have a decoder, or need more than tokens."""


def checkpoint_config(
    checkpoint: str, revision: str | None, architecture: str | None, settings: dict[str, Any], vocab_size: int
) -> PreTrainedConfig:
    """That of a checkpoint, changed by `settings`."""
    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise no_checkpoint(checkpoint, revision, error) from error
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
            raise invalid_config(config.model_type, error, f"model.config.{key}", value) from error
    _check_vocabulary(config, vocab_size)
    return config


def scratch_config(architecture: str, settings: dict[str, Any], vocab_size: int, pad_token_id: int | None) -> PreTrainedConfig:
    """That of an architecture, changed by `settings`."""
    names = _architectures()
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=1)
        remedy = (f"did you mean {close[0]!r}? " if close else "") + f"choose one of {', '.join(names)}"
        raise ConfigError("model.architecture", architecture, "is no masked language model of transformers", remedy)
    defaults = AutoConfig.for_model(architecture)
    _check_keys(settings, defaults)
    if pad_token_id is None and _position_offset(defaults) > 0:
        if not on_meta():
            problem = "counts positions from its padding token, and the data has none"
            raise ConfigError("model.architecture", architecture, problem, "choose another, such as bert or distilbert")
        pad_token_id = 0  # the settings are being checked before the data is known
    # ids of the architecture's published vocabulary mean nothing in another one
    no_token_ids = dict.fromkeys(_SPECIAL_IDS & set(_keys(defaults)))
    try:
        return type(defaults)(**{**no_token_ids, "vocab_size": vocab_size, "pad_token_id": pad_token_id, **settings})
    except Exception as error:  # the library's validation raises classes of its own
        raise invalid_config(architecture, error) from error


def fit_positions(config: PreTrainedConfig, seq_len: int, may_grow: bool) -> None:
    """Checks that rows of `seq_len` have positions, and gives the model as many where it `may_grow`."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    needed = seq_len + _position_offset(config)
    if limit >= needed:
        return
    if may_grow:
        config.max_position_embeddings = needed
        return
    problem = f"is too few for rows of {seq_len} tokens, which need {needed} with {config.model_type}"
    remedy = (
        f"use rows of at most {limit - needed + seq_len} tokens (data.chunk_size), or from scratch leave "
        "model.config.max_position_embeddings out"
    )
    raise ConfigError("model.config.max_position_embeddings", limit, problem, remedy)


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The `settings` that give this configuration again."""
    wanted = _fields(config) - {*_FROM_DATA, *_PLAIN_OUTPUT}
    return {key: value for key, value in config.to_dict().items() if key in wanted}


def _position_offset(config: PreTrainedConfig) -> int:
    """How many position embeddings precede that of the first token."""
    with torch.device("meta"):
        return first_position(new_model(config))


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


def _keys(config: PreTrainedConfig) -> list[str]:
    """The settings of an architecture: its fields, and those common names ("hidden_size") that it translates."""
    return sorted((_fields(config) | set(config.attribute_map)) - set(_PLAIN_OUTPUT))


def _fields(config: PreTrainedConfig) -> set[str]:
    return {field.name for field in fields(type(config)) if not field.name.startswith("_")}


def _architectures() -> list[str]:
    """Bidirectional encoders with a masked-LM head, by their `model_type`."""
    return sorted(set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) & set(CONFIG_MAPPING) - _NOT_ENCODERS)


def _check_vocabulary(config: PreTrainedConfig, vocab_size: int) -> None:
    sizes = f"the data's vocabulary has {vocab_size} tokens and the checkpoint's {config.vocab_size}"
    if vocab_size > config.vocab_size:
        remedy = "set data.tokenizer to the checkpoint's own (usually the same name as model.checkpoint)"
        raise ConfigError("data.tokenizer", NO_VALUE, f"{sizes}: the tokenizer is another model's", remedy)
    if vocab_size < 0.9 * config.vocab_size and not on_meta():
        log.warning(f"{sizes}: unless data.tokenizer is the checkpoint's own, its embeddings stand for other tokens")
