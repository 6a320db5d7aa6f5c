"""Signals: which stop a command, and which are left alone."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from mlm_lightning.errors import CTRL_C, STOPPED, Interrupted, handle, interruptible, restore


@pytest.fixture(autouse=True)
def _default_hangup() -> Iterator[None]:
    """Also where the tests are started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def interrupted_by(signum: signal.Signals, meanwhile: Callable[[], None] = lambda: None) -> None:
    """A command that a signal interrupts; it does something before it ends."""
    with interruptible():
        try:
            os.kill(os.getpid(), signum)
            time.sleep(60)
        finally:
            meanwhile()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_interrupts_and_is_as_before_afterwards(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"stopped by {signum.name}") as stopped:
        interrupted_by(signum)
    assert stopped.value.exit_status == STOPPED
    assert signal.getsignal(signum) is before


def test_ctrl_c_is_a_keyboard_interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    with pytest.raises(KeyboardInterrupt):
        interrupted_by(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert Interrupted(signal.SIGINT).exit_status == CTRL_C


def test_a_second_hangup_does_not_disturb_what_saves() -> None:
    saved = []

    def save() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        saved.append(True)

    with pytest.raises(Interrupted):
        interrupted_by(signal.SIGHUP, save)
    assert saved


def test_an_inherited_nohup_stays() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
    heard = handle(lambda *_: pytest.fail("heard"))
    os.kill(os.getpid(), signal.SIGHUP)
    restore(heard)
    assert set(heard) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
