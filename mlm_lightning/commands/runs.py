"""`mlm runs`: the runs of a folder, with status, result and size."""

from dataclasses import asdict
from datetime import datetime

from mlm_lightning.commands.arguments import Parser, print_json
from mlm_lightning.messages import print_text

HELP = """\
mlm runs [FOLDER] [--json]

The runs below FOLDER (default: outputs): where each stands, its result, its size on disk. Runs of a sweep are sorted by what
the sweep looks for, the best one first; others by time, the newest first.

  mlm runs
  mlm runs outputs/mask_rate
  mlm runs --json

complete: has its result. running: a process works in it. interrupted: the same command continues it. failed, pruned: the
reason is in its error.json or pruned.json.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP, "json")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="outputs")
    flags = parser.parse(arguments)
    from mlm_lightning.runs.listing import existing, groups, readable_size

    found = groups(existing(flags.folder))
    if flags.json:
        print_json([_plain(run) for group in found for run in group.runs])
        return 0
    if not found:
        print_text(f"no runs in {flags.folder}")
    for number, group in enumerate(found):
        kind = "sweep, " if group.is_sweep else ""
        count = f"{len(group.runs)} run{'s' * (len(group.runs) != 1)}"
        print_text("\n" * (number > 0) + f"{group.folder}  ({kind}{count}, {readable_size(group.bytes)})")
        rows = [("status", group.objective, "steps", "size", "changed", "run")]
        rows += [
            (
                run.status,
                "" if run.value is None else f"{run.value:.4f}",
                "" if run.step is None else f"{run.step:,}",
                readable_size(run.bytes),
                f"{datetime.fromtimestamp(run.changed):%m-%d %H:%M}",
                run.folder.name,
            )
            for run in group.runs
        ]
        status, *widths = (max(len(row[column]) for row in rows) for column in range(5))
        for first, *numbers, name in rows:  # the name last and whole, to be copied: a terminal may wrap it
            cells = [first.ljust(status), *(cell.rjust(width) for cell, width in zip(numbers, widths, strict=True)), name]
            print_text("  " + "  ".join(cells))
    return 0


def _plain(run: object) -> dict[str, object]:
    content = asdict(run)  # type: ignore[call-overload]
    changed = datetime.fromtimestamp(content["changed"]).astimezone().isoformat(timespec="seconds")
    return content | {"folder": str(content["folder"]), "changed": changed}
