"""`mlm clean`: what could go from a folder of runs, and away with it when told."""

from mlm_lightning.commands.arguments import Parser, print_json
from mlm_lightning.errors import FAILURE, UserError
from mlm_lightning.messages import print_text

HELP = """\
mlm clean [FOLDER | CACHE] [--old] [--failed] [--interrupted] [--pruned] [--cache] [--files] [--yes] [--json]

What could go from FOLDER (default: outputs), with the space that this would free. It removes nothing without --yes, and with
it the kinds alone that are named. Complete runs, and those that a process works in, are never touched.

  mlm clean                                       what there is, of all kinds
  mlm clean --old --files                         of these kinds
  mlm clean --old --files --yes                   removes them
  mlm clean outputs/mask_rate --failed --yes
  mlm clean CACHE --cache --yes                   one token cache, by its path

  --old           runs that were started again (resume=never), in NAME/.old
  --failed        failed runs: the same command would try them again
  --interrupted   stopped runs: the same command would continue them
  --pruned        the checkpoints of runs that a search gave up
  --cache         token caches that no run needs: made again when they are needed. A cache notes the folders of the runs that
                  are trained on it: all of them are gone (or moved), or lie in FOLDER and have other data now. One that notes
                  none (it was only prepared, or is of an earlier version) is listed, and goes where its path is given
  --files         half-written files, and messages of runs that are gone
"""


def main(arguments: list[str]) -> int:
    kinds = ("old", "failed", "interrupted", "pruned", "cache", "files")
    parser = Parser(HELP, *kinds, "yes", "json")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="outputs")
    flags = parser.parse(arguments)
    chosen = [kind for kind in kinds if getattr(flags, kind)]
    if flags.yes and not chosen:
        raise UserError(f"--yes: say what may go: {', '.join(f'--{kind}' for kind in kinds)}")
    from mlm_lightning.runs.leftovers import KINDS, leftovers
    from mlm_lightning.runs.listing import existing, readable_size

    shown = [*(chosen or kinds), *(["unknown"] if flags.cache or not chosen else [])]
    found = [each for each in leftovers(existing(flags.folder)) if each.kind in shown]
    may_go = [each for each in found if each.kind != "unknown"]
    kept = [each for each in may_go if flags.yes and not each.remove()]
    gone = [each for each in may_go if each not in kept]
    if flags.json:
        plain = [{"kind": e.kind, "path": str(e.path), "bytes": e.bytes, "removed": flags.yes and e in gone} for e in found]
        print_json(plain)
        return FAILURE if kept else 0
    for kind, meaning in KINDS.items():
        if of_kind := [each for each in found if each.kind == kind]:
            print_text(f"{meaning}: {readable_size(sum(each.bytes for each in of_kind))}")
            for each in of_kind:
                print_text(f"  {readable_size(each.bytes):>9}  {each.path}" + ("  (kept: in use)" if each in kept else ""))
    total = readable_size(sum(each.bytes for each in gone))
    if not found:
        print_text(f"{flags.folder}: there is nothing to clean")
    elif flags.yes:
        print_text(f"{total} freed")
    else:
        example = " ".join(f"--{kind}" for kind in kinds if any(each.kind == kind for each in may_go))
        way = f". mlm clean {flags.folder} {example} --yes would" if may_go else ""
        print_text(f"{total} could be freed; nothing was removed{way}")
    return FAILURE if kept else 0
