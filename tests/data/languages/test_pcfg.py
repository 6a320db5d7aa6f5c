import pickle

import pytest
import torch
from joints import pcfg

from mlm_lightning.data.languages.grammar import read_grammar
from mlm_lightning.data.languages.pcfg import Choices, PCFGFileSource, PCFGLevelsSource, PCFGSource
from mlm_lightning.errors import ConfigError, InvalidConfigError
from mlm_lightning.testing import check_chain_rule, check_language, chi_squared

TOY = """
# a comment
S  -> NP VP      [0.9] | "hello" [0.1]
NP -> Det N      [0.6]
NP -> NP 'and' NP [0.25]
NP -> 'it'       [0.15]
VP -> V NP [0.7]|'sleeps' [0.3]
Det -> 'the' [1.0]
N -> 'cat' [0.5] | 'dog' [.5]
V -> 'sees' [1]
"""
WORDS = ("hello", "and", "it", "sleeps", "the", "cat", "dog", "sees")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("grammar") / "toy.pcfg"
    path.write_text(TOY)
    return path


SMALL = [
    PCFGSource(num_nonterminals=2, num_symbols=3, num_rules=2, seq_len=4),
    PCFGSource(num_nonterminals=3, num_symbols=2, num_rules=3, concentration=2.0, seq_len=5, grammar_seed=1),
    PCFGSource(num_nonterminals=1, num_symbols=3, num_rules=1, seq_len=5),
    PCFGSource(num_nonterminals=4, num_symbols=3, num_rules=1, concentration=0.1, seq_len=6, grammar_seed=2),
    PCFGSource(num_nonterminals=3, num_symbols=4, num_rules=2, seq_len=1),
    PCFGSource(num_nonterminals=3, num_symbols=4, num_rules=9, seq_len=2),
    PCFGLevelsSource(num_levels=2, num_symbols=2, num_rules=2, seq_len=6, grammar_seed=1),
    PCFGLevelsSource(num_levels=2, num_symbols=3, num_rules=3, seq_len=7, grammar_seed=1),
    PCFGLevelsSource(num_levels=3, num_symbols=2, num_rules=2, seq_len=11, grammar_seed=0),
    PCFGLevelsSource(num_levels=1, num_symbols=3, num_rules=4, seq_len=3),
]
LARGE = [
    PCFGSource(num_nonterminals=16, num_symbols=256, num_rules=3, concentration=0.1, seq_len=48, val_size=16),
    PCFGLevelsSource(num_levels=5, num_symbols=3, num_rules=2, seq_len=80, val_size=16),
]
LONGEST = PCFGSource(num_nonterminals=2, num_symbols=256, num_rules=3, concentration=0.1, seq_len=256)


def name(source):
    return f"{type(source).__name__}-{len(source.grammar.names)}-{source.seq_len}"


@pytest.mark.parametrize("small", SMALL, ids=name)
def test_the_oracle_is_that_of_all_derivations(small):
    check_language(small, joint=pcfg)


@pytest.mark.parametrize("seq_len", [1, 2, 5, 6, 7])
def test_a_grammar_of_a_file(toy, seq_len):
    check_language(PCFGFileSource(toy, seq_len=seq_len), joint=pcfg)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE, ids=name)
def test_large_ones_keep_the_identities(large):
    check_language(SMALL[0], large, joint=pcfg)


@pytest.mark.slow
def test_the_longest_rows_do_not_underflow():
    """A row of 256 words, each of probability below 0.05, has one below 1e-308."""
    tokens_BL = LONGEST.rows("val")[torch.arange(8)]
    log_prob_B = LONGEST.oracle().log_likelihood(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))
    assert log_prob_B.isfinite().all()
    assert (log_prob_B < -709).any()
    check_chain_rule(LONGEST, num_rows=8, num_hidden=1)


def test_blocks_change_nothing(monkeypatch):
    source = SMALL[1]
    tokens_BL = source.rows("val")[torch.arange(40)]
    observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = source.oracle().posterior(tokens_BL, observed_BL), source.oracle().sample(tokens_BL, observed_BL, torch.arange(40))
    oracle = source.oracle()
    oracle._row_elements = 2**21
    torch.testing.assert_close(oracle.posterior(tokens_BL, observed_BL), whole[0], atol=1e-14, rtol=0)
    assert torch.equal(oracle.sample(tokens_BL, observed_BL, torch.arange(40)), whole[1])


def test_a_file_says_what_it_says(toy):
    grammar, words = read_grammar(toy)
    assert words == WORDS
    assert grammar.names[:6] == ("S", "NP", "VP", "Det", "N", "V")
    assert set(grammar.names[6:]) == {"'1'", "NP#3.2"}
    source = PCFGFileSource(toy, seq_len=5)
    found = {" ".join(words[token] for token in row) for row in source.rows("val")[torch.arange(500)].tolist()}
    assert "the cat sees the dog" in found
    assert "it and the dog sleeps" in found
    sequences_SL, _, _ = pcfg(source)
    assert found <= {" ".join(words[token] for token in row) for row in sequences_SL.tolist()}
    assert source.fingerprint() == source.expected_fingerprint()
    toy.with_name("other.pcfg").write_text(TOY.replace("[0.25]", "[0.20]").replace("[0.15]", "[0.20]"))
    assert PCFGFileSource(toy.with_name("other.pcfg"), seq_len=5).fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S -> 'a' 'b' [0.5]\n", ["line 1", "S sum to 0.5"]),
        ("S -> 'a' 'b' [0.5] | NP [0.5]\n", ["line 1", "single nonterminal", "NP"]),
        ("S -> 'a' NP [0.5] | 'b' [0.5]\n", ["line 1", "NP has no rules", "'NP'"]),
        ("# words\n\nS -> 'a' 'b'\n", ["line 3", "in brackets"]),
        ("S -> 'a' [0.5] 'b' [0.5]\n", ["line 1", "in brackets"]),
        ("S -> [1.0]\n", ["line 1", "in brackets"]),
        ("S -> 'a' [1.0] |\n", ["line 1", "in brackets"]),
        ("S -> 'a' [x]\n", ["line 1", "[x]", "from 0 to 1"]),
        ("S -> 'a' [1.5]\n", ["line 1", "[1.5]"]),
        ("S -> 'a [1]\n", ["line 1", "cannot read", "'a"]),
        ("S = 'a' [1]\n", ["line 1", "nonterminal and ->"]),
        ("'S' -> 'a' [1]\n", ["line 1", "nonterminal and ->"]),
        ("S -> 'a' [1]\n", ["1 word(s)"]),
        ("# nothing\n", ["no rules"]),
    ],
)
def test_a_wrong_file_is_told_by_file_and_line(tmp_path, text, words):
    path = tmp_path / "wrong.pcfg"
    path.write_text(text)
    with pytest.raises((ConfigError, InvalidConfigError)) as caught:
        PCFGFileSource(path, seq_len=2)
    assert [word for word in ["data.path", "wrong.pcfg", *words] if word not in str(caught.value)] == []


def test_lengths_that_a_grammar_does_not_have_are_refused_with_the_nearest(toy):
    even = toy.with_name("even.pcfg")
    even.write_text("S -> 'a' S 'b' [0.5] | 'a' 'b' [0.5]\n")
    with pytest.raises(ConfigError, match=r"data.seq_len=5.*nearest that it has: 4 and 6") as caught:
        PCFGFileSource(even, seq_len=5)
    assert caught.value.key == "data.seq_len"
    with pytest.raises(ConfigError, match="no such file"):
        PCFGFileSource(toy.with_name("nope"))


@pytest.mark.parametrize(
    ("kind", "arguments", "key", "largest"),
    [
        (PCFGSource, {"num_nonterminals": 3, "num_rules": 10}, "data.num_rules", {"num_rules": 9}),
        (PCFGSource, {"num_nonterminals": 128, "seq_len": 256}, "data.seq_len", {"seq_len": 161}),
        (PCFGSource, {"num_nonterminals": 32, "num_rules": 1000, "seq_len": 64}, "data.seq_len", {"seq_len": 32}),
        (PCFGLevelsSource, {"num_symbols": 32, "num_levels": 2, "seq_len": 6}, "data.num_symbols", {"num_symbols": 63}),
        (PCFGLevelsSource, {"num_symbols": 2, "num_rules": 7}, "data.num_rules", {"num_rules": 6}),
    ],
)
def test_what_is_too_large_names_the_largest_that_fits(kind, arguments, key, largest):
    ((argument, value),) = largest.items()
    with pytest.raises(ConfigError) as caught:
        kind(**arguments | {argument: max(value + 1, arguments[argument])})
    assert caught.value.key == key
    assert f"{key}={value}" in caught.value.remedy
    if kind is PCFGSource:  # a grammar of levels need not have rows of this length
        assert kind(**arguments | largest)


def test_levels_have_their_shape():
    source = PCFGLevelsSource(num_levels=3, num_symbols=4, num_rules=3, seq_len=15)
    rules = source.grammar.rules
    assert rules[0][0] == "0:0"
    for left, right, prob in rules:
        level = int(left[0])
        assert prob == pytest.approx(1 / 3)
        assert len(right) in (2, 3)
        assert all(isinstance(part, int) if level == 2 else part[0] == str(level + 1) for part in right)
    for level in "012":
        rights = [right for left, right, _ in rules if left[0] == level]
        assert len(set(rights)) == len(rights) == (3 if level == "0" else 12)
    rows, index_B = source.rows("val"), torch.arange(20)
    latents = rows.latents(index_B)
    assert set(latents) == {"split", "level_1", "level_2"} == set(source.latent_sizes())
    assert 4 <= latents["split"].min() <= latents["split"].max() <= 9  # of the first of two or three parts
    # a word is one that its level-2 symbol can give
    words = {symbol: {word for left, right, _ in rules if left == f"2:{symbol}" for word in right} for symbol in range(4)}
    for token, symbol in zip(rows[index_B].flatten().tolist(), latents["level_2"].flatten().tolist(), strict=True):
        assert token in words[symbol]


def test_choices_take_nothing_of_weight_0():
    weight_RC = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0, 0.0]]).double()
    u_M = torch.linspace(0, 1 - 2**-53, 4001, dtype=torch.float64)
    choices = Choices(weight_RC)
    for row, weight_C in enumerate(weight_RC):
        counts_C = choices.draw(torch.full((4001,), row), u_M).bincount(minlength=5)
        assert (counts_C[weight_C == 0] == 0).all()
        assert (counts_C / 4001 - weight_C / weight_C.sum()).abs().max() < 1e-3


def test_choices_are_those_of_a_search_at_borders_of_the_grid_too():
    source = torch.Generator().manual_seed(0)
    weight_RC = torch.rand(7, 300, dtype=torch.float64, generator=source) ** 8
    row_M = torch.randint(7, (4, 5000), generator=source)
    u_M = torch.rand(4, 5000, dtype=torch.float64, generator=source)
    u_M[0] = (u_M[0] * 4096).floor() / 4096
    cdf_RC = weight_RC.cumsum(1) / weight_RC.sum(1, keepdim=True)
    expected_M = (cdf_RC[row_M] <= u_M[..., None] - 1e-9).sum(-1)
    off_M = Choices(weight_RC).draw(row_M, u_M) - expected_M
    assert (off_M >= 0).all()
    assert (off_M > 0).float().mean() < 1e-3  # where 1e-9 matters


def test_rows_are_conditioned_on_their_length():
    """Trees of a grammar with one nonterminal are those of all shapes alike: the root's left part is Catalan-distributed."""
    source = PCFGSource(num_nonterminals=1, num_symbols=2, num_rules=1, seq_len=6)
    splits_B = source.rows("train").latents(torch.arange(20_000))["split"][:, 0]
    catalan = [1, 1, 2, 5, 14]
    expected = torch.tensor([0, *(catalan[k - 1] * catalan[5 - k] for k in range(1, 6))]).double()
    assert chi_squared(splits_B.bincount(minlength=6), expected / expected.sum() * len(splits_B)) > 1e-4


def test_golden_rows():
    for source, golden in zip((PCFGSource(), PCFGLevelsSource()), GOLDEN, strict=True):
        rows = source.rows("train")[torch.arange(2)]
        assert ["".join(f"{token:x}" for token in row) for row in rows.tolist()] == golden
        assert torch.equal(pickle.loads(pickle.dumps(source)).rows("train")[torch.arange(2)], rows)
        assert not torch.equal(type(source)(seed=1).rows("train")[torch.arange(2)], rows)


GOLDEN = [
    ["fc4dc08c3f80710003b327078f8c7827", "f162caf8bc0724c7fff357fc71b07c3b"],
    ["210210112100110110001101201100000210", "212100110122100000110021011011210011"],
]


def test_the_default_sizes_keep_the_chain_rule():
    for source in (PCFGSource(), PCFGLevelsSource()):
        check_chain_rule(source, num_rows=4, num_hidden=8)
