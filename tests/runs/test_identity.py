"""The same command finds the same folder, also in later versions."""

from typing import Any

import pytest

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.config.signatures import MOVED, resolve_target
from mlm_lightning.runs import identity as identity_module
from mlm_lightning.runs.identity import deciding, identity, slug


def config_of(*overrides: str) -> dict[str, Any]:
    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain(overrides)))


# what experiment=text_scratch was in 0.1
TEXT_SCRATCH = ("data=text", "model=transformer_4x256", "name=text_scratch", "data.tokenizer=train", "data.vocab_size=8192")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "d0bc97c3"),
        ([*TEXT_SCRATCH, "data.path=texts/*.txt", "masking=span"], "ab0ba551"),
        (["sweep=mask_rate", "masking.rate=0.3", "model=distilbert"], "e477b5d8"),
    ],
)
def test_an_identity_never_changes(overrides, expected):
    """Where it does, finished runs are not found again: give a new key a line in LATER_KEYS, and a moved class one in MOVED."""
    assert identity(config_of(*overrides)) == expected


def test_a_later_key_is_left_out_while_it_means_the_old_behaviour(monkeypatch):
    before = config_of()
    monkeypatch.setitem(identity_module.LATER_KEYS, "model.norm", "layer")
    monkeypatch.setitem(identity_module.LATER_KEYS, "later", None)
    config = config_of("model.norm=layer") | {"later": None}
    assert identity(config) == identity(before)
    assert identity(config_of("model.norm=rms")) != identity(before)
    assert identity(config | {"later": {"key": "value"}}) != identity(before)


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


def test_a_watched_run_is_the_same_run_and_one_that_may_stop_early_is_not():
    plain = identity(config_of())
    for same in ("callbacks=default", "callbacks=[monitor]", "callbacks=monitor", "callbacks=[default,monitor]"):
        assert identity(config_of(same)) == plain
    assert identity(config_of("callbacks=[monitor]", "callbacks.monitor.layers=false")) == plain
    assert identity(config_of("callbacks=[monitor]", "callbacks.monitor=null")) == plain
    early = identity(config_of("callbacks=early_stopping"))
    assert early == "f48fa11a"
    assert (
        early == identity(config_of("callbacks=[early_stopping,monitor]")) == identity(config_of("callbacks=[early_stopping]"))
    )
    # a user's own callback may be called like ours
    own = "callbacks.monitor={_target_: my_package.Monitor}"
    assert identity(config_of(own)) != plain
    assert identity(config_of("callbacks=null")) == "9a5e7b30"


# names


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "default"),
        (["++masking.rate=0.1", "++seed=0"], "rate=0.1,seed=0"),
        (["++optim.lr=0.1", "data=uniform", "name=x", "logger=csv", "hydra/launcher=joblib"], "lr=0.1,data=uniform"),
        (["++data.seed=1", "++eval.seed=2"], "data.seed=1,eval.seed=2"),  # neither is the seed
        (["model=distilbert", "++model.config.dim=8"], "model=distilbert,dim=8"),
        (["++optim.lr=1e+30"], "lr=1e+30"),  # not 1e-30
        (["++optim.lr=0.0012345678901234", "++optim.weight_decay=1.5e-05"], "lr=0.001235,weight_decay=1.5e-05"),
        (["++seed=1234567890123"], "seed=1234567890123"),
        (["++eval.mask_rates=[0.15,0.3]"], "mask_rates=0.15-0.3"),
        (["callbacks=[monitor]", "++callbacks.monitor.layers=false"], "default"),
        (
            ["callbacks=[early_stopping,monitor]", "++callbacks.early_stopping.patience=3"],
            "callbacks=early_stopping,patience=3",
        ),
        (["++data.no_such_key=1"], "no_such_key=1"),
        (["data=text", "data.path='../texts/*.txt'"], "data=text,path=..-texts-.txt"),
    ],
)
def test_a_name_is_short_and_says_what_decides(overrides, expected):
    assert slug(overrides, config_of(*overrides)) == expected


def test_data_to_evaluate_on_does_not_lengthen_the_keys_of_data():
    assert slug(["data.filter_level=2"], config_of("sweep=filter_levels", "data.filter_level=2")) == "filter_level=2"


def test_a_long_name_ends_with_a_whole_value():
    overrides = [f"model.key_number_{i}=12345" for i in range(50)]
    name = slug(overrides, {})
    assert 60 < len(name) <= 80
    assert name.split(",") == overrides[: len(name.split(","))]
    assert len(slug(["data.path=" + "x" * 200], {})) == 80
