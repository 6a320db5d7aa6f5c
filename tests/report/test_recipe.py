"""The command that a report prints gives the run's config again, from the overrides that the run's manifest keeps."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY, composed
from made_runs import make_run, make_sweep

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.report.results import Recipe, Result, collect, recipe_of
from mlm_lightning.runs.identity import identity


def result_of(config: dict[str, Any], overrides: list[str], **manifest: Any) -> Result:
    return Result(Path("run"), "run", "complete", config=config, manifest={"overrides": overrides} | manifest)


def again(command: str) -> Any:
    """The config of a command, with Hydra's part."""
    mlm, train, *overrides = shlex.split(command)
    assert (mlm, train) == ("mlm", "train")
    with composer() as hydra:
        return hydra.compose(hydra.plain(overrides))


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
        ["model._target_=my_package.Model"],
    ],
)
def test_of_a_run(overrides: list[str]) -> None:
    overrides, config = [*TOY, *overrides], composed(*overrides)
    recipe = recipe_of(result_of(config, overrides))
    assert recipe is not None
    assert recipe.is_checked, recipe.command
    assert recipe.command == shlex.join(["mlm", "train", *overrides])
    assert identity(to_plain(again(recipe.command))) == identity(config)
    assert again(recipe.command)["output_dir"] == config["output_dir"]


def test_of_a_job_of_a_sweep() -> None:
    overrides = [*TOY, "masking.rate=0.2", "seed=1"]
    result = result_of(composed("masking.rate=0.2", "seed=1"), [*overrides, "sweep.jobs=2", "hydra/launcher=joblib"])
    assert recipe_of(result) == Recipe(shlex.join(["mlm", "train", *overrides]), is_checked=True)


def test_of_a_job_of_a_shipped_sweep() -> None:
    overrides = ["sweep=mask_rate", "masking.rate=0.2"]
    with composer() as hydra:
        config = to_plain(hydra.compose(hydra.plain(overrides)))
    recipe = recipe_of(result_of(config, overrides))
    assert recipe is not None
    assert recipe.is_checked
    assert str(again(recipe.command).hydra.mode) == "RunMode.RUN"  # else it would run all of the sweep
    assert identity(to_plain(again(recipe.command))) == identity(config)


def test_starting_again_is_not_repeated() -> None:
    assert recipe_of(result_of(composed(), [*TOY, "resume=never"])) == recipe_of(result_of(composed(), list(TOY)))


def test_a_config_that_is_not_to_be_had_is_not_claimed() -> None:
    recipe = recipe_of(result_of(composed(), ["seed=1"], config_dir="no such folder"))
    assert recipe == ("mlm train --config-dir 'no such folder' seed=1", False)
    recipe = recipe_of(result_of(composed(), ["seed=1"], config_name="nothing"))
    assert recipe == ("mlm train --config-name nothing seed=1", False)
    assert recipe_of(result_of(composed(), ["optim.lr=0.123"])) == ("mlm train optim.lr=0.123", False)


def test_a_folder_of_configs_is_part_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptim: {lr: 0.007}\n")
    recipe = recipe_of(result_of(composed("optim.lr=0.007"), [*TOY, "experiment=mine"], config_dir=str(tmp_path)))
    command = shlex.join(["mlm", "train", "--config-dir", str(tmp_path), *TOY, "experiment=mine"])
    assert recipe == Recipe(command, is_checked=True)


def test_a_whole_number_that_was_typed_as_a_float() -> None:
    recipe = recipe_of(result_of(composed("trainer.max_steps=10"), [*TOY, "trainer.max_steps=1e1"]))
    assert recipe is not None
    assert recipe.is_checked


def test_of_a_sweep_that_has_no_mode(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n")
    recipe = recipe_of(result_of(composed("seed=1"), [*TOY, "sweep=mine", "seed=1"], config_dir=str(tmp_path)))
    assert recipe is not None
    assert recipe.is_checked
    assert recipe.command.endswith("seed=1 hydra.mode=RUN")


def test_of_a_run_of_an_older_version(tmp_path: Path) -> None:
    """Its manifest has no overrides: sweep.json may have those of its job."""
    for name in ("job", "single"):
        path = make_run(tmp_path / name, {"seed": 1}) / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["overrides"]
        path.write_text(json.dumps(manifest))
    (single,) = collect([str(tmp_path / "single")]).results
    assert recipe_of(single) is None
    make_sweep(tmp_path, [("job", ["seed=1"])], ["seed"])
    (job,) = collect([str(tmp_path)]).results
    assert recipe_of(job) == ("mlm train seed=1", False)  # these runs' config is made up
