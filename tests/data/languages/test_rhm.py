import pickle
from itertools import pairwise, product
from math import log

import pytest
import torch
from joints import rhm

from mlm_lightning.data.languages import upward_downward
from mlm_lightning.data.languages.rhm import RHMSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.testing import check_chain_rule, check_language

SMALL = [
    RHMSource(num_symbols=2, num_rules=1, branching=2, depth=3),
    RHMSource(num_symbols=2, num_rules=2, branching=2, depth=3),  # every row is possible
    RHMSource(num_symbols=3, num_rules=2, branching=2, depth=2, grammar_seed=1),
    RHMSource(num_symbols=3, num_rules=3, branching=2, depth=2, disjoint=False),
    RHMSource(num_symbols=2, num_rules=3, branching=2, depth=3, disjoint=False, grammar_seed=2),
    RHMSource(num_symbols=2, num_rules=2, branching=3, depth=2, grammar_seed=3),
    RHMSource(num_symbols=2, num_rules=5, branching=3, depth=1, disjoint=False),
    RHMSource(num_symbols=4, num_rules=4, branching=5, depth=1),
]
LARGE = [
    RHMSource(num_symbols=8, num_rules=4, depth=12, val_size=32),
    RHMSource(num_symbols=16, num_rules=4, branching=64, depth=2, val_size=16),
    RHMSource(num_symbols=256, num_rules=128, branching=4, depth=3, val_size=32),
    RHMSource(num_symbols=8, num_rules=8, branching=4, depth=6, disjoint=False, val_size=32),
]


def name(source):
    return f"{source.num_symbols}-{source.num_rules}-{source.branching}-{source.depth}-{source.disjoint}"


@pytest.mark.parametrize("small", SMALL, ids=name)
def test_the_oracle_is_that_of_all_trees(small):
    check_language(small, joint=rhm)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE, ids=name)
def test_large_ones_keep_the_identities(large):
    check_language(SMALL[0], large, joint=rhm)


@pytest.mark.parametrize("small", SMALL[2:6], ids=name)
def test_parts_of_a_level_change_nothing(small, monkeypatch):
    tokens_BL = small.rows("val")[torch.arange(64)]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    oracle = small.oracle()
    asked = ("posterior", "log_likelihood")
    whole = [getattr(oracle, ask)(tokens_BL, observed_BL) for ask in asked]
    monkeypatch.setattr(upward_downward, "_ELEMENTS", 100)
    for ask, expected in zip(asked, whole, strict=True):
        torch.testing.assert_close(getattr(oracle, ask)(tokens_BL, observed_BL), expected, atol=1e-12, rtol=1e-12)
    check_chain_rule(small, num_rows=8, num_hidden=small.seq_len)


@pytest.mark.parametrize(("num_symbols", "branching"), [(4, 2), (3, 3), (256, 3)])
def test_disjoint_rules_share_no_tuple(num_symbols, branching):
    source = RHMSource(
        num_symbols=num_symbols, num_rules=min(256, num_symbols ** (branching - 1)), branching=branching, depth=2
    )
    for children_RS in source.children_DRS:
        assert len(children_RS.unique(dim=0)) == len(children_RS)
    assert not torch.equal(*source.children_DRS)  # a table of its own for each level


def test_the_entropy_is_that_of_all_rows():
    for source in SMALL:
        *_, log_prob_S = rhm(source)
        if source.disjoint:
            assert source.entropy_rate() == pytest.approx(-float(log_prob_S.exp() @ log_prob_S) / source.seq_len, abs=1e-12)
        else:
            assert source.entropy_rate() is None
    source = RHMSource(num_symbols=4, num_rules=4, branching=2, depth=5)
    assert source.entropy_rate() == pytest.approx(log(4))
    tokens_BL = source.rows("val")[torch.arange(8)]  # every row is possible, and all alike: nothing is to be seen
    probs_BLV = source.oracle().posterior(tokens_BL, torch.arange(32).expand(8, -1) % 3 > 0)
    torch.testing.assert_close(probs_BLV[:, ::3, :4], torch.full((8, 11, 4), 0.25, dtype=torch.float64))


def test_a_row_of_disjoint_rules_tells_its_tree():
    source = RHMSource(num_symbols=6, num_rules=3, branching=3, depth=3)
    rows, index_B = source.rows("train"), torch.arange(50)
    tokens_BL, latents = rows[index_B], rows.latents(index_B)
    found = source.oracle().latents(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))
    assert set(found) == set(latents) == {"root", *(f"level_{level}" for level in range(4))}
    for each, probs_BNQ in found.items():
        assert torch.equal(probs_BNQ.argmax(-1), latents[each])
        assert source.latent_sizes()[each] == (probs_BNQ.shape[1], 6)
    assert torch.equal(latents["level_3"], tokens_BL)
    for (above, above_BN), (_, below_BN) in pairwise((k, v) for k, v in latents.items() if k != "root"):
        rules = source.children_DRS[int(above[-1])].view(6, 3, 3)
        for symbol, children in zip(above_BN.flatten().tolist(), below_BN.reshape(-1, 3).tolist(), strict=True):
            assert children in rules[symbol].tolist()


def test_golden_rows():
    rows = RHMSource().rows("train")[torch.arange(2)]
    assert rows.tolist() == GOLDEN
    assert torch.equal(pickle.loads(pickle.dumps(RHMSource())).rows("train")[torch.arange(2)], rows)
    assert not torch.equal(RHMSource(grammar_seed=1).rows("train")[torch.arange(2)], rows)


GOLDEN = [[5, 3, 2, 6, 4, 3, 2, 4, 6, 5, 6, 5, 0, 3, 2, 4], [3, 2, 5, 5, 6, 3, 4, 6, 5, 3, 1, 2, 3, 0, 3, 1]]


@pytest.mark.parametrize(
    ("arguments", "key", "largest"),
    [
        ({"branching": 3, "depth": 8}, "data.depth", {"depth": 7}),
        ({"branching": 64, "depth": 3}, "data.depth", {"depth": 2}),
        ({"num_symbols": 4, "num_rules": 17, "branching": 3, "depth": 2}, "data.num_rules", {"num_rules": 16}),
        ({"num_symbols": 128, "num_rules": 4000, "branching": 4, "depth": 5}, "data.num_rules", {"num_rules": 1024}),
    ],
)
def test_what_is_too_large_names_the_largest_that_fits(arguments, key, largest):
    with pytest.raises(ConfigError) as caught:
        RHMSource(**arguments)
    assert caught.value.key == key
    ((name, value),) = largest.items()
    assert f"{key}={value}" in caught.value.remedy
    assert RHMSource(**arguments | largest)
    with pytest.raises(ConfigError):
        RHMSource(**arguments | {name: value + 1})


def test_more_than_can_be_enumerated_is_refused():
    with pytest.raises(ValueError, match="choose a smaller language"):
        rhm(RHMSource())


def test_rows_without_anything_hidden_or_observed():
    source = RHMSource(num_symbols=4, num_rules=2)
    tokens_BL = source.rows("val")[torch.arange(3)]
    oracle, everything = source.oracle(), torch.ones_like(tokens_BL, dtype=torch.bool)
    assert torch.equal(oracle.posterior(tokens_BL, everything).argmax(-1), tokens_BL)
    assert torch.equal(oracle.log_likelihood(tokens_BL, ~everything), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(oracle.posterior(tokens_BL[:0], everything[:0]), torch.zeros(0, 16, 5, dtype=torch.float64))
    probs_BLV = oracle.posterior(tokens_BL, ~everything)
    torch.testing.assert_close(probs_BLV.sum(-1), torch.ones(3, 16, dtype=torch.float64))


def test_the_marginals_are_those_of_the_rules():
    """Without any evidence, each leaf's distribution follows from its path alone."""
    source = RHMSource(num_symbols=3, num_rules=2, branching=2, depth=3)
    expected = []
    for path in product(range(2), repeat=3):
        share_Q = [1 / 3] * 3
        for level, child in enumerate(path):
            rules = source.children_DRS[level].tolist()
            share_Q = [sum(share_Q[r // 2] / 2 for r, children in enumerate(rules) if children[child] == b) for b in range(3)]
        expected.append(share_Q)
    nothing = torch.zeros(1, 8, dtype=torch.bool)
    probs_BLV = source.oracle().posterior(torch.zeros(1, 8, dtype=torch.int64), nothing)
    torch.testing.assert_close(probs_BLV[0, :, :3], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
