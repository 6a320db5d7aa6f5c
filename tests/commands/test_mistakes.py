"""A user's mistakes: one clear message each, status 2, no traceback, nothing on disk."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlm_lightning.__main__ import main

# the command, and what its message must name
MISTAKES = [
    # a mistyped key, by each way in
    ("train data.dpeth=3", ["data.dpeth", "did you mean 'depth'"]),
    ("train +data.dpeth=3", ["data.dpeth", "did you mean 'depth'"]),
    ("train ++data.dpeth=3", ["data.dpeth", "did you mean 'depth'"]),
    ("train ~data.dpeth", ["data.dpeth"]),
    ("train sede=1", ["sede", "did you mean 'seed'"]),
    ("train trainer.max_step=3", ["trainer.max_step", "did you mean 'max_steps'"]),
    ("train trainer.fast_dev_run=true", ["trainer.fast_dev_run", "trainer=smoke"]),
    ("train callbacks.checkpoint.every_minute=3", ["callbacks.checkpoint.every_minute", "'every_minutes'"]),
    ("train callbacks.chekpoint.every_minutes=3", ["callbacks.chekpoint", "_target_"]),
    ("train model=distilbert model.config.dmi=8", ["model.config.dmi", "did you mean 'dim'"]),
    # a key that is not the config's to set
    ("train model.vocab_size=5", ["model.vocab_size", "comes from the data"]),
    # a wrong type
    ("train data.depth=three", ["data.depth='three'", "a whole number"]),
    ("train seed=1.5", ["seed=1.5", "a whole number"]),
    ("train optim.lr=fast", ["optim.lr='fast'", "a number"]),
    ("train optim.betas=[0.9]", ["optim.betas=[0.9]", "2 values"]),
    ("train name=", ["name=''"]),
    # an unknown option
    ("train data=unifrom", ["data=unifrom", "did you mean 'uniform'", "tree"]),
    ("train experiment=nope", ["experiment=nope", "uniform_floor"]),
    ("train logger=[csv,tensorbord]", ["logger=tensorbord", "did you mean 'tensorboard'"]),
    ("train schedule=null", ["schedule", "_target_"]),
    ("train eval.masking=bernouli", ["eval.masking=bernouli", "did you mean 'bernoulli'"]),
    ("train trainer.precision=fp12", ["trainer.precision=fp12", "bf16-mixed"]),
    ("train model=distilbert model.architecture=bertt", ["model.architecture=bertt", "did you mean 'bert'"]),
    # a value that cannot be
    ("train data.depth=40", ["data.depth=40", "1 to 16"]),
    ("train data.filter_level=9", ["data.filter_level=9", "data.depth=4"]),
    ("train data.train_size=-5", ["data.train_size=-5", "at least 1"]),
    ("train data.batch_size=0", ["data.batch_size=0"]),
    ("train data.num_symbols=1", ["data.num_symbols=1"]),
    ("train masking.rate=0", ["masking.rate=0", "above 0"]),
    ("train masking.rate=1.5", ["masking.rate=1.5", "at most 1"]),
    ("train eval.mask_rates=[0.1,2]", ["eval.mask_rates: 2"]),
    ("train 'eval.data={k0: {filtr_level: 0}}'", ["eval.data.k0.filtr_level", "did you mean 'filter_level'"]),
    ("train eval.data.k9.filter_level=9", ["eval.data.k9.filter_level=9", "at most 4"]),
    ("train 'eval.data={k0: {depth: 5}}'", ["eval.data.k0", "32 tokens", "16"]),
    ("train optim.lr=-1", ["optim.lr=-1", "above 0"]),
    ("train trainer.devices=0", ["trainer.devices=0"]),
    ("train trainer.val_check_interval=1.5", ["trainer.val_check_interval=1.5", "share"]),
    # an impossible combination
    ("train model.nhead=3", ["model.nhead=3", "model.d_model=64"]),
    ("train masking.mask_share=0.8 masking.random_share=0.5", ["masking.mask_share=0.8", "masking.random_share=0.5"]),
    ("train model.decoder_output_activation=softmax", ["model.decoder_output_activation=softmax", "=null"]),
    ("train model.embedding_agg=mean", ["model.embedding_agg=mean", "=null"]),
    ("train trainer.max_steps=null", ["trainer.max_steps", "trainer.max_epochs"]),
    # text without text
    ("train data=text", ["data.tokenizer", "no value given"]),
    ("train data=text data.tokenizer=train data.vocab_size=99", ["data.path", "data.dataset", "neither"]),
    ("train data=text data.path='no/*.txt' data.tokenizer=train data.vocab_size=99", ["data.path", "no/*.txt"]),
    ("train experiment=text_scratch", ["data.path", "data.dataset", "neither"]),
    # a class that is not there
    ("train model._target_=no_such_package.Model", ["model._target_=no_such_package.Model", "cannot be imported"]),
    ("train optim._target_=torch.optim.AdamWW", ["optim._target_=torch.optim.AdamWW", "cannot be imported"]),
    ("train model._target_=torch.optim.AdamW", ["model._target_=torch.optim.AdamW", "no subclass of Module"]),
    # a command line that cannot be read
    ("trian data=uniform", ["trian", "did you mean 'train'"]),
    ("train --frobnicate", ["--frobnicate", "--help"]),
    ("train data.depth", ["data.depth", "KEY=VALUE"]),
    ("train =3", ["=3", "KEY=VALUE"]),
    ("train data.depth=[1", ["data.depth=[1", "KEY=VALUE"]),
    ("train 'data.depth=${nope}'", ["data.depth", "nope"]),
    ("train --config-dir nowhere", ["--config-dir nowhere", "no such folder"]),
    # sweeps
    ("train masking.rate=0.1,0.2", ["several values for one key", "-m"]),
    ("train -m masking.rate=0.1,1.5", ["masking.rate=1.5"]),
    ("train -m model.nhead=4,3 seed=0,1", ["model.nhead=3"]),
    ("train -m data=tree,unifrom", ["data=unifrom", "did you mean 'uniform'"]),
    # a RUN that is none
    ("train resume=nowhere", ["nowhere", "no such folder"]),
    ("evaluate", ["RUN"]),
    ("evaluate nowhere", ["RUN=nowhere", "no such folder"]),
    ("evaluate nowhere --splitt test", ["--splitt"]),
    ("evaluate nowhere --split train", ["--split", "'train'", "val", "test"]),
    ("evaluate .", ["RUN=.", "no checkpoint"]),
    ("predict nowhere 'a [MASK]'", ["RUN=nowhere", "no such folder"]),
    ("predict . 'a [MASK]'", ["RUN=.", "no checkpoint"]),
    ("predict nowhere", ["TEXT"]),
    ("predict nowhere x --top-k many", ["--top-k", "many"]),
    ("export nowhere there", ["RUN=nowhere", "no such folder"]),
    ("export nowhere", ["DIR"]),
    ("export . there", ["RUN=.", "no checkpoint"]),
    ("prepare data=text", ["data.tokenizer", "no value given"]),
    ("prepare data.dpeth=3", ["data.dpeth", "did you mean 'depth'"]),
    ("prepare --nope", ["--nope"]),
]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # `mlm train` looks for the user's packages in this folder
    monkeypatch.delenv("MLM_DEBUG", raising=False)
    return folder


def status_of(command: str) -> Any:
    try:
        return main(shlex.split(command))
    except SystemExit as exit_:
        return exit_.code


def assert_refused(status: Any, errors: str, names: list[str], folder: Path) -> None:
    assert status == 2, errors
    assert [name for name in names if name not in errors] == [], errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("command", "names"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_message_and_leaves_nothing(command, names, empty_folder, capsys):
    status = status_of(command)
    errors = capsys.readouterr().err
    assert_refused(status, errors, names, empty_folder)
    assert len(errors.splitlines()) <= 2, errors


def test_a_typo_in_a_yaml_of_the_user(empty_folder, tmp_path, capsys):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "deep.yaml").write_text("defaults: [tree]\ndpeth: 8\n")
    status = status_of(f"train --config-dir {tmp_path / 'mine'} data=deep")
    assert_refused(status, capsys.readouterr().err, ["data.dpeth", "did you mean 'depth'"], empty_folder)


def test_a_yaml_of_the_user_that_is_no_yaml(empty_folder, tmp_path, capsys):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "broken.yaml").write_text("depth: [1\nsigma: 2\n")
    status = status_of(f"train --config-dir {tmp_path / 'mine'} data=broken")
    assert_refused(status, capsys.readouterr().err, ["broken.yaml"], empty_folder)


def test_all_mistakes_are_told_at_once(empty_folder, capsys):
    status = status_of("train sede=1 data.dpeth=3 trainer.precision=fp12 masking.rate=2 data.batch_size=0")
    errors = capsys.readouterr().err
    assert_refused(
        status, errors, ["sede", "data.dpeth", "trainer.precision", "masking.rate=2", "data.batch_size=0"], empty_folder
    )
    assert len(errors.splitlines()) == 5


def test_a_corrupt_run_is_refused(empty_folder, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    for command in (f"predict {run} '0 _'", f"export {run} there"):
        status = status_of(command)
        assert_refused(status, capsys.readouterr().err, ["best.ckpt", "cannot be read"], empty_folder)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["trian"], ["trian", "'train'"]), (["train", "data.dpeth=3"], ["data.dpeth", "'depth'"])],
)
def test_the_same_in_a_process_of_its_own(arguments, names, empty_folder):
    command = [sys.executable, "-m", "mlm_lightning", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_refused(done.returncode, done.stderr, names, empty_folder)
    assert done.stdout == ""
