import itertools

import numpy as np
import pytest
import torch

from mlm_lightning.data.languages import oracle, upward_downward
from mlm_lightning.data.languages.tree import TreeSource


def leaf_distribution(M, depth, filter_level):
    """The probability of every row, shape (q,) * 2^depth: every symbol of every node above the leaves is enumerated."""
    q = len(M)

    def expand(symbols):  # of one level → {symbols of the next level: probability}
        nodes = [[(b, c, M[a, b, c]) for b in range(q) for c in range(q) if M[a, b, c] > 0] for a in symbols]
        return [(sum((n[:2] for n in nodes_), ()), np.prod([n[2] for n in nodes_])) for nodes_ in itertools.product(*nodes)]

    def grow(start, levels):
        level = {start: 1.0}
        for _ in range(levels):
            below = {}
            for symbols, probability in level.items():
                for children, p in expand(symbols):
                    below[children] = below.get(children, 0.0) + probability * p
            level = below
        return level

    def dense(row_probs, length):
        array = np.zeros((q,) * length)
        for row, probability in row_probs.items():
            array[row] = probability
        return array

    if filter_level == 0:
        return sum(dense(grow((a,), depth), 2**depth) for a in range(q)) / q
    num_nodes = 2**filter_level
    below = np.stack([dense(grow((x,), depth - filter_level), 2 ** (depth - filter_level)).ravel() for x in range(q)])
    total = 0.0
    for a in range(q):
        nodes = dense(grow((a,), filter_level), num_nodes)
        joint = np.ones(1)
        for v in range(num_nodes):
            marginal = nodes.sum(axis=tuple(i for i in range(num_nodes) if i != v))
            joint = np.multiply.outer(joint, marginal @ below).ravel()
        total = total + joint / q
    return total.reshape((q,) * 2**depth)


def brute_force_posterior(joint, tokens, observed):
    """Conditions the distribution of all rows on the observed tokens: shape (L, q)."""
    q, length = joint.shape[0], joint.ndim
    possible = joint[tuple(slice(t, t + 1) if o else slice(None) for t, o in zip(tokens, observed, strict=True))]
    probs = np.zeros((length, q))
    for i in range(length):
        marginal = possible.sum(axis=tuple(j for j in range(length) if j != i)) / possible.sum()
        probs[i, slice(tokens[i], tokens[i] + 1) if observed[i] else slice(None)] = marginal
    return probs


# sigma 0: all rules alike
SIGMAS = {(2, 2): 0.0, (2, 3): 2.0, (4, 2): 3.0}
CASES = [(q, depth, k, SIGMAS.get((q, depth), 1.0)) for q in (2, 3, 4) for depth in (1, 2, 3) for k in range(depth + 1)]


@pytest.mark.parametrize(("num_symbols", "depth", "filter_level", "sigma"), CASES)
def test_posterior_is_that_of_brute_force_enumeration(num_symbols, depth, filter_level, sigma):
    source = TreeSource(depth, num_symbols, sigma, filter_level, grammar_seed=2)
    joint = leaf_distribution(source.grammar.M.numpy(), depth, filter_level)
    assert joint.sum() == pytest.approx(1)
    num_rows = 24
    tokens_BL = source.rows("train")[torch.arange(num_rows)]
    rate_B1 = torch.linspace(0, 1, num_rows)[:, None]  # from all masked to none masked
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < rate_B1
    input_ids_BL = tokens_BL.masked_fill(~observed_BL, num_symbols)
    probs_BLV = source.oracle().posterior(input_ids_BL, observed_BL)
    assert (probs_BLV[..., num_symbols] == 0).all()
    truth = [brute_force_posterior(joint, t, o) for t, o in zip(tokens_BL.tolist(), observed_BL.tolist(), strict=True)]
    np.testing.assert_allclose(probs_BLV[..., :num_symbols].numpy(), truth, atol=1e-12, rtol=0)


@pytest.mark.parametrize("filter_level", [0, 1, 4, 8])
def test_deep_trees_stay_finite_and_normalised(filter_level):
    source = TreeSource(depth=8, num_symbols=8, filter_level=filter_level)
    tokens_BL = source.rows("val")[torch.arange(40)]
    generator = torch.Generator().manual_seed(0)
    for rate in (0.0, 0.02, 0.3, 1.0):
        observed_BL = torch.rand(tokens_BL.shape, generator=generator) < rate
        probs_BLV = source.oracle().posterior(tokens_BL, observed_BL)
        torch.testing.assert_close(probs_BLV.sum(-1), torch.ones_like(tokens_BL, dtype=torch.float64))
        one_hot_BLV = torch.nn.functional.one_hot(tokens_BL, 9).double()
        assert torch.equal(probs_BLV[observed_BL], one_hot_BLV[observed_BL])
        assert (probs_BLV.gather(2, tokens_BL[..., None]) > 0).all()


@pytest.mark.parametrize(
    ("depth", "filter_level", "sigma"), [(12, 0, 1.0), (12, 6, 3.0), (12, 12, 3.0), (16, 16, 1.0), (12, 3, 20.0)]
)
def test_thousands_of_leaves_do_not_underflow(depth, filter_level, sigma):
    source = TreeSource(depth, num_symbols=3, sigma=sigma, filter_level=filter_level)
    tokens_BL = source.rows("val")[torch.arange(2)]
    observed_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    observed_BL[:, ::7] = False
    probs_BLV = source.oracle().posterior(tokens_BL, observed_BL)
    assert probs_BLV.isfinite().all()
    torch.testing.assert_close(probs_BLV.sum(-1), torch.ones_like(tokens_BL, dtype=torch.float64))


def test_the_posterior_is_calibrated():
    # the mean of the probability that it gives to the truth is the mean of Σ p², whatever the masks: no enumeration needed
    source = TreeSource(depth=6, num_symbols=4, filter_level=2, train_size=4000)
    tokens_BL = source.rows("train")[torch.arange(4000)]
    hidden_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    probs_NV = source.oracle().posterior(tokens_BL, ~hidden_BL)[hidden_BL]
    of_truth_N = probs_NV.gather(1, tokens_BL[hidden_BL][:, None])[:, 0]
    assert of_truth_N.mean().item() == pytest.approx((probs_NV**2).sum(1).mean().item(), abs=0.005)
    entropy_N = -torch.xlogy(probs_NV, probs_NV).sum(1)
    assert -of_truth_N.log().mean().item() == pytest.approx(entropy_N.mean().item(), abs=0.02)


@pytest.mark.parametrize("filter_level", [0, 2, 5])
def test_how_it_is_computed_does_not_matter(monkeypatch, filter_level):
    """A few rows at a time, and a few nodes of a level."""
    source = TreeSource(depth=5, num_symbols=3, filter_level=filter_level, train_size=40)
    tokens_BL = source.rows("train")[torch.arange(40)]
    rate_B1 = torch.linspace(0, 1, 40).unsqueeze(1)  # some rows all observed, some all hidden
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= rate_B1
    expected_BLV = source.oracle().posterior(tokens_BL, observed_BL)
    monkeypatch.setattr(upward_downward, "_ELEMENTS", 64)
    torch.testing.assert_close(source.oracle().posterior(tokens_BL, observed_BL), expected_BLV, rtol=0, atol=1e-14)
    monkeypatch.setattr(oracle, "_ELEMENTS", {"cpu": 256})
    torch.testing.assert_close(source.oracle().posterior(tokens_BL, observed_BL), expected_BLV, rtol=0, atol=1e-14)


def test_the_hidden_tokens_and_the_batch_do_not_matter():
    source = TreeSource(depth=5, num_symbols=4, filter_level=2)
    tokens_BL = source.rows("train")[torch.arange(9000)]  # more rows than are worked on at once
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    probs_BLV = source.oracle().posterior(tokens_BL, observed_BL)
    garbage_BL = tokens_BL.where(observed_BL, torch.full_like(tokens_BL, -100))
    assert torch.equal(source.oracle().posterior(garbage_BL, observed_BL), probs_BLV)
    some_B = torch.tensor([8999, 17, 2500])
    torch.testing.assert_close(source.oracle().posterior(tokens_BL[some_B], observed_BL[some_B]), probs_BLV[some_B])
    assert source.oracle().posterior(tokens_BL[:0], observed_BL[:0]).shape == (0, 32, 5)


@pytest.mark.parametrize("filter_level", [0, 1, 3])
def test_impossible_evidence_names_the_first_row(filter_level):
    # every pair has a parent, so every row is possible, unless probabilities underflow: an enormous sigma leaves q rows
    source = TreeSource(depth=3, num_symbols=4, sigma=1e6, filter_level=filter_level, train_size=20_000)
    tokens_BL = source.rows("train")[torch.arange(20_000)]
    possible_RL = tokens_BL.unique(dim=0)
    impossible_L = possible_RL[0].where(torch.arange(8) < 7, (possible_RL[0] + 1) % 4)
    assert len(possible_RL) <= 4
    assert not (possible_RL == impossible_L).all(1).any()
    observed_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    for row in (19_990, 12_345):
        tokens_BL[row] = impossible_L
        with pytest.raises(ValueError, match=f"row {row} of the batch: .* probability zero"):
            source.oracle().posterior(tokens_BL, observed_BL)


@pytest.mark.parametrize("filter_level", [0, 1, 2])
def test_evidence_that_underflows_raises_and_is_never_nan(filter_level):
    # with an enormous sigma every symbol has one rule: q rows for q roots, all others impossible
    source = TreeSource(depth=2, num_symbols=3, sigma=1e6, filter_level=filter_level)
    tokens_BL = torch.cartesian_prod(*[torch.arange(3)] * 4)
    observed_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    possible = {tuple(row) for row in source.rows("train")[torch.arange(1000)].tolist()}
    assert len(possible) <= 3
    for row_L in tokens_BL:
        if tuple(row_L.tolist()) in possible:
            assert source.oracle().posterior(row_L[None], observed_BL[:1]).isfinite().all()
        else:
            with pytest.raises(ValueError, match="row 0 of the batch"):
                source.oracle().posterior(row_L[None], observed_BL[:1])


def test_what_is_no_row_is_refused():
    exact = TreeSource(depth=2, num_symbols=3).oracle()
    observed_BL = torch.ones(2, 4, dtype=torch.bool)
    for token in (3, -1):
        tokens_BL = torch.zeros(2, 4, dtype=torch.int64).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(token))
        with pytest.raises(ValueError, match=f"row 1 of the batch: the token {token} observed at position 2 is no symbol"):
            exact.posterior(tokens_BL, observed_BL)
    with pytest.raises(ValueError, match=r"\(2, 5\): rows have 4 tokens"):
        exact.posterior(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="differ in shape"):
        exact.posterior(torch.zeros(2, 4, dtype=torch.int64), observed_BL[:1])
