"""The definitions themselves, where they are more than a plain loop."""

import pkgutil
from importlib import import_module

import joints
import pytest
import torch

from mlm_lightning.data import languages
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.source import Source


@pytest.mark.parametrize(
    ("transition_SS", "expected_S"),
    [
        ([[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5]),  # of period 2
        ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]], [0.2, 0.4, 0.4]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5]),  # nothing moves: it stays uniform
        ([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0, 5 / 12, 7 / 12]),  # what is left of state 0
        ([[1.0, 1e-20], [3e-20, 1.0]], [0.75, 0.25]),  # slow
        ([[1.0, 1e-300], [3e-300, 1.0]], [0.75, 0.25]),
        ([[1.0, 1e-20], [0.0, 1.0]], [0.0, 1.0]),  # state 0 is left, in the end
    ],
)
def test_the_long_run_from_the_uniform_distribution(transition_SS: list[list[float]], expected_S: list[float]) -> None:
    assert joints.long_run(transition_SS) == pytest.approx(expected_S, rel=1e-12, abs=1e-300)


def test_a_markov_chain_that_never_settles_has_its_long_run() -> None:
    source = MarkovSource(num_symbols=2, order=1, seq_len=3)
    vars(source)["next_CQ"] = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # a source is read-only
    sequences_SL, _, log_prob_S = joints.markov(source)
    assert sequences_SL.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert log_prob_S.exp().tolist() == [0.5, 0.5]


def test_a_source_without_a_definition_is_an_error() -> None:
    with pytest.raises(TypeError, match="object has no definition"):
        joints.joint(object())  # type: ignore[arg-type]


def test_every_language_that_ships_has_a_definition() -> None:
    for module in pkgutil.iter_modules(languages.__path__):
        import_module(f"{languages.__name__}.{module.name}")
    kinds = [kind for kind in _below(Source) if kind.__module__.startswith("mlm_lightning.data.languages.")]
    concrete = [kind for kind in kinds if not _below(kind)]
    assert len(concrete) >= 16
    assert [kind for kind in concrete if kind not in joints.DEFINITIONS] == []


def _below(kind: type) -> list[type]:
    """The subclasses of the package, and theirs."""
    found = []
    for each in kind.__subclasses__():
        if each.__module__.startswith("mlm_lightning."):
            found += [each, *_below(each)]
    return found
