"""The command that a report prints gives the run's config again, whether a sweep's file tells it or only the config."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY, composed

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.report.recipe import command_of
from mlm_lightning.report.results import Result
from mlm_lightning.runs.identity import identity


def result_of(config: dict[str, Any], **more: Any) -> Result:
    return Result(Path("run"), "run", "complete", config=config, **more)


def again(command: str) -> dict[str, Any]:
    mlm, train, *overrides = shlex.split(command)
    assert (mlm, train) == ("mlm", "train")
    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "optim.lr=1e-5", "name=other", "output_dir=some where"],
        ["masking=span", "masking.mean_length=4"],
        ["data=uniform", "model.num_layers=1", "schedule=wsd"],
        ["data=text", "data.path='texts/*.txt'", "data.tokenizer=train", "data.vocab_size=100"],
        ["data=text", 'data.path=[a.txt,"it\'s, b.txt"]', "data.text_column='null'"],
        ["eval.mask_rates=[0.15,0.3]", "data.train_size=0.5", "trainer.max_epochs=2", "trainer.max_steps=null"],
        ["callbacks=default", "trainer.deterministic=true"],
    ],
)
def test_of_a_config_alone(overrides: list[str]) -> None:
    config = composed(*(each for each in overrides))
    command, checked = command_of(result_of(config))
    assert checked, command
    assert identity(again(command)) == identity(config)
    assert again(command)["output_dir"] == config["output_dir"]


def test_of_a_job_of_a_sweep() -> None:
    sweep = ["mlm", "train", "-m", *TOY, "masking.rate=0.1,0.2", "seed=0,1"]
    config = composed("masking.rate=0.2", "seed=1")
    command, checked = command_of(result_of(config, overrides=["++masking.rate=0.2", "seed=1"], sweep_command=sweep))
    assert checked
    assert command == shlex.join(["mlm", "train", *TOY, "masking.rate=0.2", "seed=1"])


def test_a_sweep_that_says_too_little_is_made_up_for() -> None:
    config = composed("masking.rate=0.2")  # the rest came from a file that only the sweep knows
    result = result_of(
        config, overrides=["sweep=mask_rate", "masking.rate=0.2"], sweep_command=["mlm", "train", "sweep=mask_rate"]
    )
    command, checked = command_of(result)
    assert checked
    assert "sweep=" not in command  # which would run all of it
    assert identity(again(command)) == identity(config)


def test_a_config_that_is_not_to_be_had_is_not_claimed() -> None:
    gone = ["mlm", "train", "-m", "--config-dir", "no such folder", "seed=0,1"]
    command, checked = command_of(result_of(composed(), overrides=["seed=1"], sweep_command=gone))
    assert (command, checked) == ("mlm train --config-dir 'no such folder' seed=1", False)
    gone = ["mlm", "train", "-m", "--config-name", "nothing", "seed=0,1"]
    assert command_of(result_of(composed(), overrides=["seed=1"], sweep_command=gone))[1] is False


def test_a_class_of_ones_own_is_a_key_like_others() -> None:
    config = composed("model._target_=my_package.Model")
    command, checked = command_of(result_of(config))
    assert checked
    assert "model._target_=my_package.Model" in command
