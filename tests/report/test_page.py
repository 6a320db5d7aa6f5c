"""The page stands alone, says the answer first, and shows whatever a run wrote as text."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import evaluation_of, make_grid, make_run, make_sweep, summary_of

from mlm_lightning.data.ngrams import VERSION
from mlm_lightning.report.answer import answer, question
from mlm_lightning.report.figures import draw
from mlm_lightning.report.metric import interval
from mlm_lightning.report.page import page
from mlm_lightning.report.results import Recipe, collect
from mlm_lightning.report.study import study
from mlm_lightning.report.tables import (
    group_table,
    groups_csv,
    groups_tex,
    manifest_table,
    results_csv,
    run_table,
    with_interval,
)

RECIPE = Recipe("mlm train optim.lr=0.1", is_checked=True)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Read(HTMLParser):
    """The page's elements, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


def written(folder: Path, recipe: Recipe | None = RECIPE) -> tuple[str, Read]:
    found = study(collect([str(folder)]))
    text = page(found, draw(found), recipe)
    return text, Read(text)


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2, 0.4])
    text, read = written(tmp_path)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text))
    for tag, attributes in read.found:
        assert tag not in ("link", "iframe", "object", "embed")
        assert "href" not in attributes
        if "src" in attributes:
            assert tag == "img"
            source = attributes["src"]
            assert source is not None
            head, data = source.split(",")
            assert head == "data:image/png;base64"
            assert base64.b64decode(data).startswith(b"\x89PNG")
    assert sum(tag == "img" for tag, _ in read.found) == 3


def test_the_answer_comes_first(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2, 0.4], seeds=[0, 1])
    _, read = written(tmp_path)
    said = re.sub(r"\s+", " ", read.text)
    # t of one degree of freedom is 12.706, times 0.01/2
    place = said.index("optim.lr=0.1: 1.0050 ± 0.0635 nats a token (95 % interval, 2 seeds)")
    assert said.index("Which optim.lr gives the lowest validation loss?") < place < said.index("mlm train optim.lr=0.1")
    assert "Best possible (oracle): 0.9000; the excess over it is 0.1050." in said
    assert "Told apart from every other group." in said  # by 0.1 ± 0, as each seed adds the same
    assert "Differences are paired by seed" in said


@pytest.mark.parametrize(
    ("slope", "seeds", "says"),
    [
        (0.1, [0], "One run a group (n = 1)"),
        (0.1, [0, 1], "Told apart from every other group."),
    ],
)
def test_it_says_how_sure_it_is(tmp_path: Path, slope: float, seeds: list[int], says: str) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2, 0.4], seeds=seeds, slope=slope)
    assert says in " ".join(answer(study(collect([str(tmp_path)]))))


def test_what_a_run_wrote_is_text(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script><img src=x onerror=alert(1)>'
    for n, name in enumerate((evil.replace("/", ""), "b&c")):
        make_run(tmp_path / name, {"data.path": f"{evil}{n}"}, summary_of(1.0 + n))
    make_run(tmp_path / "c", {"data.path": "c"}, error_json=json.dumps({"message": evil}))
    text, read = written(tmp_path, Recipe(evil, is_checked=True))
    assert evil not in text
    assert [tag for tag, _ in read.found].count("script") == 1
    assert read.text.count("onerror=alert(1)") >= 3


def test_a_sweep_of_which_nothing_is_complete_has_a_page(tmp_path: Path) -> None:
    make_sweep(tmp_path, [("a", ["optim.lr=0.1"]), ("b", ["optim.lr=0.2"])], ["optim.lr"])
    _, read = written(tmp_path, None)
    assert "2 missing" in read.text
    assert "No complete run has it yet." in read.text
    make_run(tmp_path / "a", {"optim.lr": 0.1})
    _, read = written(tmp_path, None)
    assert "1 interrupted" in read.text
    assert any(tag == "img" for tag, _ in read.found)  # its curve


def test_failures_and_strangers_are_named(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2], seeds=[0])
    make_run(tmp_path / "bad", {"optim.lr": 0.3}, error_json=json.dumps({"message": "train/loss is nan at step 7"}))
    make_run(tmp_path / "stranger", {"optim.lr": 0.4}, summary_of(0.0777))
    make_sweep(tmp_path, [("optim.lr=0,seed=0", []), ("optim.lr=1,seed=0", []), ("bad", [])], ["optim.lr"])
    _, read = written(tmp_path)
    assert "What went wrong" in read.text
    assert "train/loss is nan at step 7" in read.text
    assert "In the folder, but not of this sweep: stranger." in read.text
    assert "0.0777" not in read.text  # the stranger's loss is in no table


def test_runs_of_other_versions_are_flagged(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2])
    assert "not made under the same conditions" not in written(tmp_path)[1].text
    path = tmp_path / "optim.lr=0,seed=0" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["packages"]["torch"] = "2.12.0"
    path.write_text(json.dumps(manifest | {"threads": 2}))
    _, read = written(tmp_path)
    assert "not made under the same conditions" in read.text
    assert "2.13.0 (3 runs), 2.12.0 (1 run)" in read.text
    equal, unequal = manifest_table(study(collect([str(tmp_path)])))
    assert [key for key, _ in unequal] == ["packages.torch", "threads"]
    assert ["packages", "lightning 2.6.6"] in equal


def note_counts(folder: Path, version: int) -> None:
    """A run whose bigram's loss is by counts of this version; earlier than 2, they noted none."""
    noted = {"ngrams": version} if version > 1 else {}
    for name, more in {"manifest": noted, "summary": {"val/bigram_loss": 1.5}}.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))


@pytest.mark.parametrize(("key", "values"), [("optim.lr", [0.1, 0.2]), ("data.filter_level", [0, 1])])
def test_counts_of_several_versions_are_flagged(tmp_path: Path, key: str, values: list[float]) -> None:
    """Also where no group is best, and each stands beside its own optimum."""
    make_grid(tmp_path, key, values)
    first, *others = sorted(tmp_path.iterdir())
    for folder in others:
        note_counts(folder, VERSION)
    assert "val/bigram_loss is that of an earlier version" not in written(tmp_path)[1].text  # the first has none
    note_counts(first, 1)
    _, read = written(tmp_path)
    assert "In 1 of 4 runs val/bigram_loss is that of an earlier version" in read.text
    assert f"resume=never trains the run again ({first.name})." in read.text
    assert "not made under the same conditions" not in read.text
    note_counts(first, VERSION)
    assert "val/bigram_loss is that of an earlier version" not in written(tmp_path)[1].text


def test_counts_of_one_earlier_version_are_compared(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2])
    for folder in tmp_path.iterdir():
        note_counts(folder, 1)
    assert "earlier version" not in written(tmp_path)[1].text


def test_a_few_runs_stand_side_by_side(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", {"optim.lr": 0.1, "model.d_model": 16}, summary_of(1.0))
    other = make_run(tmp_path / "b", {"optim.lr": 0.2, "model.d_model": 64}, summary_of(1.25))
    found = study(collect([str(one), str(other)]))
    assert question(found) == "Which of these 2 runs has the lowest validation loss?"
    read = Read(page(found, draw(found), None))
    said = re.sub(r"\s+", " ", read.text)
    assert "What differs key a b model.d_model 16 64 optim.lr 0.1 0.2" in said
    assert "val/loss 1.0000 1.2500" in said


def test_derived_keys_are_noted(tmp_path: Path) -> None:
    for n, width in enumerate((16, 32, 64)):
        make_run(tmp_path / str(n), {"model.d_model": width, "model.dim_feedforward": 4 * width}, summary_of(1.0 + n))
    assert "model.dim_feedforward: changes with model.d_model." in written(tmp_path)[1].text


def test_the_table_of_runs_has_a_line_a_job(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2], seeds=[0])
    make_sweep(
        tmp_path,
        [("optim.lr=0,seed=0", []), ("optim.lr=1,seed=0", []), ("later", ["++optim.lr=0.4", "seed=0"])],
        ["optim.lr"],
    )
    header, lines = run_table(study(collect([str(tmp_path)])))
    table = [dict(zip(header, row, strict=True)) for row in lines]
    assert [row["optim.lr"] for row in table] == ["0.1", "0.2", "0.4"]
    assert [row["status"] for row in table] == ["complete", "complete", "missing"]
    assert [row["val/loss"] for row in table] == ["1.0000", "1.1000", "–"]
    assert table[2]["step or reason"] == "not started"


def test_the_csv_gives_back_what_the_runs_wrote(tmp_path: Path) -> None:
    values: list[Any] = [0.1, None, [1, 2], 'a,"b"\nc', True]
    for n, value in enumerate(values):
        make_run(tmp_path / str(n), {"data.path": value, "seed": n}, summary_of(1 / 3 + n))
    make_run(tmp_path / "9", {"seed": 9}, error_json=json.dumps({"message": "broken,\n\tit is"}))
    collection = collect([str(tmp_path)])
    lines = list(csv.DictReader(io.StringIO(results_csv(collection), newline="")))
    assert [Path(line["folder"]).name for line in lines] == ["0", "1", "2", "3", "4", "9"]
    assert [line["data.path"] for line in lines] == ["0.1", "null", "[1, 2]", 'a,"b"\nc', "true", ""]
    assert [line["seed"] for line in lines] == ["0", "1", "2", "3", "4", "9"]
    for line, result in zip(lines[:5], collection.results, strict=False):
        assert {name: json.loads(line[name]) for name in result.summary} == result.summary
    assert (lines[5]["status"], lines[5]["reason"], lines[5]["val/loss"]) == ("failed", "broken, it is", "")


def test_the_groups_csv_has_means_intervals_and_differences(tmp_path: Path) -> None:
    losses = make_grid(tmp_path, "optim.lr", [0.1, 0.2], seeds=[0, 1, 2])
    found = study(collect([str(tmp_path)]))
    first, second = csv.DictReader(io.StringIO(groups_csv(found), newline=""))
    each = interval([losses[0.2, seed] for seed in (0, 1, 2)])
    assert each is not None
    assert (second["optim.lr"], second["n"]) == ("0.2", "3")
    assert (float(second["val/loss"]), float(second["val/loss ±"])) == (each.mean, each.half)
    assert (float(first["val/loss to best"]), float(second["val/loss to best"])) == (0.0, pytest.approx(0.1))
    assert [float(second[name]) for name in ("seconds", "tokens", "parameters")] == [12.5, 3000, 12345]


def test_the_latex_table_is_one(tmp_path: Path) -> None:
    make_grid(tmp_path, "data.path", ["a_b&c", "50%"], seeds=[0, 1])
    for each in tmp_path.iterdir():  # under one common condition
        (each / "evaluations.json").write_text(
            json.dumps(evaluation_of("rate_0.10", 1.0 + each.name.startswith("data.path=1")))
        )
    text = groups_tex(study(collect([str(tmp_path)])))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[1::2][:1] == [r"\toprule"]
    rows = [line for line in lines if line.endswith(r"\\")]
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(lines[0].partition("{tabular}{")[2].rstrip("}"))}
    assert rows[1].startswith(r"50\%") or rows[1].startswith(r"a\_b\&c")
    assert sum(r"\textbf{1.0000}" in row for row in rows) == 1
    for symbol in "&%_":  # of the values, not of the table
        assert re.search(rf"(?<!\\){symbol}[bc]", "".join(rows)) is None
    assert r"$\pm$" in groups_tex(study(collect([str(make_seeds(tmp_path / "more"))])))


def make_seeds(folder: Path) -> Path:
    make_grid(folder, "optim.lr", [0.1, 0.2], seeds=[0, 1])
    return folder


def test_every_line_says_what_it_cost(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2], seeds=[0, 1])
    found = study(collect([str(tmp_path)]))
    for header, rows in (run_table(found), group_table(found)):
        for row in rows:
            line = dict(zip(header, row, strict=True))
            assert [line[name] for name in ("seconds", "tokens", "parameters")] == ["12", "3,000", "12,345"]


def test_a_number_that_does_not_vary_has_no_interval(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1], seeds=[0, 1, 2])
    (group,) = study(collect([str(tmp_path)])).groups
    assert with_interval(group.interval("val/oracle_loss")) == "0.9000"
    assert with_interval(None) == "–"
