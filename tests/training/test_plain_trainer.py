"""MLMModule and MLMDataModule under a plain `lightning.Trainer`: the run that `train` makes of the same settings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import run_of, settings_of, train

from mlm_lightning import MLMDataModule, MLMModule
from mlm_lightning.config.build import build_model
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.errors import UserError
from mlm_lightning.masking import Bernoulli

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Validations(L.Callback):
    """The steps at which a run is validated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(trainer.global_step)


def parts(batch_size: int = 16) -> tuple[MLMModule, MLMDataModule]:
    """What tests/conftest's toy config is, by hand."""
    from mlm_lightning.models.transformer import TransformerClassifier

    source = TreeSource(num_symbols=3, depth=2, train_size=100, val_size=64, test_size=64)
    data = MLMDataModule(source, Bernoulli(rate=0.15, mask_share=1.0, random_share=0.0), batch_size=batch_size)
    torch.manual_seed(0)
    model = TransformerClassifier(
        vocab_size=source.vocab.size, seq_len=source.seq_len, d_model=16, num_layers=1, nhead=2, dim_feedforward=32
    )
    return MLMModule(model, data.conditions, optimizer=partial(torch.optim.SGD, lr=0.1)), data


def test_it_is_the_run_of_the_same_settings(toy: Callable[..., dict[str, Any]]) -> None:
    config = toy("trainer.max_steps=10", "schedule=constant", "optim.lr=1e-3", "model.dropout=0.1", "logger=csv")
    summary = train(config)
    settings = settings_of(config)
    source = settings.data.instance
    data = MLMDataModule(source, settings.masking.instance, batch_size=16)
    optimizer = partial(torch.optim.AdamW, **settings.optim.arguments | {"betas": tuple(settings.optim.arguments["betas"])})
    module = MLMModule(
        build_model(settings.model, settings.seed, source), data.conditions, optimizer, settings.schedule.instance
    )
    clip = settings.trainer.gradient_clip_val
    trainer = L.Trainer(max_steps=10, gradient_clip_val=clip, enable_checkpointing=False, **QUIET)
    trainer.fit(module, datamodule=data)
    weights = torch.load(run_of(config).checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert {name: summary[name] for name in module.last_metrics} == module.last_metrics


@pytest.mark.parametrize(
    ("arguments", "steps", "validated"),
    [
        ({"max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None}, 5, [2, 4, 5]),
        ({"max_epochs": 2}, 13, [7, 13]),  # 100 rows an epoch: 6.25 steps, and epochs run on into each other
        ({"max_epochs": 2, "val_check_interval": 0.5}, 13, [4, 7, 10, 13]),
        ({"max_epochs": 2, "max_steps": 8}, 8, [7, 8]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2, "accumulate_grad_batches": 5}, 5, [3, 5]),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6, [2, 4, 6]),
    ],
)
def test_the_trainers_own_arguments_say_how_long_and_when(
    arguments: dict[str, Any], steps: int, validated: list[int], tmp_path: Path
) -> None:
    module, data = parts()
    validations = Validations()
    trainer = L.Trainer(**arguments, callbacks=[validations], default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, datamodule=data)
    assert (trainer.global_step, validations.steps) == (steps, validated)
    assert trainer.callback_metrics["val/loss"] == pytest.approx(module.last_metrics["val/loss"])
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    assert metrics["val/loss"] == pytest.approx(module.last_metrics["val/loss"])


def test_lightnings_own_checkpoint_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, data = parts()
    L.Trainer(max_steps=20, enable_checkpointing=False, **QUIET).fit(whole, datamodule=data)
    cut, data = parts()
    saved = L.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1)
    L.Trainer(max_steps=20, callbacks=[saved], **QUIET).fit(cut, datamodule=data)
    resumed, data = parts()
    (checkpoint,) = tmp_path.glob("*step=7.ckpt")
    L.Trainer(max_steps=20, enable_checkpointing=False, **QUIET).fit(resumed, datamodule=data, ckpt_path=checkpoint)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_loaders_alone_are_refused_with_what_to_write() -> None:
    module, data = parts()
    with pytest.raises(UserError, match=r"trainer\.fit\(module, datamodule=MLMDataModule"):
        L.Trainer(max_steps=2, enable_checkpointing=False, **QUIET).fit(module, data.val_dataloader()[0])
