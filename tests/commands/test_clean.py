"""`mlm runs` lists what there is; `mlm clean` shows what could go, and takes what it is told to, never a result."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, make_sweep, summary_of

from mlm_lightning.__main__ import main
from mlm_lightning.data.text.prepare.cache import note_run, noted_runs, publish
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.listing import readable_size, size_of

KINDS = ("old", "failed", "interrupted", "pruned", "cache", "files")


HALF = ".0123456789abcdef01234567.work"
"""An unfinished cache."""


def make_cache(folder: Path, *runs: Path, notes: bool = True) -> Path:
    """A token cache that some runs were trained on."""
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"fingerprint": folder.name} | ({"runs": "noted"} if notes else {})))
    (folder / "train.tokens").write_bytes(b"12")
    for run in runs:
        note_run(folder, run)
    return folder


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of each kind, and all kinds of leftovers."""
    folder, cache = tmp_path / "outputs", tmp_path / "cache"
    monkeypatch.setenv("MLM_CACHE", str(cache))
    make_cache(cache / "used", notes=False)
    make_cache(cache / "unused", tmp_path / "gone")
    make_cache(cache / "prepared")
    (cache / HALF).mkdir()
    (cache / HALF).with_suffix(".lock").touch()
    for foreign in ("somebody_s", ".half.work", ".fedcba9876543210fedcba98.work"):  # no meta.json, no fingerprint, no lock
        (cache / foreign).mkdir()
    make_cache(cache / "renamed").rename(cache / "another")
    (cache / ".89abcdef0123456789abcdef.work").symlink_to(cache / "somebody_s")
    (cache / ".89abcdef0123456789abcdef.lock").touch()
    done = make_run(folder / "a" / "done", summary=summary_of(1.5))
    manifest = json.loads((done / "manifest.json").read_text())
    (done / "manifest.json").write_text(json.dumps(manifest | {"data": "used"}))
    make_run(folder / "a" / "failed", error_json='{"message": "no luck"}')
    make_run(folder / "a" / "stopped")
    pruned = make_run(folder / "a" / "pruned", pruned_json='{"message": "given up"}')
    make_run(folder / "a" / "working")
    make_run(folder / "a" / ".old" / "again-20261128", summary=summary_of(2.0))
    for run in (done, pruned):
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "last.ckpt").write_bytes(bytes(1000))
    (folder / "a" / ".logs").mkdir()
    for name in ("done", "gone"):
        (folder / "a" / ".logs" / f"{name}.txt").write_text("said")
    (folder / "a" / ".sweep.json.1.tmp").write_text("{")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_nothing_goes_without_being_told(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(outputs.parent)
    assert main(["clean", str(outputs)]) == 0
    shown = capsys.readouterr().out
    assert [kind for kind in KINDS if f"--{kind}  " not in shown] == []
    assert "nothing was removed" in shown
    assert main(["clean", str(outputs), "--old"]) == 0
    assert main(["clean", str(outputs), "--yes"]) == 2
    assert "--interrupted" in capsys.readouterr().err
    assert everything(outputs.parent) == before


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("old", {"a/.old/again-20261128"}),
        ("failed", {"a/failed"}),
        ("pruned", {"a/pruned/checkpoints"}),
        ("files", {"a/.logs/gone.txt", "a/.sweep.json.1.tmp"}),
        ("cache", {"../cache/unused", f"../cache/{HALF}"}),
    ],
)
def test_what_is_named_goes_and_nothing_else(
    kind: str, gone: set[str], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in outputs.parent.rglob("*") if path.suffix != ".lock"}
    assert main(["clean", str(outputs), f"--{kind}", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    unknown = [each for each in said if each["kind"] == "unknown"]
    assert [(Path(each["path"]).name, each["removed"]) for each in unknown] == [("prepared", False)] * (kind == "cache")
    said = [each for each in said if each not in unknown]
    assert {Path(each["path"]).resolve() for each in said} == {(outputs / name).resolve() for name in gone}
    assert all(each["removed"] and each["kind"] == kind for each in said)
    missing = {path for path in before if not path.exists()}
    inside = {path for path in before if any(path.is_relative_to((outputs / name).resolve()) for name in gone)}
    assert missing == inside
    assert main(["clean", str(outputs), f"--{kind}"]) == 0
    assert ("0 B could be freed" if unknown else "nothing to clean") in capsys.readouterr().out


def test_results_and_runs_at_work_stay_whatever_is_asked_for(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, working = everything(outputs / "a" / "done"), everything(outputs / "a" / "working")
    with Run(outputs / "a" / "working").locked():
        assert main(["clean", str(outputs), *(f"--{kind}" for kind in KINDS), "--yes"]) == 0
        assert not (outputs / "a" / "stopped").exists()
        assert everything(outputs / "a" / "done") == done
        assert {**everything(outputs / "a" / "working"), ".lock": b""} == {**working, ".lock": b""}
        assert (outputs / "a" / "pruned" / "pruned.json").exists()
        assert (outputs.parent / "cache" / "used" / "train.tokens").exists()
        assert (outputs.parent / "cache" / "somebody_s").exists()
        assert (outputs.parent / "cache" / "prepared").exists()
    capsys.readouterr()


def test_a_cache_goes_where_no_run_needs_it(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, (elsewhere, inside) = tmp_path / "cache", (tmp_path / "elsewhere" / "run", outputs / "a" / "done")
    make_run(elsewhere, summary=summary_of(1.0), manifest_json='{"data": "in_use+other"}')
    make_cache(home / "in_use", tmp_path / "gone", elsewhere)
    make_cache(home / "in_use_since_notes_are_made", elsewhere, notes=False)
    make_cache(home / "other_data_now", inside, tmp_path / "gone")
    make_cache(home / "known_in_part", tmp_path / "gone", notes=False)
    assert main(["clean", str(outputs), "--cache", "--json"]) == 0
    found = {Path(each["path"]).name: each["kind"] for each in json.loads(capsys.readouterr().out)}
    assert found == {
        "other_data_now": "cache",
        "unused": "cache",
        HALF: "cache",
        "known_in_part": "unknown",
        "prepared": "unknown",
    }
    # for another folder it is a run elsewhere, which is not asked what it needs
    assert main(["clean", str(elsewhere.parent), "--cache", "--yes"]) == 0
    assert (home / "other_data_now").exists()
    assert (home / "in_use").exists()
    assert not (home / "unused").exists()


def test_a_cache_that_is_named_goes_unless_a_run_needs_it(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_cache(tmp_path / "cache" / "in_use", make_run(tmp_path / "elsewhere" / "run"))
    assert main(["clean", "cache/in_use", "--cache", "--yes"]) == 2
    message = "CACHE=cache/in_use: " + str(tmp_path / "elsewhere" / "run")
    assert message in capsys.readouterr().err
    assert main(["clean", "cache/prepared"]) == 0
    assert "mlm clean cache/prepared --cache --yes would" in capsys.readouterr().out
    assert main(["clean", "cache/prepared", "--cache", "--yes"]) == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name[0] != ".") == [
        "another",
        "in_use",
        "somebody_s",
        "unused",
        "used",
    ]


def test_a_folder_that_may_not_be_looked_into_is_not_gone(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "of_another_user" / "run"
    make_cache(tmp_path / "cache" / "in_use", other)

    def lstat(path: Path, plain: Any = Path.lstat) -> Any:
        if path == other:
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert main(["clean", str(outputs), "--cache", "--yes"]) == 0
    assert (tmp_path / "cache" / "in_use").exists()


def test_runs_note_themselves_once_and_where_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = make_cache(tmp_path / "cache" / "one", Path("outputs/a"), Path("outputs/b"), tmp_path / "outputs" / "a")
    runs, are_all = noted_runs(cache)
    assert (sorted(runs), are_all) == ([tmp_path / "outputs" / name for name in "ab"], True)
    (cache / "meta.json").write_text("{")
    assert noted_runs(cache)[1] is False
    (tmp_path / "file").write_text("")
    note_run(tmp_path / "file", Path("run"))  # which no folder can be made in
    # a damaged cache is made again, for the same runs
    (work := tmp_path / "cache" / ".one.work").mkdir()
    publish(work, cache)
    assert sorted(noted_runs(cache)[0]) == sorted(runs)


def test_a_run_that_begins_to_work_meanwhile_is_left_alone(outputs: Path) -> None:
    from mlm_lightning.runs.leftovers import leftovers

    (stopped,) = [each for each in leftovers(outputs) if each.path.name == "stopped"]
    with Run(stopped.path).locked():
        assert not stopped.remove()
    (stopped.path / "summary.json").write_text("{}")
    assert not stopped.remove()
    assert (stopped.path / "config.yaml").exists()


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["runs", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_are_listed_with_status_result_and_size(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(outputs / "a" / "working").locked():
        runs = {Path(run["folder"]).name: run for run in listed(capsys, str(outputs))}
    assert {name: run["status"] for name, run in runs.items()} == {
        "done": "complete",
        "failed": "failed",
        "stopped": "interrupted",
        "pruned": "pruned",
        "working": "running",
    }
    assert (runs["done"]["value"], runs["done"]["step"]) == (1.5, 300)
    assert (runs["stopped"]["value"], runs["stopped"]["step"]) == (1.125, 100)
    assert (runs["failed"]["reason"], runs["pruned"]["reason"]) == ("no luck", "given up")
    assert runs["done"]["bytes"] == sum(len(content) for content in everything(outputs / "a" / "done").values())
    assert main(["runs", str(outputs)]) == 0
    shown = capsys.readouterr().out
    assert f"{outputs / 'a'}  (5 runs" in shown
    assert "complete       1.5000    300" in shown


def test_a_sweep_s_runs_are_sorted_by_what_it_looks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    losses = {"b": 1.25, "a": 1.5, "c": 1.0}
    for name, loss in losses.items():
        make_run(folder / name, summary=summary_of(loss))
    make_run(folder / "d")
    make_sweep(folder, [], [])
    assert [Path(run["folder"]).name for run in listed(capsys, str(tmp_path))] == ["c", "b", "a", "d"]
    make_sweep(folder, [], [], objective="val/accuracy", direction="maximize")
    runs = listed(capsys, str(tmp_path))
    assert [Path(run["folder"]).name for run in runs] == ["c", "b", "a", "d"]
    assert runs[0]["value"] == 0.5
    make_sweep(folder, [], [], direction="maximize")
    assert [Path(run["folder"]).name for run in listed(capsys, str(tmp_path))] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "1.5,2,3\n4,5,6\n"),
        ("metrics.csv", "step,val/loss\nNaN,x\n"),
        ("summary.json", '{"steps": [], "val/loss": 1.0}'),
        ("summary.json", '{"steps": 1, "val/loss": {}}'),
        ("manifest.json", '{"data": 3, "own_code": 4}'),
        ("error.json", "[]"),
        ("config.yaml", "\0"),
    ],
)
def test_whatever_is_in_a_folder_the_others_are_listed(
    outputs: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (outputs / "a" / "stopped" / name).write_text(content)
    assert main(["runs", str(outputs)]) == 0
    shown = capsys.readouterr().out
    assert all(run in shown for run in ("done", "failed", "stopped", "pruned"))


def test_a_damaged_summary_is_no_reason_to_list_nothing(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outputs / "a" / "done" / "summary.json").write_text("{")
    runs = {Path(run["folder"]).name: run for run in listed(capsys, str(outputs))}
    assert (runs["done"]["status"], runs["done"]["value"]) == ("complete", None)


@pytest.mark.parametrize("command", ["runs", "clean"])
def test_a_folder_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_sizes_count_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "best.ckpt").write_bytes(bytes(1000))
    (tmp_path / "one" / "last.ckpt").hardlink_to(tmp_path / "one" / "best.ckpt")
    (tmp_path / "kept.ckpt").hardlink_to(tmp_path / "one" / "best.ckpt")
    assert size_of([tmp_path / "one"]) == 1000
    assert size_of([tmp_path / "one"], freed=True) == 0
    (tmp_path / "kept.ckpt").unlink()
    assert size_of([tmp_path / "one"], freed=True) == 1000
    assert [readable_size(each) for each in (12, 1234, 12_345_678, 2.5e12)] == ["12 B", "1.2 kB", "12.3 MB", "2,500.0 GB"]
