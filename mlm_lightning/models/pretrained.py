"""Any masked language model of Hugging Face transformers, from published weights or from scratch, that computes its vocabulary
head at the predicted positions only.

    input_ids_BL ─► encoder ─► hidden_BLD ─► gather ─► hidden_BKD ─► head ─► logits_BKV
                                               ▲
                                          positions_BK

The head is the larger part of a small model's work: L × V logits a row, of which the loss looks at 15 %. A hook on the
library's encoder gathers before the library's own head, so nothing of any architecture is written anew, and the numbers are the
same. In DistilBERT the gather happens one layer earlier: of its last layer only keys and values are needed everywhere.

Rows that pack several documents, numbered by `attention_mask_BL`, are read as if each document had a row of its own where
`separate_documents` is set (packing.py), with those architectures that were proven to do so.

`PretrainedMLM.hf_model` is the library's model as it is, for `save_pretrained`.

Shapes: B rows, L positions, K predicted positions a row, V vocabulary, D width.
"""

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_lightning.models.packing import attendable, positions_within
from mlm_lightning.models.transformer import take

try:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    from transformers.models.distilbert.modeling_distilbert import TransformerBlock
except ImportError as error:
    raise ImportError(f"pretrained models need transformers: pip install 'mlm-lightning[text]' ({error})") from error

_FROM_DATA = ("vocab_size", "pad_token_id")
_SPECIAL_IDS = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
_SEPARATE_DOCUMENTS = (
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "megatron-bert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)
"""Architectures whose every layer and position obeys the masks and positions that it is given: tests prove it of each of them.
Others convolve, mix or bucket positions across a row, or take no such masks."""

_PLAIN_OUTPUT = ("return_dict", "output_attentions", "output_hidden_states")  # of no use here; the first breaks the output


class PretrainedMLM(nn.Module):
    """A masked LM from weights (`checkpoint`) or from scratch (`architecture`).

    `checkpoint` is a name on the hub, at `revision`, or a folder. `architecture` is a `model_type` of transformers
    ("distilbert", "bert", "roberta" …); next to a checkpoint it only asserts the checkpoint's type. `config` overrides settings
    of the checkpoint (its dropout, say) or of the architecture (its sizes); unknown keys are errors. `vocab_size`, `seq_len`,
    `pad_token_id` and `separate_documents` come from the data. From scratch, `max_position_embeddings` grows with `seq_len`
    unless `config` sets it.

    Under `torch.device("meta")` no weights are read, only the checkpoint's configuration, and a vocabulary smaller than the
    checkpoint's or without padding is no mistake: settings can be checked before the data is known. New weights are drawn from
    torch's global generator, which the caller seeds. Raises ValueError naming the setting and the remedy.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        checkpoint: str | None = None,
        architecture: str | None = None,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        pad_token_id: int | None = None,
        gradient_checkpointing: bool = False,
        separate_documents: bool = False,
    ) -> None:
        super().__init__()
        self.seq_len = seq_len
        settings = dict(config or {})
        if checkpoint is not None:
            hf_config = _checkpoint_config(checkpoint, revision, architecture, settings)
            _check_vocabulary(hf_config, vocab_size)
        elif architecture is not None:
            if revision is not None:
                raise ValueError(f"model.revision={revision!r} belongs to a model.checkpoint, and there is none")
            hf_config = _scratch_config(architecture, settings, vocab_size, pad_token_id)
        else:
            raise ValueError(
                "model.checkpoint and model.architecture are both null: set model.checkpoint to a hub name or a folder, or "
                "model.architecture (distilbert, bert …) to start from scratch"
            )
        may_grow = checkpoint is None and "max_position_embeddings" not in settings
        _fit_positions(hf_config, seq_len, may_grow)
        self.hf_model = _build(hf_config, checkpoint, revision)
        self._predicted = _Predicted()
        if separate_documents:
            self._separate_documents()
        _gather_at(self.hf_model, self._predicted)
        if gradient_checkpointing:
            _checkpoint_gradients(self.hf_model)

    def rebuild_config(self) -> dict[str, Any]:
        """The YAML that builds this architecture again, without a checkpoint and without the hub."""
        config = self.hf_model.config
        own = {field.name for field in fields(type(config)) if not field.name.startswith("_")}
        settings = {key: value for key, value in config.to_dict().items() if key in own - {*_FROM_DATA, *_PLAIN_OUTPUT}}
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "vocab_size": config.vocab_size,
            "seq_len": self.seq_len,
            "pad_token_id": config.pad_token_id,
            "architecture": config.model_type,
            "config": settings,
            **({"separate_documents": True} if self.separate_documents else {}),
        }

    def save_pretrained(self, folder: Path) -> None:
        """Writes a folder that transformers opens."""
        self.hf_model.save_pretrained(folder)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """`attention_mask_BL` is 1 at tokens and 0 at padding; None where nothing is padded. With `separate_documents` it
        may number a row's documents."""
        self._predicted.positions_BK = positions_BK
        if self.separate_documents and attention_mask_BL is not None:
            attention = self._within_documents(attention_mask_BL)
        else:
            attention = {"attention_mask": attention_mask_BL}
        try:
            output = self.hf_model(input_ids=input_ids_BL, **attention, return_dict=True)
        finally:
            self._predicted.positions_BK = None
        return output.logits

    @property
    def separate_documents(self) -> bool:
        return self._predicted.separates_documents

    def _separate_documents(self) -> None:
        architecture = self.hf_model.config.model_type
        if architecture not in _SEPARATE_DOCUMENTS or self.hf_model.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"data.packing=sentence_pack: {architecture} models cannot keep documents apart; choose data.packing=chunk or "
                f"document, or model=transformer, or an architecture that can: {', '.join(_SEPARATE_DOCUMENTS)}"
            )
        self._first_position = _first_position(self.hf_model)
        self._predicted.separates_documents = True

    def _within_documents(self, document_BL: Tensor) -> dict[str, Any]:
        """The library's arguments for rows that pack documents: 4-D masks, which it passes on to each layer as they are."""
        config, mask_B1LL = self.hf_model.config, attendable(document_BL)
        mask: Any = mask_B1LL
        if config._attn_implementation == "eager":  # adds it to the scores
            dtype = self.hf_model.dtype
            mask = torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill(~mask_B1LL, torch.finfo(dtype).min)
        elif config.model_type == "modernbert":  # some of its layers look at neighbours only
            position_L = torch.arange(document_BL.shape[1], device=document_BL.device)
            is_near_LL = (position_L.unsqueeze(1) - position_L).abs() <= config.sliding_window
            mask = {"full_attention": mask_B1LL, "sliding_attention": mask_B1LL & is_near_LL}
        return {"attention_mask": mask, "position_ids": positions_within(document_BL) + self._first_position}


# predicted positions only
# ------------------------


class _Predicted:
    """The positions of the forward pass under way, handed past the library's signatures to where they are gathered; and
    whether queries at different positions see different masks."""

    positions_BK: Tensor | None = None
    separates_documents: bool = False


def _gather_at(model: PreTrainedModel, predicted: _Predicted) -> None:
    """Makes the hidden states that reach the head those of the predicted positions."""
    encoder: Any = model.base_model
    if model.config.model_type == "distilbert" and model.config._attn_implementation in ("sdpa", "eager"):
        layers = encoder.transformer.layer
        layers[-1] = _DistilBertLastBlock(layers[-1], predicted)
    else:
        encoder.register_forward_hook(_GatherHook(predicted))


class _GatherHook:
    def __init__(self, predicted: _Predicted) -> None:
        self.predicted = predicted

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        positions_BK = self.predicted.positions_BK
        if positions_BK is None:
            return output
        if isinstance(output, tuple):
            return take(output[0], positions_BK), *output[1:]
        output["last_hidden_state"] = take(output["last_hidden_state"], positions_BK)
        return output


class _DistilBertLastBlock(TransformerBlock):
    """DistilBERT's last block, the same weights under the same names, with outputs at the predicted positions only."""

    def __init__(self, block: Any, predicted: _Predicted) -> None:
        nn.Module.__init__(self)  # the block's own would draw new weights
        self.attention, self.sa_layer_norm = block.attention, block.sa_layer_norm
        self.ffn, self.output_layer_norm = block.ffn, block.output_layer_norm
        self.predicted = predicted
        self.train(block.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # read here, outside of gradient checkpointing: by the time that runs `forward` again, `predicted` has moved on
        return super().__call__(*args, positions_BK=self.predicted.positions_BK, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        positions_BK: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        x_BKD = take(hidden_states, positions_BK)
        x_BKD = self.sa_layer_norm(x_BKD + self._attend(x_BKD, positions_BK, hidden_states, attention_mask))
        return self.output_layer_norm(x_BKD + self.ffn(x_BKD))

    def _attend(self, x_BKD: Tensor, positions_BK: Tensor, x_BLD: Tensor, mask: Tensor | None) -> Tensor:
        attention = self.attention
        query, key, value = (
            x.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for x in (attention.q_lin(x_BKD), attention.k_lin(x_BLD), attention.v_lin(x_BLD))
        )
        attended_BHKD = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else self._mask_of_queries(mask, positions_BK),
            dropout_p=attention.dropout.p if self.training else 0.0,
        )
        return attention.out_lin(attended_BHKD.transpose(1, 2).flatten(2))

    def _mask_of_queries(self, mask_B1LL: Tensor, positions_BK: Tensor) -> Tensor:
        if not self.predicted.separates_documents:
            # padding is hidden from every query alike: the first query's row of the mask serves them all
            return mask_B1LL[:, :, :1]
        return mask_B1LL.gather(2, positions_BK[:, None, :, None].expand(-1, -1, -1, mask_B1LL.shape[-1]))


# the configuration
# -----------------


def _checkpoint_config(
    checkpoint: str, revision: str | None, architecture: str | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_no_checkpoint(checkpoint, revision, error)) from error
    if config.model_type not in _architectures():
        raise ValueError(
            f"model.checkpoint={checkpoint} is a {config.model_type!r} model, which has no masked-LM head in transformers; "
            f"those that have one: {', '.join(_architectures())}"
        )
    if architecture is not None and architecture != config.model_type:
        raise ValueError(
            f"model.architecture={architecture} contradicts model.checkpoint={checkpoint}, whose architecture is "
            f"{config.model_type}; set model.architecture=null, or model.checkpoint=null to start from scratch"
        )
    _check_keys(settings, config)
    try:
        for key, value in settings.items():
            setattr(config, key, value)
    except Exception as error:  # the library's validation raises classes of its own
        raise ValueError(f"model.config.{key}={value!r} is not valid for {config.model_type}: {_one_line(error)}") from error
    return config


def _scratch_config(architecture: str, settings: dict[str, Any], vocab_size: int, pad_token_id: int | None) -> PreTrainedConfig:
    if architecture not in _architectures():
        close = difflib.get_close_matches(architecture, _architectures(), n=1)
        raise ValueError(
            f"model.architecture={architecture} is no masked language model of transformers"
            f"{f'; did you mean {close[0]!r}?' if close else ''}; choose one of {', '.join(_architectures())}"
        )
    defaults = AutoConfig.for_model(architecture)
    _check_keys(settings, defaults)
    if pad_token_id is None and _position_offset(defaults) > 0:
        if not _on_meta():
            raise ValueError(
                f"model.architecture={architecture} counts positions from its padding token, and the data has none; "
                "choose another, such as bert or distilbert"
            )
        pad_token_id = 0  # the settings are being checked before the data is known
    # ids of the architecture's published vocabulary mean nothing in another one
    no_token_ids = dict.fromkeys(_SPECIAL_IDS & set(_keys(defaults)))
    try:
        return type(defaults)(**{**no_token_ids, "vocab_size": vocab_size, "pad_token_id": pad_token_id, **settings})
    except Exception as error:  # the library's validation raises classes of its own
        raise ValueError(f"model.config is not valid for {architecture}: {_one_line(error)}") from error


def _check_keys(settings: dict[str, Any], config: PreTrainedConfig) -> None:
    """transformers silently accepts any key."""
    problems = [f"model.config.{key} comes from the data; remove it" for key in settings if key in _FROM_DATA]
    for key in settings.keys() - {*_FROM_DATA, *_keys(config)}:
        close = difflib.get_close_matches(key, _keys(config), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; its keys are {', '.join(_keys(config))}"
        problems.append(f"model.config.{key}: unknown key of {config.model_type}{hint}")
    if problems:
        raise ValueError("\n".join(sorted(problems)))


def _keys(config: PreTrainedConfig) -> list[str]:
    """The settings of an architecture: its own, and those common names ("hidden_size") that it translates."""
    own = {field.name for field in fields(type(config)) if not field.name.startswith("_")}
    return sorted((own | set(config.attribute_map)) - set(_PLAIN_OUTPUT))


def _architectures() -> list[str]:
    """Bidirectional encoders with a masked-LM head, by their `model_type`."""
    return sorted(set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) & set(CONFIG_MAPPING) - _NOT_ENCODERS)


_NOT_ENCODERS = {"bart", "mbart", "mvp", "perceiver", "tapas", "layoutlm", "modernvbert", "ultravbert"}
"""They have a decoder, or need more than tokens."""


def _check_vocabulary(config: PreTrainedConfig, vocab_size: int) -> None:
    if vocab_size > config.vocab_size:
        raise ValueError(
            f"the data's vocabulary has {vocab_size} tokens and the checkpoint's {config.vocab_size}: the tokenizer is another "
            "model's; set data.tokenizer to the checkpoint's own (usually the same name as model.checkpoint)"
        )
    if vocab_size < 0.9 * config.vocab_size and not _on_meta():
        warnings.warn(
            f"the data's vocabulary has {vocab_size} tokens and the checkpoint's {config.vocab_size}: unless data.tokenizer is "
            "the checkpoint's own, its embeddings stand for other tokens",
            stacklevel=3,
        )


def _fit_positions(config: PreTrainedConfig, seq_len: int, may_grow: bool) -> None:
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
    raise ValueError(
        f"model.config.max_position_embeddings={limit} is too few for rows of {seq_len} tokens, which need {needed} with "
        f"{config.model_type}; use rows of at most {limit - needed + seq_len} tokens (data.chunk_size), or from scratch leave "
        "model.config.max_position_embeddings out"
    )


def _position_offset(config: PreTrainedConfig) -> int:
    """How many position embeddings precede that of the first token."""
    with torch.device("meta"):
        return _first_position(_from_config(config))


def _first_position(model: PreTrainedModel) -> int:
    """The position of the first token: RoBERTa and its kin count from pad_token_id + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


# the weights
# -----------


def _build(config: PreTrainedConfig, checkpoint: str | None, revision: str | None) -> PreTrainedModel:
    if checkpoint is None or _on_meta():
        return _from_config(config)
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
        raise ValueError(_no_checkpoint(checkpoint, revision, error)) from error
    except RuntimeError as error:
        raise ValueError(
            f"model.config changes the shapes of the weights in model.checkpoint={checkpoint}; override only what has none "
            f"(dropout …), or train from scratch with model.architecture={config.model_type}: {_one_line(error)}"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        warnings.warn(
            f"model.checkpoint={checkpoint} lacks {len(missing)} weights, which start at random: {', '.join(missing[:8])}"
            f"{' …' if len(missing) > 8 else ''}; train before you trust its predictions",
            stacklevel=3,
        )
    # loaded for inference by default: without this, Lightning keeps dropout switched off
    return model.train()


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"model.config is not valid for {config.model_type}: {_one_line(error)}") from error


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ValueError(f"model.gradient_checkpointing=true: {model.config.model_type} does not support it") from error


def _no_checkpoint(checkpoint: str, revision: str | None, error: Exception) -> str:
    at_revision = "" if revision is None else f" at model.revision={revision}"
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        remedy = "the folder is no model of transformers that opens: it needs config.json and model.safetensors"
    elif checkpoint.startswith(("/", "./", "../", "~")) or checkpoint.count("/") > 1:
        remedy = "there is no such folder"
    else:
        remedy = (
            "neither a folder nor a masked language model that the hub hands out; check the name, the connection and, for "
            "private models, the login, or set model.checkpoint=null and model.architecture to start from scratch"
        )
    return f"model.checkpoint={checkpoint}{at_revision}: {remedy} ({_one_line(error)})"


def _on_meta() -> bool:
    """Whether only the settings are being checked, perhaps before the data, and with it the vocabulary, is known."""
    return torch.get_default_device().type == "meta"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
