"""A language of somebody's own is a plain class: what a source and an oracle have, it has by `SyntheticSource` and
`LanguageOracle`. Here it is `UniformSource` once more, with a latent variable."""

import pickle

import pytest
import torch

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.data.languages.oracle import LanguageOracle
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.randomness import uniform

SIZES = {"train": 100, "val": 20, "test": 10}


class Fair(SyntheticSource):
    def __init__(self, num_symbols=4, seq_len=6, seed=0, train_size=100, val_size=20, test_size=10):
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        self._length, self.extra = seq_len, {"any": "thing"}

    @property
    def seq_len(self):
        return self._length

    def draw(self, keys_B):
        return uniform(keys_B[:, None], torch.arange(self.seq_len)).mul_(self.num_symbols).long()

    def draw_latents(self, keys_B):
        return {"first": self.draw(keys_B)[:, :2]}

    def latent_sizes(self):
        return {"first": (2, self.num_symbols)}

    def oracle(self):
        return FairOracle(self.num_symbols, self.seq_len, row_elements=self.seq_len)


class FairByAttribute(SyntheticSource):
    """The constructor sets `seq_len`, after that of the base class."""

    def __init__(self, num_symbols=4, seq_len=6, seed=0, train_size=100, val_size=20, test_size=10):
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        self.seq_len, self.extra = seq_len, {"any": "thing"}

    draw, draw_latents, latent_sizes, oracle = Fair.draw, Fair.draw_latents, Fair.latent_sizes, Fair.oracle


class FairEarly(FairByAttribute):
    """Attributes come before the base class's, and by keywords."""

    def __init__(self, num_symbols=4, seq_len=6, **sizes):
        self.seq_len, self.table_QQ = seq_len, torch.eye(num_symbols)
        super().__init__(num_symbols=num_symbols, **sizes)


class FairOracle(LanguageOracle):
    """All but the posterior by the defaults of the base class."""

    def _posterior(self, tokens_BL):
        probs_BLQ = torch.full((*tokens_BL.shape, self.num_symbols), 1 / self.num_symbols, dtype=torch.float64)
        return probs_BLQ, torch.ones(len(tokens_BL), dtype=torch.bool)


SHIPPED = UniformSource(4, 6, train_size=100, val_size=20, test_size=10)
KINDS = pytest.mark.parametrize("kind", [Fair, FairByAttribute, FairEarly])


@KINDS
def test_rows_labels_and_classes_of_a_plain_class_also_once_pickled(kind):
    mine, index_B = kind(), torch.arange(10)
    mine.check(prepared=True)
    assert (mine.seq_len, mine.vocab, mine.extra) == (6, SHIPPED.vocab, {"any": "thing"})
    for source in (mine, pickle.loads(pickle.dumps(mine))):
        for split, size in SIZES.items():
            rows = source.rows(split)
            assert len(rows) == size
            assert torch.equal(rows[index_B], SHIPPED.rows(split)[index_B])
            assert torch.equal(rows.latents(index_B)["first"], rows[index_B][:, :2])
            assert torch.equal(pickle.loads(pickle.dumps(rows))[index_B], rows[index_B])
        assert source.classes("first", 1) == ("0", "1", "2", "3")
        assert torch.equal(source.labels("val", "first", 1)(index_B), source.rows("val")[index_B][:, 1])
        with pytest.raises(ValueError, match="no latent variable of Fair"):
            source.classes("root", 0)
        with pytest.raises(ValueError, match=r"task\.node=2"):
            source.classes("first", 2)
        with pytest.raises(IndexError, match="row 20 of a split"):
            source.rows("val")[torch.tensor([20])]
    assert kind(seed=1).rows("val")[index_B].ne(mine.rows("val")[index_B]).any()
    with pytest.raises(ValueError, match=r"data\.train_size=0"):
        kind(train_size=0)


@KINDS
def test_the_counts_of_a_plain_class_are_those_of_its_rows_also_once_pickled(kind):
    mine, expected = kind(), _losses(SHIPPED)
    for source in (mine, mine, pickle.loads(pickle.dumps(mine))):
        found = _losses(source)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], loss_BK) for name, loss_BK in expected.items())


def _losses(source):
    """Of the third token of some rows, given the second."""
    tokens_BL, position_BK = source.rows("val")[torch.arange(8)], torch.full((8, 1), 2)
    labels_BL = torch.full_like(tokens_BL, IGNORE_INDEX).scatter_(1, position_BK, tokens_BL[:, 2:3])
    input_ids_BL = tokens_BL.where(labels_BL == IGNORE_INDEX, source.vocab.mask_id)
    return source.ngrams().losses(MLMBatch(input_ids_BL, labels_BL, None, position_BK, torch.arange(8)))


@KINDS
def test_an_oracle_with_a_posterior_alone_answers_everything(kind):
    index_B = torch.arange(10)
    tokens_BL, oracle = SHIPPED.rows("val")[index_B], kind().oracle()
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 10)[:, None]
    shipped = SHIPPED.oracle()
    assert torch.equal(oracle.posterior(tokens_BL, observed_BL), shipped.posterior(tokens_BL, observed_BL))
    assert torch.equal(oracle.sample(tokens_BL, observed_BL, index_B), shipped.sample(tokens_BL, observed_BL, index_B))
    assert oracle.latents(tokens_BL, observed_BL) == {}
    log_prob_B = shipped.log_likelihood(tokens_BL, observed_BL)
    torch.testing.assert_close(oracle.log_likelihood(tokens_BL, observed_BL), log_prob_B, atol=1e-13, rtol=0)
