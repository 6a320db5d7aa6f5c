"""`MLMModule`: a model, its masked cross-entropy, its optimizer, as a LightningModule.

The gradient of an optimizer step is that of one mean over every predicted token of the step:

    micro-batches x ranks  ─►  sums of token losses  ─►  Σ gradients · (1 / Σ tokens)  ─►  clip  ─►  step

Lightning divides by the number of micro-batches and DDP by the number of ranks; both are undone before the one division by the
number of tokens, so unequal mask counts weigh as in one large batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.batches import Plan
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.errors import UserError
from mlm_lightning.metrics import LabelSums, MetricSums, perplexity
from mlm_lightning.randomness import Stream, seed_torch
from mlm_lightning.runs.checkpoint import AVERAGING, STATE
from mlm_lightning.tasks import MLM, Batch, Task
from mlm_lightning.training.compiled import eagerly
from mlm_lightning.training.lightning_internals import (
    mend_counters,
    schedule_validation,
    show_in_progress_bar,
    take_over_length,
    validate_now,
)
from mlm_lightning.training.loss import add_metrics, training_loss
from mlm_lightning.training.optim import Constant, make_optimizer, scheduler
from mlm_lightning.training.oracles import FrozenAnswers
from mlm_lightning.training.rank_order import sum_in_rank_order

_NOTED = frozenset({"setup", "kahan_sum", "triton"})
"""What an optimizer of optimi notes in its groups at its first step: the state that it has then belongs to it."""


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Origin:
    """What a run computes, and where it begins.

    `record` says what is computed: plain values, kept in each checkpoint. `from_parent`: the run begins at the checkpoint of
    another one, whose weights, optimizer state and position it takes, and nothing else: it has its own hyperparameters, best
    score and patience.
    """

    record: dict[str, Any] = field(default_factory=dict)
    from_parent: bool = False


class MLMModule(L.LightningModule):
    """Trains `model`, and evaluates it under `conditions` (those of its MLMDataModule), each with a loader of its own.

    `optimizer` makes the optimizer from parameter groups (None: AdamW with a learning rate of 1e-3);
    `schedule(step, total_steps)` is the factor on its learning rate (None: 1). Validation runs where `plan` says, and after the
    last step; without a plan, the arguments of the Trainer say how long the run is and when it is validated. `mask_rate` gives
    the rate at a share of the run's progress, where it changes in the run: it is logged. `layer_decay` multiplies the learning
    rate from each layer to the one below it. `z_loss` weighs (log Σ exp logits)² of each predicted token, which training adds
    to -log p (Chowdhery et al. 2022, PaLM, section 5). `compiled`: layers of the model are, and keep their shapes.
    `task` says what is predicted (None: masked tokens).
    """

    def __init__(
        self,
        model: nn.Module,
        conditions: Sequence[Condition],
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        schedule: Callable[[int, int], float] | None = None,
        plan: Plan | None = None,
        seed: int = 0,
        mask_rate: Callable[[float], float] | None = None,
        origin: Origin | None = None,
        layer_decay: float | None = None,
        z_loss: float = 0.0,
        compiled: bool = False,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.model, self.conditions, self.seed = model, conditions, seed
        self.task = task or MLM()
        self._answers = FrozenAnswers(self.task)
        self.plan, self.origin = plan or Plan(total_steps=0), origin or Origin()
        self._plain = plan is None
        self._make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-3)
        self._schedule, self._mask_rate = schedule or Constant(), mask_rate
        self._layer_decay, self._z_loss, self.compiled = layer_decay, z_loss, compiled
        self.last_metrics: dict[str, float] = {}
        self.validation_pending = False
        """Whether the step at hand was to be validated, and a signal came first."""
        self._restored: dict[str, Any] = {}
        self._configured_groups: list[dict[str, Any]] = []
        self._eval_sums: list[MetricSums] = []

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes which hook is under way, some thirty times a step; torch takes long to find that this is no submodule
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, batch: Batch) -> Tensor:
        """The logits at the predicted positions, `logits_BKV`."""
        return batch.logits(self.model)

    def _trimmed(self, batch: Batch) -> Batch:
        # accelerators want static shapes; a CPU has no use for places that no row of this batch needs
        return batch.trimmed() if self.device.type == "cpu" else batch

    # training

    def setup(self, stage: str) -> None:
        if stage == "fit" and self._plain:
            datamodule = getattr(self.trainer, "datamodule", None)
            if not isinstance(datamodule, MLMDataModule):
                raise UserError("MLMModule trains on a datamodule: trainer.fit(module, datamodule=MLMDataModule(…))")
            settings = TrainerSettings(devices=self.trainer.world_size, **take_over_length(self.trainer))
            self.plan = datamodule.plan = settings.plan(datamodule.source.num_rows(), datamodule.batch_size)

    def on_train_start(self) -> None:
        self._parameter_list = list(self.model.parameters())
        # of the present optimizer step and rank: loss, predicted tokens, tokens, and with z_loss squared log-normalisers
        self._step_sums = self._zeros()
        self._running = self._zeros()  # the third of the whole run, the others since the last log
        running = self._restored.get("running", [])[: len(self._running)]  # a parent's may be of another length
        self._running[: len(running)] += self._zeros().new_tensor(running)
        schedule_validation(self.trainer, due=False)
        sum_in_rank_order(self.trainer.strategy.model)
        if self._restored.get("stopped"):  # early stopping said so, and the end of the run was lost
            self.trainer.should_stop = True
        if self.origin.from_parent:
            self._keep_configured_hyperparameters()
        if self._restored.get("validation_pending"):
            validate_now(self.trainer)

    def _keep_configured_hyperparameters(self) -> None:
        """Undoes what another run's checkpoint brought with its optimizer's state: its learning rate, betas …"""
        (optimizer,) = self.trainer.optimizers
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        schedule.base_lrs = [group["initial_lr"] for group in self._configured_groups]
        for group, configured in zip(optimizer.param_groups, self._configured_groups, strict=True):
            group.update({name: value for name, value in configured.items() if name not in _NOTED})
            group["lr"] = configured["initial_lr"] * self._schedule(self.trainer.global_step, self.plan.total_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # dropout reads the global generator: a function of (seed, batch, rank), whatever ran before
        seed_torch(self.seed, Stream.DROPOUT, batch_idx, self.global_rank)
        batch = batch if self.compiled else self._trimmed(batch)
        loss, (loss_sum, predicted, *squares) = training_loss(self.model, batch, self._z_loss)
        mask_BL = batch.attention_mask_BL
        tokens = torch.tensor(batch.input_ids_BL.numel()) if mask_BL is None else mask_BL.count_nonzero()
        self._step_sums += torch.stack([each.detach().to(self._step_sums) for each in (loss_sum, predicted, tokens, *squares)])
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        step = self.trainer.global_step + 1
        sums = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        self._step_sums = self._zeros()
        self.gradient_scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / sums[1].clamp(min=1)
        gradients = [p.grad for p in self._parameter_list if p.grad is not None]
        torch._foreach_mul_(gradients, self.gradient_scale.to(gradients[0]))

        self._running += sums
        logging = step % self.plan.log_every_n_steps == 0
        # reading a value waits for an accelerator, so those are read when logged; on a CPU there is nothing to wait for
        if (logging or self.device.type == "cpu") and not math.isfinite(loss_sum := self._running[0].item()):
            lr = _top_rate(optimizer)
            raise TrainingDivergedError(
                f"train/loss is {loss_sum} at step {step}, with a learning rate of {lr:.3g}. Lower optim.lr, lengthen "
                "schedule.warmup_steps, set trainer.gradient_clip_val, or try trainer.precision=32-true. The checkpoints from "
                "before are kept."
            )
        clipping = self.trainer.gradient_clip_val is not None
        self._gradient_norm = get_total_norm(gradients) if logging or clipping else None
        if logging:
            assert self._gradient_norm is not None
            self._log_training(step, optimizer, self._gradient_norm.item())

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip for a fused optimizer under autocast, since one could be unscaling float16 gradients itself;
        # the config does not fuse with float16
        if gradient_clip_val is None:
            return
        parameters = [p for p in self._parameter_list if p.grad is not None]
        if gradient_clip_algorithm == "value":
            clip_grad_value_(parameters, gradient_clip_val)
        else:
            assert self._gradient_norm is not None
            clip_grads_with_norm_(parameters, gradient_clip_val, self._gradient_norm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        due = self.at_step_boundary(batch_idx) and self.plan.validation_due(self.trainer.global_step)
        schedule_validation(self.trainer, due)

    def at_step_boundary(self, batch_idx: int) -> bool:
        """Whether micro-batch `batch_idx` completed an optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self._make_optimizer, self.model, self._layer_decay)
        learning_rate = scheduler(optimizer, self._schedule, self.plan.total_steps)
        self._configured_groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": learning_rate, "interval": "step"}}

    # evaluation

    def on_validation_epoch_start(self) -> None:
        self._eval_sums = [
            self.task.sums(self.task.num_outputs(condition.source), self.device, condition.further_oracles)
            for condition in self.conditions
        ]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch = self._trimmed(batch)
        condition, sums = self.conditions[dataloader_idx], self._eval_sums[dataloader_idx]
        with eagerly():
            probs, counted = self._answers.of(batch, condition)
            own_BKV = probs.pop("", None)
            add_metrics(sums, self.model, batch, own_BKV, counted, probs)

    def on_validation_epoch_end(self) -> None:
        stage, self.last_metrics = "test" if self.trainer.testing else "val", {}
        for sums, condition in zip(self._eval_sums, self.conditions, strict=True):
            reduced = self.trainer.strategy.reduce(sums.vector, reduce_op="sum")
            assert isinstance(reduced, Tensor)
            sums.vector = reduced
            if sums.nothing_predicted:
                raise UserError(
                    f"{stage}: its rows hold special tokens and padding alone, so there is nothing to predict; look at the "
                    "data, e.g. with mlm prepare"
                )
            has_oracle, has_ngrams = condition.oracle is not None, condition.ngrams is not None
            self.last_metrics |= condition.metrics(stage, sums.compute(has_oracle, has_ngrams))
        # in training, and for what `mlm evaluate` prints, they go their own way
        self.log_dict(self.last_metrics, logger=self._plain and self.trainer.state.fn != "fit")
        if self.trainer.state.fn == "fit":
            self.log_scalars(self.last_metrics, self.trainer.global_step)

    @property
    def confusion_CC(self) -> Tensor | None:
        """Of the last validation under the first condition, where rows are labelled: of class i, how many were taken for j."""
        sums = self._eval_sums[0] if self._eval_sums else None
        return sums.confusion_CC if isinstance(sums, LabelSums) else None

    on_test_epoch_start, test_step, on_test_epoch_end = on_validation_epoch_start, validation_step, on_validation_epoch_end

    # logs and state

    def log_scalars(self, metrics: dict[str, float], step: int) -> None:
        """Hands scalars to every logger, at an optimizer step."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step)

    def _log_training(self, step: int, optimizer: Optimizer, gradient_norm: float) -> None:
        loss_sum, predicted, tokens, *squares = self._running.tolist()
        self._running[:2], self._running[3:] = 0, 0
        loss = loss_sum / max(1.0, predicted)
        epoch = {"train/epoch": self.plan.epoch(step)} if math.isfinite(self.plan.steps_per_epoch) else {}
        metrics = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/grad_norm": gradient_norm,
            "train/tokens": tokens,
            **epoch,
            "lr": _top_rate(optimizer),
        }
        if squares:
            metrics["train/z_loss"] = self._z_loss * squares[0] / max(1.0, predicted)
        if self._mask_rate is not None:
            metrics["train/mask_rate"] = self._mask_rate(self.plan.progress(step - 1))
        if isinstance(datamodule := getattr(self.trainer, "datamodule", None), MLMDataModule):
            metrics |= datamodule.growing(step - 1)
        self.log_scalars(metrics, step)
        show_in_progress_bar(self.trainer, "train/loss", loss)

    def _zeros(self) -> Tensor:
        # float64 counts tokens exactly; MPS has none
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(4 if self._z_loss else 3, dtype=dtype, device=self.device)

    @property
    def tokens_trained(self) -> int:
        """Input positions trained on so far, padding aside, on all ranks."""
        return int(self._running[2].item())

    @property
    def recent_loss(self) -> float | None:
        """Of the optimizer steps since `train/loss` was logged; None right after that. Waits for an accelerator."""
        loss_sum, predicted, *_ = self._running.tolist()
        return loss_sum / predicted if predicted else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE] = {
            "record": self.origin.record,
            "running": self._running.tolist(),
            "validation_pending": self.validation_pending,
            "stopped": self.trainer.should_stop,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get(STATE, {})
        mend_counters(checkpoint, bool(self._restored.get("validation_pending")))
        if AVERAGING in checkpoint and self.trainer.state.fn == "fit":
            checkpoint[AVERAGING]["average"] = checkpoint["state_dict"]  # for the callback, if there is one
            checkpoint["state_dict"] = checkpoint[AVERAGING]["weights"]
        if self.origin.from_parent:
            self._restored = self._restored | {"validation_pending": False, "stopped": False}
            checkpoint["callbacks"] = {}


def _top_rate(optimizer: Optimizer) -> float:
    """The learning rate of the layers that have the highest: with `layer_decay` those at the top."""
    return max(group["lr"] for group in optimizer.param_groups)
