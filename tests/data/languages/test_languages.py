"""Every identity of an exact oracle, for every language that is small enough to enumerate, and at its largest size."""

import pytest
from joints import joint

from mlm_lightning.data.languages.dyck import DyckSource, ShuffleDyckSource
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.testing import check_calibration, check_chain_rule, check_language, check_rows

SMALL = [
    UniformSource(num_symbols=3, seq_len=5),
    *(TreeSource(depth, q, 1.5, k, grammar_seed=4) for q, depth in ((2, 3), (3, 2), (4, 2)) for k in range(depth + 1)),
    MarkovSource(num_symbols=2, order=1, seq_len=8),
    MarkovSource(num_symbols=2, order=3, concentration=1.0, seq_len=9),
    MarkovSource(num_symbols=3, order=2, concentration=0.2, seq_len=6, grammar_seed=3),
    MarkovSource(num_symbols=3, order=3, seq_len=2),
    HMMSource(num_states=3, num_symbols=3, seq_len=5),
    HMMSource(num_states=2, num_symbols=4, concentration=1.0, seq_len=5),
    HMMSource(num_states=1, num_symbols=2, seq_len=6),
    HMMSource(preset="mess3", seq_len=5),
    HMMSource(preset="z1r", seq_len=8),
    MixtureSource(num_symbols=2, num_components=3, seq_len=8),
    MixtureSource(num_symbols=3, num_components=2, concentration=2.0, seq_len=5),
    DyckSource(num_kinds=2, max_depth=3, seq_len=8),
    DyckSource(num_kinds=1, max_depth=9, seq_len=10),
    DyckSource(num_kinds=3, max_depth=1, seq_len=6),
    ShuffleDyckSource(num_kinds=2, max_depth=2, seq_len=6),
    ShuffleDyckSource(num_kinds=1, max_depth=2, seq_len=10),
    IsingSource(num_symbols=2, coupling=1.0, seq_len=9),
    IsingSource(num_symbols=3, coupling=-0.7, field=0.5, seq_len=6),
    IsingSource(num_symbols=4, coupling=0.0, field=-1.0, seq_len=2),
    IsingSource(num_symbols=2, coupling=2.0, seq_len=1),
]
LARGE = [
    UniformSource(num_symbols=64, seq_len=4096),
    *(TreeSource(depth=12, num_symbols=4, filter_level=k) for k in (0, 3)),
    MarkovSource(num_symbols=8, order=3, concentration=0.1, seq_len=4096),
    HMMSource(num_states=64, num_symbols=64, concentration=0.05, seq_len=4096),
    MixtureSource(num_symbols=4, num_components=64, seq_len=4096),
    DyckSource(num_kinds=2, max_depth=6, seq_len=4096),
    ShuffleDyckSource(num_kinds=2, max_depth=6, seq_len=4096),
    IsingSource(num_symbols=16, coupling=4.0, field=1.0, seq_len=4096),
]


def _name(source: object) -> str:
    return type(source).__name__.removesuffix("Source")


@pytest.mark.parametrize("small", SMALL, ids=_name)
def test_a_small_language_and_its_oracle_belong_together(small):
    check_language(small, joint=joint)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE, ids=_name)
def test_nothing_underflows_at_the_largest_size(large):
    check_rows(large)
    check_chain_rule(large, num_rows=4, num_hidden=8)
    check_calibration(large, num_rows=8)
