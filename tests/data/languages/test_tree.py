import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import chisquare

from mlm_lightning.data.languages.tree import AliasTable, Grammar, TreeSource

CONF = Path(__file__).parents[3] / "conf" / "data"


def leaf_distribution(M, depth, filter_level):
    """The probability of every row, shape (q,) * 2^depth: by enumeration, from the definition of the source alone."""
    q = len(M)

    def leaves_given_symbol(levels):  # (q, q^(2^levels)): a full tree of so many levels under each symbol
        if levels == 0:
            return np.eye(q)
        below = leaves_given_symbol(levels - 1)
        return np.einsum("abc,bx,cy->axy", M, below, below, optimize=True).reshape(q, -1)

    nodes = leaves_given_symbol(filter_level).reshape((q,) + (q,) * 2**filter_level)
    below = leaves_given_symbol(depth - filter_level)
    if filter_level == 0:
        joint = below
    else:
        joint = np.ones((q, 1))
        for node in range(2**filter_level):
            marginal = nodes.sum(axis=tuple(i + 1 for i in range(2**filter_level) if i != node))
            joint = np.einsum("ax,ay->axy", joint, marginal @ below).reshape(q, -1)
    return joint.mean(axis=0).reshape((q,) * 2**depth)


@pytest.mark.parametrize("num_symbols", [2, 3, 7])
def test_every_pair_has_one_parent_and_every_symbol_q_rules(num_symbols):
    M = Grammar(num_symbols, sigma=1.0, grammar_seed=3).M
    assert M.dtype == torch.float64
    assert ((M > 0).sum(0) == 1).all()
    assert ((M > 0).sum((1, 2)) == num_symbols).all()
    torch.testing.assert_close(M.sum((1, 2)), torch.ones(num_symbols, dtype=torch.float64))


def test_sigma_scales_the_logarithms_and_the_seed_changes_the_pairs():
    flat, one, two = (Grammar(4, sigma, grammar_seed=5) for sigma in (0.0, 1.0, 2.0))
    torch.testing.assert_close(flat.probs_QQ, torch.full((4, 4), 0.25, dtype=torch.float64))
    assert torch.equal(one.children_QQ2, two.children_QQ2)
    torch.testing.assert_close((one.probs_QQ**2 / (one.probs_QQ**2).sum(1, keepdim=True)), two.probs_QQ)
    assert not torch.equal(Grammar(4, 1.0, grammar_seed=6).children_QQ2, one.children_QQ2)
    wide = Grammar(64, 1.0, grammar_seed=0).probs_QQ.log()
    assert (wide - wide.mean(1, keepdim=True)).std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("probs", [[0.5, 0.5], [1.0, 0.0, 0.0], [0.7, 0.1, 0.15, 0.05], [0.0, 0.0, 1.0, 0.0], [0.2] * 5])
def test_an_alias_table_gives_every_outcome_its_exact_probability(probs):
    table = AliasTable(torch.tensor([probs, probs[::-1]], dtype=torch.float64), torch.arange(len(probs)).expand(2, -1))
    cut_RQ = table._cut.view(2, -1)
    own_and_alias = table._outcomes.view(2, -1, 2)
    for row, expected in enumerate([probs, probs[::-1]]):
        mass = torch.zeros(len(probs), dtype=torch.float64)
        mass.index_add_(0, own_and_alias[row, :, 0], cut_RQ[row]).index_add_(0, own_and_alias[row, :, 1], 1 - cut_RQ[row])
        torch.testing.assert_close(mass / len(probs), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("num_symbols", "depth", "filter_level"),
    [(2, 1, 0), (2, 1, 1), (3, 2, 0), (3, 2, 1), (3, 2, 2), (2, 3, 0), (2, 3, 1), (2, 3, 2), (2, 3, 3), (4, 2, 0), (4, 2, 2)],
)
def test_rows_follow_the_exact_distribution(num_symbols, depth, filter_level):
    num_rows = 200_000
    source = TreeSource(depth, num_symbols, filter_level=filter_level, grammar_seed=1, train_size=num_rows)
    tokens_BL = source.rows("train")[torch.arange(num_rows)]
    assert tokens_BL.dtype == torch.int64
    assert tokens_BL.shape == (num_rows, 2**depth)
    expected = leaf_distribution(source.grammar.M.numpy(), depth, filter_level).flatten() * num_rows
    code_B = (tokens_BL * num_symbols ** torch.arange(2**depth - 1, -1, -1)).sum(1)
    counts = code_B.bincount(minlength=len(expected)).numpy()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert chisquare(counts, expected).pvalue > 1e-3


def test_at_k_equal_to_depth_the_leaves_are_independent_given_the_root():
    def root_given_marginals(tokens_BL):  # E over the root of the product of marginals, for the leaves 0 and 1 (siblings)
        return torch.histogramdd(tokens_BL[:, :2].double(), bins=[4, 4], range=[0.0, 4.0, 0.0, 4.0]).hist / len(tokens_BL)

    filtered = TreeSource(depth=3, filter_level=3, train_size=200_000)
    marginals_NQQ = filtered.grammar.marginals_NQQ(3)
    expected_QQ = torch.einsum("ab,ac->bc", marginals_NQQ[0], marginals_NQQ[1]) / 4
    tokens_BL = filtered.rows("train")[torch.arange(200_000)]
    torch.testing.assert_close(root_given_marginals(tokens_BL), expected_QQ, atol=0.005, rtol=0)
    full_BL = TreeSource(depth=3, train_size=200_000).rows("train")[torch.arange(200_000)]
    assert (root_given_marginals(full_BL) - expected_QQ).abs().max() > 0.02


@pytest.mark.parametrize("filter_level", [0, 2, 4])
def test_a_row_depends_on_seed_split_and_index_alone(filter_level):
    source = TreeSource(filter_level=filter_level, train_size=10_000)
    rows_NL = source.rows("train")[torch.arange(10_000)]  # more rows than are worked on at once
    index_B = torch.tensor([9999, 3, 3, 0, 8200])
    assert torch.equal(pickle.loads(pickle.dumps(source.rows("train")))[index_B], rows_NL[index_B])
    assert torch.equal(TreeSource(filter_level=filter_level).rows("train")[index_B], rows_NL[index_B])
    assert torch.equal(source.rows("train")[torch.tensor([7])], rows_NL[7:8])
    assert source.rows("train")[torch.empty(0, dtype=torch.int64)].shape == (0, 16)
    reseeded = TreeSource(filter_level=filter_level, seed=1)
    assert torch.equal(reseeded.grammar.M, source.grammar.M)
    for other in (source.rows("val"), source.rows("test"), reseeded.rows("train")):
        assert (other[torch.arange(4096)] == rows_NL[:4096]).all(1).double().mean() < 0.01
    assert not torch.equal(TreeSource(grammar_seed=1).grammar.M, source.grammar.M)


@pytest.mark.parametrize("index", [-1, 100])
def test_a_row_outside_of_its_split_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"row {index} .* 0 … 99"):
        TreeSource(val_size=100).rows("val")[torch.tensor([0, index])]


def test_vocab_and_length():
    source = TreeSource(depth=3, num_symbols=5)
    assert (source.vocab.size, source.vocab.mask_id, source.seq_len, len(source.rows("val"))) == (6, 5, 8, 4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, r"data\.depth=0: .* from 1 to 16; a row has 2\^depth tokens"),
        ({"depth": 40}, r"data\.depth=40: .* from 1 to 16; "),
        ({"depth": 3.0}, r"data\.depth=3\.0: .* whole number; "),
        ({"depth": 16, "num_symbols": 17}, r"data\.depth=16: with data\.num_symbols=17, .*; use data\.depth=15 or less"),
        ({"num_symbols": 1}, r"data\.num_symbols=1: .* from 2 to 256; "),
        ({"num_symbols": 1000}, r"data\.num_symbols=1000: .* from 2 to 256; "),
        ({"num_symbols": "4"}, r"data\.num_symbols='4': .* whole number; "),
        ({"sigma": -1.0}, r"data\.sigma=-1\.0: .* from 0 to 1e\+06; it is the spread"),
        ({"sigma": float("nan")}, r"data\.sigma=nan: "),
        ({"sigma": float("inf")}, r"data\.sigma=inf: "),
        ({"sigma": None}, r"data\.sigma=null: "),
        ({"filter_level": -1}, r"data\.filter_level=-1: .* at least 0; "),
        ({"filter_level": 5}, r"data\.filter_level=5: .* at most 4; .* data\.depth=4"),
        ({"filter_level": 1.5}, r"data\.filter_level=1\.5: .* whole number; "),
        ({"grammar_seed": None}, r"data\.grammar_seed=null: .* whole number"),
        ({"seed": 1.5}, r"data\.seed=1\.5: .* whole number"),
        ({"train_size": None}, r"data\.train_size=null: .* no natural end"),
        ({"train_size": 0.1}, r"data\.train_size=0\.1: .* a share of"),
        ({"val_size": 0}, r"data\.val_size=0: .* at least 1; "),
        ({"test_size": -1}, r"data\.test_size=-1: .* at least 1; "),
    ],
)
def test_impossible_values_are_refused_with_key_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        TreeSource(**arguments)


def test_the_largest_trees_that_are_allowed_can_be_drawn():
    for depth, num_symbols, filter_level in [(16, 2, 16), (16, 16, 0), (8, 256, 0)]:
        source = TreeSource(depth, num_symbols, filter_level=filter_level)
        tokens_BL = source.rows("train")[torch.arange(2)]
        assert tokens_BL.shape == (2, 2**depth)
        assert 0 <= tokens_BL.min() <= tokens_BL.max() < num_symbols


def test_the_yaml_holds_the_constructors_defaults():
    config = yaml.safe_load((CONF / "tree.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.tree.TreeSource"
    config.pop("batch_size")
    config["grammar_seed"] = 0  # the YAML's is one that a small model learns quickly
    assert config == {name: p.default for name, p in inspect.signature(TreeSource).parameters.items()}
