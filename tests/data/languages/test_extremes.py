"""Parameters at the ends of their ranges, against plain sums in NumPy and numbers of many digits."""

from decimal import Decimal, localcontext
from math import exp, log, log1p

import numpy as np
import pytest
import torch

from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.randomness import Stream, dirichlet

try:
    from mlm_lightning.data.languages.stationary import stationary
except ImportError:
    from mlm_lightning.data.languages.chain import stationary


# stationary distributions


def long_run(transition_SS):
    """Where the chain that stays with chance ½ comes from the uniform distribution: 2^1100 steps, more than any rate in
    float64 needs. There is no subtraction, so that no digit is lost; rows are divided by their sums, lest errors double."""
    steps_SS = (np.eye(len(transition_SS)) + transition_SS) / 2
    for _ in range(1100):
        steps_SS = steps_SS @ steps_SS
        steps_SS /= steps_SS.sum(1, keepdims=True)
    return steps_SS.mean(0)


def assert_stationary(transition_SS):
    found_S = stationary(transition_SS)
    assert (found_S >= 0).all()
    assert float(found_S.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found_S @ transition_SS, found_S, atol=1e-12, rtol=0)


def assert_long_run(transition_SS):
    """That is more: where parts of a chain are hardly ever left, other distributions are stationary within 1e-12, too."""
    transition_SS = torch.as_tensor(transition_SS, dtype=torch.float64)
    assert_stationary(transition_SS)
    np.testing.assert_allclose(stationary(transition_SS).numpy(), long_run(transition_SS.numpy()), atol=1e-12, rtol=0)


def of_contexts(next_CQ):
    """The transitions between the contexts of a Markov chain of any order."""
    num_contexts, q = next_CQ.shape
    transition_CC = torch.zeros(num_contexts, num_contexts, dtype=torch.float64)
    following_CQ = (torch.arange(num_contexts)[:, None] * q + torch.arange(q)) % num_contexts
    return transition_CC.scatter_(1, following_CQ, next_CQ)


@pytest.mark.parametrize("concentration", [0.01, 0.05, 1e6])
@pytest.mark.parametrize(("num_symbols", "order"), [(4, 2), (3, 3), (8, 1)])
def test_sharp_markov_chains_have_their_stationary_distribution(num_symbols, order, concentration):
    for seed in range(200):  # 179 is one of those that fall into parts which are left once in 1e16 steps
        next_CQ = dirichlet(concentration, (num_symbols**order, num_symbols), seed, Stream.GRAMMAR)
        assert_stationary(of_contexts(next_CQ))


def test_sharp_mixtures_have_their_stationary_distributions():
    for seed in range(60):  # 30 is one of those of which the balance is singular
        for transition_QQ in dirichlet(0.01, (8, 4, 4), seed, Stream.GRAMMAR):
            assert_stationary(transition_QQ)


A, B, C = [[0.9, 0.1], [0.4, 0.6]], [[0.0, 1.0], [1.0, 0.0]], [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
SEVERAL = {
    "one state": np.ones((1, 1)),
    "all stay": np.eye(4),
    "blocks": np.block([[np.array(A), np.zeros((2, 3))], [np.zeros((3, 2)), np.array(C)]]),
    "a cycle": np.roll(np.eye(5), 1, axis=1),
    "two cycles": np.block([[np.array(B), np.zeros((2, 3))], [np.zeros((3, 2)), np.roll(np.eye(3), 1, axis=1)]]),
    "one is absorbed": [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.7, 0.3]],
    "one of two absorbs": [[1.0, 0.0, 0.0, 0.0], [0.2, 0.5, 0.3, 0.0], [0.0, 0.1, 0.0, 0.9], [0.0, 0.0, 0.0, 1.0]],
    "into a block or a cycle": [
        [0.1, 0.2, 0.3, 0.4, 0.0],
        *([0.0, *row, 0.0, 0.0] for row in A),
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
    ],
    "left by one alone": [[1.0, 1e-300], [0.0, 1.0]],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_stationary_distributions_are_weighted_by_where_uniform_states_end(name):
    assert_long_run(SEVERAL[name])


@pytest.mark.parametrize(
    "transition_SS",
    [
        [[1 - 1e-15, 1e-15], [1e-14, 1 - 1e-14]],
        [[1.0, 1e-200, 0.0], [0.0, 1.0, 1e-210], [1e-190, 0.0, 1.0]],
        *(of_contexts(dirichlet(0.01, (16, 4), seed, Stream.GRAMMAR)) for seed in (22, 43, 54, 94)),
    ],
    ids=["two", "three", "seed 22", "seed 43", "seed 54", "seed 94"],
)
def test_chains_with_parts_that_are_hardly_left_have_the_distribution_of_the_long_run(transition_SS):
    assert_long_run(transition_SS)


def test_sharp_chains_have_the_distribution_of_the_long_run():
    tables = [of_contexts(dirichlet(0.01, (16, 4), seed, Stream.GRAMMAR)) for seed in range(100)]
    off = [np.abs(stationary(each_CC).numpy() - long_run(each_CC.numpy())).max() for each_CC in tables]
    assert {seed: float(each) for seed, each in enumerate(off) if each > 1e-12} == {}


@pytest.mark.parametrize("seed", [0, 30, 179])
@pytest.mark.parametrize("kind", [MarkovSource, MixtureSource])
def test_rows_of_sharp_chains_are_stationary(kind, seed):
    """Any two tokens in a row are as probable at the start as later on."""
    source = kind(num_symbols=4, concentration=0.01, seq_len=6, grammar_seed=seed)
    pairs_P2 = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    prob_KP = []
    for start in (0, 1, 4):
        tokens_PL = torch.zeros(16, 6, dtype=torch.int64)
        tokens_PL[:, start : start + 2] = pairs_P2
        observed_PL = torch.zeros(16, 6, dtype=torch.bool)
        observed_PL[:, start : start + 2] = True
        prob_KP.append(source.oracle().log_likelihood(tokens_PL, observed_PL).exp())
    for prob_P in prob_KP:
        assert float(prob_P.sum()) == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(prob_P, prob_KP[0], atol=1e-12, rtol=0)
    assert source.entropy_rate() >= 0
    tokens_BL = source.rows("val")[torch.arange(64)]
    assert source.oracle().log_likelihood(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool)).isfinite().all()


# Ising


def ising_entropy(num_symbols, coupling, field):
    """Of an endless ring, in 200 digits: symbol 0, and q - 1 others that are alike."""
    with localcontext() as context:
        context.prec = 200
        others, half = Decimal(num_symbols - 1), Decimal(field) / 2
        weights = [[Decimal(coupling + field).exp(), half.exp()], [half.exp(), Decimal(coupling).exp()]]
        (a, b), c = weights[0], weights[1][1] + others - 1  # c: one of the others, beside all of them
        largest = (a + c + ((a - c) ** 2 + 4 * b * b * others).sqrt()) / 2
        right = [b * others, largest - a]  # of symbol 0, and of each other one; times `others` where it is one of them
        share = [right[0] ** 2, others * right[1] ** 2]
        zero = [a / largest, b * right[1] / right[0] / largest]  # steps from 0: to 0, and to each other one
        other = [b * right[0] / right[1] / largest, weights[1][1] / largest, 1 / largest]  # to 0, to itself, to a third one
        entropy = share[0] * _entropy((1, zero[0]), (others, zero[1]))
        entropy += share[1] * _entropy((1, other[0]), (1, other[1]), (others - 1, other[2]))
        return float(entropy / sum(share))


def _entropy(*steps):
    return -sum(number * prob * prob.ln() for number, prob in steps if number > 0)


@pytest.mark.parametrize("coupling", [50.0, -50.0])
@pytest.mark.parametrize("field", [0.0, 50.0, -50.0, 1.5])
@pytest.mark.parametrize("num_symbols", [2, 3, 64])
def test_the_entropy_of_strong_couplings_is_finite_and_right(num_symbols, coupling, field):
    expected = ising_entropy(num_symbols, coupling, field)
    assert IsingSource(num_symbols, coupling, field).entropy_rate() == pytest.approx(expected, abs=1e-14, rel=1e-12)


def test_the_closed_form_is_that_of_no_field():
    for coupling in (-3.0, 0.0, 0.7, 50.0):
        flip = 1 / (1 + exp(coupling))
        expected = -(1 - flip) * log1p(-flip) - flip * log(flip)
        assert ising_entropy(2, coupling, 0) == pytest.approx(expected, rel=1e-12)
        assert IsingSource(2, coupling, 0.0).entropy_rate() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("field", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("coupling", [50.0, -50.0])
def test_strong_rings_answer(coupling, field):
    """Three spins of two symbols: eight rows, whose weights span more than float64's digits."""
    rows_RL = torch.cartesian_prod(*[torch.arange(2)] * 3)
    energy_R = coupling * (rows_RL == rows_RL.roll(1, 1)).sum(1).double() + field * (rows_RL == 0).sum(1).double()
    oracle, everything_RL = IsingSource(2, coupling, field, seq_len=3).oracle(), torch.ones_like(rows_RL, dtype=torch.bool)
    log_prob_R = energy_R - energy_R.logsumexp(0)
    found_R = oracle.log_likelihood(rows_RL, everything_RL)
    torch.testing.assert_close(found_R, log_prob_R, atol=1e-12, rtol=1e-12)
    observed_RL = torch.tensor([True, True, False]).expand_as(rows_RL)
    probs_RQ = log_prob_R.view(4, 2).softmax(1).repeat_interleave(2, 0)
    torch.testing.assert_close(oracle.posterior(rows_RL, observed_RL)[:, 2, :2], probs_RQ, atol=1e-14, rtol=1e-12)


# a mixture's evidence from another language


def mixture_log_prob(source, tokens_L, observed_L):
    """By each component's forward pass in logarithms."""
    with np.errstate(divide="ignore"):
        log_step_MQQ = np.log(source.transition_MQQ.numpy())
        log_prob_MQ = np.log([long_run(transition_QQ) for transition_QQ in source.transition_MQQ.numpy()])
    for place, (token, seen) in enumerate(zip(tokens_L.tolist(), observed_L.tolist(), strict=True)):
        if place > 0:
            log_prob_MQ = np.logaddexp.reduce(log_prob_MQ[:, :, None] + log_step_MQQ, axis=1)
        if seen:
            log_prob_MQ[:, np.arange(source.num_symbols) != token] = -np.inf
    return np.logaddexp.reduce(log_prob_MQ, axis=None) - log(len(log_prob_MQ))


def test_a_mixture_answers_about_rows_that_no_component_would_give():
    source = MixtureSource(concentration=0.05, seq_len=1024, grammar_seed=0)
    tokens_L, position = UniformSource(num_symbols=4, seq_len=1024).rows("val")[torch.tensor([1])][0], 500
    oracle, observed_L = source.oracle(), torch.ones(1024, dtype=torch.bool)
    expected = mixture_log_prob(source, tokens_L, observed_L)
    assert expected == pytest.approx(-13330.6, abs=0.05)
    assert float(oracle.log_likelihood(tokens_L[None], observed_L[None])) == pytest.approx(expected, rel=1e-12)

    observed_L[position] = False
    log_prob_Q = [
        mixture_log_prob(source, tokens_L.index_fill(0, torch.tensor(position), s), ~observed_L | True) for s in range(4)
    ]
    probs_Q = torch.tensor(log_prob_Q, dtype=torch.float64).softmax(0)
    probs_V = oracle.posterior(tokens_L[None], observed_L[None])[0, position]
    torch.testing.assert_close(probs_V[:-1], probs_Q, atol=1e-10, rtol=0)  # of a difference of numbers of five digits

    rest_L = torch.rand(1024, generator=torch.Generator().manual_seed(0)) < 0.7
    found = float(oracle.log_likelihood(tokens_L[None], rest_L[None]))
    assert found == pytest.approx(mixture_log_prob(source, tokens_L, rest_L), rel=1e-12)
    component_M = oracle.latents(tokens_L[None], rest_L[None])["component"][0, 0]
    assert float(component_M.sum()) == pytest.approx(1, abs=1e-12)
    drawn_L = oracle.sample(tokens_L[None], rest_L[None], torch.tensor([3]))[0]
    assert torch.equal(drawn_L[rest_L], tokens_L[rest_L])
