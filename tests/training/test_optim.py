"""Schedules against closed forms; every parameter in exactly one group."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from mlm_lightning.config.build import build_optimizer
from mlm_lightning.config.settings import Node
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training.optim import WSD, Constant, Cosine, Linear, Schedule, make_optimizer, parameter_groups, scheduler

KINDS: list[Callable[..., Schedule]] = [Constant, Linear, Cosine, WSD]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
FALLING = pytest.mark.parametrize("kind", [Linear, Cosine, WSD])


def factors(schedule: Schedule, total_steps: int) -> list[float]:
    return [schedule(step, total_steps) for step in range(total_steps + 1)]


@EVERY_KIND
def test_warm_up_is_a_straight_line_to_one(kind):
    values = factors(kind(warmup_steps=9), 100)
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[9] == 1.0


@EVERY_KIND
def test_without_warm_up_the_first_step_has_the_full_rate(kind):
    assert kind()(0, 100) == 1.0


@EVERY_KIND
def test_a_share_is_that_many_steps(kind):
    assert factors(kind(warmup_steps=0.1), 200) == factors(kind(warmup_steps=20), 200)


def test_a_decay_share_is_that_many_steps():
    """Of all steps, not of those after the warm-up."""
    assert factors(WSD(0.1, decay_steps=0.25), 100) == factors(WSD(10, decay_steps=25), 100)


def test_constant_stays():
    assert set(factors(Constant(), 50)) == {1.0}


def test_linear_closed_form():
    assert factors(Linear(final=0.2), 10) == pytest.approx([1 - 0.08 * step for step in range(11)])


def test_cosine_closed_form():
    expected = [0.1 + 0.9 * math.cos(math.pi * step / 40) ** 2 for step in range(21)]  # (1 + cos 2x) / 2 = cos² x
    assert factors(Cosine(final=0.1), 20) == pytest.approx(expected)


def test_wsd_is_stable_and_then_falls_in_a_straight_line():
    values = factors(WSD(warmup_steps=10, decay_steps=20, final=0.5), 100)
    assert set(values[10:81]) == {1.0}
    assert values[80:] == pytest.approx([1 - 0.5 * step / 20 for step in range(21)])


@FALLING
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
def test_ends_at_final_and_never_rises_after_warm_up(kind, final):
    values = factors(kind(warmup_steps=7, final=final), 60)
    assert values[-1] == pytest.approx(final, abs=1e-12)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values[7:]))
    assert kind(warmup_steps=7, final=final)(1000, 60) == pytest.approx(final, abs=1e-12)


@EVERY_KIND
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_every_factor_of_a_very_short_run_lies_between_zero_and_one(kind, total_steps):
    for warmup in (0, 0.5, 5):
        assert all(0 <= factor <= 1 for factor in factors(kind(warmup_steps=warmup), total_steps))
        assert kind(warmup_steps=warmup)(0, total_steps) > 0


@EVERY_KIND
@pytest.mark.parametrize("warmup", [-1, 1.5])
def test_an_impossible_warm_up_is_named(kind, warmup):
    with pytest.raises(ValueError, match=rf"schedule.warmup_steps={warmup}.*share"):
        kind(warmup_steps=warmup)


@FALLING
@pytest.mark.parametrize("final", [-0.1, 1.1])
def test_an_impossible_final_factor_is_named(kind, final):
    with pytest.raises(ValueError, match=rf"schedule.final={final}.*from 0 to 1"):
        kind(final=final)


def test_an_impossible_decay_is_named():
    with pytest.raises(ValueError, match=r"schedule\.decay_steps=0"):
        WSD(decay_steps=0)


# parameter groups


def encoder() -> nn.Module:
    return TransformerClassifier(vocab_size=5, seq_len=4, d_model=8, num_layers=2, nhead=2, dim_feedforward=16)


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = encoder()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()} - {id(frozen)}


def test_a_tied_weight_is_listed_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    assert sum(len(group["params"]) for group in parameter_groups(model)) == 2


def test_biases_and_norms_do_not_decay_and_the_rest_does():
    model = encoder()
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    assert norms
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if name.endswith("bias") or id(parameter) in norms else 0.1), name


@pytest.mark.parametrize(("arguments", "decay"), [({}, 0.01), ({"weight_decay": 0.3}, 0.3), ({"weight_decay": 0.0}, 0.0)])
def test_an_optimizer_without_weight_decay_has_its_classs_own(arguments, decay):
    optim = Node("torch.optim.AdamW", {"lr": 0.1, **arguments})
    optimizer = build_optimizer(optim, "32-true")(parameter_groups(encoder()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0]


def test_weight_decay_shrinks_matrices_alone():
    model = nn.Linear(2, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias, before["bias"])


# learning rates by layer


def rates(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    optimizer = make_optimizer(partial(torch.optim.AdamW, lr=0.4, weight_decay=0.1), model, layer_decay)
    by_parameter = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[p] for name, p in model.named_parameters()}


def test_each_layer_has_its_share_of_the_rate_above_it():
    for name, rate in rates(encoder(), 0.5).items():
        if name.startswith("encoder.layers."):
            assert rate == pytest.approx({"0": 0.1, "1": 0.2}[name.split(".")[2]])
        else:
            assert rate == pytest.approx(0.05 if name.startswith(("embedding", "positional")) else 0.4), name


def test_without_layer_decay_there_are_two_groups_and_one_rate():
    groups = parameter_groups(encoder())
    assert [set(group) for group in groups] == [{"params"}, {"params", "weight_decay"}]
    assert set(rates(encoder(), None).values()) == set(rates(encoder(), 1.0).values()) == {0.4}


def test_a_layers_biases_and_norms_do_not_decay_either():
    model = encoder()
    optimizer = make_optimizer(partial(torch.optim.AdamW, lr=0.4, weight_decay=0.1), model, 0.9)
    assert len(optimizer.param_groups) == 2 * 4 - 1  # embeddings have no biases
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_schedule_moves_each_layers_own_rate():
    optimizer = make_optimizer(partial(torch.optim.SGD, lr=0.4), encoder(), 0.5)
    moving, first = scheduler(optimizer, Linear(), 10), [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    moving.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.9 * lr for lr in first])
    assert first[0] == max(first) == 0.4


# torch's scheduler


def test_each_step_is_taken_at_its_own_factor():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(parameter_groups(model), lr=0.4)
    schedule = Cosine(warmup_steps=3)
    moving = scheduler(optimizer, schedule, 10)
    for step in range(10):
        assert {group["lr"] for group in optimizer.param_groups} == {0.4 * schedule(step, 10)}
        optimizer.step()
        moving.step()


def test_the_scheduler_continues_from_its_state():
    def fresh():
        return scheduler(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4), Linear(warmup_steps=2), 10)

    whole, first, second = fresh(), fresh(), fresh()
    for moving, steps in ((whole, 7), (first, 4)):
        for _ in range(steps):
            moving.optimizer.step()
            moving.step()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.optimizer.step()
        second.step()
    assert second.get_last_lr() == whole.get_last_lr()
