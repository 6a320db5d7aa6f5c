"""What reaches the user, and what does not."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_lightning.commands.arguments import print_json
from mlm_lightning.errors import UserError
from mlm_lightning.messages import plain, print_table, print_text, report, speak

TALK = """
import sys
from pathlib import Path
from mlm_lightning.messages import speak
speak()
file = Path("result").open("w")
for stream in (sys.stdout, sys.stderr):
    print("± …", file=stream, flush=True)
    print("again", file=stream)
file.write(str(file.fileno()))
"""
"""Speaks, and then writes a file as a run does."""


def status_of(folder: Path, *, redirected: str = "", **options: object) -> int:
    """The exit status of TALK, started by a shell with its output `redirected`."""
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable, TALK]
    process = subprocess.Popen(command, cwd=folder, **options)  # type: ignore[call-overload]
    return process.wait(timeout=60)


def test_output_that_nobody_reads_is_dropped(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for unbuffered in ("", "1"):
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        assert status_of(tmp_path, stdout=writer, stderr=writer, env=environment) == 0
        assert (tmp_path / "result").read_text()
    os.close(writer)


def test_a_terminal_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)  # from here on, writing is an EIO
    assert status_of(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) == 0
    os.close(theirs)
    assert (tmp_path / "result").read_text()


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_place_for_a_file(tmp_path: Path, redirected: str) -> None:
    assert status_of(tmp_path, redirected=redirected, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    assert int((tmp_path / "result").read_text()) > 2


def test_a_full_disk_is_a_failure_of_results_and_not_of_messages(tmp_path: Path) -> None:
    assert status_of(tmp_path, redirected="2>/dev/full", stdout=subprocess.DEVNULL) == 0
    assert status_of(tmp_path, redirected=">/dev/full", stderr=subprocess.DEVNULL) != 0


def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlm_lightning", "--help"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, b"mlm COMMAND \\u2026")


def said(code: str, folder: Path) -> tuple[str, str]:
    """Standard output and standard error of a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_library_s_warning_is_said_once_without_the_line_of_its_source(tmp_path: Path) -> None:
    code = """
import warnings
from mlm_lightning.messages import speak
speak()
for _ in range(2):
    warnings.warn("the disk is slow")
warnings.warn("the name will change", FutureWarning)
warnings.warn("the name has changed", DeprecationWarning)
"""
    assert said(code, tmp_path) == ("", "warning: the disk is slow\n")


def test_transformers_says_nothing_of_long_texts_and_of_reading_weights(tmp_path: Path) -> None:
    code = """
import logging
from mlm_lightning.messages import speak
speak()
from mlm_lightning.models.pretrained import PretrainedMLM
shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
PretrainedMLM(architecture="distilbert", config=shape, vocab_size=12, seq_len=8).save_pretrained("weights")
PretrainedMLM(checkpoint="weights", vocab_size=12, seq_len=8)
from transformers import BertTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=4)
assert len(tokenizer("a " * 600)["input_ids"]) == 602
"""
    assert said(code, tmp_path) == ("", "")


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = "a\x1b]52;c;aGk=\x07\x1b[2J\x9b1mé\tb\r\n"
    spelled = "a\\x1b]52;c;aGk=\\x07\\x1b[2J\\x9b1mé\tb\\x0d\n"
    assert plain(foreign) == spelled
    print_text(foreign)
    print_table([[foreign.strip()]])
    report(UserError(foreign))
    speak()
    logging.getLogger("mlm_lightning").warning("%s", foreign)
    print_json({"token": foreign})
    shown = capsys.readouterr()
    assert not set(shown.out + shown.err) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    assert shown.err.count(spelled) == 2
    assert json.loads(shown.out[shown.out.index("{") :]) == {"token": foreign}
