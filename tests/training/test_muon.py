"""Muon and AdamW in one: each matrix gets torch's own update of one, and one state dict continues both."""

import io

import pytest
import torch
from torch import Tensor, nn

from mlm_lightning.errors import ConfigError
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training import muon
from mlm_lightning.training.muon import MuonWithAdamW
from mlm_lightning.training.optim import Linear, make_optimizer, scheduler
from mlm_lightning.training.parameters import hidden_matrices


def model_of(seed: int = 0) -> TransformerClassifier:
    torch.manual_seed(seed)
    return TransformerClassifier(vocab_size=7, seq_len=6, d_model=8, num_layers=2, nhead=2, dim_feedforward=16)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens_BL = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens_BL).square().mean().backward()
        optimizer.step()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_each_matrix_moves_as_by_torchs_muon_and_the_rest_as_by_its_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values are three matrices."""
    monkeypatch.setattr(muon, "cpu_multiplies_bf16", lambda: True)
    both, apart = model_of(), model_of()
    keys = {"lr": 0.02, "weight_decay": 0.1}
    of_adamw = {"betas": (0.8, 0.9), "eps": 1e-6}
    optimizer = make_optimizer(lambda params, matrices: MuonWithAdamW(params, matrices=matrices, **keys, **of_adamw), both)
    counts = hidden_matrices(apart)
    views = {p: [part.detach() for part in p.detach().chunk(count)] for p, count in counts.items()}
    reference = torch.optim.Muon([v for parts in views.values() for v in parts], **keys, adjust_lr_fn="match_rms_adamw")
    others = [p for p in apart.parameters() if p not in counts]
    groups = [
        {"params": [p for p in others if p.ndim == 2]},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, **keys, **of_adamw)
    for step in range(3):
        train(both, optimizer, range(step, step + 1))
        apart.zero_grad()
        train(apart, adamw, range(step, step + 1))
        for parameter, parts in views.items():
            for part, gradient in zip(parts, parameter.grad.chunk(len(parts)), strict=True):
                part.grad = gradient
        reference.step()
    assert len(counts) == 8
    for (name, one), other in zip(both.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_bfloat16_instructions_the_iteration_is_torchs_in_float32(
    nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "cpu_multiplies_bf16", lambda: False)
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    before, average = weight.detach().clone(), torch.zeros(6, 4)
    optimizer = MuonWithAdamW([weight], lr=0.1, weight_decay=0.5, momentum=0.9, nesterov=nesterov, ns_steps=3)
    a, b, c = optimizer.param_groups[0]["ns_coefficients"]
    for seed in (1, 2):
        weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        average = 0.9 * average + 0.1 * weight.grad
        x = 0.1 * weight.grad + 0.9 * average if nesterov else average
        x = x / x.norm()
        for _ in range(3):
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        before = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * x
    torch.testing.assert_close(weight.detach(), before, atol=1e-5, rtol=0)


def test_an_update_is_orthogonal_and_as_large_as_one_of_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "cpu_multiplies_bf16", lambda: False)
    weight = nn.Parameter(torch.zeros(3 * 16, 16))
    optimizer = MuonWithAdamW([weight], lr=1.0, weight_decay=0.0, matrices={weight: 3})
    weight.grad = (
        torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3]).repeat_interleave(16)[:, None]
    )
    optimizer.step()
    for update in weight.detach().chunk(3):  # whatever the size of its gradient
        singular = torch.linalg.svdvals(update / (0.2 * 16**0.5))
        assert 0.6 < singular.min() <= singular.max() < 1.3
        assert update.square().mean().sqrt() == pytest.approx(0.2, abs=0.04)


def test_it_continues_bitwise_from_its_state_read_without_executing_anything() -> None:
    def fresh():
        model = model_of()
        optimizer = make_optimizer(MuonWithAdamW, model, layer_decay=0.5)
        return model, optimizer, scheduler(optimizer, Linear(warmup_steps=2), 20)

    def run(model, optimizer, moving, steps):
        for step in steps:
            train(model, optimizer, range(step, step + 1))
            moving.step()

    whole, first, second = fresh(), fresh(), fresh()
    run(*whole, range(7))
    run(*first, range(3))
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    for each, state in zip(second, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    run(*second, range(3, 7))
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert [group["lr"] for group in whole[1].param_groups] == [group["lr"] for group in second[1].param_groups]


def test_all_groups_are_its_own_and_each_parameter_is_in_one() -> None:
    model = model_of()
    optimizer = make_optimizer(MuonWithAdamW, model)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    assert {p for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]} == set(
        hidden_matrices(model)
    )


def test_a_parameter_without_a_gradient_stays() -> None:
    model = model_of()
    optimizer = make_optimizer(MuonWithAdamW, model)
    before = copied(model)
    model.encoder.layers[0].linear1.weight.grad = torch.ones(16, 8)
    optimizer.step()
    assert [name for name, p in model.named_parameters() if not torch.equal(p, before[name])] == [
        "encoder.layers.0.linear1.weight"
    ]


def test_a_model_without_hidden_matrices_is_trained_by_adamw() -> None:
    models = [nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    train(
        models[0],
        make_optimizer(lambda params, matrices: MuonWithAdamW(params, lr=0.1, matrices=matrices), models[0]),
        range(3),
    )
    train(models[1], make_optimizer(lambda params: torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.98)), models[1]), range(3))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("key", "value"), [("ns_steps", 0), ("momentum", 1.0), ("lr", 0.0), ("weight_decay", -1.0), ("nesterov", 3)]
)
def test_what_is_out_of_range_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.{key}={value}"):
        MuonWithAdamW([nn.Parameter(torch.zeros(2, 2))], **{key: value})
