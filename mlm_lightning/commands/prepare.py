"""`mlm prepare`: builds the token cache of the chosen data, nothing else."""

from typing import TYPE_CHECKING

from mlm_lightning.commands.arguments import Parser, see_own_packages
from mlm_lightning.errors import UserError, mistakes
from mlm_lightning.messages import print_table

if TYPE_CHECKING:
    from mlm_lightning.data.source import Source

HELP = """\
mlm prepare [OVERRIDE…] [--config-dir DIR]

Downloads, tokenises and caches the chosen data, so that a later training starts at once. It uses all cores, and the same
command goes on where one was stopped.

  mlm prepare data=text data.path='texts/*.txt' data.tokenizer=train
  mlm prepare experiment=xsum_distilbert
  mlm prepare data=text data.path='texts/*.jsonl.zst' data.tokenizer=roberta-base prepare=ray
"""


def main(arguments: list[str]) -> int:
    from mlm_lightning.config.build import eval_data_key, prepare
    from mlm_lightning.config.compose import composer
    from mlm_lightning.config.parse import parse
    from mlm_lightning.data.condition import sources

    parser = Parser(HELP)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--config-dir")
    flags = parser.parse(arguments)
    see_own_packages()
    with composer(flags.config_dir) as hydra:
        overrides = hydra.plain(flags.overrides)
        if several := [each for each in hydra.choices(overrides) if each.is_sweep_override()]:
            typed = str(several[0].input_line).lstrip("+")
            raise UserError(f"{typed}: several values for one key; give one, or quote a value that contains commas")
        settings = parse(hydra.composed(overrides))
    with mistakes():  # documents, sizes or a tokenizer that will not do
        conditions = prepare(settings)
    names = {condition.source: condition.names for condition in reversed(conditions)}
    for source in sources(conditions):
        if source is not conditions[0].source:
            print(f"\n{eval_data_key(names[source])}")
        _show(source)
    return 0


_QUANTITIES = (
    ("documents", "documents", "{:,}"),
    ("copies dropped", "duplicates", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("tokens a document", "tokens_per_document", "{:,.1f}"),
    ("unknown tokens", "unknown_share", "{:.2%}"),
    ("rows", "rows", "{:,}"),
    ("documents truncated", "truncated", "{:,}"),
    ("tokens in no row", "dropped_tokens", "{:,}"),
    ("size", "megabytes", "{:,.2f} MB"),
)


def _show(source: "Source") -> None:
    rows = source.summary()
    if rows is None:
        print(f"{type(source).__name__} makes its rows as they are asked for: nothing to prepare")
    elif rows:
        # one column a split: three of them fit 80 characters, nine quantities would not
        rows = [row | {"megabytes": row["bytes"] / 1e6} for row in rows]
        cells = [
            [name, *(form.format(row[key]) for row in rows)]
            for name, key, form in _QUANTITIES
            if key not in ("duplicates", "truncated") or any(row[key] for row in rows)
        ]
        print_table(cells, ("", *(row["split"] for row in rows)), right=range(1, len(rows) + 1))
    if (cache := source.cache_folder) is not None:
        print(f"\ncache        {cache}")
    if source.endless:
        print("Rows for training are read as they are asked for.")
