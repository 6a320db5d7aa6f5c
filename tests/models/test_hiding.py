"""Hidden positions: nobody attends to them, themselves included; where nothing is left, attention gives nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlm_lightning.models.attention import attend
from mlm_lightning.models.layers import detach_token
from mlm_lightning.models.pretrained import PretrainedMLM
from mlm_lightning.models.transformer import TransformerClassifier

V, L, B = 9, 10, 3
HIDDEN = [2, 3, 7]
BERT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def ours(**changed: Any) -> TransformerClassifier:
    shape = {"d_model": 16, "nhead": 2, "num_layers": 3, "dim_feedforward": 24}
    return TransformerClassifier(V, L, **(shape | changed)).eval()


def library(architecture: str, config: dict[str, Any]) -> PretrainedMLM:
    return PretrainedMLM(V, L, architecture=architecture, config=config, pad_token_id=0).eval()


MODELS = {
    "pre-norm": ours,
    "post-norm": lambda: ours(norm_first=False),
    "windows": lambda: ours(positional_encoding="rotary", attention_window=4, global_every_n_layers=2),
    "distilbert": lambda: library("distilbert", {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}),
    "bert": lambda: library("bert", BERT),
    "modernbert": lambda: library("modernbert", {**BERT, "local_attention": 4}),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]()


def influence(model: Any, output: int, **inputs: Tensor) -> Tensor:
    """By input position: how much it changes the logits at a position of the first row."""
    embedded: list[Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, y: embedded.append(y.requires_grad_()) or y
    )
    logits_BLV = model(torch.randint(1, V, (B, L)), **inputs)
    hook.remove()
    (gradient_BLD,) = torch.autograd.grad(logits_BLV[0, output].square().sum(), embedded[-1])
    assert not gradient_BLD.isnan().any()
    return gradient_BLD[0].abs().amax(-1)


def hidden(positions: list[int]) -> Tensor:
    return torch.zeros(B, L, dtype=torch.bool).index_fill(1, torch.tensor(positions), True)


def test_a_hidden_position_reaches_its_own_logits_alone(model: Any) -> None:
    influence_L = influence(model, 1, hidden_BL=hidden(HIDDEN))
    assert not influence_L[HIDDEN].any()
    assert influence_L.count_nonzero() == L - len(HIDDEN)
    # the notebook's question: its own token is not ignored, it passes through the residual path
    influence_L = influence(model, 3, hidden_BL=hidden(HIDDEN))
    assert influence_L[3] > 0
    assert not influence_L[[2, 7]].any()


def test_a_row_that_is_hidden_as_a_whole_attends_to_nothing(model: Any) -> None:
    influence_L = influence(model, 4, hidden_BL=hidden(list(range(L))))
    assert influence_L.nonzero().flatten().tolist() == [4]


def test_hiding_goes_with_padding_and_predicted_positions(model: Any) -> None:
    ids_BL, mask_BL = torch.randint(1, V, (B, L)), torch.ones(B, L, dtype=torch.long).index_fill(1, torch.tensor([8, 9]), 0)
    positions_BK = torch.tensor([[3, 0], [2, 7], [7, 1]])
    whole_BLV = model(ids_BL, mask_BL, hidden_BL=hidden(HIDDEN))
    expected_BKV = whole_BLV.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, V))
    torch.testing.assert_close(model(ids_BL, mask_BL, positions_BK, hidden(HIDDEN)), expected_BKV, atol=1e-5, rtol=1e-4)
    # hidden padding is padding, and hidden tokens are as good as padding for the others
    torch.testing.assert_close(model(ids_BL, mask_BL, hidden_BL=hidden([8])), model(ids_BL, mask_BL), atol=1e-5, rtol=1e-4)
    padded_BLV = model(ids_BL, mask_BL & ~hidden(HIDDEN))
    torch.testing.assert_close(whole_BLV[:, [0, 1, 4, 5]], padded_BLV[:, [0, 1, 4, 5]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ours", "bert"])
def test_hiding_goes_with_documents_kept_apart(name: str) -> None:
    shared: dict[str, Any] = {"separate_documents": True}
    model: Any = (
        ours(**shared)
        if name == "ours"
        else PretrainedMLM(V, L, architecture="bert", config=BERT, pad_token_id=0, **shared).eval()
    )
    documents_BL = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0]] * B)
    influence_L = influence(model, 1, attention_mask_BL=documents_BL, hidden_BL=hidden(HIDDEN))
    assert influence_L.nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("dropout", [0.0, 0.5])  # with dropout attention is written out
def test_attention_to_nothing_is_zero(dropout: float) -> None:
    query, key, value = (torch.randn(B, 2, L, 4, requires_grad=True) for _ in range(3))
    mask = ~hidden(list(range(L)))[:, None, None]
    attended = attend(query, key, value, mask, dropout)
    assert not attended.any()
    (gradient,) = torch.autograd.grad(attended.sum(), query)
    assert not gradient.any()


def test_a_detached_token_takes_no_gradient_through_the_input() -> None:
    torch.manual_seed(0)
    plain, detached = ours(), ours()
    detached.load_state_dict(plain.state_dict())
    detach_token(detached.get_input_embeddings(), V - 1)
    ids_BL = torch.randint(V - 1, (B, L)).index_fill(1, torch.tensor([1, 5]), V - 1)
    gradients = []
    for model in (plain, detached):
        logits_BLV = model(ids_BL)
        gradients.append(torch.autograd.grad(logits_BLV.square().sum(), list(model.parameters())))
        torch.testing.assert_close(logits_BLV, plain(ids_BL), rtol=0, atol=0)
    (embedding, *others), (embedding_detached, *others_detached) = gradients
    assert embedding[V - 1].any()
    assert not embedding_detached[V - 1].any()
    torch.testing.assert_close(embedding_detached[: V - 1], embedding[: V - 1], rtol=0, atol=0)
    torch.testing.assert_close(others_detached, others, rtol=0, atol=0)


def test_the_notebook_cell_by_cell() -> None:
    """Its sequence of cells, with the shapes that it prints and the answers that it asks for."""
    torch.manual_seed(0)
    q, depth, batch_size, hidden_dim, masking_rate = 8, 8, 64, 128, 0.1
    seq_len = 2**depth
    sequences_BL = torch.randint(q, (batch_size, seq_len))
    embedding = nn.Embedding(q, hidden_dim)
    assert embedding(sequences_BL).shape == (64, 256, 128)
    layer = nn.TransformerEncoderLayer(hidden_dim, nhead=1, dim_feedforward=2048, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
    mask_BL = torch.rand(batch_size, seq_len) < masking_rate
    assert encoder(embedding(sequences_BL)).shape == (64, 256, 128)
    assert encoder(embedding(sequences_BL), src_key_padding_mask=mask_BL).shape == (64, 256, 128)

    model = TransformerClassifier(
        q,
        seq_len,
        d_model=hidden_dim,
        num_layers=1,
        nhead=1,
        num_classes=q,
        embedding_agg="flatten",
        decoder_hidden_sizes=[],
        decoder_activation="identity",
        decoder_output_activation="softmax",
    )
    probs_BC = model(sequences_BL, hidden_BL=mask_BL)
    assert probs_BC.shape == (64, 8)
    torch.testing.assert_close(probs_BC.sum(-1), torch.ones(64))
    assert (probs_BC > 0).all()
