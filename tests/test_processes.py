"""Children end with their parent, however that ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_lightning.processes import num_cores, python, safe_path

CHILD = """
import sys, time
from mlm_lightning.processes import die_with_parent
die_with_parent(int(sys.argv[1]))
print("started", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
time.sleep(60)
"""


def test_cores_are_those_of_this_process():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def test_a_child_imports_from_where_its_parent_does(shadows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, ""])  # the current folder last
    (shadows / "own.py").write_text("NAME = 'mine'")
    code = "import json, random, calendar, numpy, own; print(json.dumps(sys.path)); assert own.NAME == 'mine'"
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*sys.path[:-1], str(shadows)]


def test_python_itself_looks_into_the_current_folder_last(shadows: Path) -> None:
    code = [sys.executable, "-c", "import random"]
    assert b"not mine" in subprocess.run(code, capture_output=True, timeout=60).stderr
    with safe_path():
        assert subprocess.run(code, capture_output=True, timeout=60).returncode == 0
    assert "PYTHONSAFEPATH" not in os.environ
    done = subprocess.run([sys.executable, "-m", "mlm_lightning", "trian"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.partition(":")[0]) == (2, "mlm trian")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with their parent")
def test_a_child_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()
        process.communicate(timeout=20)  # the child has the pipe too: it is at its end when both have ended
