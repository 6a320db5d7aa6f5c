import inspect
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from scipy.stats import chisquare

from mlm_lightning.data.languages.uniform import UniformSource

CONF = Path(__file__).parents[3] / "conf" / "data"


def test_tokens_are_uniform_and_neighbours_independent():
    tokens_BL = UniformSource(num_symbols=5, seq_len=8, train_size=50_000).rows("train")[torch.arange(50_000)]
    assert tokens_BL.dtype == torch.int64
    assert chisquare(tokens_BL.flatten().bincount(minlength=5)).pvalue > 1e-3
    for other in (1, 7):
        pairs_B = tokens_BL[:, 0] * 5 + tokens_BL[:, other]
        assert chisquare(pairs_B.bincount(minlength=25)).pvalue > 1e-3


def test_a_row_depends_on_seed_split_and_index_alone():
    source = UniformSource(seq_len=16, train_size=1000)
    rows_NL = source.rows("train")[torch.arange(1000)]
    index_B = torch.tensor([999, 3, 3, 0])
    assert torch.equal(pickle.loads(pickle.dumps(source.rows("train")))[index_B], rows_NL[index_B])
    assert torch.equal(UniformSource(seq_len=16, train_size=2000).rows("train")[index_B], rows_NL[index_B])
    others = [source.rows("val"), source.rows("test"), UniformSource(seq_len=16, seed=1).rows("train")]
    for other in others:
        assert (other[torch.arange(1000)] == rows_NL).double().mean() == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("index", [-1, 100])
def test_a_row_outside_of_its_split_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"row {index} .* 0 … 99"):
        UniformSource(test_size=100).rows("test")[torch.tensor([0, index])]


def test_vocab_and_posterior():
    source = UniformSource(num_symbols=4, seq_len=3)
    assert (source.vocab.size, source.vocab.mask_id, source.vocab.special_ids, source.seq_len) == (5, 4, (4,), 3)
    probs_BLV = source.oracle().posterior(torch.tensor([[2, 4, 77]]), torch.tensor([[True, False, False]]))
    hidden_V = [0.25, 0.25, 0.25, 0.25, 0.0]
    assert probs_BLV.tolist() == [[[0.0, 0.0, 1.0, 0.0, 0.0], hidden_V, hidden_V]]


@pytest.mark.parametrize("token", [-1, 4])
def test_observing_what_is_no_symbol_is_an_error(token):
    tokens_BL = torch.tensor([[0, token], [0, token]])
    observed_BL = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ValueError, match=f"row 1 .* token {token} observed at position 1"):
        UniformSource(num_symbols=4, seq_len=2).oracle().posterior(tokens_BL, observed_BL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_symbols": 1}, r"data\.num_symbols=1: .* from 2 to 256; "),
        ({"num_symbols": 257}, r"data\.num_symbols=257: .* from 2 to 256; "),
        ({"num_symbols": 4.0}, r"data\.num_symbols=4\.0: .* whole number; "),
        ({"seq_len": 0}, r"data\.seq_len=0: .* from 1 to 65536; it is the number of tokens in a row"),
        ({"seq_len": 10**9}, r"data\.seq_len=1000000000: .* from 1 to 65536; "),
        ({"seq_len": True}, r"data\.seq_len=true: .* whole number; "),
        ({"seed": "0"}, r"data\.seed='0': .* whole number"),
        ({"train_size": None}, r"data\.train_size=null: .* whole number; .* no natural end .* give a number of rows"),
        ({"train_size": 0.5}, r"data\.train_size=0\.5: .* a share of"),
        ({"train_size": 0}, r"data\.train_size=0: .* at least 1; "),
        ({"train_size": 2**63}, r"data\.train_size=9223372036854775808: .* at most"),
        ({"val_size": -3}, r"data\.val_size=-3: .* at least 1; "),
        ({"test_size": 0}, r"data\.test_size=0: .* at least 1; "),
    ],
)
def test_impossible_values_are_refused_with_key_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniformSource(**arguments)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split='dev': .* train, val, test"):
        UniformSource().rows("dev")


def test_the_yaml_holds_the_constructors_defaults():
    config = yaml.safe_load((CONF / "uniform.yaml").read_text())["data"]
    assert config.pop("_target_") == "mlm_lightning.data.languages.uniform.UniformSource"
    config.pop("batch_size")
    assert config == {name: p.default for name, p in inspect.signature(UniformSource).parameters.items()}
