"""Several processes: whatever stops them, all of them stop at one step, and the resumed run is the uninterrupted one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY
from helpers import AT, At, assert_equal_results, run_of, train

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import Interrupted, UserError
from mlm_lightning.runs.folder import Run
from mlm_lightning.training.nodes import check_environment

Toy = Callable[..., dict[str, Any]]

TWO = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=8")
STEPS = (
    "trainer.max_steps=300",
    "trainer.val_check_interval=70",
    "callbacks.checkpoint.every_n_train_steps=25",
    "model.dropout=0.1",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run on two ranks."""
    from conftest import composed

    config = composed(f"output_dir={tmp_path_factory.mktemp('whole')}", *TWO, *STEPS)
    train(config)
    return run_of(config)


def start(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlm_lightning", "train", *arguments]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("metrics.csv"))


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    """The process ids of the ranks, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks.update({int(each[11:]): int(child) for each in environment if each.startswith(b"LOCAL_RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(process: "subprocess.Popen[str]") -> None:
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(is_running(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(rank) for rank in ranks), "a rank went on without its parent"


def stop_one_rank(process: "subprocess.Popen[str]") -> None:
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    assert_saved(process, status=75)


def press_ctrl_c(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert_saved(process, status=130)


def close_the_window(process: "subprocess.Popen[str]") -> None:
    for _ in range(2):  # the shell does, and then the system
        os.killpg(process.pid, signal.SIGHUP)
    assert_saved(process, status=75)


def assert_saved(process: "subprocess.Popen[str]", status: int) -> None:
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert stderr.count("everything is saved") == 1
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(kill, stop_one_rank), (press_ctrl_c, close_the_window)])
def test_two_ranks_that_are_stopped_go_on_to_the_same_result(
    toy: Toy, whole: Run, tmp_path: Path, stops: tuple[Callable[["subprocess.Popen[str]"], None], ...]
) -> None:
    arguments = [*TOY, f"output_dir={tmp_path / 'outputs'}", *TWO, *STEPS]
    inode, drawn = 0, 0
    for stop in stops:
        process = start(arguments)
        if inode:  # its own start rewrites the file
            wait_until(lambda before=inode: next(tmp_path.rglob("metrics.csv")).stat().st_ino != before, process)
        wait_until(lambda before=drawn: lines_of(tmp_path) > before + 30, process)
        stop(process)
        inode, drawn = next(tmp_path.rglob("metrics.csv")).stat().st_ino, lines_of(tmp_path)
    config = toy(*TWO, *STEPS)
    train(config)
    assert_equal_results(run_of(config), whole)


@pytest.mark.slow
def test_two_machines_of_one_device_give_what_two_devices_of_one_machine_give(whole: Run, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*TOY, f"output_dir={tmp_path}", *TWO, "trainer.devices=1", "trainer.num_nodes=2", *STEPS]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    machines = [start(arguments, **variables, NODE_RANK=str(rank)) for rank in (1, 0)]
    for machine in machines:
        _, stderr = machine.communicate(timeout=120)
        assert machine.returncode == 0, stderr
    (folder,) = (tmp_path / "default").iterdir()
    assert_equal_results(Run(folder), whole)
    # the run is complete now, and both are told so
    again = [start(arguments, **variables, NODE_RANK=str(rank)) for rank in (0, 1)]
    reports = [machine.communicate(timeout=60)[1] for machine in again]
    assert [machine.returncode for machine in again] == [0, 0]
    assert "complete" in reports[0]
    assert "the run is complete" in reports[1]


def test_another_number_of_ranks_is_refused_with_the_values_that_fit_and_these_continue_the_run(
    toy: Toy, tmp_path: Path, shadows: Path
) -> None:
    options = (f"callbacks.at._target_={AT}", "data.batch_size=16", "schedule=constant")
    uninterrupted = toy(*options, f"output_dir={tmp_path / 'uninterrupted'}")
    expected = train(uninterrupted)
    one = toy(*options)
    At.set(("train", 5, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(one)
    folder = run_of(one).folder
    with pytest.raises(UserError) as error:
        train(toy(*options, "trainer.devices=2", "trainer.strategy=ddp", f"resume={folder}"))
    for part in ("have 16", "would have 32", f"data.batch_size=8 resume={folder}", "1 process(es) again"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches=1 resume=") as error:
        train(toy(*options, "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.devices=2", f"resume={folder}"))

    summary = train(
        toy("data.batch_size=8", "schedule=constant", "trainer.devices=2", "trainer.strategy=ddp", f"resume={folder}")
    )
    assert summary["steps"] == 8
    assert summary["val/loss"] == pytest.approx(expected["val/loss"], abs=1e-5)


def test_the_ranks_of_another_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainerSettings(devices=2, max_steps=1)
    check_environment(settings)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="without torchrun"):
        check_environment(settings)
    monkeypatch.delenv("LOCAL_RANK")
    for tasks, fits in (("1", True), ("1(x2)", True), ("2(x2)", False), ("1,2", False), ("12", False)):
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        if fits:
            check_environment(settings)
        else:
            with pytest.raises(UserError, match="--ntasks-per-node=1"):
                check_environment(settings)
    monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE")
    with pytest.raises(UserError, match=r"trainer.num_nodes=2.*NODE_RANK"):
        check_environment(TrainerSettings(num_nodes=2, max_steps=1))
