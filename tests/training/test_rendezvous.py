"""The first machine's decision reaches the others of the same run, and nobody else."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from helpers import settings_of

from mlm_lightning.errors import UserError
from mlm_lightning.training import ranks
from mlm_lightning.training.ranks import Nodes

Machine = Callable[..., Nodes]


@pytest.fixture
def machine(toy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One of `num_nodes` machines, for the run with a seed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    configs = {seed: toy(f"seed={seed}") for seed in (0, 1)}

    def make(seed: int = 0, num_nodes: int = 2) -> Nodes:
        config = configs[seed]
        return Nodes(settings_of(config | {"trainer": config["trainer"] | {"num_nodes": num_nodes}}))

    return make


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def hearing(pool: ThreadPoolExecutor, nodes: Nodes) -> "Future[dict[str, Any]]":
    return pool.submit(nodes.hear)


def test_all_others_hear_the_first_message_whether_they_come_before_it_or_after(
    machine: Machine, others: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    early = hearing(others, machine(num_nodes=3))
    nodes = machine(num_nodes=3)
    with nodes.leading():
        nodes.tell({"folder": "here"})
        assert early.result(60) == {"folder": "here"}
        nodes.tell({"folder": "elsewhere"})
        late = hearing(others, machine(num_nodes=3))
    assert late.result(60) == {"folder": "here"}  # the first machine, whose port is closed now, has waited for it
    assert capfd.readouterr() == ("", "")


def test_how_it_ended_is_announced(machine: Machine, others: ThreadPoolExecutor) -> None:
    heard = hearing(others, machine())
    with machine().leading():
        pass
    assert heard.result(60) == {"end": "the first machine has nothing to train: the run is complete"}
    heard = hearing(others, machine())
    with pytest.raises(UserError), machine().leading():
        raise UserError("data.path=x: no such file")
    assert heard.result(60) == {"end": "the first machine: data.path=x: no such file"}


def test_a_machine_of_another_job_hears_nothing_until_its_own_job_has_the_port(
    machine: Machine, others: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = hearing(others, machine(seed=1))
    first, second = machine(seed=0), machine(seed=1)
    with first.leading():
        first.tell({"folder": "first"})
        assert hearing(others, machine(seed=0)).result(60) == {"folder": "first"}
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "_PATIENCE", 1.0)  # some questions
            with pytest.raises(UserError, match=r"no word from the first machine, 127\.0\.0\.1:\d+"):
                machine(seed=1).hear()
        assert not foreign.done()
    with second.leading():
        second.tell({"folder": "second"})
        assert foreign.result(60) == {"folder": "second"}
    assert capfd.readouterr() == ("", "")


def test_one_machine_opens_no_port(machine: Machine) -> None:
    nodes = machine(num_nodes=1)
    with nodes.leading():
        nodes.tell({"folder": "here"})
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(ranks.rendezvous_address(), timeout=5)
