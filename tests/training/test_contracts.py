"""Own parts: what breaks a contract is named by its line, before there is a folder; what callbacks log is a metric."""

import copy
import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TOY, composed
from helpers import AT, At, assert_equal_checkpoints, assert_equal_runs, run_of, settings_of, timeless, train
from torch import Tensor, nn

from mlm_lightning.batch import Vocab
from mlm_lightning.config.build import prepare
from mlm_lightning.config.parse import settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.source import Source
from mlm_lightning.errors import ConfigError, Interrupted, UserError
from mlm_lightning.tasks import MLM
from mlm_lightning.training import contracts
from mlm_lightning.training import train as training
from mlm_lightning.training.contracts import MODEL, ORACLE, ROWS, TASK

Toy = Callable[..., dict[str, Any]]
DOCS = Path(__file__).parents[2] / "docs"


class Rows:
    def __init__(self, read: Callable[[Tensor], Any], size: int = 40) -> None:
        self.read, self.size = read, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index_B: Any) -> Any:
        return self.read(index_B)


def counting(index_B: Tensor) -> Tensor:
    return (index_B[:, None] + torch.arange(8)) % 4


class PerItem(torch.utils.data.Dataset[Any]):
    items = ([0] * 8,) * 40

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor(self.items[index])


class Endless:
    shuffle_buffer = 20

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, index_B: Tensor) -> Tensor:
        assert not self.asked or int(index_B.min()) >= self.asked[-1], "rows that the stream has left behind"
        self.asked.append(int(index_B.min()) // self.shuffle_buffer * self.shuffle_buffer)
        return counting(index_B)

    def read_ahead(self, stop: int) -> None: ...


class WrongOracle:
    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        return torch.full((8, 5), 0.2)


WRONG_ROWS: dict[str, tuple[Any, str]] = {
    "dict": (Rows(lambda index_B: {"input_ids": counting(index_B)}), "the tokens of 2 are dict"),
    "list": (Rows(lambda index_B: counting(index_B).tolist()), "the tokens of 2 are list"),
    "per_item": (PerItem(), r"TypeError: only integer tensors .*\(raised at .*test_contracts\.py:\d+\)"),
    "one_row": (
        Rows(lambda index_B: counting(index_B)[0]),
        r"the tokens of 2 are torch\.int64 \(8,\), not torch\.int64 \(2, 8\)",
    ),
    "other_length": (Rows(lambda index_B: counting(index_B)[:, :5]), r"the tokens of 2 are torch\.int64 \(2, 5\), not"),
    "int32": (Rows(lambda index_B: (counting(index_B).int(), torch.ones(2, 8))), r"the tokens of 2 are torch\.int32 \(2, 8\)"),
    "negative": (Rows(lambda index_B: counting(index_B) - 1), "token -1 is outside of the vocabulary, 0 to 4"),
    "too_large": (Rows(lambda index_B: counting(index_B) + 2), "token 5 is outside of the vocabulary, 0 to 4"),
    "none": (Rows(counting, size=0), "there are none"),
    "no_length": (iter([]), "has no len"),
}


class Counting(Source):
    """Rows that count, or in the split `wrong_in` what a case says; or without end. They draw from the global generators, which
    is no good, and has to leave no trace."""

    def __init__(
        self, wrong: str | None = None, wrong_in: str = "train", is_endless: bool = False, oracle: bool = False
    ) -> None:
        self.seq_len, self.vocab = 8, Vocab(size=5, mask_id=4)
        self._wrong, self._wrong_in, self._endless, self._oracle = wrong, wrong_in, is_endless, oracle
        self._train = Endless()

    @property
    def endless(self) -> bool:
        return self._endless

    def oracle(self) -> Any:
        return WrongOracle() if self._oracle else None

    def rows(self, split: str) -> Any:
        random.random(), np.random.rand(), torch.rand(1)
        if self._endless and split == "train":
            return self._train
        return WRONG_ROWS[self._wrong][0] if self._wrong and split == self._wrong_in else Rows(counting)


class Table(nn.Module):
    """A model that keeps to its contract, with dropout that is on in evaluation, too."""

    built = 0

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        Table.built += 1
        self.table = nn.Embedding(vocab_size, vocab_size)
        random.random(), np.random.rand()

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Any = None, positions_BK: Any = None) -> Any:
        logits_BLV = nn.functional.dropout(self.table(input_ids_BL), 0.1)
        if positions_BK is None:
            return logits_BLV
        return self.at(logits_BLV, positions_BK.unsqueeze(-1).expand(-1, -1, logits_BLV.shape[-1]))

    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV.gather(1, positions_BKV)


class OnlyX(Table):
    def forward(self, x):  # type: ignore[override]
        return self.table(x)


class WholeRow(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV


class FirstPlaces(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV[:, : positions_BKV.shape[1]]


class Whole(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV.gather(1, positions_BKV).long()


class NoNumbers(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV.gather(1, positions_BKV) * torch.nan


class Output(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return {"logits": logits_BLV}


class Narrow(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV.gather(1, positions_BKV)[..., :3]


class Padded(Table):
    """A model whose vocabulary has a round size."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__(vocab_size + 11, seq_len)


class Stumbles(Table):
    def at(self, logits_BLV: Tensor, positions_BKV: Tensor) -> Any:
        return logits_BLV @ torch.zeros(3, 3)


class PerPlace(nn.Module):
    """A classifier that forgets that a row has one label."""

    def __init__(self, vocab_size: int, seq_len: int, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, num_outputs)

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Any = None) -> Tensor:
        return self.table(input_ids_BL)


WRONG_MODELS: dict[type, str] = {
    OnlyX: "forward() takes 2 positional arguments but 4 were given",
    WholeRow: "forward gives (2, 8, 5), and (2, 7, 5) is asked for",
    Narrow: "forward gives (2, 7, 3), and (2, 7, 5) is asked for",
    FirstPlaces: "its logits at positions_BK are not those that the whole row has there",
    Whole: "forward gives torch.int64, and not all are numbers",
    NoNumbers: "forward gives torch.float32, and not all are numbers",
    Output: "'dict' object has no attribute 'shape'",
    Stumbles: "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
}


@dataclass(frozen=True, kw_only=True)
class Own(MLM):
    wrong: str | None = None

    def maker(self, source: Any, split: Any, masking: Any, key: int) -> Any:
        right = super().maker(source, split, masking, key)
        if self.wrong == "dict":
            return lambda *rows, **more: right(*rows, **more)._asdict()
        if self.wrong == "labels":
            return lambda *rows, **more: (batch := right(*rows, **more))._replace(labels_BL=batch.labels_BL.clamp(min=0) + 9)
        return right

    def sums(self, *arguments: Any, **more: Any) -> Any:
        sums: Any = super().sums(*arguments, **more)
        compute = sums.compute
        if self.wrong == "tensor":
            sums.compute = lambda *which: compute(*which) | {"mine": torch.zeros(1)}
        if self.wrong == "no_loss":
            sums.compute = lambda *which: {"mine": 1.0}
        if self.wrong == "raises":
            sums.compute = lambda *which: {}["mine"]
        return sums


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return composed("trainer.max_steps=2", "trainer.val_check_interval=2", "logger=csv")


@pytest.fixture
def own(base: dict[str, Any], tmp_path: Path) -> Toy:
    """The toy config on rows that count, with a table as its model."""

    def compose(name: str = "", data: dict[str, Any] | None = None, model: type = Table, **nodes: Any) -> dict[str, Any]:
        made = copy.deepcopy(base) | {"output_dir": str(tmp_path / "outputs" / name), **nodes}
        made["data"] = {"_target_": f"{__name__}.Counting", "batch_size": 4, "num_workers": 0} | (data or {})
        return made | {"model": {"_target_": f"{__name__}.{model.__name__}"}}

    return compose


@pytest.fixture
def nothing(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "outputs").exists()


refused = pytest.mark.usefixtures("nothing")


@refused
@pytest.mark.parametrize("wrong_in", ["train", "val"])
@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_rows_that_are_none(own: Toy, wrong: str, wrong_in: str) -> None:
    with pytest.raises(ConfigError, match=WRONG_ROWS[wrong][1]) as raised:
        train(own(data={"wrong": wrong, "wrong_in": wrong_in}))
    assert str(raised.value).startswith(f"data._target_={__name__}.Counting: rows of {wrong_in}: ")
    assert str(raised.value).endswith(f"; docs/own-source-and-model.md: {ROWS}")


@refused
def test_rows_of_further_data(own: Toy) -> None:
    further = {"data": {"other": {"wrong": "dict", "wrong_in": "val"}}}
    config = own()
    with pytest.raises(ConfigError, match=r"eval\.data\.other\._target_=test_contracts\.Counting: rows of val: the tokens"):
        train(config | {"eval": config["eval"] | further})


@refused
def test_an_oracle_of_another_shape(own: Toy) -> None:
    with pytest.raises(ConfigError, match=re.escape(ORACLE)):
        train(own(data={"oracle": True}))


@refused
@pytest.mark.parametrize("model", WRONG_MODELS)
def test_models_that_are_none(own: Toy, model: type) -> None:
    with pytest.raises(ConfigError, match=re.escape(WRONG_MODELS[model])) as raised:
        train(own(model=model))
    assert str(raised.value).startswith(f"model._target_={__name__}.{model.__name__}: ")
    assert str(raised.value).endswith(f"; docs/own-source-and-model.md: {MODEL}")
    assert (f"(raised at {__file__}:" in str(raised.value)) == (model is Stumbles)


@refused
def test_a_classifier_of_positions(own: Toy, toy: Toy) -> None:
    config = toy("task=classify", "task.label=root")
    config["model"] = {"_target_": f"{__name__}.PerPlace"}
    with pytest.raises(ConfigError, match=r"forward gives \(2, 1, 4, 3\), and \(2, 1, 3\) is asked for"):
        train(config)


@refused
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("dict", "'dict' object has no attribute 'labels_BK'"),
        ("labels", "is out of bounds"),
        ("tensor", "not all of its metrics are numbers"),
        ("no_loss", "'loss'"),
    ],
)
def test_tasks_that_are_none(own: Toy, wrong: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        train(own(task={"_target_": f"{__name__}.Own", "wrong": wrong}))
    assert str(raised.value).startswith(f"task._target_={__name__}.Own: ")
    assert str(raised.value).endswith(f"; docs/own-source-and-model.md: {TASK}")


@refused
def test_what_raises_while_a_config_is_checked_says_where(own: Toy) -> None:
    with pytest.raises(UserError, match=r"KeyError: 'mine' \(raised at .*test_contracts\.py:\d+\)"):
        train(own(task={"_target_": f"{__name__}.Own", "wrong": "raises"}))


@pytest.mark.parametrize("contract", [ROWS, ORACLE, MODEL, TASK])
def test_each_contract_stands_in_the_docs(contract: str) -> None:
    page = (DOCS / "own-source-and-model.md").read_text().replace("`", "")
    assert contract in " ".join(page.split())


def test_a_model_may_pad_its_vocabulary(own: Toy) -> None:
    assert train(own(model=Padded))["steps"] == 2


def test_a_model_for_an_accelerator_alone_is_left_to_it(own: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainerSettings, "is_cpu", False)
    for model in (Stumbles, OnlyX):
        made = settings_of(own(model=model))
        if model is OnlyX:
            with pytest.raises(ConfigError, match="takes 2 positional"):
                contracts.try_own_parts(made, prepare(made))
        else:
            contracts.try_own_parts(made, prepare(made))


def test_the_old_run_stays_where_it_is(own: Toy) -> None:
    config = own()
    train(config)
    folder = run_of(config).folder
    Table.at, right = WholeRow.at, Table.at  # the code is edited
    try:
        with pytest.raises(ConfigError, match="forward gives"):
            train(config | {"resume": "never"})
    finally:
        Table.at = right  # type: ignore[method-assign]
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert not (folder.parent / ".old").exists()


@pytest.mark.parametrize("endless", [False, True])
def test_nothing_is_left_of_it(own: Toy, monkeypatch: pytest.MonkeyPatch, endless: bool) -> None:
    draws = {"draws": {"_target_": f"{__name__}.Draws"}}
    configs = [own(name, data={"is_endless": endless}) for name in ("tried", "untried")]
    drawn, built = [], []
    for config in configs:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        before = Table.built
        train(config | {"callbacks": config["callbacks"] | draws})
        drawn.append(Draws.drawn)
        built.append(Table.built - before)
        monkeypatch.setattr(training, "try_own_parts", lambda *_: None)
    assert drawn[0] == drawn[1]
    assert built[0] == built[1] + 1
    configs = [config | {"callbacks": config["callbacks"] | draws} for config in configs]
    assert_equal_checkpoints(*(run_of(config).checkpoints / "last.ckpt" for config in configs))
    assert len({json.dumps(timeless(run_of(config).summary or {})) for config in configs}) == 1


class Draws(L.Callback):
    drawn: tuple[float, ...] = ()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Draws.drawn = (random.random(), float(np.random.rand()), float(torch.rand(1)))


# what callbacks log


class Logs(L.Callback):
    """Logs the step as `val/mine`, and as `val/batches` its mean over batches."""

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("val/batches", float(trainer.global_step))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/mine", 10.0 - trainer.global_step)
        pl_module.log("others", 1.0)


LOGS = f"callbacks.logs._target_={__name__}.Logs"
LONGER = ("trainer.max_steps=6", "trainer.val_check_interval=2")


def test_what_a_callback_logs_is_a_metric_of_the_run(toy: Toy) -> None:
    from mlm_lightning.report.results import collect
    from mlm_lightning.training.loggers import read_metrics

    monitors = (
        "callbacks.checkpoint.monitor=val/mine",
        "callbacks=early_stopping",
        "callbacks.early_stopping.monitor=val/mine",
    )
    config = toy(*LONGER, *monitors, "sweep.objective=val/mine", LOGS)
    summary = train(config)
    assert (summary["val/mine"], summary["val/batches"], summary["best/step"]) == (4.0, 6.0, 6)
    assert "others" not in summary
    lines = read_metrics(run_of(config).folder / "metrics.csv")
    assert [line["step"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert [(line["step"], line["val/mine"]) for line in lines if line["val/loss"]] == [
        ("2", "8.0"),
        ("4", "6.0"),
        ("6", "4.0"),
    ]
    (result,) = collect([str(run_of(config).folder)]).results
    assert result.curves["val/mine"] == [(2, 8.0), (4, 6.0), (6, 4.0)]


def test_a_run_goes_on_with_it(toy: Toy, tmp_path: Path) -> None:
    """Lightning's count of steps, which the callback's curve is drawn by, is in a checkpoint."""
    configs = [
        toy(f"output_dir={tmp_path / name}", *LONGER, LOGS, f"callbacks.at._target_={AT}") for name in ("whole", "stopped")
    ]
    train(configs[0])
    At.set(("validation", 4, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(configs[1])
    train(configs[1])
    assert_equal_runs(*configs)


def test_without_such_a_callback_its_metric_is_refused_at_once(tmp_path: Path) -> None:
    asked = [*TOY, f"output_dir={tmp_path}", "sweep.objective=val/mine"]
    with pytest.raises(UserError, match=r"sweep\.objective=val/mine: is no metric of this run"):
        settings(asked)
    assert settings([*asked, f"+{LOGS}"]).sweep.objective == "val/mine"


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("callbacks.checkpoint.monitor", ()),
        ("callbacks.early_stopping.monitor", ("callbacks=early_stopping",)),
        ("sweep.objective", ()),
    ],
)
def test_what_is_never_logged_is_refused_after_the_first_validation(toy: Toy, key: str, options: tuple[str, ...]) -> None:
    config = toy(*LONGER, *options, f"{key}=val/mime", LOGS)
    with pytest.raises(ConfigError, match=rf"{key}=val/mime: is no metric of this run; did you mean 'val/mine'\?"):
        train(config)
    (last,) = (line for line in (run_of(config).folder / "metrics.csv").read_text().splitlines()[-1:])
    assert last.startswith("2,")


# Lightning's profilers


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_profiler_reports(toy: Toy, profiler: str, caplog: pytest.LogCaptureFixture) -> None:
    config = toy("trainer.max_steps=2", "logger=csv", f"trainer.profiler={profiler}")
    train(config)
    folder = run_of(config).folder / "profile"
    assert "MLMModule" in (folder / f"fit-{profiler}.txt").read_text()
    assert f"{folder}" in caplog.text


class Unfinished(L.Callback):
    def __init__(self) -> None:
        self.limit = {}["limit"]


@refused
def test_a_callback_that_cannot_be_built_leaves_no_folder(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"KeyError: 'limit' \(raised at .*test_contracts\.py:\d+\)"):
        train(toy(f"callbacks.mine._target_={__name__}.Unfinished"))
