"""The published architectures are special cases of ours: the same weights give the same logits."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from mlm_lightning.batch import Vocab
from mlm_lightning.models.convert import as_transformers
from mlm_lightning.models.encoder import LayerSettings, SelfAttention, View
from mlm_lightning.models.layers import Rotary
from mlm_lightning.models.transformer import TransformerClassifier

V, L = 101, 24
VOCAB = Vocab(V, mask_id=2, pad_id=0)
SHAPE = {"d_model": 32, "num_layers": 4, "nhead": 4, "dim_feedforward": 48}
HEAD = {"tie_embeddings": True, "decoder_hidden_sizes": "d_model", "decoder_activation": "gelu", "decoder_norm": True}
ROTARY = {"positional_encoding": "rotary", "bias": False}
OURS = {
    "modernbert": {
        "activation": "geglu",
        "embedding_norm": True,
        "rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "attention_window": 8,
        **ROTARY,
        **HEAD,
    },
    "bert": {"norm_first": False, "norm_eps": 1e-12, "embedding_norm": True, **HEAD},
    "eurobert": {"norm": "rms", "activation": "swiglu", "decoder_bias": False, **ROTARY},
}


def padded():
    generator = torch.Generator().manual_seed(1)
    ids_BL, mask_BL = torch.randint(3, V, (3, L), generator=generator), torch.ones(3, L, dtype=torch.long)
    mask_BL[1, 10:] = 0
    return ids_BL, mask_BL


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", OURS)
def test_ours_become_theirs(architecture, tied):
    torch.manual_seed(0)
    settings = OURS[architecture] | {"tie_embeddings": tied, "dropout": 0.1}
    ours = TransformerClassifier(V, L, **SHAPE, **settings).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = as_transformers(ours, VOCAB)
    assert theirs is not None
    assert theirs.hf_model.config.model_type == architecture
    ids_BL, mask_BL = padded()
    wanted_BLV = theirs.hf_model(input_ids=ids_BL, attention_mask=mask_BL).logits
    assert wanted_BLV.std() > 0.3
    assert_close(ours(ids_BL, mask_BL)[mask_BL.bool()], wanted_BLV[mask_BL.bool()], atol=1e-5, rtol=0)
    assert_close(theirs(ids_BL, mask_BL)[mask_BL.bool()], wanted_BLV[mask_BL.bool()], atol=1e-5, rtol=0)
    positions_BK = torch.tensor([[1, 9, 4], [0, 2, 2], [23, 0, 11]])
    at_positions_BKV = wanted_BLV.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, V))
    assert_close(ours(ids_BL, mask_BL, positions_BK), at_positions_BKV, atol=1e-5, rtol=0)
    with torch.no_grad():  # a copy of the weights, not the weights
        next(theirs.parameters()).zero_()
    assert ours.embedding.weight.any()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_first": False},
        OURS["modernbert"] | {"qk_norm": True},
        OURS["modernbert"] | {"decoder_hidden_sizes": [32, 32]},
        OURS["modernbert"] | {"decoder_norm": False},
        OURS["modernbert"] | {"embedding_norm": False},
        OURS["modernbert"] | {"positional_encoding": "none"},
        OURS["modernbert"] | {"norm_first": False},
        OURS["modernbert"] | {"decoder_output_activation": "softmax"},
        OURS["eurobert"] | {"attention_window": 8},
        OURS["eurobert"] | {"decoder_bias": True},
        OURS["bert"] | {"activation": "relu"},
        OURS["bert"] | {"attention_window": 8},
        OURS["bert"] | {"bias": False},
    ],
)
def test_what_no_architecture_computes_stays_ours(settings):
    model = TransformerClassifier(V, L, **SHAPE, **settings)
    assert as_transformers(model, VOCAB) is None


def test_normed_queries_and_keys_are_those_of_qwen3():
    config = Qwen3Config(
        vocab_size=V, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, attention_bias=False
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = Qwen3Attention(config, layer_idx=0).eval()
    ours = SelfAttention(LayerSettings(32, 4, 48, norm="rms", norm_eps=config.rms_norm_eps, bias=False, qk_norm=True)).eval()
    with torch.no_grad():
        theirs.q_norm.weight.uniform_(0.5, 1.5)
        theirs.k_norm.weight.uniform_(0.5, 1.5)
        ours.in_proj_weight.copy_(torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]))
        ours.out_proj.weight.copy_(theirs.o_proj.weight)
        ours.query_norm.weight.copy_(theirs.q_norm.weight)
        ours.key_norm.weight.copy_(theirs.k_norm.weight)
    x_BLD = torch.randn(2, L, 32)
    turns = Rotary(L, 8, config.rope_parameters["rope_theta"]).at(L, None, None)
    rotation = Qwen3RotaryEmbedding(config)(x_BLD, torch.arange(L).unsqueeze(0))
    wanted_BLD, _ = theirs(x_BLD, position_embeddings=rotation, attention_mask=None)
    assert_close(ours(x_BLD, View(None, turns, turns)), wanted_BLD, atol=1e-5, rtol=0)
