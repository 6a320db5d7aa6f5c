"""`mlm prepare`: builds the token cache of the chosen data, nothing else."""

from typing import Any

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.config import build_source, check

HELP = """\
mlm prepare [OVERRIDE…] [--config-dir DIR]

Downloads, tokenises and caches the chosen data, so that a later training starts at once.

  mlm prepare data=text data.path='texts/*.txt' data.tokenizer=train
  mlm prepare experiment=xsum_distilbert
"""


def main(arguments: list[str]) -> int:
    from mlm_lightning.compose import composer, to_plain

    parser = Parser(HELP)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--config-dir")
    flags = parser.parse(arguments)
    with composer(flags.config_dir) as hydra:
        config = to_plain(hydra.compose(hydra.plain(flags.overrides)))
    check(config)
    source = build_source(config)
    source.prepare()
    summary = getattr(source, "summary", None)
    if summary is None:
        print(f"{type(source).__name__} makes its rows as they are asked for: nothing to prepare")
    else:
        _show(summary())
    return 0


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "split" else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)
