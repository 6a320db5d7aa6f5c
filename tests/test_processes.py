"""Children end with their parent, however that ends."""

import os
import subprocess
import sys

import pytest

from mlm_lightning.processes import num_cores

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


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with their parent")
def test_a_child_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()
        process.communicate(timeout=20)  # the child has the pipe too: it is at its end when both have ended
