"""Our transformer as an architecture of Hugging Face transformers, where one has its equations, and back: other names for the
same weights.

    TransformerClassifier                      architecture        what it must be
    rotary, LayerNorm first, gated             modernbert          embeddings normed, a decoder of one hidden layer
    rotary, RMSNorm first, gated               eurobert            a linear decoder, no window
    learned positions, LayerNorm after         bert                embeddings normed, a decoder of one hidden layer, biases

BERT adds a vector to every token of a text's first segment: here it is part of the positions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mlm_lightning.batch import Vocab
from mlm_lightning.models.layers import GATED, Rotary
from mlm_lightning.models.pretrained import PretrainedMLM
from mlm_lightning.models.transformer import TransformerClassifier

Names = dict[str, str | tuple[str, ...]]
"""Our name of a weight, and theirs; several where ours is theirs one below the other."""


def as_transformers(
    model: TransformerClassifier, vocab: Vocab, class_names: Sequence[str] | None = None
) -> PretrainedMLM | None:
    """The same function as a model of transformers, with a copy of the weights; None where it has no such architecture. Of a
    model that labels rows, `class_names` are the labels."""
    found = [(name, settings) for name, of in _SETTINGS.items() if (settings := of(model)) is not None]
    if not found:
        return None
    ((architecture, settings),) = found
    if architecture == "eurobert":  # its published [MASK] is beyond other vocabularies
        settings |= {"mask_token_id": vocab.mask_id}
    made = PretrainedMLM(
        vocab.size,
        model.seq_len,
        architecture=architecture,
        config=settings,
        pad_token_id=vocab.pad_id,
        separate_documents=model.separate_documents,
        class_names=class_names,
    )
    ours, theirs = model.state_dict(), made.hf_model.state_dict()
    for name, their_names in _names(architecture, model).items():
        parts = ours[name].chunk(len(their_names)) if isinstance(their_names, tuple) else [ours[name]]
        for their_name, part in zip([their_names] if isinstance(their_names, str) else their_names, parts, strict=True):
            theirs[their_name] = part
    if architecture == "bert":
        theirs["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(1, model.embedding.embedding_dim)
    made.hf_model.load_state_dict(theirs)
    made.hf_model.tie_weights()
    return made.train(model.training)


def _modernbert(model: TransformerClassifier) -> dict[str, Any] | None:
    encoder, layer = model.encoder, model.encoder.settings
    if not (model.positions == "rotary" and layer.norm == "layer" and layer.norm_first and layer.activation in GATED):
        return None
    labels_rows = model.embedding_agg == "mean" and model.decoder.head.bias is not None
    if model.embedding_norm is None or layer.qk_norm or not (_has_head(model) and (model.decodes_tokens or labels_rows)):
        return None
    kinds = ["full_attention", "sliding_attention"]
    return _common(model) | {
        "hidden_activation": GATED[layer.activation],
        "norm_eps": layer.norm_eps,
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), layer.bias),
        "decoder_bias": model.decoder.head.bias is not None,
        "classifier_activation": model.decoder_activation,
        "classifier_pooling": "mean",
        **dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), layer.dropout),
        "local_attention": encoder.attention_window or 128,
        "layer_types": [kinds[local] for local in encoder.is_local],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(kinds, _thetas(model), strict=True)
        },
    }


def _eurobert(model: TransformerClassifier) -> dict[str, Any] | None:
    encoder, layer = model.encoder, model.encoder.settings
    if not (model.positions == "rotary" and layer.norm == "rms" and layer.norm_first and layer.activation in GATED):
        return None
    has_linear_head = model.decodes_tokens and not model.decoder.hidden and (model.decoder.head.bias is not None) == layer.bias
    if model.embedding_norm is not None or layer.qk_norm or any(encoder.is_local) or not has_linear_head:
        return None
    return _common(model) | {
        "num_key_value_heads": layer.nhead,
        "hidden_act": GATED[layer.activation],
        "rms_norm_eps": layer.norm_eps,
        **dict.fromkeys(("attention_bias", "mlp_bias"), layer.bias),
        "attention_dropout": layer.dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": _thetas(model)[0]},
    }


def _bert(model: TransformerClassifier) -> dict[str, Any] | None:
    layer = model.encoder.settings
    if not (model.positions == "learned" and layer.norm == "layer" and not layer.norm_first and layer.activation not in GATED):
        return None
    has_biases = layer.bias and model.decoder.head.bias is not None
    if (
        model.embedding_norm is None
        or layer.qk_norm
        or any(model.encoder.is_local)
        or not (_has_head(model) and model.decodes_tokens and has_biases)
    ):
        return None
    if layer.activation != model.decoder_activation:
        return None
    return _common(model) | {
        "hidden_act": layer.activation,
        "layer_norm_eps": layer.norm_eps,
        "type_vocab_size": 1,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), layer.dropout),
    }


_SETTINGS: dict[str, Callable[[TransformerClassifier], dict[str, Any] | None]] = {
    "modernbert": _modernbert,
    "eurobert": _eurobert,
    "bert": _bert,
}
"""The architecture's settings that give a model's equations; None where none do."""


def _common(model: TransformerClassifier) -> dict[str, Any]:
    layer = model.encoder.settings
    return {
        "hidden_size": layer.d_model,
        "intermediate_size": layer.dim_feedforward,
        "num_hidden_layers": len(model.encoder.layers),
        "num_attention_heads": layer.nhead,
        "max_position_embeddings": model.seq_len,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _thetas(model: TransformerClassifier) -> list[float]:
    """Of global and of local layers."""
    return [rotary.theta for rotary in model.encoder.rotary if isinstance(rotary, Rotary)]


def _has_head(model: TransformerClassifier) -> bool:
    """Whether the decoder is a hidden layer as wide as the model, an activation, a norm, and the logits."""
    widths = [linear.out_features for linear in model.decoder.hidden]
    return widths == [model.encoder.settings.d_model] and model.decoder_norm


def _names(architecture: str, model: TransformerClassifier) -> Names:
    """Of all weights that the model has."""
    num_layers = len(model.encoder.layers)
    shared, of_layer = _NAMES[architecture]
    names = dict(shared) | ({} if model.embedding_agg is None else {"decoder.head": "classifier"})
    for i in range(num_layers):
        for name, theirs in of_layer.items():
            several = tuple(each.format(i=i) for each in ([theirs] if isinstance(theirs, str) else theirs))
            names[f"encoder.layers.{i}.{name}"] = several[0] if isinstance(theirs, str) else several
    found: Names = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        module, _, kind = name.rpartition(".")
        if module.endswith("self_attn") or name.endswith("_LD"):  # matrices of their own
            module, kind = name.removesuffix("_weight").removesuffix("_bias").removesuffix("_LD"), name.rpartition("_")[2]
            kind = "weight" if kind == "LD" else kind
        theirs = names[module.removesuffix(".weight")]
        found[name] = f"{theirs}.{kind}" if isinstance(theirs, str) else tuple(f"{each}.{kind}" for each in theirs)
    return found


_NAMES: dict[str, tuple[Names, Names]] = {
    "modernbert": (
        {
            "embedding": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "encoder.norm": "model.final_norm",
            "decoder.hidden.0": "head.dense",
            "decoder.norms.0": "head.norm",
            "decoder.head": "decoder",
        },
        {
            "norm1": "model.layers.{i}.attn_norm",
            "self_attn.in_proj": "model.layers.{i}.attn.Wqkv",
            "self_attn.out_proj": "model.layers.{i}.attn.Wo",
            "norm2": "model.layers.{i}.mlp_norm",
            "linear1": "model.layers.{i}.mlp.Wi",
            "linear2": "model.layers.{i}.mlp.Wo",
        },
    ),
    "eurobert": (
        {"embedding": "model.embed_tokens", "encoder.norm": "model.norm", "decoder.head": "lm_head"},
        {
            "norm1": "model.layers.{i}.input_layernorm",
            "self_attn.in_proj": tuple(f"model.layers.{{i}}.self_attn.{each}_proj" for each in "qkv"),
            "self_attn.out_proj": "model.layers.{i}.self_attn.o_proj",
            "norm2": "model.layers.{i}.post_attention_layernorm",
            "linear1": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
            "linear2": "model.layers.{i}.mlp.down_proj",
        },
    ),
    "bert": (
        {
            "embedding": "bert.embeddings.word_embeddings",
            "positional_encoding": "bert.embeddings.position_embeddings",
            "embedding_norm": "bert.embeddings.LayerNorm",
            "decoder.hidden.0": "cls.predictions.transform.dense",
            "decoder.norms.0": "cls.predictions.transform.LayerNorm",
            "decoder.head": "cls.predictions.decoder",
        },
        {
            "self_attn.in_proj": tuple(f"bert.encoder.layer.{{i}}.attention.self.{each}" for each in ("query", "key", "value")),
            "self_attn.out_proj": "bert.encoder.layer.{i}.attention.output.dense",
            "norm1": "bert.encoder.layer.{i}.attention.output.LayerNorm",
            "linear1": "bert.encoder.layer.{i}.intermediate.dense",
            "linear2": "bert.encoder.layer.{i}.output.dense",
            "norm2": "bert.encoder.layer.{i}.output.LayerNorm",
        },
    ),
}
"""Of an architecture, what our modules are called there, and those of layer i."""
