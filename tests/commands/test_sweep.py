"""A sweep survives: what has a result is not run again, what failed says why, what was killed goes on."""

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY, composed
from helpers import assert_equal_results, failing, run_of, runs_in, start_sweep, steps_of, train, wait_for

from mlm_lightning.__main__ import main
from mlm_lightning.config.compose import read_config
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.runs.folder import Run
from mlm_lightning.sweeps.pool import Slot, slots

SEEDS = "seed=0,1,2,3"


def sweep(folder: Path, *overrides: str) -> int:
    return main(["train", "-m", *TOY, f"output_dir={folder}", *overrides])


def test_the_runs_of_a_sweep_are_those_that_single_commands_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path / "sweep", "seed=0,1", "model.dropout=0.1") == 0
    out = capsys.readouterr().out
    assert "2 complete" in out
    for seed, run in runs_in(tmp_path / "sweep").items():
        assert run.folder.name.startswith(f"seed={seed}-")
        single = composed(f"output_dir={tmp_path / 'single'}", f"seed={seed}", "model.dropout=0.1")
        train(single)
        assert_equal_results(run, run_of(single))


def test_what_a_sweep_would_run_is_shown_without_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path / "none", "seed=0,1", "--cfg", "job") == 0
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    train(composed(f"output_dir={tmp_path}", "seed=1"))
    before = sorted(tmp_path.rglob("*"))
    assert sweep(tmp_path, "seed=0,1", "--cfg", "job") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status"]
    assert [line.split()[1] for line in lines] == ["missing", "complete"]
    assert lines[0].split()[0].startswith(f"{tmp_path}/default/seed=0-")
    assert lines[1].split()[0] == str(run_of(composed(f"output_dir={tmp_path}", "seed=1")).folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_at_a_time_give_the_same_and_write_down_what_they_say(tmp_path: Path) -> None:
    assert sweep(tmp_path / "one", "seed=0,1,2") == 0
    assert sweep(tmp_path / "two", "seed=0,1,2", "sweep.jobs=2") == 0
    one, two = runs_in(tmp_path / "one"), runs_in(tmp_path / "two")
    for seed in range(3):
        assert_equal_results(one[seed], two[seed])
        log = tmp_path / "two" / "default" / ".logs" / f"{two[seed].folder.name}.txt"
        assert "step 8/8" in log.read_text()


def test_failed_runs_stop_no_others_and_the_same_command_runs_just_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    arguments = ("seed=range(0,6)", *failing(marker, [1, 4]))
    assert sweep(tmp_path / "outputs", *arguments) == 1
    shown = capsys.readouterr().out
    assert "4 complete" in shown
    assert "2 failed" in shown
    runs = runs_in(tmp_path / "outputs")
    assert [seed for seed, run in runs.items() if run.status == "complete"] == [0, 2, 3, 5]
    for seed in (1, 4):
        assert f"no luck with seed {seed}" in runs[seed].reason
        assert f"seed={seed}: no luck with seed {seed}" in shown
    before = steps_of(marker)
    marker.unlink()
    assert sweep(tmp_path / "outputs", *arguments) == 0
    assert steps_of(marker) - before == Counter({"1": 8, "4": 8})
    assert [run.status for run in runs.values()] == ["complete"] * 6
    assert sweep(tmp_path / "outputs", *arguments) == 0
    assert steps_of(marker).total() == 6 * 8


def test_a_run_whose_process_dies_is_reported_and_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    arguments = ("seed=0,1,2", "sweep.jobs=2", "sweep.retries=2", *failing(marker, [1], kill=True))
    assert sweep(tmp_path / "outputs", *arguments) == 1
    captured = capsys.readouterr()
    assert "ended by SIGKILL" in captured.out
    assert captured.err.count("seed=1\n") == 3  # started once, and two retries
    assert [run.status for run in runs_in(tmp_path / "outputs").values()] == ["complete", "failed", "complete"]


def test_hparams_shows_what_several_sweeps_vary_and_how_their_runs_end(tmp_path: Path) -> None:
    """As TensorBoard's page asks its server, with all sweeps in one table."""
    assert sweep(tmp_path, "name=rates", "masking.rate=0.1,0.2") == 0
    assert sweep(tmp_path, "name=rest", "optim.lr=2e-3,1e-3", "data=tree,uniform", "~data.num_symbols", "~data.depth") == 0
    columns, metrics, lines = hparams_table(tmp_path)
    number, word = "DATA_TYPE_FLOAT64", "DATA_TYPE_STRING"
    assert columns == {"masking.rate": number, "optim.lr": number, "data._target_": word}
    assert metrics[:5] == [f"final/{name}" for name in ("accuracy", "excess_loss", "loss", "oracle_loss", "perplexity")]
    assert "hp_metric" not in metrics
    assert len(lines) == 6
    for folder, (settings, ends) in lines.items():
        run = Run(tmp_path / folder).folder
        config, summary = read_config(run), Run(run).summary or {}
        assert settings["masking.rate"] == config.get("masking.rate")
        assert settings["optim.lr"] == config.get("optim.lr")
        assert settings["data._target_"] == config.get("data._target_").rpartition(".")[2]
        assert settings["eval.mask_rates"] == "null"
        assert settings["optim.betas"] == "[0.9, 0.98]"
        assert ends["final/loss"] == pytest.approx(summary["val/loss"], rel=1e-6)


def hparams_table(folder: Path) -> tuple[dict[str, str], list[str], dict[str, tuple[dict[str, Any], dict[str, float]]]]:
    """The columns that differ with their types, the metrics, and the lines by run: settings and metrics."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    backend = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(events, str(folder))))
    request, asked = context.RequestContext(), api_pb2.ListSessionGroupsRequest(slice_size=100)
    asked.allowed_statuses.append(api_pb2.STATUS_SUCCESS)
    experiment = backend.experiment_from_metadata(request, "", True, backend.hparams_metadata(request, ""), [])
    columns = {each.name: api_pb2.DataType.Name(each.type) for each in experiment.hparam_infos if each.differs}
    metrics = [each.name.tag for each in experiment.metric_infos]
    asked.col_params.extend(api_pb2.ColParams(hparam=each.name) for each in experiment.hparam_infos)
    found = list_session_groups.Handler(request, backend, "", asked).run().session_groups
    lines = {}
    for each in found:
        settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in each.hparams.items()}
        ends = {value.name.tag: value.value for value in each.metric_values}
        lines[each.sessions[0].name.removesuffix("/tensorboard")] = (settings, ends)
    return columns, metrics, lines


def test_a_mistake_in_any_job_is_found_before_the_first_one_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path / "outputs", "model.nhead=2,3,5", "seed=0,1") == 2
    message = capsys.readouterr().err
    assert "nhead" in message
    assert "model.nhead=3 seed=0 and 1 more" in message
    assert sweep(tmp_path / "outputs", "optim.lrr=0.1", SEEDS) == 2
    assert capsys.readouterr().err.count("optim.lrr") == 1
    assert sweep(tmp_path / "outputs", "name=a,b") == 2
    assert "name: can't be swept" in capsys.readouterr().err
    assert sweep(tmp_path / "outputs", "optim.lr=interval(0.1,0.2)") == 2
    assert "sweep.trials=N" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


LONG = ("trainer.max_steps=300", "trainer.val_check_interval=100", "callbacks.checkpoint.every_n_train_steps=25")


@pytest.mark.parametrize(
    "signum", [*(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGHUP)), signal.SIGKILL]
)
def test_a_stopped_sweep_goes_on_where_its_runs_were(tmp_path: Path, signum: signal.Signals) -> None:
    marker = tmp_path / "marker"
    arguments = ("seed=0,1,2", *LONG, "sweep.jobs=2", *failing(marker, []))
    process = start_sweep(tmp_path / "cut", *arguments)
    wait_for(tmp_path / "cut", "metrics.csv", lines=60)
    stopped = signum != signal.SIGKILL
    os.killpg(process.pid, signum) if stopped else process.kill()  # as a terminal does: Ctrl-C, or its window is closed
    _, stderr = process.communicate(timeout=60)
    if stopped:
        assert process.returncode == (130 if signum == signal.SIGINT else 75), stderr
        assert "Traceback" not in stderr
    before, statuses = steps_of(marker), [run.status for run in runs_in(tmp_path / "cut").values()]
    assert "complete" not in statuses
    assert before.total() < 900
    assert sweep(tmp_path / "cut", *arguments) == 0
    again = steps_of(marker).total() - 900
    # what was killed repeats the steps after its last checkpoint; what was stopped repeats none
    assert again == 0 if stopped else 0 <= again <= 2 * 25
    assert sweep(tmp_path / "whole", "seed=0,1,2", *LONG, *failing(marker, [])) == 0
    cut, whole = runs_in(tmp_path / "cut"), runs_in(tmp_path / "whole")
    for seed in range(3):
        assert_equal_results(cut[seed], whole[seed])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sweep.jobs=2", "launcher=joblib"])
def test_runs_and_their_ranks_import_the_user_s_own_class_and_no_module_in_place_of_another(
    tmp_path: Path, shadows: Path, how: str
) -> None:
    code = "from mlm_lightning.models.transformer import TransformerClassifier\n\nclass Mine(TransformerClassifier): pass\n"
    (shadows / "own_model.py").write_text(code)
    ranks = ("trainer.devices=2", "trainer.strategy=ddp", "model._target_=own_model.Mine")
    process = start_sweep(tmp_path / "outputs", "seed=0,1", how, *ranks)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert [run.status for run in runs_in(tmp_path / "outputs").values()] == ["complete"] * 2


@pytest.mark.slow
def test_two_commands_share_the_work_of_one_sweep(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    arguments = (SEEDS, *LONG, *failing(marker, []))
    commands = [start_sweep(tmp_path / "outputs", *arguments) for _ in range(2)]
    for command in commands:
        _, stderr = command.communicate(timeout=120)
        assert command.returncode == 0, stderr
    assert [run.status for run in runs_in(tmp_path / "outputs").values()] == ["complete"] * 4
    assert steps_of(marker) == Counter({str(seed): 300 for seed in range(4)})


def test_a_sweep_over_the_number_of_devices_has_a_run_and_a_result_for_each(tmp_path: Path) -> None:
    assert sweep(tmp_path, "trainer.devices=1,2", "trainer.strategy=auto", "model.dropout=0.1") == 0
    runs = [Run(path) for path in (tmp_path / "default").iterdir() if path.is_dir()]
    results = {run.manifest["processes"]: run.summary or {} for run in runs}
    assert results.keys() == {1, 2}
    assert results[2]["tokens"] == 2 * results[1]["tokens"]  # a step has the rows of both
    assert results[2]["val/loss"] != results[1]["val/loss"]


def test_a_launcher_s_machines_may_have_other_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = [*TOY, f"output_dir={tmp_path}", "seed=0,1", "launcher=joblib", "trainer.devices=auto"]
    assert main(["train", "-m", *arguments]) == 2
    assert "trainer.devices=auto: its machines may have another number of devices" in capsys.readouterr().err


def test_runs_at_the_same_time_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = TrainerSettings(accelerator="auto", max_steps=1)
    assert slots(1, trainer) == [Slot(None, None)]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("mlm_lightning.sweeps.pool.num_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert slots(3, trainer) == [Slot(2, "4"), Slot(2, "6"), Slot(2, "4")]
    assert slots(2, replace(trainer, accelerator="cpu")) == [Slot(4, None), Slot(4, None)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local"])
def test_hydra_s_launchers_survive_failures_and_skip_what_is_done(tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    marker = tmp_path / "marker"
    marker.touch()
    arguments = ("seed=0,1,2", f"launcher={launcher}", *failing(marker, [1]))
    command = start_sweep(tmp_path / "outputs", *arguments)
    _, stderr = command.communicate(timeout=240)
    assert command.returncode == 1, stderr
    runs = runs_in(tmp_path / "outputs")
    assert [run.status for run in runs.values()] == ["complete", "failed", "complete"]
    assert "no luck with seed 1" in runs[1].reason
    marker.unlink()
    command = start_sweep(tmp_path / "outputs", *arguments)
    _, stderr = command.communicate(timeout=240)
    assert command.returncode == 0, stderr
    assert steps_of(marker) == Counter({"0": 8, "1": 8, "2": 8})
    single = composed(f"output_dir={tmp_path / 'single'}", "seed=1", *failing(marker, [1]))
    train(single)
    assert_equal_results(runs[1], run_of(single))
