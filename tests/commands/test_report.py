"""`mlm report`: from the folders to the terminal, the page, the table and the plots; mistakes are one message."""

import csv
import fcntl
import json
from pathlib import Path

import pytest
from conftest import TOY
from made_runs import make_grid, make_run, make_sweep, summary_of

from mlm_lightning.__main__ import main


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A sweep with a job in every state."""
    folder = tmp_path / "sweep"
    lrs = {name: 0.001 * 2**n for n, name in enumerate(("one", "two", "failed", "pruned", "cut", "going", "damaged", "later"))}
    endings = {
        "failed": {"error_json": json.dumps({"message": "train/loss is nan at step 12"})},
        "pruned": {"pruned_json": json.dumps({"message": "above the median"})},
        "damaged": {"summary_json": '{"val/loss": 0.'},
        "cut": {"metrics_csv": "step,train/loss\n50,1.5\n60,1."},
    }
    for name, lr in lrs.items():
        if name != "later":
            summary = summary_of(1.0 + lr) if name in ("one", "two") else None
            make_run(folder / name, {"optim.lr": lr}, summary, **endings.get(name, {}))
    make_sweep(folder, [(name, [f"optim.lr={lr}"]) for name, lr in lrs.items()], ["optim.lr"])
    return folder


def test_a_sweep_in_every_state(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (mixed / "going" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["report", str(mixed)]) == 0
    printed = capsys.readouterr().out
    assert "sweep: 2 complete, 1 running, 1 failed, 1 pruned, 1 interrupted, 1 missing, 1 damaged" in printed
    assert "optim.lr=0.001: 1.0010 nats a token" in printed
    for said in ("train/loss is nan at step 12", "above the median", "summary.json can't be read", "step 50 of 300"):
        assert said in printed
    written = {path.name for path in (mixed / "report").iterdir()}
    plots = {f"learning_curves.{kind}" for kind in ("png", "svg", "pdf")}
    assert written == {"report.html", "results.csv", "groups.csv", "groups.tex", *plots}
    with (mixed / "report" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    statuses = ["complete", "complete", "failed", "pruned", "interrupted", "running", "damaged", "missing"]
    assert [line["status"] for line in lines] == statuses
    assert [float(line["optim.lr"]) for line in lines] == [0.001 * 2**n for n in range(8)]


def test_a_report_leaves_the_runs_as_they_were_and_may_be_had_again(mixed: Path) -> None:
    before = {path: path.read_bytes() for path in mixed.rglob("*") if path.is_file()}
    assert main(["report", str(mixed)]) == 0
    assert main(["report", str(mixed)]) == 0  # its own folder is no run
    assert {path: path.read_bytes() for path in before} == before


def test_runs_are_compared_in_a_folder_of_ones_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_grid(tmp_path / "outputs", "optim.lr", [0.1, 0.2], seeds=[0])
    runs = sorted(str(path.parent) for path in (tmp_path / "outputs").glob("*/config.yaml"))
    assert main(["report", *runs, "--metric", "val/accuracy"]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert "highest validation accuracy" in capsys.readouterr().out
    assert main(["report", *runs, "--output", "there/it is"]) == 0
    assert (tmp_path / "there" / "it is" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "PATH"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: is no run"),
        (["empty/file"], "no such folder"),
        (["outputs", "--metric", "val/los"], "did you mean 'val/loss'"),
        (["outputs", "--output", "empty/file"], "empty/file"),
        (["outputs", "--depth", "3"], "--depth"),
        (["broken"], "sweep.json"),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_grid(tmp_path / "outputs", "optim.lr", [0.1, 0.2], seeds=[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("{")
    assert main(["report", *arguments]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message


def test_a_real_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*TOY, f"output_dir={tmp_path}", "name=rates", "eval.mask_rates=[0.15,0.5]"]
    assert main(["train", "-m", *overrides, "masking.rate=0.2,0.5", "seed=0,1"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "rates")]) == 0
    printed = capsys.readouterr().out
    assert "rates: 4 complete" in printed
    assert "Compared under one condition at a time: masking.rate changes the task" in printed
    written = {path.name for path in (tmp_path / "rates" / "report").iterdir()}
    names = ("differences", "conditions", "conditions_heat", "learning_curves")
    plots = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    assert written == {"report.html", "results.csv", "groups.csv", "groups.tex", *plots}
    # by one condition, as no rate need be best under both; the command that it prints is the best run's own: it is complete
    assert main(["report", str(tmp_path / "rates"), "--metric", "val/accuracy_rate_0.50"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "mlm train" in line)
    assert "another config" not in line
    import shlex

    _, _, *arguments = shlex.split(line)
    assert main(["train", *arguments]) == 0
    assert "complete: " in capsys.readouterr().err
