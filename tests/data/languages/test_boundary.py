"""What all languages promise to those who ask: precision, kinds of tensors, shapes, what is refused, what stays as it was."""

import contextlib

import pytest
import torch

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.data.languages.code import CodeSource
from mlm_lightning.data.languages.dyck import DyckSource, ShuffleDyckSource
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.pcfg import PCFGFileSource, PCFGLevelsSource, PCFGSource
from mlm_lightning.data.languages.periodic import PeriodicSource
from mlm_lightning.data.languages.recall import RecallSource
from mlm_lightning.data.languages.rhm import RHMSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.languages.urn import UrnSource

TOY = "S -> NP 'sees' NP [0.6] | S 'and' S [0.2] | 'go' [0.2]\nNP -> 'a' [0.5] | 'b' [0.3] | NP 'of' NP [0.2]\n"
SMALL = {
    "uniform": lambda _: UniformSource(num_symbols=5, seq_len=12),
    "markov": lambda _: MarkovSource(num_symbols=4, order=2, seq_len=12),
    "hmm": lambda _: HMMSource(num_states=5, num_symbols=4, seq_len=12),
    "mixture": lambda _: MixtureSource(num_symbols=4, num_components=5, seq_len=12),
    "dyck": lambda _: DyckSource(num_kinds=2, max_depth=3, seq_len=12),
    "shuffle_dyck": lambda _: ShuffleDyckSource(num_kinds=2, max_depth=2, seq_len=12),
    "ising": lambda _: IsingSource(num_symbols=3, seq_len=12, field=0.5),
    "tree": lambda _: TreeSource(depth=4, num_symbols=4, filter_level=1),
    "rhm": lambda _: RHMSource(num_symbols=4, num_rules=3, depth=3),
    "pcfg": lambda _: PCFGSource(num_nonterminals=3, num_symbols=4, seq_len=7),
    "pcfg_levels": lambda _: PCFGLevelsSource(num_levels=2, num_symbols=3, seq_len=6),
    "pcfg_file": lambda folder: PCFGFileSource(folder / "toy.pcfg", seq_len=7),
    "urn": lambda _: UrnSource(num_symbols=5, seq_len=12),
    "periodic": lambda _: PeriodicSource(num_symbols=4, max_period=5, seq_len=12),
    "recall": lambda _: RecallSource(num_keys=3, num_values=4, seq_len=14),
    "code": lambda _: CodeSource(num_symbols=5, seq_len=12, num_checks=5),
}
EXACT = {
    **SMALL,
    "code-17": lambda _: CodeSource(num_symbols=17, seq_len=40, num_checks=16, check_weight=None),
    "code-251": lambda _: CodeSource(num_symbols=251, seq_len=40, num_checks=16, check_weight=None),
}
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grammar")
    (folder / "toy.pcfg").write_text(TOY)
    return folder


@pytest.fixture(scope="module", params=SMALL)
def source(request, folder):
    return SMALL[request.param](folder)


def asked(source, num_rows=24):
    """Rows, which of their tokens are observed (from all to none), and keys to draw the others by."""
    tokens_BL = source.rows("val")[torch.arange(num_rows)]
    u_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tokens_BL, u_BL >= torch.linspace(0, 1, num_rows, dtype=torch.float64)[:, None], torch.arange(num_rows) * 7 - 40


def answers(oracle, tokens_BL, observed_BL, keys_B):
    latents = oracle.latents(tokens_BL, observed_BL)
    return {
        "posterior": oracle.posterior(tokens_BL, observed_BL),
        "log_likelihood": oracle.log_likelihood(tokens_BL, observed_BL),
        "sample": oracle.sample(tokens_BL, observed_BL, keys_B),
        **{f"latents {name}": probs_BNS for name, probs_BNS in latents.items()},
    }


def assert_same(found, expected, atol=0.0):
    """Bit for bit, unless `atol` is given; then samples are equal, and numbers close."""
    assert list(found) == list(expected)
    for name, answer in found.items():
        assert answer.dtype == expected[name].dtype, name
        assert answer.shape == expected[name].shape, name
        if atol == 0 or name == "sample":
            assert torch.equal(answer, expected[name]), name
        else:
            torch.testing.assert_close(
                answer, expected[name], atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


# a model's precision changes nothing


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def matmul_precision(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


PRECISIONS = {
    "autocast": lambda device: torch.autocast(device, dtype=torch.bfloat16),
    "bfloat16 as the default": lambda device: default_dtype(torch.bfloat16),
    "medium products": lambda device: matmul_precision("medium"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", EXACT)
def test_the_precision_of_a_model_changes_no_bit(name, precision, device, folder):
    num_rows = 512 if name.startswith("code-") else 24
    question = [each.to(device) for each in asked(EXACT[name](folder), num_rows)]

    def all_of(source):
        rows, index_B = source.rows("train"), torch.arange(num_rows)
        return {"rows": rows[index_B], **rows.latents(index_B), **answers(source.oracle(), *question)}

    expected, later = all_of(EXACT[name](folder)), EXACT[name](folder)
    with PRECISIONS[precision](device):
        found, of_later = all_of(EXACT[name](folder)), all_of(later)  # made within, or before
    assert_same(found, expected)
    assert_same(of_later, expected)


# kinds of tensors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("turned", [False, True], ids=["row-major", "column-major"])
def test_tokens_may_be_of_any_whole_numbers_in_any_order_of_memory(source, dtype, turned):
    tokens_BL, observed_BL, keys_B = asked(source)
    expected, other_BL = answers(source.oracle(), tokens_BL, observed_BL, keys_B), tokens_BL.to(dtype)
    if turned:
        other_BL, observed_BL = other_BL.T.contiguous().T, observed_BL.T.contiguous().T
        assert not other_BL.is_contiguous()
    assert_same(answers(source.oracle(), other_BL, observed_BL, keys_B), expected)


def test_views_are_answered_as_copies_of_them(source):
    tokens_BL, observed_BL, keys_B = asked(source)
    pattern_BL = observed_BL[12].expand_as(observed_BL)
    expected = answers(source.oracle(), tokens_BL, pattern_BL.clone(), keys_B)
    wide_BX = torch.stack((tokens_BL, tokens_BL), dim=2).flatten(1)
    assert_same(answers(source.oracle(), wide_BX[:, ::2], pattern_BL, keys_B), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_what_is_observed_may_be_told_by_1_and_0(source, dtype):
    tokens_BL, observed_BL, keys_B = asked(source)
    expected = answers(source.oracle(), tokens_BL, observed_BL, keys_B)
    assert_same(answers(source.oracle(), tokens_BL, observed_BL.to(dtype), keys_B), expected)


def assert_refused(oracle, tokens_BL, observed_BL, keys_B, match):
    """By each answer."""
    for answer, more in (("posterior", ()), ("log_likelihood", ()), ("sample", (keys_B,)), ("latents", ())):
        with pytest.raises(ValueError, match=match):
            getattr(oracle, answer)(tokens_BL, observed_BL, *more)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_other_values_of_what_is_observed_are_refused(source, value):
    tokens_BL, observed_BL, keys_B = asked(source)
    observed_BL = observed_BL.to(torch.tensor(value).dtype)
    observed_BL[3, 4] = value
    assert_refused(source.oracle(), tokens_BL, observed_BL, keys_B, "observed_BL")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_no_whole_numbers_are_refused(source, dtype):
    tokens_BL, observed_BL, keys_B = asked(source)
    assert_refused(source.oracle(), tokens_BL.to(dtype), observed_BL, keys_B, f"tokens_BL is {dtype}.*whole numbers")


def test_other_shapes_are_refused(source):
    tokens_BL, observed_BL, keys_B = asked(source, num_rows=3)
    oracle, rest = source.oracle(), (keys_B, "shape")
    assert_refused(oracle, tokens_BL[:, 1:], observed_BL[:, 1:], *rest)
    assert_refused(oracle, torch.cat((tokens_BL, tokens_BL), 1), torch.cat((observed_BL, observed_BL), 1), *rest)
    assert_refused(oracle, tokens_BL[0], observed_BL[0], *rest)
    assert_refused(oracle, tokens_BL[None], observed_BL[None], *rest)
    assert_refused(oracle, tokens_BL, observed_BL[:2], *rest)
    assert_refused(oracle, tokens_BL, observed_BL[:1], *rest)  # no broadcasting
    assert_refused(oracle, tokens_BL, observed_BL[0], *rest)
    assert_refused(oracle, tokens_BL, observed_BL[:, 1:], *rest)


# no rows


def test_answers_about_no_rows_have_their_shapes(source):
    tokens_BL, observed_BL, keys_B = asked(source)
    oracle = source.oracle()
    expected = {name: answer[:0] for name, answer in answers(oracle, tokens_BL, observed_BL, keys_B).items()}
    assert {name.removeprefix("latents ") for name in expected} >= set(source.latent_sizes())
    assert_same(answers(oracle, tokens_BL[:0], observed_BL[:0], keys_B[:0]), expected)
    assert_same(answers(source.oracle(), tokens_BL[:0], observed_BL[:0], keys_B[:0]), expected)  # of a new oracle, too


# symbols


@pytest.mark.parametrize("token", [-1, "q", 2**40])
def test_observing_no_symbol_names_row_and_position(source, token):
    tokens_BL, observed_BL, keys_B = asked(source)
    token = source.num_symbols if token == "q" else token
    tokens_BL[[5, 9], [3, 0]], observed_BL[[5, 9], [3, 0]] = token, True
    assert_refused(
        source.oracle(), tokens_BL, observed_BL, keys_B, f"row 5 .* token {token} observed at position 3 is no symbol"
    )


@pytest.mark.parametrize("garbage", [IGNORE_INDEX, "q", 2**63 - 1, -(2**63)])
def test_hidden_tokens_may_hold_anything(source, garbage):
    tokens_BL, observed_BL, keys_B = asked(source)
    expected = answers(source.oracle(), tokens_BL, observed_BL, keys_B)
    tokens_BL[~observed_BL] = source.num_symbols if garbage == "q" else garbage
    assert_same(answers(source.oracle(), tokens_BL, observed_BL, keys_B), expected)


# what stays as it was


def test_questions_are_not_changed_and_answers_are_repeated(source):
    question = asked(source)
    copies, oracle = [each.clone() for each in question], source.oracle()
    first = answers(oracle, *question)
    kept = {name: answer.clone() for name, answer in first.items()}
    assert_same(answers(oracle, *question), kept)
    assert_same(first, kept)  # the second call wrote into no earlier answer
    assert all(map(torch.equal, question, copies))
    index_B = torch.tensor([5, 0, 5])
    source.rows("val")[index_B]
    source.rows("val").latents(index_B)
    assert index_B.tolist() == [5, 0, 5]


def test_a_batch_is_answered_as_its_rows_are(source):
    question, oracle, some = asked(source), source.oracle(), [0, 7, 8, 15, 23]
    whole = answers(oracle, *question)
    alone = [answers(oracle, *(each[row : row + 1] for each in question)) for row in some]
    for name, answer in whole.items():
        assert_same({name: torch.cat([each[name] for each in alone])}, {name: answer[some]}, atol=1e-15)
