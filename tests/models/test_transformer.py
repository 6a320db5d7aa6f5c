import inspect
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from mlm_lightning.models.encoder import Encoder, LayerSettings
from mlm_lightning.models.layers import FFNN, Dropout, Rotary, turn
from mlm_lightning.models.transformer import SIZES, TransformerClassifier

V, L, B = 11, 9, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(**settings) -> TransformerClassifier:
    return TransformerClassifier(
        **{"vocab_size": V, "seq_len": L, "d_model": 16, "num_layers": 2, "nhead": 4, "dim_feedforward": 32, **settings}
    )


def rows() -> Tensor:
    return torch.randint(V, (B, L))


def padding() -> Tensor:
    """Rows of 9, 7, 5, 3 and 1 tokens."""
    return (torch.arange(L) < torch.arange(L, 0, -2).unsqueeze(1)).long()


def relative_difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


# the same numbers as torch.nn.TransformerEncoder


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_torchs_encoder(norm_first, activation, padded):
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first)
    theirs = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(16) if norm_first else None, enable_nested_tensor=False)
    for parameter in theirs.parameters():  # also biases and norms away from 0 and 1
        nn.init.normal_(parameter, std=0.3)
    ours = Encoder(3, LayerSettings(16, 4, 32, activation=activation, norm_first=norm_first))
    ours.load_state_dict(theirs.state_dict())

    is_token_BL = padding().bool() if padded else torch.ones(B, L, dtype=torch.bool)
    x_BLD = torch.randn(B, L, 16)
    weight_BLD = torch.randn(B, L, 16) * is_token_BL.unsqueeze(-1)
    results = []
    for encoder, arguments in (
        (ours, {"is_token_BL": is_token_BL if padded else None}),
        (theirs, {"src_key_padding_mask": ~is_token_BL if padded else None}),
    ):
        x = x_BLD.clone().requires_grad_()
        y = encoder(x, **arguments)
        (y * weight_BLD).sum().backward()
        results.append((y * is_token_BL.unsqueeze(-1), x.grad, {name: p.grad for name, p in encoder.named_parameters()}))
    (y, dx, gradients), (torch_y, torch_dx, torch_gradients) = results
    assert relative_difference(y, torch_y) < 1e-6
    assert relative_difference(dx, torch_dx) < 2e-6
    assert gradients.keys() == torch_gradients.keys()
    for name, gradient in torch_gradients.items():
        assert (gradients[name] - gradient).abs().max() < 1e-6 * max(gradient.abs().max(), 1), name


def test_dropout_sits_where_torch_has_it():
    # in expectation over many draws the two agree, and no dropout is missing: the variances agree too
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(8), enable_nested_tensor=False).train()
    ours = Encoder(1, LayerSettings(8, 2, 16, dropout=0.2, activation="relu")).train()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 8).expand(20_000, -1, -1)
    with torch.no_grad():
        y, torch_y = ours(x), theirs(x)
    assert (y.mean(0) - torch_y.mean(0)).abs().max() < 0.03
    assert (y.std(0) / torch_y.std(0) - 1).abs().max() < 0.05


def test_layers_start_different_and_the_seed_decides():
    model = tiny()
    first, second = model.encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny().parameters(), strict=True))


# only the predicted positions

OPTIONS = [
    {},
    {"norm_first": False, "activation": "relu"},
    {"positional_encoding": "sinusoidal", "decoder_hidden_sizes": (7,), "decoder_activation": "tanh"},
    {"positional_encoding": None, "num_layers": 1, "num_classes": 3, "decoder_output_activation": "softmax"},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_predicted_positions_equal_all_positions(options, padded):
    model = tiny(**options)
    ids_BL, mask_BL = rows(), padding() if padded else None
    positions_BK = torch.randint(L, (B, 3))
    positions_BK[0] = 4  # the same place thrice: gradients add up
    weight_BKV = torch.randn(B, 3, options.get("num_classes", V))

    def run(logits_BKV: Tensor) -> tuple[Tensor, ...]:
        return logits_BKV, *torch.autograd.grad((logits_BKV * weight_BKV).sum(), tuple(model.parameters()))

    full_BLV = model(ids_BL, mask_BL)
    for some, full in zip(
        run(model(ids_BL, mask_BL, positions_BK)),
        run(full_BLV.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, full_BLV.shape[-1]))),
        strict=True,
    ):
        assert (some - full).abs().max() < 1e-6 * max(full.abs().max(), 1)


def test_predicted_positions_cost_no_further_work():
    model = tiny(decoder_hidden_sizes=(8,))
    lengths = {}

    def record(name):
        return lambda module, inputs, output: lengths.update({name: inputs[0].shape[1]})

    for name, module in model.named_modules():
        module.register_forward_hook(record(name))
    model(rows(), None, torch.tensor([[1, 3]] * B))
    last = "encoder.layers.1"
    few = [f"{last}.self_attn.out_proj", f"{last}.norm2", f"{last}.linear1", f"{last}.linear2", "encoder.norm", "decoder.head"]
    assert all(lengths[name] == 2 for name in few)
    assert lengths["encoder.layers.0.linear1"] == lengths[f"{last}.norm1"] == L


# what an output can depend on


def influence(model: TransformerClassifier, mask_BL: Tensor | None, output: int) -> Tensor:
    """By input position: does it change the output at a position? (largest gradient, row 0)"""
    embedded = []
    model.embedding.register_forward_hook(lambda module, inputs, y: embedded.append(y.requires_grad_()) or y)
    logits = model(rows(), mask_BL)
    (gradient_BLD,) = torch.autograd.grad(logits[0, output].square().sum(), embedded[-1])
    assert not gradient_BLD[1:].any(), "rows of a batch influence each other"
    return gradient_BLD[0].abs().amax(-1)


@pytest.mark.parametrize("norm_first", [True, False])
def test_padding_does_not_influence_tokens(norm_first):
    mask_BL = torch.ones(B, L).index_fill(1, torch.tensor([2, 7, 8]), 0)
    gradient_L = influence(tiny(norm_first=norm_first), mask_BL, output=0)
    assert not gradient_L[[2, 7, 8]].any()
    assert (gradient_L[[0, 1, 3, 4, 5, 6]] > 0).all()


def test_hiding_a_token_from_attention_does_not_hide_it_from_its_own_logits():
    # the notebook's first question: original tokens with a key padding mask at position 3. Its label leaks
    hidden = torch.ones(B, L).index_fill(1, torch.tensor([3]), 0)
    model = tiny()
    assert influence(model, hidden, output=3)[3] > 0
    assert influence(model, hidden, output=2)[3] == 0


def test_without_positions_the_order_does_not_matter():
    ids_BL, order = rows(), torch.randperm(L)
    blind = tiny(positional_encoding="none")
    torch.testing.assert_close(blind(ids_BL[:, order]), blind(ids_BL)[:, order], atol=1e-6, rtol=0)
    longer = torch.randint(V, (B, 2 * L))
    assert blind(longer).shape == (B, 2 * L, V)
    for seeing in (tiny(), tiny(positional_encoding="sinusoidal")):
        assert (seeing(ids_BL[:, order]) - seeing(ids_BL)[:, order]).abs().max() > 1e-3


def test_a_row_of_padding_alone_is_finite():
    model = tiny()
    logits = model(rows(), torch.zeros(B, L))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("d_model", [8, 9])
def test_sinusoidal_positions_are_rotations(d_model):
    # a shift by one position is the same linear map everywhere: the table's products depend on the distance alone
    table_LD = tiny(d_model=8, nhead=1, positional_encoding="sinusoidal", seq_len=40).positional_encoding.table_LD
    products = table_LD @ table_LD.T
    for distance in (0, 1, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-7)
    assert tiny(d_model=d_model, nhead=1, positional_encoding="sinusoidal")(rows()).shape == (B, L, V)


# sequences


def test_mean_is_over_tokens_and_flatten_ignores_padding():
    mean = tiny(embedding_agg="mean", num_classes=3)
    ids_BL, mask_BL = rows(), padding()
    logits = mean(ids_BL, mask_BL)
    assert logits.shape == (B, 3)
    for b, length in enumerate(mask_BL.sum(1).tolist()):
        torch.testing.assert_close(logits[b : b + 1], mean(ids_BL[b : b + 1, :length]), atol=1e-6, rtol=0)
    flatten = tiny(embedding_agg="flatten", num_classes=3)
    other_BL = torch.where(mask_BL.bool(), ids_BL, (ids_BL + 1) % V)
    torch.testing.assert_close(flatten(ids_BL, mask_BL), flatten(other_BL, mask_BL), atol=1e-6, rtol=0)


def test_softmax_output_is_the_softmax_of_the_logits():
    torch.manual_seed(1)
    logits = tiny(embedding_agg="mean", num_classes=3)
    torch.manual_seed(1)
    probabilities = tiny(embedding_agg="mean", num_classes=3, decoder_output_activation="softmax")
    ids_BL = rows()
    torch.testing.assert_close(probabilities(ids_BL), logits(ids_BL).softmax(-1))


def test_ffnn_without_activation_is_linear():
    ffnn = FFNN(4, (6, 5), 3, "identity")
    x, y = torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    torch.testing.assert_close(ffnn(x + y) + ffnn(torch.zeros(4)), ffnn(x) + ffnn(y))


# the start


@pytest.mark.parametrize("options", [{}, {"norm_first": False}, {"d_model": 512}, {"decoder_hidden_sizes": (64,)}])
@pytest.mark.parametrize("vocab_size", [5, 30_000])
def test_first_loss_is_log_v(options, vocab_size):
    model = TransformerClassifier(vocab_size, 16, **{"num_layers": 2, **options})
    ids_BL = torch.randint(vocab_size, (16, 16))
    loss = F.cross_entropy(model(ids_BL).flatten(0, 1), torch.randint(vocab_size, (256,)))
    assert abs(loss.item() / math.log(vocab_size) - 1) < 0.05


def test_builds_on_meta():
    with torch.device("meta"):
        model = TransformerClassifier(30_522, 512, d_model=768, num_layers=12, nhead=12, dim_feedforward=3072)
        logits = model(torch.zeros(2, 512, dtype=torch.long), None, torch.zeros(2, 3, dtype=torch.long))
    assert logits.shape == (2, 3, 30_522)
    assert all(p.is_meta for p in model.parameters())


CONF = Path(__file__).parents[2] / "conf/model"


def test_the_yaml_shows_every_setting_and_its_default():
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "transformer.yaml"))
    parameters = inspect.signature(TransformerClassifier).parameters
    not_in_a_yaml = ("vocab_size", "seq_len", "num_classes", "separate_documents")
    defaults = {k: p.default for k, p in parameters.items() if k not in not_in_a_yaml} | SIZES[None]
    assert settings.pop("_target_") == f"{TransformerClassifier.__module__}.{TransformerClassifier.__name__}"
    assert settings == {**defaults, "decoder_hidden_sizes": []}
    TransformerClassifier(V, L, **settings).check_masked_lm()


# dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_share_mean_and_gradient(p, dtype):
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    kept = y != 0
    n = x.numel()
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6  # of the scale itself
    assert abs(y.double().mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / n) + rounding
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())
    neighbours = (kept[:, 1:] & kept[:, :-1]).double().mean()  # four elements share a random number: still independent
    assert abs(float(neighbours) - (1 - p) ** 2) < 0.005


def test_dropout_follows_torchs_seed():
    x, dropout = torch.ones(33, 7), Dropout(0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(dropout(x), dropout(x))
    assert dropout.eval()(x) is x


def test_dropout_at_the_edges():
    x = torch.ones(50, 50)
    assert Dropout(0.0)(x) is x
    assert Dropout(1 - 1e-9)(x).isfinite().all()
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


# mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nhead": 3}, r"model\.nhead=3: does not divide model\.d_model=16; heads that do: 1, 2, 4, 8, 16"),
        ({"num_layers": 0}, r"model\.num_layers=0: must be from 1 to 1000"),
        ({"d_model": -4}, r"model\.d_model=-4: must"),
        ({"dim_feedforward": 2.5}, r"model\.dim_feedforward=2\.5: should be a whole number"),
        ({"decoder_hidden_sizes": [8, 0]}, r"model\.decoder_hidden_sizes: 0 must be at least 1"),
        ({"num_classes": 0}, r"model\.num_classes=0: must"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0: must be at least 0 and below 1"),
        ({"dropout": -0.1}, r"model\.dropout=-0\.1: must"),
        ({"activation": "swish"}, r"model\.activation='swish': should be relu or gelu"),
        ({"positional_encoding": "alibi"}, r"model\.positional_encoding='alibi'.*learned or sinusoidal or rotary or none"),
        ({"embedding_agg": "max"}, r"model\.embedding_agg='max'.*mean or flatten or null"),
        ({"decoder_activation": "sin"}, r"model\.decoder_activation='sin'.*relu or gelu or tanh or identity"),
        ({"decoder_output_activation": "max"}, r"model\.decoder_output_activation='max'.*identity or softmax or .* or null"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(ValueError, match=r"num_layers(.|\n)*nhead(.|\n)*dropout(.|\n)*activation"):
        tiny(num_layers=0, nhead=0, dropout=2, activation="swish")


def test_rows_must_fit():
    with pytest.raises(ValueError, match="at most 9"):
        tiny()(torch.zeros(1, L + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="exactly 9 positions"):
        tiny(embedding_agg="flatten")(torch.zeros(1, L - 1, dtype=torch.long))
    with pytest.raises(ValueError, match="one output a sequence"):
        tiny(embedding_agg="mean")(rows(), None, torch.zeros(B, 1, dtype=torch.long))


def test_masked_lm_needs_logits_at_each_position():
    tiny().check_masked_lm()
    tiny(decoder_output_activation="identity").check_masked_lm()
    for agg in ("mean", "flatten"):
        with pytest.raises(ValueError, match=rf"model\.embedding_agg={agg}: merges .* set model\.embedding_agg=null"):
            tiny(embedding_agg=agg).check_masked_lm()
    for activation in ("softmax", "log_softmax", "sigmoid"):
        with pytest.raises(ValueError, match=rf"decoder_output_activation={activation}: .* applies the softmax itself"):
            tiny(decoder_output_activation=activation).check_masked_lm()


@pytest.mark.parametrize("padded", [False, True])
def test_attention_in_bfloat16_on_a_cpu_is_that_of_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    torch.manual_seed(0)
    model = TransformerClassifier(11, 24, d_model=32, num_layers=2, nhead=4, dim_feedforward=64)
    input_ids_BL = torch.randint(11, (5, 24))
    mask_BL = (torch.arange(24) < torch.tensor([[24], [1], [7], [23], [12]])).long() if padded else None
    positions_BK = torch.randint(24, (5, 3)) if not padded else torch.zeros(5, 3, dtype=torch.long)

    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits_BKV = model(input_ids_BL, mask_BL, positions_BK)
        logits_BKV.float().square().sum().backward()
        return logits_BKV.float(), model.encoder.layers[0].self_attn.in_proj_weight.grad

    plain = logits_and_gradient()
    monkeypatch.setattr("mlm_lightning.models.attention._SHORT", 0)
    fused = logits_and_gradient()
    for one, other in zip(plain, fused, strict=True):
        # bfloat16 has 8 bits
        assert (one - other).abs().max() < 0.03 * other.abs().max()


@pytest.mark.parametrize("turns_shape", [(7, 4), (2, 1, 7, 4)])
def test_turning_is_a_rotation_of_pairs(turns_shape: tuple[int, ...]) -> None:
    """And so its gradient, which is written down for it."""
    torch.manual_seed(0)
    angles = torch.randn(*turns_shape[:-1], 2)
    x_BHLE = torch.randn(2, 3, 7, 4, requires_grad=True)
    turned = turn(x_BHLE, torch.cat([angles.cos(), angles.sin()], dim=-1))
    pairs = torch.view_as_complex(torch.stack(x_BHLE.detach().chunk(2, dim=-1), dim=-1))
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], dim=-1))
    plain_BHLE = x_BHLE.detach().double().requires_grad_()  # in float64 autograd finds it
    direction = torch.randn(2, 3, 7, 4)
    plain = turn(plain_BHLE, torch.cat([angles.cos(), angles.sin()], dim=-1).double())
    (expected,) = torch.autograd.grad(plain, plain_BHLE, direction.double())
    (found,) = torch.autograd.grad(turned, x_BHLE, direction)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


# documents that share a row

PACKED = [(4, 3, 1), (2, 7), (9,), (1,), (5, 4)]  # documents' lengths by row, of at most L = 9; the rest is padding


def pack(rows_of_lengths: list[tuple[int, ...]], length: int) -> tuple[Tensor, Tensor]:
    """Random ids, and the number of each position's document."""
    numbers = [[i for i, n in enumerate(lengths, 1) for _ in range(n)] for lengths in rows_of_lengths]
    document_BL = torch.tensor([row + [0] * (length - len(row)) for row in numbers])
    return torch.randint(V, document_BL.shape), document_BL


def documents(document_BL: Tensor) -> list[tuple[int, Tensor]]:
    """(row, positions) of each document."""
    return [
        (b, (document_L == number).nonzero().squeeze(1))
        for b, document_L in enumerate(document_BL)
        for number in range(1, int(document_L.max()) + 1)
    ]


def large(model: TransformerClassifier) -> TransformerClassifier:
    """Weights so large that attention and positions matter a lot."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("positional_encoding", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_packed_documents_are_read_as_if_alone(num_layers, positional_encoding, norm_first, bf16):
    settings = {"num_layers": num_layers, "positional_encoding": positional_encoding, "norm_first": norm_first}
    alone = large(tiny(**settings))
    packed = tiny(**settings, separate_documents=True)
    packed.load_state_dict(alone.state_dict())
    ids_BL, document_BL = pack(PACKED, L)
    positions_BK = torch.randint(L, (len(PACKED), 6))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits_BLV, logits_BKV = packed(ids_BL, document_BL), packed(ids_BL, document_BL, positions_BK)
        mixed_BLV = alone(ids_BL, document_BL)
        lone = [alone(ids_BL[b : b + 1, positions]) for b, positions in documents(document_BL)]
    tolerance = {"atol": 0.03 * mixed_BLV.abs().max().item() if bf16 else 1e-5, "rtol": 0}  # bfloat16 has 8 bits
    for (b, positions), logits_1LV in zip(documents(document_BL), lone, strict=True):
        torch.testing.assert_close(logits_BLV[b, positions], logits_1LV[0], **tolerance)
        for k, position in enumerate(positions_BK[b].tolist()):
            if position in positions:
                torch.testing.assert_close(logits_BKV[b, k], logits_1LV[0, position - positions[0]], **tolerance)
    # a model that knows nothing of documents gives other numbers: the comparison can fail
    assert (mixed_BLV - logits_BLV)[document_BL == 2].abs().max() > 4 * tolerance["atol"]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_no_gradient_flows_between_packed_documents(norm_first, with_positions, bf16):
    model = large(tiny(norm_first=norm_first, separate_documents=True))
    ids_BL, document_BL = pack(PACKED, L)
    embedded = []
    model.embedding.register_forward_hook(lambda module, inputs, y: embedded.append(y.requires_grad_()) or y)
    for b, positions in documents(document_BL):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if with_positions:
                positions_BK = positions.expand(len(PACKED), -1)
                logits = model(ids_BL, document_BL, positions_BK)[b]
            else:
                logits = model(ids_BL, document_BL)[b, positions]
        (gradient_BLD,) = torch.autograd.grad(logits.float().square().sum(), embedded[-1])
        reached_BL = gradient_BLD.abs().amax(-1) > 0
        expected_BL = torch.zeros_like(reached_BL)
        expected_BL[b, positions] = True
        assert torch.equal(reached_BL, expected_BL)


@pytest.mark.parametrize("positional_encoding", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("with_positions", [False, True])
def test_a_document_a_row_is_read_as_before(positional_encoding, with_positions):
    plain = large(tiny(positional_encoding=positional_encoding))
    apart = tiny(positional_encoding=positional_encoding, separate_documents=True)
    apart.load_state_dict(plain.state_dict())
    ids_BL, mask_BL = rows(), padding()
    positions_BK = torch.stack([torch.randint(length, (3,)) for length in mask_BL.sum(1).tolist()]) if with_positions else None
    for each_BL in (mask_BL, mask_BL.bool(), mask_BL.float()):
        difference = apart(ids_BL, each_BL, positions_BK) - plain(ids_BL, each_BL, positions_BK)
        assert (difference if with_positions else difference[mask_BL == 1]).abs().max() < 1e-5
    assert torch.equal(apart(ids_BL, None, positions_BK), plain(ids_BL, None, positions_BK))


def test_rows_of_padding_alone_are_finite_among_packed_ones():
    model = tiny(separate_documents=True)
    logits = model(rows(), torch.zeros(B, L, dtype=torch.long), torch.zeros(B, 2, dtype=torch.long))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("apart", [False, True])
def test_padded_and_packed_rows_compile_into_one_graph(apart):
    model = tiny(separate_documents=apart).eval()
    ids_BL, document_BL = pack(PACKED, L)
    if not apart:
        document_BL = (document_BL != 0).long()
    positions_BK = torch.randint(L, (len(PACKED), 3))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(ids_BL, document_BL, positions_BK)
    torch.testing.assert_close(compiled(ids_BL, document_BL, positions_BK), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("agg", ["mean", "flatten"])
def test_one_output_a_row_cannot_keep_documents_apart(agg):
    with pytest.raises(
        ValueError, match=rf"^data\.packing=sentence_pack: .*model\.embedding_agg={agg} .* cannot keep documents"
    ):
        tiny(embedding_agg=agg, separate_documents=True)


# rotary positions, windows, sizes

MODERN = {
    "activation": "geglu",
    "embedding_norm": True,
    "bias": False,
    "positional_encoding": "rotary",
    "tie_embeddings": True,
    "decoder_hidden_sizes": "d_model",
    "decoder_activation": "gelu",
    "decoder_norm": True,
}


def test_turned_queries_and_keys_know_distances_alone():
    rotary, generator = Rotary(64, 8, 100.0), torch.Generator().manual_seed(0)
    query_11E, key_11E = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def product(i, j):
        query, key = (turn(x, rotary.at(64, torch.tensor([[at]]), None)) for x, at in ((query_11E, i), (key_11E, j)))
        return (query * key).sum()

    for i, j in ((0, 0), (3, 1), (1, 3), (0, 20)):
        assert_close(product(i + 40, j + 40), product(i, j), atol=1e-5, rtol=0)
    assert not torch.isclose(product(0, 5), product(5, 0), atol=1e-2)
    assert_close(turn(query_11E, rotary.at(64, torch.tensor([[0]]), None)), query_11E)


def test_turns_do_not_depend_on_the_precision_of_what_is_turned():
    # bfloat16 has 8 bits: as a number of it, position 257 is 256
    turns = Rotary(512, 8, 10_000.0).at(512, None, None)
    x_BHLE = torch.ones(1, 1, 512, 8)
    error = (turn(x_BHLE.bfloat16(), turns).float() - turn(x_BHLE, turns)).abs().max()
    assert turn(x_BHLE.bfloat16(), turns).dtype == torch.bfloat16
    assert error < 0.01


@pytest.mark.parametrize("at_positions", [False, True])
def test_a_window_hides_what_is_further_away(at_positions):
    """Layer 0 looks at everything, layer 1 at two positions on either side: its own keys tell which."""
    model = TransformerClassifier(
        V, 12, d_model=8, num_layers=2, nhead=2, attention_window=4, global_every_n_layers=2, **MODERN
    )
    assert model.encoder.is_local == [False, True]
    first = model.encoder.layers[0]
    with torch.no_grad():  # layer 0 passes its input on
        first.self_attn.out_proj.weight.zero_()
        first.linear2.weight.zero_()
    x_BLD = torch.randn(1, 12, 8, requires_grad=True)
    positions_BK = torch.tensor([[5, 9]]) if at_positions else None
    output = model.encoder(x_BLD, positions_BK=positions_BK)
    (output[0, 0 if at_positions else 5] @ torch.arange(8.0)).backward()
    assert x_BLD.grad[0].any(-1).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_far_from_any_token_is_finite(dtype):
    model = TransformerClassifier(V, 32, d_model=8, num_layers=4, nhead=2, attention_window=4, **MODERN).to(dtype)
    ids_BL, mask_BL = torch.randint(V, (3, 32)), torch.zeros(3, 32, dtype=torch.long)
    mask_BL[0, :3], mask_BL[1, :] = 1, 1
    logits_BLV = model(ids_BL, mask_BL)
    assert logits_BLV.isfinite().all()
    logits_BLV.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if dtype == torch.float32:  # and tokens do not see it
        alone_BLV = model(ids_BL[:1, :3])
        assert_close(logits_BLV[:1, :3], alone_BLV, atol=1e-5, rtol=0)


def test_modern_rows_of_several_documents_are_rows_of_their_own():
    model = TransformerClassifier(
        V, 20, d_model=16, num_layers=4, nhead=2, attention_window=6, separate_documents=True, **MODERN
    ).eval()
    ids_BL = torch.randint(V, (1, 20))
    document_BL = torch.tensor([[1] * 7 + [2] * 9 + [0] * 4])
    together_BLV = model(ids_BL, document_BL)
    assert_close(together_BLV[:, :7], model(ids_BL[:, :7]), atol=1e-5, rtol=0)
    assert_close(together_BLV[:, 7:16], model(ids_BL[:, 7:16]), atol=1e-5, rtol=0)
    positions_BK = torch.tensor([[1, 8, 15]])
    assert_close(model(ids_BL, document_BL, positions_BK), together_BLV[:, [1, 8, 15]], atol=1e-5, rtol=0)


def test_a_size_is_what_the_keys_leave_open():
    with torch.device("meta"):
        mini = TransformerClassifier(V, L, size="mini")
        wider = TransformerClassifier(V, L, size="mini", d_model=512)
        default = TransformerClassifier(V, L)
    assert (mini.embedding.embedding_dim, len(mini.encoder.layers)) == (256, 4)
    assert (wider.embedding.embedding_dim, len(wider.encoder.layers)) == (512, 4)
    assert (default.embedding.embedding_dim, len(default.encoder.layers)) == (64, 4)


def test_tied_embeddings_are_one_matrix():
    model = TransformerClassifier(V, L, d_model=16, num_layers=1, nhead=2, **MODERN)
    assert model.decoder.head.weight is model.embedding.weight
    model(torch.randint(V, (2, L))).sum().backward()
    assert sum(parameter is model.embedding.weight for parameter in model.parameters()) == 1
    assert all(name.endswith("decoder.head.bias") or "bias" not in name for name, _ in model.named_parameters())
