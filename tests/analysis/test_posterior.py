"""A model that is the oracle is found to be it, in and out of sample; any other is as far away as enumeration says."""

from typing import Any

import pytest
import torch
from subjects import subject, transformer
from torch import Tensor, nn

from mlm_lightning.analysis.posterior import compare, exact_posteriors, examine
from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.source import Source
from mlm_lightning.errors import ConfigError

TREE = TreeSource(depth=3, num_symbols=3, grammar_seed=1)


class Exact(nn.Module):
    """The oracle as a model: it sees which tokens are masked."""

    def forward(self, input_ids_BL: Tensor, *_: Any) -> Tensor:
        observed_BL = input_ids_BL != TREE.vocab.mask_id
        return TREE.oracle().posterior(input_ids_BL, observed_BL).log()


@pytest.mark.parametrize("sample", ["in sample", "out of sample"])
def test_the_oracle_as_a_model_is_exact(sample: str) -> None:
    compared = compare(subject(TREE, Exact()), sample)
    assert compared.difference_P.max() < 1e-12
    assert compared.kl_P.abs().max() < 1e-12
    assert compared.ignorance > 0.05
    assert compared.skipped == 0


def test_out_of_sample_are_other_tokens_under_the_same_masks() -> None:
    seen: list[Tensor] = []

    class Watches(Exact):
        def forward(self, input_ids_BL: Tensor, *_: Any) -> Tensor:
            seen.append(input_ids_BL)
            return super().forward(input_ids_BL)

    looked_into = subject(TREE, Watches(), num_rows=40)
    compare(looked_into, "in sample")
    compare(looked_into, "out of sample")
    inside_NL, outside_NL = seen
    masked_NL = inside_NL == TREE.vocab.mask_id
    assert torch.equal(masked_NL, outside_NL == TREE.vocab.mask_id)
    same = (inside_NL == outside_NL)[~masked_NL].double().mean()
    assert 0.2 < same < 0.5  # by chance, one in three


def test_divergence_and_difference_are_those_of_the_definition() -> None:
    looked_into = subject(TREE, transformer(TREE), num_rows=30)
    compared = compare(looked_into, "in sample")
    divergences, differences = [], []
    for batch in looked_into.batches("val"):
        logits_BLV = looked_into.run(batch)
        for row, position in (batch.labels_BL != IGNORE_INDEX).nonzero().tolist():
            tokens_1L = batch.input_ids_BL[row : row + 1]
            exact_V = TREE.oracle().posterior(tokens_1L, tokens_1L != TREE.vocab.mask_id)[0, position]
            model_V = logits_BLV[row, position].double().softmax(-1)
            divergences.append(sum(float(p * (p / m).log()) for p, m in zip(exact_V, model_V, strict=True) if p > 0))
            differences.append(float((exact_V - model_V).abs().max()))
    assert compared.kl_P.tolist() == pytest.approx(divergences, abs=1e-9)
    assert compared.difference_P.tolist() == pytest.approx(differences, abs=1e-9)
    (record, _) = examine(looked_into).table
    assert record["KL"] == pytest.approx(sum(divergences) / len(divergences))
    assert record["max difference"] == pytest.approx(max(differences))


class Rejects:
    """An oracle of a language in which no row begins with a 2."""

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        if (observed_BL[:, 0] & (tokens_BL[:, 0] == 2)).any():
            raise ValueError("row 0 of the batch: impossible")
        return TREE.oracle().posterior(tokens_BL, observed_BL)


def test_impossible_rows_are_left_out_and_the_others_stay() -> None:
    tokens_BL = TREE.rows("val")[torch.arange(40)]
    observed_BL = torch.arange(8).expand(40, -1) != 3
    exact_BLV, possible_B = exact_posteriors(Rejects(), tokens_BL, observed_BL)
    assert torch.equal(possible_B, tokens_BL[:, 0] != 2)
    assert 0 < possible_B.sum() < 40
    expected_BLV = TREE.oracle().posterior(tokens_BL, observed_BL)
    assert torch.equal(exact_BLV[possible_B], expected_BLV[possible_B])


def test_a_finding_has_a_line_for_each_bin_that_is_met() -> None:
    source = UniformSource(num_symbols=8, seq_len=6)
    found = examine(subject(source, transformer(source)))
    # the exact probability is always 1/8, which lies in the third of twenty bins
    assert {(each["exact_from"], each["exact_mean"]) for each in found.numbers} == {(0.1, 0.125)}
    assert len(found.numbers) == 2 * 8
    assert found.pictures[0].png.startswith(b"\x89PNG")
    assert "in sample" in found.sentences[0]
    assert "out of sample" in found.sentences[1]


def test_a_text_has_no_exact_posterior() -> None:
    class Text(Source):
        vocab, seq_len = Vocab(size=4, mask_id=3), 8

        def rows(self, split: str) -> Any:
            return TREE.rows(split)

    with pytest.raises(ConfigError, match=r"analysis=posterior: the data \(Text\) has no exact posterior"):
        examine(subject(Text(), transformer(TREE)))
