"""A real SLURM cluster in one folder: its own munged, slurmctld and one slurmd per node, all on this machine.

folder ─ slurm.conf, munge.key ─►  munged, slurmctld, slurmd …  ─►  sbatch, srun, scontrol with the yielded SLURM_CONF

The path in SLURM_CONF is the cluster's own, and slurm hands it to every job, even with `--export=NONE`: what has it in
its environment, and what descends from that, is found and killed at the end, however far the start came.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
START_SECONDS = 60
STOP_SECONDS = 30
# a user's PATH often lacks the folders of the daemons
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing() -> list[str]:
    """The programs that `slurm_cluster` needs and that are not installed."""
    return [program for program in (*DAEMONS, *COMMANDS) if shutil.which(program, path=PATH) is None]


@contextmanager
def slurm_cluster(folder: Path, cpus: int = 2, nodes: int = 1) -> Iterator[dict[str, str]]:
    """Run the nodes n1, n2 … with `cpus` CPUs each; yield the environment variables that lead to them.

    `folder` should be new and its path short and without spaces. A failed start raises RuntimeError with the ends of the logs.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _configure(folder, cpus, nodes)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    # --force: the socket may lie below a folder that only its owner may enter, as pytest's are
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munged += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"]
    running: list[subprocess.Popen[bytes]] = []
    try:
        try:
            running.append(_start(munged, folder / "munged.out.log", variables))
            _wait((folder / "munge.socket").exists, running, "munged's socket")
            running.append(_start(["slurmctld", "-D"], folder / "slurmctld.out.log", variables))
            for node in _names(nodes):
                running.append(_start(["slurmd", "-D", "-N", node], folder / f"slurmd_{node}.out.log", variables))
            _wait(lambda: _idle_nodes(variables) == nodes, running, f"{nodes} idle nodes")
        except (OSError, RuntimeError) as error:
            logs = [f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in sorted(folder.glob("*.log"))]
            raise RuntimeError("\n\n".join([f"no SLURM cluster: {error}", *logs])) from error
        yield variables
    finally:
        _kill_all(variables)
        for process in running:
            process.wait(STOP_SECONDS)


def _names(nodes: int) -> list[str]:
    return [f"n{number}" for number in range(1, nodes + 1)]


def _configure(folder: Path, cpus: int, nodes: int) -> None:
    key = folder / "munge.key"
    key.unlink(missing_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    for spool in ("state", *(f"spool_{node}" for node in _names(nodes))):
        (folder / spool).mkdir(exist_ok=True)
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    port, *ports = _free_ports(1 + nodes)
    node_lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus}"
        for node, node_port in zip(_names(nodes), ports, strict=True)
    ]
    configuration = f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
AuthType=auth/munge
# a requeued job waits for cred_expire + 1 s; less than 5 means the default, 120
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# and then for the next round of the scheduler, by default up to 60 s
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
JobRequeue=1
KillWait=5
ReturnToService=2
# the nodes may have more CPUs than the machine
SlurmdParameters=config_overrides
{os.linesep.join(node_lines)}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    (folder / "slurm.conf").write_text(configuration.lstrip())
    # nothing here uses cgroups, but slurmd loads a plugin: v1's does nothing at its start, v2's asks systemd
    plugin = "disabled" if _version() >= (24, 5) else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")


def _version() -> tuple[int, ...]:
    answer = subprocess.run(["slurmd", "-V"], env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=True)
    return tuple(int(part) for part in answer.stdout.split()[-1].split(".")[:2])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as still_open:
        sockets = [still_open.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _start(command: list[str], output: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    environment = os.environ | variables | {"PATH": PATH}
    with output.open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _wait(condition: Callable[[], bool], running: list["subprocess.Popen[bytes]"], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if ended := [process.args for process in running if process.poll() is not None]:
            raise RuntimeError(f"ended instead of {what}: {ended}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"still without {what} after {START_SECONDS} s")
        time.sleep(0.1)


def _idle_nodes(variables: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True).stdout.split().count("idle")


def _kill_all(variables: dict[str, str]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    # again until none is left: a process may fork while the others are read
    while processes := _processes(variables):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ended within {STOP_SECONDS} s of SIGKILL: {processes}")
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes(variables: dict[str, str]) -> list[int]:
    """The processes with `variables` in their environment, and their descendants."""
    marks = {f"{name}={value}".encode() for name, value in variables.items()}
    children: dict[int, list[int]] = {}
    pending: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        # another user's, or ended meanwhile
        with suppress(OSError):
            # the name of the program, in parentheses, may hold spaces
            parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(folder.name))
            if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                pending.append(int(folder.name))
    found: set[int] = set()
    while pending:
        process = pending.pop()
        found.add(process)
        pending += children.pop(process, [])
    return sorted(found)
