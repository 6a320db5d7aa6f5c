"""What we take from the inside of Lightning is still there, does what we take it for, and is taken in one file only."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import run_of, train
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlm_lightning.training import lightning_internals
from mlm_lightning.training.lightning_internals import NEVER, add_summary, schedule_validation, validate_now
from mlm_lightning.training.loggers import TensorBoardLogger

FILE = Path(lightning_internals.__file__)

# the attribute, where it is, and the function that uses it
ATTRIBUTES: tuple[tuple[str, str, Callable[[L.Trainer], Any], str], ...] = (
    ("val_check_batch", "Trainer", lambda trainer: trainer, "schedule_validation"),
    ("fit_loop", "Trainer", lambda trainer: trainer, "validate_now"),
    ("validating", "Trainer", lambda trainer: trainer, "validate_now"),
    ("training", "Trainer", lambda trainer: trainer, "validate_now"),
    ("epoch_loop", "Trainer.fit_loop", lambda trainer: trainer.fit_loop, "validate_now"),
    ("_batches_that_stepped", "Trainer.fit_loop.epoch_loop", lambda trainer: trainer.fit_loop.epoch_loop, "validate_now"),
    ("val_loop", "Trainer.fit_loop.epoch_loop", lambda trainer: trainer.fit_loop.epoch_loop, "validate_now"),
    ("restarting", "….epoch_loop.val_loop", lambda trainer: trainer.fit_loop.epoch_loop.val_loop, "validate_now"),
    ("run", "….epoch_loop.val_loop", lambda trainer: trainer.fit_loop.epoch_loop.val_loop, "validate_now"),
    ("progress_bar_metrics", "Trainer", lambda trainer: trainer, "show_in_progress_bar"),
    ("_signal_connector", "Trainer", lambda trainer: trainer, "leave_signals_alone"),
    ("register_signal_handlers", "….connector", lambda trainer: trainer._signal_connector, "leave_signals_alone"),
    ("_accelerator_connector", "Trainer", lambda trainer: trainer, "take_over_length"),
    ("use_distributed_sampler", "….connector", lambda trainer: trainer._accelerator_connector, "take_over_length"),
    ("_get_file_writer", "torch.utils.tensorboard.SummaryWriter", lambda trainer: SummaryWriter, "add_summary"),
)
# of a checkpoint's entry "loops": the key, what it holds, and what that must have
KEYS = (
    ("epoch_loop.batch_progress", "total", {"completed", "processed"}),
    ("epoch_loop.state_dict", "_batches_that_stepped", None),
    ("epoch_loop.val_loop.batch_progress", "total", {"ready", "started", "processed", "completed"}),
    ("epoch_loop.val_loop.batch_progress", "current", {"ready", "started", "processed", "completed"}),
)


def moved(what: str, function: str) -> str:
    return f"Lightning moved {what}: see mlm_lightning.training.lightning_internals.{function}"


@pytest.mark.parametrize(("name", "owner", "get", "function"), ATTRIBUTES)
def test_each_attribute_is_there(name: str, owner: str, get: Callable[[L.Trainer], Any], function: str) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert hasattr(get(trainer), name), moved(f"{owner}.{name}", function)


def test_each_key_of_a_checkpoint_is_there(toy: Callable[..., dict[str, Any]]) -> None:
    config = toy("trainer.max_steps=2", "trainer.val_check_interval=2")
    train(config)
    checkpoint = torch.load(run_of(config).checkpoints / "last.ckpt", weights_only=True)
    assert "global_step" in checkpoint, moved('checkpoint["global_step"]', "mend_counters")
    loop = checkpoint.get("loops", {}).get("fit_loop")
    assert loop is not None, moved('checkpoint["loops"]["fit_loop"]', "mend_counters")
    for key, inner, names in KEYS:
        what = f'checkpoint["loops"]["fit_loop"]["{key}"]["{inner}"]'
        assert inner in loop.get(key, {}), moved(what, "mend_counters")
        assert names is None or set(loop[key][inner]) >= names, moved(f"what is in {what}", "mend_counters")


class _Model(L.LightningModule):
    """Does nothing, and writes down what is called."""

    def __init__(self, validated_after: set[int], validated_first: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated_after, self.validated_first, self.calls = validated_after, validated_first, list[str]()

    def on_train_start(self) -> None:
        schedule_validation(self.trainer, due=False)
        if self.validated_first:
            validate_now(self.trainer)
            assert self.trainer.training, moved("the switch Trainer.training", "validate_now")

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.calls.append(f"step {batch_idx + 1}")
        return self.weight * batch.sum()

    def on_train_batch_end(self, outputs: Any, batch: torch.Tensor, batch_idx: int) -> None:
        schedule_validation(self.trainer, batch_idx + 1 in self.validated_after)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.calls.append(f"validation batch {batch_idx}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def calls(model: _Model) -> list[str]:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=1,
        val_check_interval=NEVER,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.ones(5, 1)), DataLoader(torch.ones(2, 1)))
    return model.calls


def test_a_validation_follows_the_batches_after_which_it_is_due_and_no_others() -> None:
    whole = ["validation batch 0", "validation batch 1"]
    wrong = moved("when Trainer.val_check_batch is read", "schedule_validation")
    assert calls(_Model({2, 3})) == ["step 1", "step 2", *whole, "step 3", *whole, "step 4", "step 5"], wrong
    wrong = moved("how a validation is run inside of on_train_start", "validate_now")
    assert calls(_Model(set(), validated_first=True)) == [*whole, *(f"step {i}" for i in range(1, 6))], wrong


def test_what_is_shown_is_read_back() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    lightning_internals.show_in_progress_bar(trainer, "train/loss", 0.5)
    shown = lightning_internals.shown_in_progress_bar(trainer)
    assert shown["train/loss"] == 0.5, moved("the dict Trainer.progress_bar_metrics", "show_in_progress_bar")


def test_a_summary_is_among_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path))
    for part in hparams({"lr": 0.1}, {"val/loss": 1.0}):
        add_summary(logger, part)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "hparams" in events.summary_metadata["_hparams_/experiment"].plugin_data.plugin_name


# one file


def names_used(path: Path) -> Iterator[str]:
    """Attributes and texts of a module, docstrings aside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            yield node.slice.value


def test_no_other_file_touches_them() -> None:
    internal = {name for name, *_ in ATTRIBUTES} | {key for key, *_ in KEYS} | {"loops"}
    internal -= {"training", "run"}  # a word of many things; who sets `validating` sets `training`
    for path in sorted(FILE.parent.rglob("*.py")):
        if path != FILE:
            found = internal & set(names_used(path))
            assert not found, f"{path.relative_to(FILE.parent)} touches {sorted(found)}: it belongs in {FILE.name}"


def test_every_attribute_that_the_file_uses_is_named_here() -> None:
    ordinary = {"Trainer", "experiment", "add_summary", "items", *inspect.signature(L.Trainer).parameters}
    named = {name for name, *_ in ATTRIBUTES}
    keys = {each for key, inner, names in KEYS for each in (key, inner, *(names or ()))}
    assert set(names_used(FILE)) - ordinary <= named | keys | {"loops", "fit_loop", "global_step"}
