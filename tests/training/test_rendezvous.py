"""The first machine's decision reaches the others of the same run, and nobody else; how one ends, all hear."""

import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from helpers import settings_of

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import ConfigError, Interrupted, UserError
from mlm_lightning.training import nodes
from mlm_lightning.training.nodes import MachineError, Nodes, check_environment

Machine = Callable[..., Nodes]
HERE = {"folder": "here"}
COMPLETE = {"status": 0, "message": "the first machine has nothing to train: the run is complete"}


@pytest.fixture
def machine(toy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One of `num_nodes` machines, for the run with a seed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    configs = {seed: toy(f"seed={seed}") for seed in (0, 1)}

    def make(seed: int = 0, num_nodes: int = 2, swept: tuple[str, ...] = ()) -> Nodes:
        config = configs[seed]
        return Nodes(settings_of(config | {"trainer": config["trainer"] | {"num_nodes": num_nodes}}), swept)

    return make


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def heard(machine: Nodes) -> dict[str, Any]:
    with machine.following() as message:
        return message


def hearing(pool: ThreadPoolExecutor, machine: Nodes) -> "Future[dict[str, Any]]":
    return pool.submit(heard, machine)


def ends(machine: Nodes, number: int = 1) -> list[tuple[int, str]]:
    """How other machines have ended, once so many have."""
    found: list[tuple[int, str]] = []
    deadline = time.monotonic() + 60
    while len(found) < number:
        assert time.monotonic() < deadline
        found += machine.ended()
    return found


def test_all_others_hear_the_first_message_whether_they_come_before_it_or_after(
    machine: Machine, others: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    early = hearing(others, machine(num_nodes=3))
    first = machine(num_nodes=3)
    with first.leading():
        first.tell(HERE)
        assert early.result(60) == HERE
        first.tell({"folder": "elsewhere"})
        late = hearing(others, machine(num_nodes=3))
    assert late.result(60) == HERE  # the first machine, whose port is closed now, has waited for it
    assert capfd.readouterr().out == ""


def test_the_first_machine_waits_for_all_others_and_says_so(
    machine: Machine, others: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlm_lightning")
    first = machine(num_nodes=3)
    with first.leading():
        early = hearing(others, machine(num_nodes=3))
        started = others.submit(first.start, HERE)
        assert early.result(60) == HERE
        deadline = time.monotonic() + 60
        while not any("for 1 machine(s) to call 127.0.0.1:" in each for each in caplog.messages):
            assert time.monotonic() < deadline
        assert not started.done()
        assert hearing(others, machine(num_nodes=3)).result(60) == HERE
        started.result(60)
    monkeypatch.setattr(nodes, "_PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"1 machine\(s\) have not called"):
        machine().start(HERE)


def test_how_it_ended_is_announced(machine: Machine, others: ThreadPoolExecutor) -> None:
    message = hearing(others, machine())
    with machine().leading():
        pass
    assert message.result(60) == COMPLETE
    message = hearing(others, machine())
    with pytest.raises(UserError), machine().leading():
        raise UserError("data.path=x: no such file")
    with pytest.raises(UserError, match=r"machine 0: data\.path=x: no such file"):
        message.result(60)
    message = hearing(others, machine())
    with pytest.raises(Interrupted), machine().leading():
        raise Interrupted(signal.SIGUSR1)
    with pytest.raises(Interrupted, match="SIGUSR1"):
        message.result(60)


def test_a_machine_that_is_told_the_start_as_the_first_one_ends_hears_of_the_end(
    machine: Machine, others: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    say, is_told = nodes._say, Event()

    def say_slowly(line: socket.socket, message: dict[str, Any]) -> None:
        say(line, message)
        if message == HERE:  # and the first machine is stopped before this is back
            is_told.set()
            time.sleep(1)

    monkeypatch.setattr(nodes, "_say", say_slowly)
    first, follower = machine(), machine()

    def lead() -> None:
        with first.leading():
            first.tell(HERE)
            assert is_told.wait(60)
            raise Interrupted(signal.SIGTERM)

    led = others.submit(lead)
    with follower.following() as message:
        assert message == HERE
        ((status, why),) = ends(follower)
    assert nodes.signal_of(status) == signal.SIGTERM, why
    with pytest.raises(Interrupted):
        led.result(60)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, "complete"),
        (Interrupted(signal.SIGTERM), 128 + signal.SIGTERM, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (UserError("no such file"), 2, "no such file"),
    ],
)
def test_how_one_ends_while_it_trains_the_other_hears(
    machine: Machine, others: ThreadPoolExecutor, error: BaseException | None, status: int, said: str
) -> None:
    first, second = machine(), machine()

    def train() -> None:
        with second.following() as message:
            assert message == HERE
            if error is not None:
                raise error

    with first.leading():
        first.tell(HERE)
        training = others.submit(train)
        ((how, why),) = ends(first)
        assert how == status
        assert said in why
        if error is None:
            training.result(60)
        else:
            with pytest.raises(type(error)):
                training.result(60)
        assert list(first.ended()) == []


def test_one_that_is_gone_without_a_word_has_failed(machine: Machine, others: ThreadPoolExecutor) -> None:
    first, second = machine(), machine()
    with first.leading():
        first.tell(HERE)
        assert others.submit(second._hear).result(60) == HERE
        (line,) = second._lines
        line.close()  # as the system does where it was killed
        assert ends(first) == [(1, "another machine is gone")]


def test_an_earlier_job_of_the_sweep_is_waited_for_and_another_run_is_not(
    machine: Machine, others: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = hearing(others, machine(seed=1, swept=("seed",)))
    first, second = machine(seed=0), machine(seed=1)
    with first.leading():
        first.tell(HERE)
        assert hearing(others, machine(seed=0)).result(60) == HERE
        with pytest.raises(UserError, match=r"trains something else \(there → here\):\n  seed: 0 → 1$"):
            heard(machine(seed=1))
        with pytest.raises(UserError, match="something else"):
            heard(machine(seed=1, swept=("see", "model")))
        assert not foreign.done()
    with second.leading():
        second.tell({"folder": "second"})
        assert foreign.result(60) == {"folder": "second"}
    assert capfd.readouterr().out == ""


def test_what_is_waited_for_is_said_and_has_an_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlm_lightning")
    monkeypatch.setattr(nodes, "_PATIENCE", 1.0)
    monkeypatch.setattr(nodes, "_SAY_AGAIN", 0.3)
    with pytest.raises(UserError, match=r"no word from the first machine, 127\.0\.0\.1:\d+"):
        heard(machine())
    assert 3 <= sum("for the first machine, 127.0.0.1:" in each for each in caplog.messages) <= 4


def test_a_name_without_an_address_and_a_port_in_use_are_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_SHORT_PATIENCE", 0.3)
    in_use = socket.create_server(("", nodes.rendezvous_address()[1]))
    with in_use, pytest.raises(ConfigError, match=r"MASTER_PORT=.*in use"), machine().leading():
        pass
    monkeypatch.setenv("MASTER_ADDR", "no-such-machine.invalid")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=no-such-machine\.invalid: has no address"):
        heard(machine())


@pytest.mark.parametrize(
    ("name", "value"),
    [("NODE_RANK", "2"), ("NODE_RANK", "-1"), ("NODE_RANK", "one"), ("MASTER_PORT", "0"), ("MASTER_PORT", "65536")],
)
def test_numbers_out_of_range_are_refused_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    settings = TrainerSettings(num_nodes=2, max_steps=1)
    check_environment(settings)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}: must be a whole number from"):
        check_environment(settings)


def test_one_machine_opens_no_port(machine: Machine) -> None:
    alone = machine(num_nodes=1)
    with alone.leading():
        alone.start(HERE)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(nodes.rendezvous_address(), timeout=5)


def test_errors_become_statuses_and_errors_again() -> None:
    for error in (Interrupted(signal.SIGTERM), UserError("a"), MachineError("b")):
        again = nodes.error_of(nodes.status_of(error), str(error))
        assert (type(again), str(again)) == (type(error), str(error))
    assert nodes.signal_of(-signal.SIGHUP) == nodes.signal_of(128 + signal.SIGHUP) == signal.SIGHUP
    assert [nodes.signal_of(status) for status in (0, 1, 2, -signal.SIGKILL, 128 + signal.SIGSEGV)] == [None] * 5
