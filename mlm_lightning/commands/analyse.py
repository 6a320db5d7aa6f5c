"""`mlm analyse`: what a trained model looks like inside; figures, a CSV and a finding in words for each analysis."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm_lightning.commands.arguments import Parser, print_json
from mlm_lightning.errors import ConfigError, UserError, refuse
from mlm_lightning.messages import print_table, print_text, waiting
from mlm_lightning.packages import need
from mlm_lightning.values import expanded, not_one_of

if TYPE_CHECKING:
    from mlm_lightning.analysis.attention import Maps
    from mlm_lightning.analysis.finding import Finding
    from mlm_lightning.analysis.subject import Subject

HELP = """\
mlm analyse RUN… [analysis=NAME] [--rows N] [--heads] [--output DIR] [--json] [--trust]

Looks into a run's model (its best checkpoint, else its last), on frozen masks. Writes figures (PNG), a CSV and a JSON for each
analysis into RUN/analysis, which `mlm report` shows, and says in words what there is to see.

  attention   where each layer looks: maps, and the attention's share at each distance (in a tree, if the data is one)
  probe       what is computed where: linear probes from every layer to the latent variables of a language
  posterior   the model's predictions beside the exact ones, also on rows that its language never has

  mlm analyse outputs/default/default-1a2b3c4d            all that the run's data and model allow
  mlm analyse RUN analysis=attention --heads              maps of each head
  mlm analyse RUN 'analysis=[probe,posterior]' --rows 4000
  mlm analyse outputs/filter_levels analysis=attention    every run in a folder, and their attention side by side

--rows N looks at N rows of validation (1024). --output DIR is where several runs side by side go: without it, to the folder of
the runs. --trust also builds classes that are not part of this package. Needs matplotlib.
"""
ANALYSES = ("attention", "probe", "posterior")

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    parser = Parser(HELP, "heads", "json", "trust")
    parser.add_argument("words", metavar="RUN", nargs="+")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--output")
    flags = parser.parse(arguments)
    asked = [word.partition("=")[2] for word in flags.words if _is_choice(word)]
    runs = [word for word in flags.words if not _is_choice(word)]
    found = analyse(runs, _names(asked[-1]) if asked else None, flags.rows, flags.heads, flags.output, flags.trust)
    if flags.json:
        print_json({str(folder): findings for folder, findings in found.items()})
        return 0
    shown = [(folder, finding) for folder, findings in found.items() for finding in findings.values()]
    together = [finding["analysis"] for _, finding in shown if "model" in finding["table"][0]]
    for folder, finding in shown:
        if finding["analysis"] not in together or "model" in finding["table"][0]:  # side by side, a table has all of its runs
            _show(folder, finding)
    return 0


def _is_choice(word: str) -> bool:
    return word.startswith("analysis=") and not expanded(word).exists()


def _names(text: str) -> list[str] | None:
    """`[attention,probe]` or `attention,probe`; None: all."""
    names = [name.strip() for name in text.strip("[]").split(",") if name.strip()]
    return None if names in (["all"], ["null"]) else names


def _show(folder: Path, finding: Mapping[str, Any]) -> None:
    from mlm_lightning.analysis.finding import as_rows

    header, rows = as_rows(finding["table"])
    print_text(f"{finding['analysis']}: {folder}")
    print_table(rows, header, right=range(1, len(header)))
    print_text(
        "\n".join([*(f"  {sentence}" for sentence in finding["finding"]), *(f"  {path}" for path in finding["files"]), ""])
    )


def analyse(
    runs: Sequence[str],
    analyses: Sequence[str] | None = None,
    rows: int = 1024,
    heads: bool = False,
    output: str | None = None,
    trust: bool = False,
) -> dict[Path, dict[str, dict[str, Any]]]:
    """Writes and returns what the analyses (None: all that apply) find: by the folder, then by the analysis, `finding`
    (sentences), `table` (records) and `files`. Raises UserError for what is no run, and for analyses that don't apply."""
    refuse(_mistakes(runs, analyses, rows))
    need("mlm analyse", "matplotlib")
    from mlm_lightning.analysis import attention

    folders = [each for run in runs for each in _runs_of(run)]
    found: dict[Path, dict[str, dict[str, Any]]] = {}
    all_maps: list[Maps] = []
    titles = _titles(folders)
    for run in dict.fromkeys(folders):
        subject = _subject(run, rows, trust)
        findings = found.setdefault(subject.folder, {})
        for finding, maps in _findings(subject, analyses, heads, titles.get(run, "")):
            findings[finding.name] = _written(finding, subject.folder, step=subject.step)
            all_maps += [maps] if maps is not None else []
    if len(all_maps) > 1:
        parents = {folder.parent for folder in found}
        home = expanded(output) if output else parents.pop() if len(parents) == 1 else Path()
        together = attention.finding(sorted(all_maps, key=lambda maps: list(titles.values()).index(maps.title)), heads)
        found.setdefault(home, {})["attention"] = _written(together, home)
    if not any(found.values()):
        raise UserError(f"RUN={runs[0]}: no analysis applies to its data and its model")
    return found


def _mistakes(runs: Sequence[str], analyses: Sequence[str] | None, rows: int) -> list[ConfigError]:
    wrong = [not_one_of("analysis", name, ANALYSES) for name in analyses or () if name not in ANALYSES]
    if analyses is not None and not analyses:
        wrong.append(ConfigError("analysis", "[]", "names none", f"there are: {', '.join(ANALYSES)}"))
    if rows < 1:
        wrong.append(ConfigError("--rows", rows, "give a number of rows, such as 1024"))
    for word in runs:
        key, equals, value = word.partition("=")
        if equals and not expanded(word).exists() and "/" not in key:
            wrong.append(
                ConfigError(key, value, "no such run, and mlm analyse changes no settings", "give runs, and analysis=NAME")
            )
    if not runs:
        wrong.append(ConfigError("RUN", "", "no run is given", "give a run's folder (outputs/NAME/…)"))
    return wrong


def _runs_of(path: str) -> list[str]:
    """A folder of runs is all that have a checkpoint."""
    folder = expanded(path)
    if not folder.is_dir() or (folder / "config.yaml").is_file():
        return [path]
    inside = sorted(each.parent for each in folder.glob("*/config.yaml") if any(each.parent.glob("checkpoints/*.ckpt")))
    return [str(each) for each in inside] or [path]


def _titles(runs: Sequence[str]) -> dict[str, str]:
    """What tells runs apart: the settings that differ, in their order; empty for a single run."""
    from mlm_lightning.report.groups import as_text, differing, sort_key
    from mlm_lightning.report.results import read_result
    from mlm_lightning.runs.load import locate_weights

    if len(unique := list(dict.fromkeys(runs))) < 2:
        return {}
    columns = differing([read_result(locate_weights(run)[0]) for run in unique])
    values = dict(zip(unique, zip(*columns.values(), strict=True), strict=True)) if columns else {}
    ordered = sorted(unique, key=lambda run: [sort_key(value) for value in values.get(run, ())])
    names = [key.removesuffix("._target_").rpartition(".")[2] for key in columns]
    titles: dict[str, str] = {}
    for run in ordered:
        title = ", ".join(f"{name}={as_text(value)}" for name, value in zip(names, values.get(run, ()), strict=True))
        titles[run] = title if title and title not in titles.values() else run
    return titles


def _subject(run: str, rows: int, trust: bool) -> "Subject":
    from mlm_lightning.analysis.subject import Subject
    from mlm_lightning.commands.evaluate import prepared
    from mlm_lightning.data.condition import packs_documents
    from mlm_lightning.runs.load import load_run
    from mlm_lightning.tasks import MLM

    settings, conditions = prepared(run, [], "val", trust)
    if not isinstance(settings.task, MLM):
        raise ConfigError("RUN", run, "labels rows, and mlm analyse looks at masked ones", "give the run that it began with")
    loaded = load_run(run, trust, separate_documents=packs_documents(conditions[:1]))
    sizes = {"batch_size": settings.loader.batch_size, "num_rows": rows, "eval_seed": settings.eval.seed}
    subject = Subject(loaded.model, conditions[0], **sizes, folder=loaded.folder, step=loaded.step)
    subject.check_readable()
    return subject


def _findings(
    subject: "Subject", analyses: Sequence[str] | None, heads: bool, title: str
) -> "list[tuple[Finding, Maps | None]]":
    """Of analyses that nobody asked for by name, those that don't apply are left out."""
    from mlm_lightning.analysis import attention, posterior, probe

    found: list[tuple[Finding, Maps | None]] = []
    for name in dict.fromkeys(analyses or ANALYSES):
        try:
            with waiting(f"{name}: {subject.folder}"):
                if name == "attention":
                    maps = attention.measure(subject)
                    found.append((attention.finding([maps], heads), maps))
                    maps.title = title
                else:
                    found.append(((probe if name == "probe" else posterior).examine(subject), None))
        except ConfigError as error:
            if analyses is not None:
                raise
            log.info("%s is left out: %s", name, error.problem)
    return found


def _written(finding: "Finding", folder: Path, **more: Any) -> dict[str, Any]:
    from mlm_lightning.report.analyses import FOLDER

    try:
        files = finding.write(folder / FOLDER, **more)
    except OSError as error:
        raise UserError(f"{folder / FOLDER}: can't be written: {error.strerror or error}") from error
    return {"analysis": finding.name, **finding.to_json(), "files": [str(file) for file in files]}
