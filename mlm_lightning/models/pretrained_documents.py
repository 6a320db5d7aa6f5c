"""Documents that share a row, kept apart by the library's own masks and positions (packing.py), in those architectures that
were proven to obey them.

Shapes: B rows, L positions.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlm_lightning.errors import ConfigError
from mlm_lightning.models.packing import attendable, positions_within

SEPARATE_DOCUMENTS = (
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


def check_keeps_documents_apart(config: PreTrainedConfig) -> None:
    """Raises ConfigError for an architecture that cannot."""
    if config.model_type not in SEPARATE_DOCUMENTS or config._attn_implementation not in ("sdpa", "eager"):
        problem = f"{config.model_type} models cannot keep documents apart"
        remedy = "choose data.packing=chunk or document, or model=transformer, or an architecture that can"
        raise ConfigError("data.packing", "sentence_pack", problem, f"{remedy}: {', '.join(SEPARATE_DOCUMENTS)}")


def within_documents(model: PreTrainedModel, document_BL: Tensor, first_position: int) -> dict[str, Any]:
    """The library's arguments for rows that pack documents: 4-D masks, which it passes on to each layer as they are."""
    config, mask_B1LL = model.config, attendable(document_BL)
    mask: Any = mask_B1LL
    if config._attn_implementation == "eager":  # adds it to the scores
        mask = torch.zeros_like(mask_B1LL, dtype=model.dtype).masked_fill(~mask_B1LL, torch.finfo(model.dtype).min)
    elif config.model_type == "modernbert":  # some of its layers look at neighbours only
        position_L = torch.arange(document_BL.shape[1], device=document_BL.device)
        is_near_LL = (position_L.unsqueeze(1) - position_L).abs() <= config.sliding_window
        mask = {"full_attention": mask_B1LL, "sliding_attention": mask_B1LL & is_near_LL}
    return {"attention_mask": mask, "position_ids": positions_within(document_BL) + first_position}
