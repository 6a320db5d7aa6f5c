"""Every YAML that ships composes into a config without problems, and sets only keys that its target knows."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import conditions_of, problems
from omegaconf import OmegaConf

from mlm_lightning import packages
from mlm_lightning.config import shipped
from mlm_lightning.config.compose import composer, config_folder, to_plain
from mlm_lightning.config.settings import LOADER_KEYS, OPTIMIZATION_KEYS
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.runs.identity import identity

GROUPS = tuple(group for group in shipped.GROUPS if group != "launcher")  # whose options are plugins of Hydra's
FRAMEWORK_KEYS = {"data": LOADER_KEYS, "optim": OPTIMIZATION_KEYS}  # those of a group that are not its target's
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]
EVERY_OPTION = pytest.mark.parametrize("option", OPTIONS)
TEXT = ("data.path={corpus}", "data.tokenizer=train", "data.vocab_size=99")
NEEDS = {
    "data=text": TEXT,
    "data=pcfg_file": ("data.path={corpus.parent}/toy.pcfg",),
    "task=classify": ("task.label=root",),
    "experiment=text_scratch": ("data.path={corpus}",),
    "experiment=text_adapt": TEXT,
}
NEEDS_WEIGHTS = (
    "model=pretrained",
    "model=distilbert_tutorial",
    "experiment=xsum_distilbert",
    "experiment=text_adapt",
)  # theirs are on the hub; a tiny folder stands in


@pytest.fixture(autouse=True)
def every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML is right or wrong whether or not the package that it needs is installed; tests/test_packages.py is about that."""
    monkeypatch.setattr(packages, "_is_installed", lambda package: True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("one document\nanother one\n")
    path.with_name("toy.pcfg").write_text("S -> S S [0.5] | 'a' [0.4] | 'b' [0.1]\n")
    return path


def composed(option: str, corpus: Path) -> dict[str, Any]:
    extra = [each.format(corpus=corpus) for each in NEEDS.get(option, ())]
    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain([option, *extra])))


def nodes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a config that name a class."""
    named = {key: config[key] for key in ("data", "prepare", "masking", "model", "optim", "schedule")}
    for group in ("callbacks", "logger"):
        named |= {f"{group}.{name}": node for name, node in (config[group] or {}).items() if node}
    return named


def test_every_group_has_its_options():
    there = {option.partition("=")[0] for option in OPTIONS}
    assert there >= set(GROUPS) - {"sweep"}
    assert {path.name for path in config_folder().iterdir() if path.is_dir() and any(path.glob("*.yaml"))} == there | {
        "launcher"
    }
    assert {"data=tree", "data=uniform", "data=text", "data=xsum", "trainer=smoke", "experiment=uniform_floor"} <= set(OPTIONS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    folder = tmp_path_factory.mktemp("checkpoint")
    config = DistilBertConfig(vocab_size=8, dim=8, hidden_dim=8, n_layers=1, n_heads=2, max_position_embeddings=128)
    DistilBertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


@EVERY_OPTION
def test_every_option_has_no_problems(option, corpus, request):
    if option == "trainer=gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("trainer=gpu asks for a GPU, and this machine has none; its keys are checked below")
    config = composed(option, corpus)
    if option in NEEDS_WEIGHTS:
        config["model"]["checkpoint"] = request.getfixturevalue("checkpoint")
        if "num_symbols" in config["data"]:
            config["data"]["num_symbols"] = 7  # with [MASK] as many tokens as the checkpoint has
    assert problems(config) == []


@EVERY_OPTION
def test_every_key_is_one_of_its_target(option, corpus):
    config = composed(option, corpus)
    for key, node in nodes(config).items():
        known = set(inspect.signature(resolve_target(node["_target_"])).parameters)
        unknown = set(node) - {"_target_"} - FRAMEWORK_KEYS.get(key, set()) - known
        # wandb's logger hands what it does not know to wandb.init
        assert not unknown or "kwargs" in known, f"{key}: {unknown}"
    assert set(config["trainer"]) <= set(inspect.signature(TrainerSettings).parameters)


@pytest.mark.parametrize("option", [each for each in OPTIONS if each.startswith(("data=", "masking=", "model=", "task="))])
def test_a_run_that_came_from_elsewhere_may_name_what_ships(option, corpus):
    group = option.partition("=")[0]
    assert resolve_target(composed(option, corpus)[group]["_target_"], trusted=False)


@EVERY_OPTION
def test_an_option_changes_something(option, corpus):
    """A YAML in the wrong package, or one without content, would compose to the default."""
    defaults = {"data=tree", "masking=bernoulli", "model=transformer", "optim=adamw", "schedule=cosine", "trainer=default"}
    defaults |= {"callbacks=default", "prepare=local", "task=mlm"}
    assert (composed(option, corpus) == composed("seed=0", corpus)) == (option in defaults)


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "data").glob("*.yaml") if path.stem != "xsum"))
def test_a_datas_yaml_lists_every_key_of_its_source(name):
    """The YAML is where a user reads what there is to set."""
    node = OmegaConf.to_container(OmegaConf.load(config_folder() / "data" / f"{name}.yaml"))
    node = node.get("data", node)
    source = resolve_target(node["_target_"])
    known = set(inspect.signature(source).parameters) - {"label_column", "class_names"}  # which come from the task
    assert set(node) - {"_target_"} - LOADER_KEYS == known


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("optim=")])
def test_every_optimizer_lists_the_keys_that_hold_for_each(option):
    node = OmegaConf.to_container(OmegaConf.load(config_folder() / "optim" / f"{option.partition('=')[2]}.yaml"))
    assert node["layer_decay"] is None
    assert node["z_loss"] == 0.0


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith(("masking", "model", "schedule"))])
def test_a_yaml_lists_every_key_of_its_class(option):
    group, _, name = option.partition("=")
    node = OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))
    if "defaults" in node:
        pytest.skip("it says what differs from another one")
    node = node.get(group, node)  # some bring defaults for other groups, and so name their own
    known = set(inspect.signature(resolve_target(node["_target_"])).parameters)
    provided = {"vocab_size", "seq_len", "pad_token_id", "separate_documents", "num_classes", "class_names"}
    assert known - provided == set(node) - {"_target_"}  # those come from the data and the task


EXPERIMENTS = [option for option in OPTIONS if option.startswith("experiment=")]
CHOICES = [
    *((experiment, each) for experiment in EXPERIMENTS for each in OPTIONS if each.startswith(("model=", "masking="))),
    *(("experiment=uniform_floor", f"data={name}") for name in ("tree", "text")),
    *(("experiment=xsum_distilbert", f"data={name}") for name in ("tree", "uniform", "text")),
    *(("experiment=text_scratch", each) for each in ("data=xsum", "trainer=smoke")),
    *((f"sweep={name}", "model=distilbert") for name in ("seeds", "mask_rate", "filter_levels")),
    *((f"sweep={name}", "data=uniform") for name in ("seeds", "mask_rate", "model_size")),
]


@pytest.mark.parametrize(("whole", "choice"), CHOICES, ids=[" ".join(each) for each in CHOICES])
def test_a_choice_beside_an_experiment_or_a_sweep_wins(whole, choice, corpus, checkpoint):
    """What an experiment sets fits whatever is chosen for another group: a model brings its keys and its learning rate."""
    needs = [each.format(corpus=corpus) for each in NEEDS.get(choice, () if choice == "data=xsum" else NEEDS.get(whole, ()))]
    with composer() as hydra:
        config, alone = (to_plain(hydra.compose(hydra.plain([*options, *needs]))) for options in ([whole, choice], [choice]))
    group = choice.partition("=")[0]
    if group in ("model", "trainer"):
        assert config[group] == alone[group]
    if group == "model":
        assert config["optim"]["lr"] == alone["optim"]["lr"]
    assert config[group].get("_target_") == alone[group].get("_target_")
    if config["model"].get("checkpoint"):
        config["model"]["checkpoint"] = checkpoint
    # words mean nothing to a synthetic language
    is_odd = config["model"].get("checkpoint") and config["data"]["_target_"].startswith("mlm_lightning.data.languages")
    assert [each.partition(":")[0] for each in problems(config)] == [f"model.checkpoint={checkpoint}"] * bool(is_odd)


@pytest.mark.parametrize(("name", "expected"), [("uniform_floor", "a8d62268"), ("xsum_distilbert", "2b50ed75")])
def test_an_experiment_sets_what_it_always_did(name, expected):
    """Its identity is that of earlier versions, whichever files its keys come from."""
    with composer() as hydra:
        assert identity(to_plain(hydra.compose([f"experiment={name}"]))) == expected


@pytest.mark.parametrize("sweep", [option for option in OPTIONS if option.startswith("sweep")])
def test_every_job_of_a_sweep_has_no_problems(sweep):
    with composer() as hydra:
        settings = hydra.compose([sweep]).hydra
        assert settings.mode.name == "MULTIRUN"
        jobs = hydra.jobs([sweep, *(f"{key}={value}" for key, value in settings.sweeper.params.items())])
        configs = [to_plain(hydra.compose(job)) for job in jobs]
    assert [problem for config in configs for problem in problems(config)] == []
    assert len({identity(config) for config in configs}) == len(configs) > 4


def test_each_filter_level_is_evaluated_at_all_of_them():
    for level in range(5):
        with composer() as hydra:
            config = to_plain(hydra.compose(["sweep=filter_levels", f"data.filter_level={level}"]))
        plain, *others = [condition.names for condition in conditions_of(config)]
        assert plain == ("", f"k{level}")
        assert others == [(f"k{each}",) for each in range(5) if each != level]


def test_the_smoke_trainer_is_short(corpus):
    trainer = composed("trainer=smoke", corpus)["trainer"]
    assert trainer["max_steps"] <= 50
    assert trainer["val_check_interval"] <= trainer["max_steps"]


def test_the_default_is_the_experiment_that_the_readme_promises(corpus):
    """tree, q = 4, depth 4, sigma 1, and 15 % masks."""
    config = composed("seed=0", corpus)
    wanted = {"num_symbols": 4, "depth": 4, "sigma": 1.0, "filter_level": 0}
    assert {key: config["data"][key] for key in wanted} == wanted
    assert config["masking"]["rate"] == 0.15


def test_the_tutorials_experiment(corpus):
    """3 epochs of AdamW at 1.23e-5 on 10,000 articles in chunks of 128, in batches of 64, a checkpoint each epoch."""
    config = composed("experiment=xsum_distilbert", corpus)
    data, trainer = config["data"], config["trainer"]
    assert (data["train_size"], data["val_size"], data["chunk_size"], data["batch_size"]) == (10_000, 2_000, 128, 64)
    assert (trainer["max_epochs"], trainer["max_steps"], trainer["gradient_clip_val"]) == (3, None, None)
    assert (config["optim"]["lr"], config["optim"]["weight_decay"]) == (1.23e-5, 0.01)
    assert config["callbacks"]["checkpoint"]["every_n_epochs"] == 1
    assert config["model"]["checkpoint"] == data["tokenizer"] == "distilbert/distilbert-base-uncased"


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [("joblib", "joblib"), ("ray", "ray"), ("slurm", "submitit"), ("submitit_local", "submitit")],
)
def test_a_launcher_sets_up_a_plugin_of_hydras(launcher, plugin):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    from hydra.utils import instantiate

    with composer() as hydra:
        master = hydra.master([f"launcher={launcher}"])
        assert master.hydra.launcher._target_.startswith(f"hydra_plugins.hydra_{plugin}_launcher.")
        assert instantiate(master.hydra.launcher)
        assert to_plain(master) == composed_plainly()


def composed_plainly():
    with composer() as hydra:
        return to_plain(hydra.compose([]))
