"""Rows of the hierarchical grammar, and their exact posteriors: ours (a whole batch at once) beside plain numpy, row by row.

    python benchmarks/synthetic_data.py [--small-rows 100000] [--large-rows 10000] [--threads 2]

Both sides draw from the same grammar and answer the same masked rows; the posteriors are compared before anything is timed.
The grammar is that of Garnier-Brun, Mézard, Moscato, Saglietti, ICML 2025, arXiv 2408.15138.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from table import Table

from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.training.fit import keep_freed_memory


def sample_row(M: np.ndarray, depth: int, rng: np.random.Generator) -> list[int]:
    """Ancestral sampling, node by node."""
    q = len(M)
    symbols = [int(rng.integers(q))]
    for _ in range(depth):
        children = []
        for a in symbols:
            pair = rng.choice(q * q, p=M[a].ravel())
            children += [int(pair // q), int(pair % q)]
        symbols = children
    return symbols


def sum_product(M: np.ndarray, tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Belief propagation on one tree, node by node: the posterior of every leaf, shape (L, q)."""
    q = len(M)
    up = [[np.eye(q)[t] if o else np.ones(q) for t, o in zip(tokens, observed, strict=True)]]
    while len(up[0]) > 1:
        below = up[0]
        level = [np.einsum("abc,b,c->a", M, below[i], below[i + 1]) for i in range(0, len(below), 2)]
        up.insert(0, [message / message.sum() for message in level])
    down = [np.full(q, 1 / q)]
    for below in up[1:]:
        level = []
        for i, message in enumerate(down):
            level.append(np.einsum("a,abc,c->b", message, M, below[2 * i + 1]))
            level.append(np.einsum("a,abc,b->c", message, M, below[2 * i]))
        down = [message / message.sum() for message in level]
    beliefs = np.array([u * d for u, d in zip(up[-1], down, strict=True)])
    return beliefs / beliefs.sum(1, keepdims=True)


def rows_per_second(function: Callable[[], object], num_rows: int, repeats: int = 9) -> float:
    """The median of some repeats, after one that warms up."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return num_rows / statistics.median(seconds)


def compare(num_symbols: int, depth: int, num_rows: int) -> list[tuple[str, float, float]]:
    """(what, rows/s of numpy, rows/s of ours) of the sampler and the posterior."""
    source = TreeSource(depth=depth, num_symbols=num_symbols, train_size=num_rows)
    rows, oracle, M = source.rows("train"), source.oracle(), source.grammar.M.numpy()
    index_B = torch.arange(num_rows)
    tokens_BL = rows[index_B]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= 0.15

    few = max(2, 2**11 >> depth)  # rows that plain numpy can do in about a second
    pairs = list(zip(tokens_BL[:few].numpy(), observed_BL[:few].numpy(), strict=True))
    truth = np.array([sum_product(M, tokens, observed) for tokens, observed in pairs])
    probs_BLV = oracle.posterior(tokens_BL[:few], observed_BL[:few])
    np.testing.assert_allclose(probs_BLV[..., :num_symbols].numpy(), truth, atol=1e-9)

    rng = np.random.default_rng(0)
    return [
        (
            "sample",
            rows_per_second(lambda: [sample_row(M, depth, rng) for _ in range(few)], few),
            rows_per_second(lambda: rows[index_B], num_rows),
        ),
        (
            "posterior",
            rows_per_second(lambda: [sum_product(M, *pair) for pair in pairs], few),
            rows_per_second(lambda: oracle.posterior(tokens_BL, observed_BL), num_rows),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampler and exact posterior of `tree`, beside plain numpy.")
    parser.add_argument("--small-rows", type=int, default=100_000, help="rows of a batch at num_symbols=4, depth=4")
    parser.add_argument("--large-rows", type=int, default=10_000, help="rows of a batch at num_symbols=8, depth=8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as `mlm train` does
    columns = {"symbols": "", "depth": "", "what": "", "rows/s": ",.0f", "NumPy's": ",.0f", "times as fast": ",.0f"}
    table = Table("synthetic_data", f"Rows of `tree` and their posteriors, {torch.get_num_threads()} threads", columns)
    for num_symbols, depth, num_rows in [(4, 4, arguments.small_rows), (8, 8, arguments.large_rows)]:
        for what, plain, ours in compare(num_symbols, depth, num_rows):
            rates = {"rows/s": ours, "NumPy's": plain, "times as fast": ours / plain}
            table.add(symbols=num_symbols, depth=depth, what=what, **rates)


if __name__ == "__main__":
    main()
