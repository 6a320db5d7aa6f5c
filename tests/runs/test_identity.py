"""The same command finds the same folder, also in later versions."""

from typing import Any

import pytest

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.config.signatures import MOVED, resolve_target
from mlm_lightning.runs import identity as identity_module
from mlm_lightning.runs.identity import deciding, identity


def config_of(*overrides: str) -> dict[str, Any]:
    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain(overrides)))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "d0bc97c3"),
        (["experiment=text_scratch", "data.path=texts/*.txt", "masking=span"], "ab0ba551"),
        (["sweep=mask_rate", "masking.rate=0.3", "model=distilbert"], "e477b5d8"),
    ],
)
def test_an_identity_never_changes(overrides, expected):
    """Where it does, finished runs are not found again: give a new key a line in LATER_KEYS, and a moved class one in MOVED."""
    assert identity(config_of(*overrides)) == expected


def test_a_later_key_is_left_out_while_it_means_the_old_behaviour(monkeypatch):
    before = config_of()
    monkeypatch.setitem(identity_module.LATER_KEYS, "model.norm", "layer")
    monkeypatch.setitem(identity_module.LATER_KEYS, "task", None)
    config = config_of("model.norm=layer") | {"task": None}
    assert identity(config) == identity(before)
    assert identity(config_of("model.norm=rms")) != identity(before)
    assert identity(config | {"task": {"label": "root"}}) != identity(before)


def test_the_number_of_processes_counts_where_it_is_not_one():
    config = config_of()
    assert deciding(config, 1) == deciding(config)
    assert deciding(config, 4) == deciding(config) | {"processes": 4}
    assert len({identity(config, processes) for processes in (1, 2, 4)}) == 3
    assert identity(config_of("trainer.devices=2"), 2) == identity(config_of("trainer.num_nodes=2"), 2)


def test_a_class_that_has_moved_is_known_by_its_first_name():
    config = config_of()
    old = to_old(config, {now: before for before, now in MOVED.items()})
    assert old["callbacks"]["checkpoint"]["_target_"] == "mlm_lightning.callbacks.Checkpoint"
    assert identity(old) == identity(config)


def to_old(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: to_old(value, names) for key, value in node.items()}
    return names.get(node, node) if isinstance(node, str) else node


@pytest.mark.parametrize("before", MOVED)
def test_a_first_name_still_opens_the_class(before):
    assert resolve_target(before) is resolve_target(MOVED[before])
