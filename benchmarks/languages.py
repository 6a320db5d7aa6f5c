"""Rows and exact posteriors of every language at its default size: seconds for the 4,096 rows of a validation, beside the
default model's pass through the same rows.

    python benchmarks/languages.py [NAME…]

An oracle is asked once a run, since masks are frozen; the model goes through the rows at every validation.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
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
from mlm_lightning.data.languages.synthetic import Language
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.urn import UrnSource
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training.fit import keep_freed_memory

NUM_ROWS, BATCH = 4096, 256
LANGUAGES: dict[str, Language] = {
    "markov": MarkovSource(),
    "hmm": HMMSource(),
    "mixture": MixtureSource(),
    "dyck": DyckSource(),
    "shuffle_dyck": ShuffleDyckSource(),
    "ising": IsingSource(),
    "tree": TreeSource(),
    "rhm": RHMSource(),
    "pcfg": PCFGSource(),
    "pcfg_levels": PCFGLevelsSource(),
    "urn": UrnSource(),
    "code": CodeSource(),
    "periodic": PeriodicSource(),
    "recall": RecallSource(),
}


def measured(source: Language) -> dict[str, float]:
    """Seconds of the rows, of their posteriors with 15 % of the tokens hidden, and of the default model's pass."""
    rows, oracle = source.rows("val"), source.oracle()
    assert oracle is not None
    index_B = torch.arange(NUM_ROWS)
    tokens_BL = rows[index_B]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= 0.15
    model = TransformerClassifier(vocab_size=source.vocab.size, seq_len=source.seq_len).eval()

    @torch.inference_mode()
    def passes() -> None:
        for batch_BL in tokens_BL.split(BATCH):
            model(batch_BL)

    drawn, asked, passed = in_turns(lambda: rows[index_B], lambda: oracle.posterior(tokens_BL, observed_BL), passes)
    return {"rows": drawn, "posteriors": asked, "posteriors, of the model's pass": asked / passed}


def in_turns(*sides: Callable[[], object], repeats: int = 3) -> list[float]:
    """The median of some repeats of each, in seconds, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(1 + repeats):
        for each, side in zip(seconds, sides, strict=True):
            start = time.perf_counter()
            side()
            each.append(time.perf_counter() - start)
    return [statistics.median(each[1:]) for each in seconds]


def main() -> None:
    keep_freed_memory()  # as `mlm train` does
    columns = {"language": "", "length": "", "rows": ".3f", "posteriors": ".2f", "posteriors, of the model's pass": ".2f"}
    table = Table("languages", "Languages: seconds for 4,096 rows", columns)
    for name in sys.argv[1:] or LANGUAGES:
        table.add(language=name, length=LANGUAGES[name].seq_len, **measured(LANGUAGES[name]))


if __name__ == "__main__":
    main()
