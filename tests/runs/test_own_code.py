"""A run notes the files of the user's own code: where one was edited, no old number passes for that of the new code."""

import json
import linecache
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import TOY
from helpers import AT, TIMES, At, run_of, settings_of, train

from mlm_lightning.__main__ import main
from mlm_lightning.errors import Interrupted, UserError
from mlm_lightning.report.results import read_result
from mlm_lightning.runs.checkpoint import Position
from mlm_lightning.runs.own_code import own_code
from mlm_lightning.runs.resume import check_complete
from mlm_lightning.training.train import check_start

Toy = Callable[..., dict[str, Any]]

MODEL = """
from torch import nn

class Net(nn.Module):
    width = 4

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        from .parts.layers import Linear
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, self.width), Linear(self.width, vocab_size)

    def forward(self, input_ids_BL, attention_mask_BL=None, positions_BK=None):
        x_BLD = self.embedding(input_ids_BL)
        if positions_BK is not None:
            x_BLD = x_BLD.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, x_BLD.shape[-1]))
        return self.head(x_BLD)
"""
FILES = {
    "studio/__init__.py": "",
    "studio/model.py": MODEL,
    "studio/parts/__init__.py": "",
    "studio/parts/layers.py": "from torch.nn import Linear\nfrom studio import model, source\n",  # a circle
    "studio/source.py": "from mlm_lightning.data.languages.tree import TreeSource\n\n\n"
    "class Own(TreeSource):\n    def later(self):\n        from studio import rows\n",
    "studio/rows.py": "this is no Python\n",
    "studio/task.py": "from mlm_lightning.tasks import MLM\n\n\nclass Own(MLM):\n    pass\n",
    "studio/apart.py": "import studio.model\n",
    "my_callback.py": "import lightning\nfrom my_metric import score\n\nclass Probe(lightning.Callback):\n    score = score\n",
    "my_metric.py": "import numpy as np\nfrom my_tools.sums import total\n\nscore = total\n",
    "my_tools/__init__.py": "",
    "my_tools/sums.py": "total = 1\n",
    "apart.py": "import my_callback\n",
}
TIMELESS = dict.fromkeys(TIMES)
APART = {"studio/apart.py", "apart.py"}
QUICK = ("trainer.max_steps=2", "trainer.val_check_interval=2", "data.val_size=16", "callbacks.samples=null")
OPTIONS = (
    *QUICK,
    "data._target_=studio.source.Own",
    "task._target_=studio.task.Own",
    "+callbacks.probe._target_=my_callback.Probe",
    f"+callbacks.at._target_={AT}",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's package and modules beside it, in which the command is called."""
    folder = tmp_path / "project"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    yield folder
    At.place = None
    forget(folder)


def forget(folder: Path) -> None:
    """As a new process: its modules are imported again."""
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def edit(file: Path) -> None:
    file.write_text(file.read_text() + "# edited\n")


def with_model(config: dict[str, Any], target: str = "studio.model.Net") -> dict[str, Any]:
    return {**config, "model": {"_target_": target}}


def note_of(config: dict[str, Any]) -> dict[str, Any]:
    return own_code(settings_of(config))


def test_what_decides_the_result_is_noted_and_nothing_else(toy: Toy, project: Path) -> None:
    note = note_of(with_model(toy(*OPTIONS)))
    here = {"helpers.py", "conftest.py"}  # of the callback `at`, and what it imports
    assert set(note["own_code"]) == {*FILES, *here} - APART
    assert note["code_folders"] == sorted([str(project), str(Path(__file__).parents[1])])
    assert "classes_of" not in note
    assert note_of(toy()) == {}


def test_a_complete_run_of_edited_code_is_refused_and_said_by_whoever_opens_it(
    toy: Toy, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_model(toy(*OPTIONS))
    summary = train(config)
    run = run_of(config)
    assert json.loads((run.folder / "manifest.json").read_text())["own_code"] == note_of(config)["own_code"]
    position = run.last_checkpoint()
    assert position is not None
    assert position.record["own_code"] == run.manifest["own_code"]
    settings = settings_of(config)
    for name, content in FILES.items():
        edit(project / name)
        if name in APART:
            check_complete(run, settings)
            assert run.edits == []
            continue
        with pytest.raises(UserError, match=rf"is complete, but its code has been edited since \({name}: \w+ → \w+\); resume"):
            check_complete(run, settings)
        (project / name).write_text(content)
    (project / "my_metric.py").rename(project / "gone.py")
    with pytest.raises(UserError, match=r"\(my_metric.py: \w+ → not set, my_tools/__init__.py"):
        check_complete(run, settings)
    (project / "gone.py").rename(project / "my_metric.py")
    assert train(config) == summary

    edit(project / "my_metric.py")
    (project / "my_callback.py").write_text(FILES["my_callback.py"] + "import apart\n")
    with pytest.raises(UserError, match=r"\(apart.py: not set → \w+, my_callback.py: \w+ → \w+, my_metric.py: "):
        train(config)
    row, folder = "_ 0 0 0", str(run.folder)
    commands = (
        ["evaluate", folder],
        ["predict", folder, row],
        ["analyse", folder, "analysis=posterior"],
        ["export", folder, "shared"],
        ["predict", "shared", row],
    )
    for command in commands:
        capsys.readouterr()
        assert main([*command, "--trust"]) == 0
        (said,) = (line for line in capsys.readouterr().err.splitlines() if "code has been edited" in line)
        assert "my_callback.py" in said
        assert "my_metric.py" in said
    assert read_result(run.folder).detail.startswith("its code has been edited since: my_callback.py: ")
    assert train(config | {"resume": "never"}) | TIMELESS == summary | TIMELESS
    assert train(config)["steps"] == 2


def test_all_jobs_of_a_sweep_that_are_of_edited_code_are_named(
    toy: Toy, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*QUICK, "task._target_=studio.task.Own")
    runs = [run_of(config) for config in (toy(*options, f"seed={seed}") for seed in (0, 1)) if train(config)]
    edit(project / "studio" / "task.py")
    command = ["train", "-m", *TOY, *options, f"output_dir={tmp_path / 'outputs'}", "seed=0,1,2"]
    assert main(command) == 2
    said = capsys.readouterr().err
    for run, seed in zip(runs, (0, 1), strict=True):
        assert f"{run.folder}: is complete, but its code has been edited since (studio/task.py: " in said
        assert f"moves this one aside (with seed={seed})" in said
    assert "seed=2" not in said
    with pytest.raises(UserError, match="name=OTHER searches again"):  # a search begins no complete trial again
        check_start(settings_of(toy(*options, "seed=0", "sweep.trials=2", "resume=never")))
    assert not (tmp_path / "outputs" / "default" / "sweep.json").exists()


def test_an_unfinished_run_goes_on_with_edited_code_where_it_is_told_to(
    toy: Toy, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_model(toy(*OPTIONS))
    run = run_of(config)
    At.set(("train", 1, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config)
    edit(project / "my_metric.py")
    with pytest.raises(UserError) as refused:
        train(config)
    for part in ("own_code.my_metric.py: ", f"resume={run.folder} goes on", "resume=never starts the run again"):
        assert part in str(refused.value)
    assert "studio" not in str(refused.value)
    capsys.readouterr()
    assert train(config | {"resume": os.path.relpath(run.folder)})["steps"] == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "from here on" in line)
    assert "own_code.my_metric.py: " in said
    assert [each.partition(": ")[0] for each in run.manifest["own_code_edited"]["step 1"]] == ["own_code.my_metric.py"]
    assert run.manifest["own_code"] == note_of(config)["own_code"]
    assert Position.read(run.checkpoints / "last.ckpt").record["own_code"] == run.manifest["own_code"]
    assert train(config)["steps"] == 2
    longer = with_model(toy(*OPTIONS, "trainer.max_steps=4", f"resume={run.folder}"))  # of another run the code is listed
    edit(project / "studio" / "source.py")
    train(longer)
    assert "own_code.studio/source.py: " in str(run_of(longer).manifest["parent"]["changes"])


def test_a_run_without_a_note_is_taken_as_it_is(toy: Toy, project: Path) -> None:
    config = with_model(toy(*OPTIONS))
    train(config)
    run = run_of(config)
    (run.folder / "manifest.json").write_text(json.dumps({k: v for k, v in run.manifest.items() if k != "own_code"}))
    edit(project / "studio" / "model.py")
    assert train(config)["steps"] == 2
    assert run.edits == []
    position = run.last_checkpoint()
    assert position is not None
    record = {**position.record, "own_code": {"studio/model.py": "0"}}
    assert position.changes(record) != []
    del position.record["own_code"]
    assert position.changes(record) == []


def make_main(monkeypatch: pytest.MonkeyPatch, source: str, file: Path | None) -> None:
    """The module that a script or a notebook is in, with what it has defined."""
    module = ModuleType("__main__")
    cell = str(file or "<cell>")
    if file is None:
        lines = source.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, cell, (len(source), None, lines, cell))  # as IPython does
    else:
        file.write_text(source)
        module.__file__ = cell
    module.__spec__, module.__package__ = None, None
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(source, cell, "exec"), vars(module))


SCRIPT = MODEL.replace(".parts.layers import Linear", "my_metric import score\n        from torch.nn import Linear")


def test_a_class_of_a_script_is_known_by_its_file(toy: Toy, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_main(monkeypatch, SCRIPT, project / "train-it.py")
    config = with_model(toy(*QUICK), "__main__.Net")
    assert set(note_of(config)["own_code"]) == {"train-it.py", "my_metric.py", "my_tools/__init__.py", "my_tools/sums.py"}
    train(config)
    edit(project / "train-it.py")
    with pytest.raises(UserError, match=r"edited since \(train-it.py: "):
        train(config)
    assert run_of(config).edits[0].startswith("train-it.py: ")


def test_a_class_of_a_notebook_is_known_by_its_source(
    toy: Toy, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_main(monkeypatch, SCRIPT, None)
    config = with_model(toy(*QUICK), "__main__.Net")
    train(config)
    run = run_of(config)
    assert set(run.manifest["own_code"]) == {"__main__.Net"}
    make_main(monkeypatch, "another = 1\n" + SCRIPT, None)
    assert train(config)["steps"] == 2
    make_main(monkeypatch, SCRIPT.replace("width = 4", "width = 8"), None)
    with pytest.raises(UserError, match=r"edited since \(__main__.Net: "):
        train(config)
    assert run.edits[0].startswith("__main__.Net: ")
    linecache.cache.pop("<cell>")
    assert note_of(config)["own_code"] == {"__main__.Net": "unknown"}


def test_an_installed_class_is_known_by_its_version_and_an_editable_one_by_its_files(
    toy: Toy, project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = project / "my_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tools\nVersion: 1.0\n")
    (info / "RECORD").write_text("__editable__.my_tools.pth,,\n")
    config = toy(*QUICK, "+callbacks.probe._target_=my_callback.Probe", f"+callbacks.at._target_={AT}")
    assert "my_callback.py" in note_of(config)["own_code"]
    (info / "RECORD").write_text("my_tools/__init__.py,,\nmy_callback.py,sha256=1,3\n")
    note = note_of(config)
    assert set(note["own_code"]) == {"helpers.py", "conftest.py"}
    assert note["classes_of"] == {"my-tools": "1.0"}
    At.set(("train", 1, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tools\nVersion: 1.1\n")
    with caplog.at_level("WARNING"):
        assert train(config)["steps"] == 2
    assert "uninterrupted run: my-tools: 1.0 → 1.1" in caplog.text
    check_complete(run_of(config), settings_of(config))
