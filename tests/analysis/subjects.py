"""Small models and languages to look into."""

from typing import Any

import torch
from torch import nn

from mlm_lightning.analysis.subject import Subject
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.source import Source
from mlm_lightning.masking import Bernoulli
from mlm_lightning.models.transformer import TransformerClassifier

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 3, "nhead": 2, "dim_feedforward": 32}


def transformer(source: Source, **more: Any) -> TransformerClassifier:
    torch.manual_seed(0)
    model = TransformerClassifier(vocab_size=source.vocab.size, seq_len=source.seq_len, **(SMALL | more))
    with torch.no_grad():  # larger than they start: attention that is far from uniform
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return model.eval()


def distilbert(source: Source) -> nn.Module:
    from mlm_lightning.models.pretrained import PretrainedMLM

    torch.manual_seed(0)
    config = {"dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 2}
    model = PretrainedMLM(
        vocab_size=source.vocab.size, seq_len=source.seq_len, architecture="distilbert", config=config, pad_token_id=None
    )
    return model.eval()


MODELS = {"ours": transformer, "distilbert": distilbert}


def subject(source: Source | None = None, model: nn.Module | None = None, rate: float = 0.3, **more: Any) -> Subject:
    source = source or TreeSource(depth=3, num_symbols=3, grammar_seed=1)
    condition = Condition.training(source, Bernoulli(rate=rate, mask_share=1.0))
    return Subject(transformer(source) if model is None else model, condition, **({"num_rows": 200} | more))
