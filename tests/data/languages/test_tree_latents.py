"""Posteriors of the tree's inner nodes, and their true values, against every row and every root that there is."""

import itertools

import pytest
import torch
from torch import Tensor

from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.source import LatentOracle, LatentRows

CASES = [(q, depth, k) for q in (2, 3) for depth in (1, 2, 3) for k in range(depth + 1)]


class Joint:
    """All rows with all their latents, S of them: what is below level k follows from the leaves, each pair having one parent;
    the root is free where k > 0."""

    def __init__(self, source: TreeSource) -> None:
        q, depth, k, M = source.num_symbols, source.depth, source.filter_level, source.grammar.M
        parent_QQ = (M > 0).long().argmax(0)
        leaves_SL = torch.tensor(list(itertools.product(range(q), repeat=2**depth)))
        self.levels: dict[int, Tensor] = {depth: leaves_SL}
        prob_S = torch.ones(len(leaves_SL), dtype=torch.float64)
        for level in range(depth - 1, k - 1, -1):
            left_SN, right_SN = self.levels[level + 1][:, 0::2], self.levels[level + 1][:, 1::2]
            self.levels[level] = parent_QQ[left_SN, right_SN]
            prob_S *= M[self.levels[level], left_SN, right_SN].prod(1)
        if k == 0:
            self.prob_S, self.root_S = prob_S / q, self.levels[0][:, 0]
        else:
            sides = M.sum(2), M.sum(1)  # what a left and a right child are, given the parent
            roots = []
            for root in range(q):
                node_S = torch.ones(len(leaves_SL), dtype=torch.float64)
                for node in range(2**k):
                    given_Q = torch.eye(q, dtype=torch.float64)[root]
                    for bit in f"{node:0{k}b}":
                        given_Q = given_Q @ sides[int(bit)]
                    node_S *= given_Q[self.levels[k][:, node]]
                roots.append(prob_S * node_S / q)
            self.prob_S, self.root_S = torch.cat(roots), torch.arange(q).repeat_interleave(len(leaves_SL))
            self.levels = {level: symbols_SN.repeat(q, 1) for level, symbols_SN in self.levels.items()}
        self.levels[0], self.num_symbols = self.root_S[:, None], q

    def posterior(self, tokens_L: Tensor, observed_L: Tensor) -> dict[str, Tensor]:
        agrees_S = (self.levels[max(self.levels)][:, observed_L] == tokens_L[observed_L]).all(1)
        weight_S = self.prob_S * agrees_S
        found = {}
        for level, symbols_SN in self.levels.items():
            one_hot_SNQ = torch.nn.functional.one_hot(symbols_SN, self.num_symbols).double()
            found[f"level_{level}"] = torch.einsum("s,snq->nq", weight_S, one_hot_SNQ) / weight_S.sum()
        return found | {"root": found["level_0"]}


@pytest.mark.parametrize(("num_symbols", "depth", "filter_level"), CASES)
def test_the_posterior_is_that_of_enumeration_for_every_pattern(num_symbols: int, depth: int, filter_level: int) -> None:
    source = TreeSource(depth, num_symbols, 1.5, filter_level, grammar_seed=4)
    joint, oracle = Joint(source), source.oracle()
    assert isinstance(oracle, LatentOracle)
    assert joint.prob_S.sum() == pytest.approx(1)
    patterns_BL = torch.tensor(list(itertools.product([False, True], repeat=2**depth)))
    tokens_BL = source.rows("val")[torch.arange(len(patterns_BL))]
    found = oracle.latents(tokens_BL, patterns_BL)
    levels = [0, *range(max(1, filter_level), depth + 1)]
    assert list(found) == ["root", *[f"level_{level}" for level in levels]]
    probs_BLV = oracle.posterior(tokens_BL, patterns_BL)
    for row in range(len(patterns_BL)):
        expected = joint.posterior(tokens_BL[row], patterns_BL[row])
        for name, probs_BNQ in found.items():
            torch.testing.assert_close(probs_BNQ[row], expected[name], rtol=0, atol=1e-10)
        torch.testing.assert_close(probs_BLV[row, :, :-1], expected[f"level_{depth}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("filter_level", range(5))
def test_true_values_are_those_that_the_rows_grew_from(filter_level: int) -> None:
    source = TreeSource(depth=4, num_symbols=3, filter_level=filter_level)
    rows, index_B = source.rows("train"), torch.tensor([7, 0, 123_456, 7])
    assert isinstance(rows, LatentRows)
    values = rows.latents(index_B)
    parent_QQ = (source.grammar.M > 0).long().argmax(0)
    assert torch.equal(values["level_4"], rows[index_B])
    assert torch.equal(values["root"], values["level_0"])
    for level in range(max(1, filter_level), 4):
        below_BN = values[f"level_{level + 1}"]
        assert torch.equal(values[f"level_{level}"], parent_QQ[below_BN[:, 0::2], below_BN[:, 1::2]])
    if filter_level == 0:
        assert torch.equal(values["root"], parent_QQ[values["level_1"][:, :1], values["level_1"][:, 1:]])


@pytest.mark.parametrize(("filter_level", "name"), [(0, "root"), (2, "root"), (2, "level_2"), (3, "level_4")])
def test_the_posterior_is_calibrated(filter_level: int, name: str) -> None:
    source = TreeSource(depth=5, num_symbols=4, filter_level=filter_level)
    rows, index_B = source.rows("val"), torch.arange(4096)
    observed_BL = torch.rand(4096, 32, generator=torch.Generator().manual_seed(0)) < 0.3
    probs_BNQ = source.oracle().latents(rows[index_B], observed_BL)[name]
    true_BN = rows.latents(index_B)[name]
    # -log p of the truth has the posterior's entropy as its mean
    surprise_BN = -probs_BNQ.gather(-1, true_BN[..., None]).squeeze(-1).log()
    entropy_BN = torch.special.entr(probs_BNQ).sum(-1)
    difference_B = (surprise_BN - entropy_BN).mean(1)
    assert abs(difference_B.mean()) < 4 * difference_B.std() / 64


@pytest.mark.parametrize("filter_level", [0, 1, 2])
def test_deep_trees_and_impossible_evidence(filter_level: int) -> None:
    source = TreeSource(depth=12, num_symbols=4, filter_level=filter_level)
    tokens_BL = source.rows("val")[torch.arange(3)]
    for name, probs_BNQ in source.oracle().latents(tokens_BL, torch.rand(3, 4096) < 0.9).items():
        assert probs_BNQ.isfinite().all(), name
        torch.testing.assert_close(probs_BNQ.sum(-1), torch.ones(probs_BNQ.shape[:2], dtype=torch.float64))
    # an enormous sigma leaves one rule a symbol, and a row a root
    other = TreeSource(depth=2, num_symbols=3, sigma=1e6, filter_level=filter_level)
    everything_BL = torch.cartesian_prod(*[torch.arange(3)] * 4)
    possible = {tuple(row) for row in other.rows("train")[torch.arange(1000)].tolist()}
    tokens_BL = torch.stack([row for row in everything_BL if tuple(row.tolist()) in possible][:1] * 2)
    tokens_BL[1] = next(row for row in everything_BL if tuple(row.tolist()) not in possible)
    with pytest.raises(ValueError, match=r"row 1 of the batch.*probability zero"):
        other.oracle().latents(tokens_BL, torch.ones(2, 4, dtype=torch.bool))
