"""`mlm prepare`: builds the token cache of the chosen data, nothing else."""

from typing import TYPE_CHECKING

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import UserError, mistakes
from mlm_lightning.messages import print_table, print_text
from mlm_lightning.processes import see_own_packages

if TYPE_CHECKING:
    from torch import Tensor

    from mlm_lightning.config.settings import Settings
    from mlm_lightning.data.source import Source

HELP = """\
mlm prepare [OVERRIDE…] [--show N] [--config-dir DIR]

Downloads, tokenises and caches the chosen data, so that a later training starts at once. It uses all cores, and the same
command goes on where one was stopped.

  mlm prepare data=text data.path='texts/*.txt' data.tokenizer=train
  mlm prepare experiment=xsum_distilbert
  mlm prepare data=text data.path='texts/*.jsonl.zst' data.tokenizer=roberta-base prepare=ray
  mlm prepare data=text data.path='texts/*.txt' data.tokenizer=train --show 3

--show N prints the first N rows for training: whole, and as the model sees them in the first epoch.
"""


def main(arguments: list[str]) -> int:
    from mlm_lightning.config.build import eval_data_key, prepare
    from mlm_lightning.config.compose import composer
    from mlm_lightning.config.parse import parse
    from mlm_lightning.data.condition import sources

    parser = Parser(HELP)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--config-dir")
    parser.add_argument("--show", type=int, default=0, metavar="N")
    flags = parser.parse(arguments)
    if flags.show < 0:
        raise UserError(f"--show {flags.show}: give a number of rows")
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
            print_text(f"\n{eval_data_key(names[source])}")
        _show(source)
    if flags.show:
        _show_rows(settings, conditions[0].source, flags.show)
    return 0


def _show_rows(settings: "Settings", source: "Source", number: int) -> None:
    """The first rows for training, before and after they are masked; or with their labels."""
    import torch

    from mlm_lightning.batch import IGNORE_INDEX, LabelledBatch
    from mlm_lightning.data.source import SPLITS, EndlessRows
    from mlm_lightning.data.text.tokenizer.load import load_tokenizer
    from mlm_lightning.randomness import key
    from mlm_lightning.tasks import Classify

    rows = source.rows("train")
    index_B = torch.arange(number if isinstance(rows, EndlessRows) else min(number, len(rows)))
    read = rows[index_B]
    tokens_BL, mask_BL = read if isinstance(read, tuple) else (read, None)
    make = settings.task.maker(source, "train", settings.masking.instance, key(settings.seed, SPLITS.index("train")))
    batch = make(tokens_BL, index_B, epochs_B=torch.zeros_like(index_B), attention_mask_BL=mask_BL, progress=0.0)
    folder = source.cache_folder
    tokenizer = load_tokenizer(folder / "tokenizer") if folder is not None and source.tokenizer_keys() else None

    def text(ids_L: "Tensor", row: int) -> str:
        ids = (ids_L if mask_BL is None else ids_L[mask_BL[row] != 0]).tolist()
        return " ".join(map(source.vocab.token, ids)) if tokenizer is None else tokenizer.decode(ids)

    for row in range(len(index_B)):
        print_text(f"\nrow {row:<8} {text(tokens_BL[row], row)}")
        if isinstance(batch, LabelledBatch):
            assert isinstance(settings.task, Classify)
            print_text(f"label        {settings.task.class_names(source)[int(batch.labels_B[row])]}")
            continue
        print_text(f"seen         {text(batch.input_ids_BL[row], row)}")
        labels_L = batch.labels_BL[row]
        predicted = [
            f"{i} {source.vocab.token(int(labels_L[i]))}" for i in (labels_L != IGNORE_INDEX).nonzero().flatten().tolist()
        ]
        print_text(f"predicted    {'  '.join(predicted)}")


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
        print_text(f"{type(source).__name__} makes its rows as they are asked for: nothing to prepare")
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
        print_text(f"\ncache        {cache}")
    if source.endless:
        print_text("Rows for training are read as they are asked for.")
