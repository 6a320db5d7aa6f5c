"""A config is checked against the signatures of what it names, all at once, before anything is made of it."""

import copy
import inspect
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning
import pytest
import torch
from conftest import composed
from helpers import conditions_of, problems, settings_of

import mlm_lightning
from mlm_lightning.config.build import build_each, build_model, build_optimizer
from mlm_lightning.config.settings import Optimization, Settings
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.config.trainer import OWNED_KEYS, TrainerSettings
from mlm_lightning.data.condition import sources
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.masking import Bernoulli, Single, Span
from mlm_lightning.values import matches, suggestion

CPU = {"accelerator": "cpu", "max_steps": 100}
OWNED = {
    *("barebones", "callbacks", "default_root_dir", "enable_autolog_hparams", "enable_checkpointing", "fast_dev_run"),
    *("limit_predict_batches", "logger", "min_epochs", "min_steps", "model_registry", "overfit_batches", "plugins"),
    *("reload_dataloaders_every_n_epochs", "use_distributed_sampler"),
}


# the type of a value


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        ("1", int, False),
        (1, float, True),
        (1.5, float, True),
        (True, float, False),
        ("1e-3", float, False),
        (True, bool, True),
        (0, bool, False),
        ("a", str, True),
        (1, str, False),
        ("a/b", Path, True),
        (None, None, True),
        (None, int, False),
        (None, int | None, True),
        (0, int | None, True),
        ("x", int | list[int] | str, True),
        (1.5, int | list[int] | str, False),
        ([0, 1], list[int], True),
        ([0, 1.5], list[int], False),
        ("ab", list[str], False),
        ([0.9, 0.999], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([0.9, 0.99, 0.999], tuple[float, float], False),
        ([0.9, 0.99, 0.999], tuple[float, ...], True),
        ([0.9, "x"], tuple[float, float], False),
        ({"a": 1}, dict[str, int], True),
        ([], dict, False),
        ("norm", Literal["norm", "value"], True),
        ("l2", Literal["norm", "value"], False),
        (3, Annotated[int, "rows"], True),
        (object(), Any, True),
        (1, inspect.Parameter.empty, True),
        (1e-3, float | torch.Tensor, True),
        ("fast", float | torch.Tensor, False),
    ],
)
def test_matches(value, hint, expected):
    assert matches(value, hint) is expected


def test_suggestion():
    assert suggestion("dpeth", ["depth", "sigma"]) == "; did you mean 'depth'?"
    assert suggestion("zzz", ["depth", "sigma"]) == "."


# the trainer's settings


def settings(**values: Any) -> TrainerSettings:
    return TrainerSettings(**CPU | values)


@pytest.mark.parametrize(
    ("values", "rows", "batch_size", "total_steps"),
    [
        ({"max_steps": 7}, 1000, 10, 7),
        ({"max_steps": None, "max_epochs": 3}, 1000, 10, 300),
        ({"max_steps": 250, "max_epochs": 3}, 1000, 10, 250),
        ({"max_steps": 350, "max_epochs": 3}, 1000, 10, 300),
        # the last batch of an epoch is filled up by the next epoch's rows; the last of all is not
        ({"max_steps": None, "max_epochs": 2}, 25, 10, 5),
        ({"max_steps": None, "max_epochs": 1}, 25, 10, 3),
        ({"max_steps": None, "max_epochs": 1, "accumulate_grad_batches": 4}, 1000, 10, 25),
        ({"max_steps": None, "max_epochs": 1, "devices": 4}, 1000, 10, 25),
        ({"max_steps": None, "max_epochs": 1, "devices": [0, 1], "num_nodes": 2}, 1000, 10, 25),
        ({"max_steps": None, "max_epochs": 2, "limit_train_batches": 5}, 1000, 10, 10),
        ({"max_steps": None, "max_epochs": 2, "limit_train_batches": 500}, 1000, 10, 200),
        ({"max_steps": None, "max_epochs": 2, "limit_train_batches": 0.1}, 1000, 10, 20),
        ({"max_steps": None, "max_epochs": 2, "limit_train_batches": None}, 1000, 10, 200),
    ],
)
def test_a_run_ends_at_max_steps_or_max_epochs_whichever_comes_first(values, rows, batch_size, total_steps):
    assert settings(**values).plan(rows, batch_size).total_steps == total_steps


def test_the_number_of_steps_is_exact_for_any_number_of_rows():
    for rows in range(1, 60):
        for batch_size in range(1, 30):
            for epochs in (1, 3, 10):
                plan = settings(max_steps=None, max_epochs=epochs).plan(rows, batch_size)
                assert plan.total_steps == -(-epochs * rows // batch_size), (rows, batch_size, epochs)


def test_validation_at_a_number_of_steps():
    plan = settings(val_check_interval=30, check_val_every_n_epoch=5).plan(1000, 10)
    assert (plan.validate_every, plan.steps_per_epoch) == (30, 100)


@pytest.mark.parametrize(("share", "every", "expected"), [(1.0, 1, 100), (0.25, 1, 25), (1.0, 3, 300), (0.5, None, 50)])
def test_validation_at_a_share_of_an_epoch(share, every, expected):
    assert settings(val_check_interval=share, check_val_every_n_epoch=every).plan(1000, 10).validate_every == expected


def test_an_integer_one_is_a_step_and_a_float_one_an_epoch():
    assert settings(val_check_interval=1).plan(1000, 10).validate_every == 1
    assert settings(val_check_interval=1.0).plan(1000, 10).validate_every == 100


def test_validation_follows_epochs_that_end_within_a_step():
    plan = settings(max_steps=None, max_epochs=4, val_check_interval=1.0).plan(25, 10)
    assert (plan.validate_every, plan.steps_per_epoch, plan.total_steps) == (2.5, 2.5, 10)


def test_validation_is_never_more_often_than_each_step():
    assert settings(val_check_interval=0.001).plan(1000, 10).validate_every == 1


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_auto_is_bf16_where_the_cpu_has_it(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": native})
    assert settings().resolved_precision() == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_auto_is_bf16_where_the_gpu_has_it_natively(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # an older GPU emulates it, slowly
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert TrainerSettings(accelerator="auto", max_steps=1).resolved_precision() == expected


def test_any_other_precision_stays():
    assert settings(precision="64-true").resolved_precision() == "64-true"


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("00:12:00:00", 43_200),
        ("12h", 43_200),
        ("1d12h", 129_600),
        ("90m", 5_400),
        ("30s", 30),
        ({"hours": 1, "minutes": 1}, 3_660),
    ],
)
def test_times_as_people_type_them(typed, seconds):
    duration = TrainerSettings(max_steps=1, max_time=typed).max_duration
    assert duration is not None
    assert duration.total_seconds() == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_time": "soon"}, "trainer.max_time=soon: is no time that a run could take; give days:hours:minutes:seconds"),
        ({"max_time": {"hour": 3}}, "trainer.max_time={hour: 3}"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "trainer.precision=16-mixed: CPUs have no such precision"),
        ({"precision": "bf17"}, "trainer.precision=bf17: unknown; did you mean 'bf1"),
        ({"max_steps": None}, "both null"),
        ({"max_steps": 0}, "trainer.max_steps=0: must be at least 1"),
        ({"max_epochs": -1}, "trainer.max_epochs=-1: must be at least 1"),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0"),
        ({"gradient_clip_val": -1.0}, "trainer.gradient_clip_val=-1.0: must be above 0"),
        (
            {"val_check_interval": 1.5},
            "trainer.val_check_interval=1.5: must be above 0 and at most 1; give a whole number, or a share",
        ),
        ({"limit_val_batches": -1}, "trainer.limit_val_batches=-1"),
        ({"devices": 0}, "trainer.devices=0"),
        ({"devices": "two"}, "trainer.devices=two"),
        ({"devices": []}, "trainer.devices=[]"),
    ],
)
def test_an_impossible_setting_is_named_with_its_value(values, message):
    with pytest.raises(ValueError, match="trainer") as error:
        settings(**values)
    assert message in str(error.value)


def test_a_missing_gpu_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"trainer.accelerator=gpu: torch finds no such device"):
        TrainerSettings(accelerator="gpu", max_steps=1)


def test_every_argument_of_lightnings_trainer_is_a_setting_or_owned():
    """Lightning's names work without `+`; what a config may not set says what to use instead."""
    lightnings = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    ours = set(inspect.signature(TrainerSettings).parameters)
    own = {"auto_requeue", "batch_schedule", "time_budget", "compile", "val_steps"}
    assert ours - own <= lightnings  # the first is one of Lightning's SLURMEnvironment
    assert lightnings - ours == OWNED
    assert set(OWNED_KEYS) == OWNED


@pytest.mark.parametrize("key", sorted(OWNED))
def test_an_owned_trainer_key_names_its_remedy(key):
    (problem,) = problems(composed(f"trainer.{key}=1"))
    start = f"trainer.{key}: mlm_lightning sets this itself; "
    assert problem.startswith(start)
    assert len(problem) > len(start) + 10


def test_the_shipped_trainer_sets_every_setting():
    """conf/trainer/default.yaml is the documentation of them."""
    assert set(composed()["trainer"]) == set(inspect.signature(TrainerSettings).parameters)


# problems


def test_the_default_has_none():
    assert problems(composed()) == []


def test_all_problems_are_listed_at_once_with_suggestions():
    found = problems(
        composed(
            *("sede=1", "data.dpeth=3", "+model.nheads=2", "++optim.weigth_decay=0.1", "data.batch_size=0", "eval.sed=1"),
            *("masking.rate=high", "trainer.fast_dev_run=true", "trainer.max_step=3", "schedule.final=2", "optim.lr=fast"),
            *("callbacks.checkpoint.every_minute=1", "logger.csv.foo=1"),
        )
    )
    assert sorted(found) == sorted(
        [
            "sede: unknown key of the config; did you mean 'seed'?",
            "eval.sed: unknown key of eval; did you mean 'seed'?",
            "data.batch_size=0: must be at least 1; give a number of rows",
            "trainer.fast_dev_run: mlm_lightning sets this itself; use trainer=smoke",
            "trainer.max_step: unknown key of the trainer; did you mean 'max_steps'?",
            "data.dpeth: unknown key of TreeSource; did you mean 'depth'?",
            "masking.rate='high': should be a number or a group of keys (start, end, schedule); "
            "a share of the tokens, such as 0.15",
            "model.nheads: unknown key of TransformerClassifier; did you mean 'nhead'?",
            "optim.weigth_decay: unknown key of AdamW; did you mean 'weight_decay'?",
            "optim.lr='fast': should be a number",
            "callbacks.checkpoint.every_minute: unknown key of Checkpoint; did you mean 'every_minutes'?",
            "logger.csv.foo: unknown key of CSVLogger.",
            "schedule.final=2: must be from 0 to 1; it is the last factor on optim.lr",
        ]
    )


@pytest.mark.parametrize("key", ["seed", "name", "eval", "data.batch_size", "trainer", "masking", "optim"])
def test_what_is_missing_is_named(key):
    config = composed()
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    del node[last]
    assert f"{key}: no value given" in problems(config)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.depth=???"], "data.depth: no value given; add data.depth=VALUE to the command"),
        (["optim.betas=[0.9]"], "optim.betas=[0.9]: should be a list of 2 values"),
        (["trainer.max_time=5"], "trainer.max_time=5: should be text or a group of keys or null"),
        (["model.vocab_size=5"], "model.vocab_size: is not set in a config; it comes from the data"),
        (["optim.params=[]"], "optim.params: is not set in a config; it comes from the model"),
        (["name="], "name='': give it a value, or leave it out"),
        (["model._target_=torch.optim.SGD"], "model._target_=torch.optim.SGD: is no subclass of Module"),
        (["~model"], "model: has no _target_; it names the class, e.g. model._target_=package.module.Class"),
        (["eval.masking=bernouli"], "eval.masking=bernouli: unknown; did you mean 'bernoulli'?"),
        (["eval.mask_rates=[0.15,1.5]"], "eval.mask_rates: 1.5 must be above 0 and at most 1"),
        (
            ["model.decoder_output_activation=softmax"],
            "model.decoder_output_activation=softmax: cannot go with a cross-entropy",
        ),
        (["model.embedding_agg=mean"], "model.embedding_agg=mean: merges all positions"),
        (["model.nhead=3"], "model.nhead=3: does not divide model.d_model=16"),
        (["data=3"], "data"),
        (["eval.data=3"], "eval.data=3: should be a group of keys or null"),
        (["eval.data={k0: 3}"], "eval.data.k0=3: should be a group of keys"),
        (["eval.data={0: {}}"], "eval.data.0: is a whole number, not a name; give one such as k0"),
        (["eval.data={a/b: {}}"], "eval.data.a/b: is no name"),
        (["eval.data={rate_0.30: {}}"], "eval.data.rate_0.30: other metrics end like that (val/loss_rate_0.30)"),
        (["eval.data={se: {}}"], "eval.data.se: other metrics end like that (val/excess_loss_se)"),
        (
            ["eval.data={k0: {filtr_level: 0}}"],
            "eval.data.k0.filtr_level: unknown key of TreeSource; did you mean 'filter_level'?",
        ),
        (["eval.data={k0: {batch_size: 2}}"], "eval.data.k0.batch_size: is not set in eval.data; data.batch_size"),
        (["eval.data={k0: {sigma: wide}}"], "eval.data.k0.sigma='wide': should be a number"),
        (["eval.data={k9: {filter_level: 9}}"], "eval.data.k9.filter_level=9: must be at most 2"),
        (["eval.data={k0: {depth: 3}}"], "eval.data.k0: its rows have 8 tokens, and those of data 4"),
        (
            ["eval.data={k0: {num_symbols: 4}}"],
            "eval.data.k0: its vocabulary is not that of data (data → here: 4 tokens → 5 tokens)",
        ),
        (["eval.data={k0: {_target_: torch.nn.Linear}}"], "eval.data.k0._target_=torch.nn.Linear: is no subclass of Source"),
    ],
)
def test_a_problem_says_what_to_do(overrides, problem):
    try:
        found = problems(composed(*overrides))
    except UserError as error:
        found = [str(error)]
    assert any(each.startswith(problem) or problem in each for each in found), found


def test_check_raises_one_error_with_a_line_for_each():
    with pytest.raises(UserError) as error:
        settings_of(composed("sede=1", "data.dpeth=3"))
    assert len(str(error.value).splitlines()) == 2


def test_a_large_model_is_checked_without_its_memory():
    """d_model 65,536 with 96 layers would take 20 TB."""
    assert problems(composed("model.d_model=65536", "model.num_layers=96", "model.nhead=64")) == []


def test_a_users_class_is_checked_like_ours(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from torch import nn\n"
        "class MyModel(nn.Module):\n"
        "    def __init__(self, vocab_size: int, seq_len: int, width: int = 8) -> None:\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(width, vocab_size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = composed()
    config["model"] = {"_target_": "my_package.MyModel", "widht": 4}
    assert problems(config) == ["model.widht: unknown key of MyModel; did you mean 'width'?"]
    config["model"] = {"_target_": "my_package.MyModel", "width": 4}
    assert problems(config) == []


# targets


@pytest.mark.parametrize(
    "path",
    [
        "torch.utils.collect_env.run",
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "mlm_lightning.data.text.Path",  # ours by its path, not by where it was made
        "mlm_lightning.data.text.os.system",
        "mlm_lightning.masking.Bernoulli.frozen",
        "mlm_lightning.masking.dataclass",
        "mlm_lightning.masking.randomness",
        "mlm_lightning.config.signatures.resolve_target",
        "mlm_lightning.models.transformer.nn.Linear",
        "",
        None,
    ],
)
def test_an_untrusted_target_is_refused(path):
    with pytest.raises(UserError, match="_target_="):
        resolve_target(path, trusted=False)


def test_a_refused_target_is_not_even_imported():
    """Importing runs code: a stranger's module must stay unread."""
    code = (
        "import sys\n"
        "from mlm_lightning.config.signatures import resolve_target\nfrom mlm_lightning.errors import UserError\n"
        "for path in ('this.s', 'antigravity.open', 'wave.open'):\n"
        "    try: resolve_target(path, trusted=False)\n"
        "    except UserError: pass\n"
        "    else: sys.exit(path)\n"
        "sys.exit([m for m in ('this', 'antigravity', 'wave') if m in sys.modules] or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_untrusted_target_of_our_own_is_built():
    assert resolve_target("mlm_lightning.masking.Bernoulli", trusted=False) is Bernoulli


def test_a_config_to_evaluate_needs_trust_only_for_what_is_built():
    """A run's folder may come from anywhere; its optimizer is not built to evaluate it."""
    config = composed() | {"callbacks": None, "logger": None}
    assert problems(config, trusted=False) == []
    config["optim"] = {"_target_": "os.system", "command": "false"}
    assert problems(config, trusted=False) == []
    config["model"] = {"_target_": "os.system", "command": "false"}
    (problem,) = problems(config, trusted=False)
    assert problem.startswith("model._target_=os.system: the run names a class that is not mlm_lightning's own")
    config = composed("eval.data={other: {_target_: os.system}}") | {"callbacks": None, "logger": None}
    (problem,) = problems(config, trusted=False)
    assert problem.startswith("eval.data.other._target_=os.system: the run names a class that is not mlm_lightning's own")


def test_mistakes_in_data_are_told_once_not_for_each_further_source():
    found = problems(composed("data.dpeth=3", "eval.data={k0: {filter_level: 0}, k1: {filter_level: 1}}"))
    assert found == ["data.dpeth: unknown key of TreeSource; did you mean 'depth'?"]


def test_mistakes_in_each_further_source_are_told_at_once():
    found = problems(composed("eval.data={k0: {filtr_level: 0}, k1: {dpeth: 1}, k9: {filter_level: 9}}"))
    assert [problem.partition("=")[0].partition(":")[0] for problem in found] == [
        "eval.data.k0.filtr_level",
        "eval.data.k1.dpeth",
        "eval.data.k9.filter_level",
    ]


@pytest.mark.parametrize("path", ["no_such_package.X", "mlm_lightning.masking.Nothing", "X", "mlm_lightning.masking.MASKINGS"])
def test_a_target_that_is_not_there_is_named(path):
    with pytest.raises(UserError, match=f"_target_={path}"):
        resolve_target(path)


# building


def test_the_model_is_a_function_of_the_seed_alone():
    settings = settings_of(composed())
    models = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        models.append(build_model(settings.model, seed, settings.data.instance).state_dict())
    first, same, other = models
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_fused_optimizer_is_not_used_with_float16():
    group = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    optim = settings_of(composed()).optim
    assert build_optimizer(optim, "32-true")(group).defaults["fused"] is True
    assert build_optimizer(optim, "16-mixed")(group).defaults["fused"] is False


def test_the_conditions_of_an_evaluation():
    """Plain names are the training's condition; a rate that is the training's has both names, and no second pass."""
    config = composed("masking.rate=0.2", "eval.mask_rates=[0.2,0.5,0.5]")
    conditions = {condition.names: condition.masking for condition in conditions_of(config)}
    assert list(conditions) == [("", "rate_0.20"), ("rate_0.50",)]
    assert [masking.rate for masking in conditions.values()] == [0.2, 0.5]
    assert all(masking.mask_share == 1.0 for masking in conditions.values())
    assert all(isinstance(masking, Bernoulli) for masking in conditions.values())


def test_a_scheduled_rate_is_evaluated_at_its_end():
    rate = "masking.rate={start: 0.4, end: 0.2, schedule: cosine}"
    config = composed(rate, "eval.mask_rates=[0.2,0.4]")
    conditions = {condition.names: condition.masking for condition in conditions_of(config)}
    assert list(conditions) == [("", "rate_0.20"), ("rate_0.40",)]
    assert [masking.rate for masking in conditions.values()] == [0.2, 0.4]
    (masking,) = (condition.masking for condition in conditions_of(composed(rate, "eval.masking=span")))
    assert masking == Span(rate=0.2).frozen()


@pytest.mark.parametrize("kind", ["bernoulli", "span", "whole_word"])
def test_what_is_wrong_with_a_scheduled_rate_is_listed_at_once(kind):
    def found(rate: str) -> list[str]:
        return problems(composed(f"masking={kind}", f"masking.rate={rate}"))

    assert found("{start: 0.4, end: 1, schedule: cosine}") == []
    assert sorted(found("{strat: 0.3, end: high, schedule: step}")) == [
        "masking.rate.end='high': should be a number; a share of the tokens, such as 0.15",
        "masking.rate.schedule='step': should be linear or cosine",
        "masking.rate.start: no value given; RateSchedule needs it",
        "masking.rate.strat: unknown key of RateSchedule; did you mean 'start'?",
    ]
    assert found("{start: 0.3}") == [
        "masking.rate.end: no value given; RateSchedule needs it",
        "masking.rate.schedule: no value given; RateSchedule needs it",
    ]
    (message,) = found("{start: 1.2, end: 0.15, schedule: linear}")
    assert message == "masking.rate.start=1.2: must be above 0 and at most 1; a share of the tokens, such as 0.15"
    (message,) = found("{start: 0.3, end: 0, schedule: linear}")
    assert message == "masking.rate.end=0: must be above 0 and at most 1; a share of the tokens, such as 0.15"
    (message,) = found("null")
    assert message == (
        "masking.rate=null: should be a number or a group of keys (start, end, schedule); a share of the tokens, such as 0.15"
    )


def test_further_data_is_a_further_condition_unless_it_is_the_runs_own():
    """Names for equal keys share one pass, whatever order they come in."""
    levels = "{k0: {filter_level: 0}, k1: {filter_level: 1}, one: {filter_level: 1, depth: 2}, k2: {filter_level: 2}}"
    config = composed("data.filter_level=2", "eval.mask_rates=[0.15,0.3]", f"eval.data={levels}")
    conditions = {condition.names: condition.masking for condition in conditions_of(config)}
    assert list(conditions) == [("", "k2", "rate_0.15"), ("rate_0.30",), ("k0",), ("k1", "one")]
    assert [masking.rate for masking in conditions.values()] == [0.15, 0.3, 0.15, 0.15]
    assert [condition.source.filter_level for condition in conditions_of(config)] == [2, 2, 0, 1]


def test_further_data_with_a_target_is_whole():
    target = "{_target_: mlm_lightning.data.languages.uniform.UniformSource, num_symbols: 3, seq_len: 4}"
    _, source = sources(conditions_of(composed(f"eval.data={{u: {target}}}")))
    assert isinstance(source, UniformSource)
    assert source.rows("train") is not None


def test_a_run_from_before_further_data_can_be_evaluated():
    config = composed()
    del config["eval"]["data"]
    assert problems(config) == []
    assert [condition.names for condition in conditions_of(config)] == [("",)]


@pytest.mark.parametrize(("kind", "expected"), [("span", Span), ("single", Single)])
def test_another_kind_to_evaluate_with(kind, expected):
    (masking,) = (each.masking for each in conditions_of(composed(f"eval.masking={kind}", "masking.rate=0.2")))
    assert type(masking) is expected
    assert getattr(masking, "rate", 0.2) == 0.2


def test_null_switches_a_callback_off(tmp_path):
    nodes = settings_of(composed("callbacks.checkpoint=null")).callbacks.values()
    names = [type(each).__name__ for each in build_each(nodes, folder=str(tmp_path))]
    assert names == ["Throughput", "ProgressReport", "Samples"]
    assert settings_of(composed("callbacks=null")).callbacks == {}


def test_steps_per_epoch_of_a_plan_is_a_fraction():
    plan = settings().plan(1001, 10)
    assert math.isclose(plan.steps_per_epoch, 100.1)


def test_layer_decay_and_z_loss_go_with_every_optimizer_and_need_not_stand_beside_it():
    config = composed()
    config["optim"] = {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert settings_of(config).optimization == Optimization(layer_decay=None, z_loss=0.0)
    config["optim"] |= {"layer_decay": 0.9, "z_loss": 1e-4}
    settings = settings_of(config)
    assert settings.optimization == Optimization(layer_decay=0.9, z_loss=1e-4)
    assert settings.optim.arguments == {"lr": 0.1}


# settings again


def test_settings_are_not_replaced_by_hand():
    """Their run would still be the one of the config that they were composed of."""
    made = mlm_lightning.settings(["data.depth=3"])
    fields = {name: value for name, value in vars(made).items() if not name.startswith("_") and name not in ("seed", "compose")}
    for replaced in (lambda: replace(made, seed=3), lambda: Settings(seed=3, **fields)):
        with pytest.raises(UserError, match=r"can't be replaced by hand: .*settings\.with_\(\"seed=3\"\)"):
            replaced()
    for copied in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied.composed == made.composed
        assert copied.with_("seed=3").seed == 3


def test_with_composes_again(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "deep.yaml").write_text("defaults: [tree]\ndepth: 5\n")
    given = ["data=deep", "++seed=1", "trainer.max_steps=7", "model=transformer_4x256"]
    changed = mlm_lightning.settings(given, config_dir=str(tmp_path)).with_("seed=3", "optim.lr=0.5", "model=transformer_2x64")
    expected = mlm_lightning.settings(
        ["data=deep", "seed=3", "trainer.max_steps=7", "model=transformer_2x64", "optim.lr=0.5"], config_dir=str(tmp_path)
    )
    assert changed.composed == expected.composed
    assert (changed.seed, changed.trainer.max_steps, changed.data.arguments["depth"]) == (3, 7, 5)
    with pytest.raises(ConfigError, match="sede: unknown key"):
        changed.with_("sede=3")


def test_settings_of_a_runs_folder_are_not_composed_again():
    with pytest.raises(UserError, match=r"read from a run's folder can't be composed again; .*mlm_lightning\.settings"):
        settings_of(composed()).with_("seed=3")
