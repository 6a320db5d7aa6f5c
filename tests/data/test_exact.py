"""Rows, oracles and counts work exactly wherever the framework asks them, whatever precision surrounds them."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from mlm_lightning import MLMDataModule, MLMModule
from mlm_lightning.analysis import posterior, probe
from mlm_lightning.analysis.subject import Subject
from mlm_lightning.batch import MLMBatch
from mlm_lightning.commands import predict
from mlm_lightning.config.build import prepare
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.masking import Bernoulli
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.tasks import MLM
from mlm_lightning.training.contracts import try_own_parts
from mlm_lightning.training.oracles import FrozenAnswers

TREE = TreeSource(num_symbols=3, depth=2, val_size=8)
MASKING = Bernoulli(rate=0.3, mask_share=1.0, random_share=0.0)


class Recording:
    """The source, its rows, its oracle and its counts in one: each notes under which precision it is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, set[tuple[bool, torch.dtype]]] = {}

    def note(self, what: str) -> None:
        self.asked.setdefault(what, set()).add((torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index_B: Tensor) -> Tensor:
        self.note("rows")
        return TREE.rows("val")[index_B]

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        self.note("posterior")
        return TREE.oracle().posterior(tokens_BL, observed_BL)

    def losses(self, batch: MLMBatch) -> dict[str, Tensor]:
        self.note("losses")
        return TREE.ngrams().losses(batch)

    def latents(self, *asked: Tensor) -> dict[str, Tensor]:
        """Of its rows, or of an oracle."""
        self.note("true latents" if len(asked) == 1 else "latents")
        return TREE.rows("val").latents(*asked) if len(asked) == 1 else TREE.oracle().latents(*asked)


class RecordingSource(TreeSource):
    def __init__(self, num_symbols: int = 3, depth: int = 2, val_size: int = 8) -> None:
        super().__init__(num_symbols=num_symbols, depth=depth, val_size=val_size)
        self.recording = RECORDINGS[-1]

    def rows(self, split: Any) -> Any:
        return self.recording

    def oracle(self) -> Any:
        self.recording.note("oracle")
        return self.recording

    def ngrams(self, fingerprint: str | None = None) -> Any:
        self.recording.note("ngrams")
        return self.recording


RECORDINGS: list[Recording] = []


@pytest.fixture
def recording() -> Recording:
    RECORDINGS.append(Recording())
    return RECORDINGS[-1]


def subject() -> Subject:
    torch.manual_seed(0)
    model = TransformerClassifier(vocab_size=4, seq_len=4, d_model=16, num_layers=1, nhead=2, dim_feedforward=32)
    return Subject(model.eval(), Condition.training(RecordingSource(), MASKING), num_rows=8, batch_size=8)


def exact(*asked: str) -> dict[str, set[tuple[bool, torch.dtype]]]:
    return {what: {(False, torch.float32)} for what in asked}


def evaluation(of: Subject) -> None:
    FrozenAnswers(MLM()).of(next(of.batches("val")), of.condition)


def prediction(of: Subject) -> None:
    predict._exact(of.condition.oracle, torch.tensor([[0, 3, 1, 2]]), torch.tensor([[1]]), 3)


def comparison(of: Subject) -> None:
    posterior.compare(of, "in sample")


def probing(of: Subject) -> None:
    probe._examples(of, "val", "masked")


@pytest.mark.parametrize(
    ("use", "asked"),
    [
        (evaluation, {"rows", "posterior", "losses"}),
        (prediction, {"posterior"}),
        (comparison, {"rows", "posterior"}),
        (probing, {"rows", "true latents", "latents"}),
    ],
)
def test_whoever_asks(recording: Recording, use: Callable[[Subject], None], asked: set[str]) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            use(subject())
    finally:
        torch.set_default_dtype(torch.float32)
    assert recording.asked == exact("oracle", "ngrams", *asked)


def test_what_is_tried_before_a_run_is_asked_so(recording: Recording, toy: Callable[..., dict[str, Any]]) -> None:
    from helpers import settings_of

    config = toy()
    config["data"] = {"_target_": f"{__name__}.RecordingSource", "batch_size": 8, "num_workers": 0}
    settings = settings_of(config)
    recording.asked.clear()  # the check of the config draws rows
    with torch.autocast("cpu", torch.bfloat16):
        try_own_parts(settings, prepare(settings))
    assert recording.asked == exact("oracle", "ngrams", "rows", "posterior")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_what_is_known_is_the_same_beside_a_model_of_any_precision(recording: Recording, precision: Any) -> None:
    found = []
    for each in (precision, "32-true"):
        of = subject()
        module = MLMModule(of.model, [of.condition])
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = L.Trainer(accelerator="cpu", precision=each, **quiet)
        data = MLMDataModule(of.source, MASKING, [of.condition], batch_size=8)
        trainer.validate(module, data, verbose=False)
        found.append({name: value for name, value in module.last_metrics.items() if "oracle_" in name or "gram_loss" in name})
    assert len(found[0]) == 4
    assert found[0] == found[1]
    assert recording.asked == exact("oracle", "ngrams", "rows", "posterior", "losses")
