"""What a run says of itself, and when."""

import itertools
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import run_of, train

from mlm_lightning.data.batches import Plan
from mlm_lightning.messages import duration
from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.training.callbacks import progress
from mlm_lightning.training.callbacks.progress import ProgressReport, TimeLeft


@pytest.mark.parametrize("every", [1.0, 2.5, 4.0, 7.0, 50.0, float("inf")])
@pytest.mark.parametrize("total", [1, 8, 20])
def test_the_validations_to_come_are_those_that_will_be_due(total: int, every: float) -> None:
    plan = Plan(total, validate_every=every)
    for step in range(total + 1):
        assert plan.validations_after(step) == sum(plan.validation_due(later) for later in range(step + 1, total + 1))


def test_the_time_left_is_that_of_steps_and_validations() -> None:
    """Steps of 2 s, the first of 50 s; validations of 10 s, each after 5 steps of 20."""
    left, now = TimeLeft(Plan(20, validate_every=5)), 0.0
    assert left.text(0) == ""
    for step in range(1, 13):
        left.validated(now)
        now += 50 if step == 1 else 2
        left.stepped(now)
        if step == 3:
            assert left.text(step) == "0:34 + 4 validations"
        if step in (5, 10):
            left.validation_began(now)
            now += 10
    assert left.seconds(12) == pytest.approx(8 * 2 + 2 * 10)
    assert left.text(12) == "0:36"


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def lines_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float, steps: int, every: float
) -> list[tuple[float, str]]:
    """What is said in a run whose steps take `seconds`, each with the time of its saying; not on a terminal."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_about", lambda *_: [])
    plan = Plan(steps, validate_every=every)
    module = SimpleNamespace(plan=plan, recent_loss=1.5, last_metrics={"val/loss": 1.25}, at_step_boundary=lambda batch: True)
    state = SimpleNamespace(fn="fit")
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, progress_bar_metrics={"tokens/s": 100.0}, state=state)
    report, said = ProgressReport(), []
    with caplog.at_level(logging.INFO, "mlm_lightning"):
        report.on_train_start(trainer, module)
        for step in range(1, steps + 1):
            report.on_train_batch_start(trainer, module, None, step - 1)
            clock.now += seconds
            trainer.global_step = step
            report.on_train_batch_end(trainer, module, None, None, step - 1)
            if plan.validation_due(step):
                report.on_validation_start(trainer, module)
                report.on_validation_end(trainer, module)
            said += [(clock.now, message) for message in caplog.messages]
            caplog.clear()
        report.on_train_end(trainer, module)
    return said


@pytest.mark.parametrize("seconds", [0.1, 3.0, 100.0])
def test_a_log_file_has_a_line_soon_and_then_one_in_30_seconds_at_most(
    seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = lines_of(monkeypatch, caplog, seconds, steps=1000, every=float("inf"))
    times = [when for when, _ in said[:-1]]  # without the validation at the end
    assert times[0] == pytest.approx(max(seconds, 2.0), abs=0.11)
    expected = max(seconds, 30.0)
    assert all(later - before == pytest.approx(expected, abs=0.11) for before, later in itertools.pairwise(times))
    assert times[-1] >= 1000 * seconds - expected - 0.11
    assert said[1][1].startswith(f"step {round(times[1] / seconds):,}/1,000  loss 1.5  100 tokens/s  ")
    assert said[-1][1].startswith("step 1,000/1,000  val/loss 1.25")


def test_the_result_of_a_validation_that_comes_too_soon_is_in_the_next_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = lines_of(monkeypatch, caplog, 4.0, steps=40, every=3)
    shown = [message for _, message in said if "val/loss" in message]
    assert shown[0].startswith("step 3/40  val/loss 1.25")
    assert shown[1].startswith("step 11/40  loss 1.5  val/loss 1.25  100 tokens/s")
    assert shown[-1].startswith("step 40/40  val/loss 1.25")
    assert len(said) <= 2 + 160 / 30 + 1


def test_a_start_says_what_is_trained_and_with_what(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = toy("data.train_size=32")
    with caplog.at_level(logging.INFO, "mlm_lightning"):
        train(config)
    said = dict(line.split(maxsplit=1) for line in caplog.messages[:5])
    assert said["run"] == str(run_of(config).folder)
    assert said["device"].startswith("cpu, precision 32-true")
    assert said["model"] == f"TransformerClassifier, {number_of_parameters(config):,} parameters"
    assert said["rows"] == "32 of 4 tokens an epoch, 128 tokens"
    assert said["steps"] == "8 of 16 rows, 4 epochs; 2 validations"
    assert RunProgress.read(run_of(config).folder) is None  # it is no longer working


def number_of_parameters(config: dict[str, Any]) -> int:
    import json

    return json.loads((run_of(config).folder / "manifest.json").read_text())["num_parameters"]


def test_how_far_a_run_is_can_be_read_by_others(tmp_path: Any) -> None:
    assert RunProgress.read(tmp_path) is None
    written = RunProgress(3, 8, 1.5, None, 12.0)
    written.write(tmp_path)
    assert RunProgress.read(tmp_path) == written
    (tmp_path / ".progress.json").write_text("{")
    assert RunProgress.read(tmp_path) is None
    RunProgress.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_durations_are_readable() -> None:
    assert [duration(each) for each in (0.4, 59.6, 754, 3723, 100 * 3600)] == ["0:00", "1:00", "12:34", "1:02:03", "100:00:00"]
