"""Rows and exact posteriors of every language at a typical size: ours (a whole batch at once) beside plain NumPy, row by row.

    python benchmarks/languages.py [NAME…]

One core. Both sides answer the same masked rows by the same algorithm, and the posteriors are compared before anything is
timed.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from synthetic_data import rows_per_second, sample_row, sum_product
from table import Table

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.chain_source import ChainSource
from mlm_lightning.data.languages.dyck import DyckSource, ShuffleDyckSource
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.training.fit import keep_freed_memory

NUM_ROWS, FEW = 8192, 32


class Plain(NamedTuple):
    """A row of a language, and the posterior of one, `probs_LQ`, by loops in NumPy."""

    row: Callable[[np.random.Generator], object]
    posterior: Callable[[np.ndarray, np.ndarray], np.ndarray]


def tree(source: TreeSource) -> Plain:
    M = source.grammar.M.numpy()
    return Plain(lambda rng: sample_row(M, source.depth, rng), lambda *row: sum_product(M, *row))


def dense(of: Chain) -> np.ndarray:
    """`transition_SS`."""
    transition_SS = np.zeros((len(of.initial_S), len(of.initial_S)))
    np.add.at(transition_SS, (np.arange(len(transition_SS))[:, None], of.successor_SR.numpy()), of.weight_SR.numpy())
    return transition_SS


def chain(source: ChainSource) -> Plain:
    """Forward-backward on one row, step by step."""
    of = source.chain
    transition_SS, emission_SQ = dense(of), of.emission_SQ.numpy()
    initial_S = of.initial_S.numpy()
    final_S = np.ones(len(initial_S)) if of.final_S is None else of.final_S.numpy()
    future_LS = of.future_LS.numpy()
    successor_SR, weight_SR = of.successor_SR.numpy(), of.weight_SR.numpy()

    def drawn(rng: np.random.Generator, weights: np.ndarray) -> int:
        sums = weights.cumsum()
        return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(sums) - 1)

    def row(rng: np.random.Generator) -> list[int]:
        state = drawn(rng, initial_S * future_LS[0])
        tokens = [drawn(rng, emission_SQ[state])]
        for step in range(1, source.seq_len):
            state = successor_SR[state, drawn(rng, weight_SR[state] * future_LS[step][successor_SR[state]])]
            tokens.append(drawn(rng, emission_SQ[state]))
        return tokens

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        told = [
            emission_SQ[:, token] if seen else np.ones(len(initial_S)) for token, seen in zip(tokens, observed, strict=True)
        ]
        forward = [initial_S]
        for each in told[:-1]:
            message = (forward[-1] * each) @ transition_SS
            forward.append(message / message.sum())
        after, beliefs = final_S, []
        for before, each in zip(reversed(forward), reversed(told), strict=True):
            belief = (before * after) @ emission_SQ
            beliefs.append(belief / belief.sum())
            after = transition_SS @ (each * after)
            after /= after.sum()
        return np.array(beliefs[::-1])

    return Plain(row, posterior)


LANGUAGES: dict[str, tuple[SyntheticSource, Plain]] = {
    name: (source, plain(source))
    for name, source, plain in (
        ("tree", TreeSource(), tree),
        ("markov", MarkovSource(), chain),
        ("hmm", HMMSource(), chain),
        ("mixture", MixtureSource(), chain),
        ("dyck", DyckSource(), chain),
        ("shuffle_dyck", ShuffleDyckSource(), chain),
        ("ising", IsingSource(), chain),
    )
}


def compare(source: SyntheticSource, plain: Plain) -> dict[str, float]:
    """Rows a second of NumPy and of ours, of sampler and of posterior."""
    rows, oracle = source.rows("train"), source.oracle()
    assert oracle is not None
    index_B = torch.arange(NUM_ROWS)
    tokens_BL = rows[index_B]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= 0.15
    pairs = list(zip(tokens_BL[:FEW].numpy(), observed_BL[:FEW].numpy(), strict=True))
    truth_BLQ = np.array([plain.posterior(*pair) for pair in pairs])
    hidden_BL = ~observed_BL[:FEW].numpy()
    found_BLQ = oracle.posterior(tokens_BL[:FEW], observed_BL[:FEW])[..., :-1].numpy()
    np.testing.assert_allclose(found_BLQ[hidden_BL], truth_BLQ[hidden_BL], atol=1e-9)
    rng = np.random.default_rng(0)
    rates = {
        "rows": (lambda: [plain.row(rng) for _ in range(FEW)], lambda: rows[index_B]),
        "posteriors": (lambda: [plain.posterior(*pair) for pair in pairs], lambda: oracle.posterior(tokens_BL, observed_BL)),
    }
    found = {}
    for what, (theirs, ours) in rates.items():
        ours_rate = rows_per_second(ours, NUM_ROWS, repeats=5)
        found |= {f"{what}/s": ours_rate, f"{what}: times as fast": ours_rate / rows_per_second(theirs, FEW, repeats=5)}
    return found


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mlm train` does
    columns = {"language": "", "length": "", "rows/s": ",.0f", "rows: times as fast": ",.0f"}
    columns |= {"posteriors/s": ",.0f", "posteriors: times as fast": ",.0f"}
    table = Table("languages", "Languages, one core, beside NumPy row by row", columns)
    for name in sys.argv[1:] or LANGUAGES:
        source, plain = LANGUAGES[name]
        table.add(language=name, length=source.seq_len, **compare(source, plain))


if __name__ == "__main__":
    main()
