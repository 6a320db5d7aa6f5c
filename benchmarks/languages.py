"""Rows and exact posteriors of every language at a typical size: ours (a whole batch at once) beside plain NumPy, row by row.

    python benchmarks/languages.py [NAME…]

One core. Both sides answer the same masked rows by the same algorithm, and the posteriors are compared before anything is
timed.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from plain import Plain
from plain_chains import chain
from plain_forms import code, periodic, recall, urn
from plain_trees import pcfg, rhm, tree
from table import Table

from mlm_lightning.data.languages.code import CodeSource
from mlm_lightning.data.languages.dyck import DyckSource, ShuffleDyckSource
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.pcfg import PCFGLevelsSource, PCFGSource
from mlm_lightning.data.languages.periodic import PeriodicSource
from mlm_lightning.data.languages.recall import RecallSource
from mlm_lightning.data.languages.rhm import RHMSource
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.urn import UrnSource
from mlm_lightning.training.fit import keep_freed_memory

NUM_ROWS, FEW = 8192, 32
SLOW = {"pcfg": (1024, 8), "pcfg_levels": (1024, 8), "rhm_16": (4096, 8)}
"""Of languages with much work in a row: of how many rows each side finds posteriors instead."""

LANGUAGES: dict[str, tuple[SyntheticSource, Plain]] = {
    name: (source, plain(source))
    for name, source, plain in (
        ("markov", MarkovSource(), chain),
        ("hmm", HMMSource(), chain),
        ("mixture", MixtureSource(), chain),
        ("dyck", DyckSource(), chain),
        ("shuffle_dyck", ShuffleDyckSource(), chain),
        ("ising", IsingSource(), chain),
        ("tree", TreeSource(), tree),
        ("rhm", RHMSource(), rhm),
        ("rhm_16", RHMSource(num_symbols=16, num_rules=8, depth=8), rhm),
        ("pcfg", PCFGSource(), pcfg),
        ("pcfg_levels", PCFGLevelsSource(), pcfg),
        ("urn", UrnSource(), urn),
        ("code", CodeSource(), code),
        ("periodic", PeriodicSource(), periodic),
        ("recall", RecallSource(), recall),
    )
}


def compare(source: SyntheticSource, plain: Plain, many: int, few: int) -> dict[str, float]:
    """Rows a second, of NumPy on a few rows and of ours on many, of sampler and of posterior."""
    rows, oracle = source.rows("train"), source.oracle()
    assert oracle is not None
    index_B = torch.arange(NUM_ROWS)
    tokens_BL = rows[index_B[:many]]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= 0.15
    pairs = list(zip(tokens_BL[:few].numpy(), observed_BL[:few].numpy(), strict=True))
    truth_BLQ = np.array([plain.posterior(*pair) for pair in pairs])
    hidden_BL = ~observed_BL[:few].numpy()
    found_BLQ = oracle.posterior(tokens_BL[:few], observed_BL[:few])[..., :-1].numpy()
    np.testing.assert_allclose(found_BLQ[hidden_BL], truth_BLQ[hidden_BL], rtol=0, atol=1e-9)
    rng = np.random.default_rng(0)
    sides = {
        "rows": (FEW, lambda: [plain.row(rng) for _ in range(FEW)], NUM_ROWS, lambda: rows[index_B]),
        "posteriors": (
            few,
            lambda: [plain.posterior(*p) for p in pairs],
            many,
            lambda: oracle.posterior(tokens_BL, observed_BL),
        ),
    }
    found: dict[str, float] = {}
    for what, (num_theirs, theirs, num_ours, ours) in sides.items():
        seconds, our_seconds = in_turns(theirs, ours)
        rate = num_ours / our_seconds
        found |= {f"{what}/s": rate, f"{what}: times as fast": rate * seconds / num_theirs}
    return found


def in_turns(*sides: Callable[[], object], repeats: int = 7) -> list[float]:
    """The median of some repeats of each, after one that warms up: seconds of the processor, whoever else is on the machine."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(1 + repeats):
        for each, side in zip(seconds, sides, strict=True):
            start = time.process_time()
            side()
            each.append(time.process_time() - start)
    return [statistics.median(each[1:]) for each in seconds]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mlm train` does
    columns = {"language": "", "length": "", "rows/s": ",.0f", "rows: times as fast": ",.0f"}
    columns |= {"posteriors/s": ",.0f", "posteriors: times as fast": ",.0f"}
    table = Table("languages", "Languages, one core, beside NumPy row by row", columns)
    for name in sys.argv[1:] or LANGUAGES:
        source, plain = LANGUAGES[name]
        many, few = SLOW.get(name, (NUM_ROWS, FEW))
        table.add(language=name, length=source.seq_len, **compare(source, plain, many, few))


if __name__ == "__main__":
    main()
