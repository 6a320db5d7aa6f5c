"""`mlm train`: overrides ─ compose ─► parse ─► train, or a sweep of such runs; a table at the end."""

from argparse import ArgumentParser
from pathlib import Path
from shlex import quote
from textwrap import shorten, wrap
from typing import Any

from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.messages import print_table, print_text, waiting
from mlm_lightning.processes import see_own_packages

HELP = """\
mlm train [OVERRIDE…] [-m] [--config-dir DIR] [--debug]

Trains one run, or a sweep with -m. The same command continues an unfinished run.

  mlm train                                       the default: tree-structured data, a small transformer
  mlm train experiment=uniform_floor              a shipped experiment
  mlm train data.depth=5 model.num_layers=6       any key of the config
  mlm train -m masking.rate=0.1,0.2,0.4 seed=0,1  a sweep: 6 runs; again: those that have no result yet
  mlm train sweep=mask_rate sweep.jobs=2          a shipped sweep, two runs at a time
  mlm train -m sweep.trials=30 'optim.lr=tag(log, interval(1e-4, 1e-2))'      a search
  mlm train data=text data.path='texts/*.txt' data.tokenizer=train
  mlm train --cfg job                             shows the composed config
  mlm train -m seed=0,1 --cfg job                 shows the runs of the sweep, their folders and their status

Hydra's own flags work: --cfg job, --info, -m, --config-dir, --config-name, --resolve, --package.
"""


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP + _choices(arguments), end="")
        return 0
    from mlm_lightning.config.compose import composer
    from mlm_lightning.config.flags import check_hydra_keys, hydra_flags, is_sweep

    see_own_packages()
    flags = hydra_flags(arguments)
    with composer(flags.config_dir, flags.config_name) as hydra:
        overrides = hydra.plain(flags.overrides)
        if flags.info or (flags.cfg and not flags.multirun):
            hydra.answer(flags, overrides)
            return 0
        several = any(override.is_sweep_override() for override in hydra.choices(overrides))
        config = hydra.master(overrides) if several else hydra.compose(overrides)
        check_hydra_keys(overrides, config)
        if flags.multirun or is_sweep(config):
            with waiting(f"{config.output_dir}/{config.name}: checking the runs of the sweep"):
                from mlm_lightning.sweeps.run import run_sweep

                return run_sweep(hydra, overrides, hydra.master(overrides), only_show=flags.cfg is not None)
        if several:
            raise UserError("several values for one key: add -m to run a sweep, or quote a value that contains commas")
        composed = hydra.with_origin(config, overrides)
    if (trials := composed.get("sweep.trials")) is not None:
        raise ConfigError("sweep.trials", trials, "one run is no search", "add -m, and give keys several values")
    with waiting(f"{composed.get('output_dir')}/{composed.get('name')}: checking the settings"):
        from mlm_lightning.config.parse import parse
        from mlm_lightning.runs.folder import Run
        from mlm_lightning.training.train import announce, train

        settings = parse(composed, announce=announce)
    summary = train(settings, announced=True)
    show(Run.find(settings).folder, summary, settings.task.unit)
    return 0


def _choices(arguments: list[str]) -> str:
    """What `GROUP=OPTION` may say, as lines of the help: also of the folder that --config-dir names."""
    from mlm_lightning.config.shipped import options

    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    groups = options(parser.parse_known_args(arguments)[0].config_dir)
    lines = ["", "Groups, and their options (GROUP=OPTION):", ""]
    for group, files in groups.items():
        if group not in ("experiment", "sweep"):
            lines += wrap(", ".join(files), 78, initial_indent=f"  {group:12} ", subsequent_indent=" " * 15)
    for group, title in (("experiment", "Whole experiments"), ("sweep", "Whole sweeps")):
        lines += ["", f"{title} ({group}=NAME):", ""]
        lines += [f"  {name:17} {shorten(what, 60, placeholder=' …')}" for name, what in groups.get(group, {}).items()]
    return "\n".join(lines) + "\n"


def show(folder: Path, summary: dict[str, Any], per: str = "token") -> None:
    """The table at the end of a run, whose losses are means over tokens, or rows."""
    from mlm_lightning.report.learned import leaks, left, shortfalls

    nats = f"nats a {per}"
    names = [
        ("val/loss", "validation loss", nats),
        ("val/oracle_loss", "best possible loss", f"{nats} (oracle)"),
        ("val/excess_loss", "excess over the oracle", ""),
        ("val/unigram_loss", "loss of counting tokens", f"{nats} (unigram)"),
        ("val/bigram_loss", "loss of counting pairs", f"{nats} (bigram)"),
        ("val/gain_over_unigram", "gain over counting tokens", nats),
        ("val/perplexity", "perplexity", ""),
        ("val/accuracy", "accuracy", ""),
        ("val/macro_f1", "macro-F1", ""),
        ("val/oracle_accuracy", "best possible accuracy", "(oracle)"),
        ("val/unigram_accuracy", "accuracy of counting", "(always the most frequent token)"),
        ("best/val/loss", "best validation loss", f"at step {summary.get('best/step', 0)}"),
        ("steps", "steps", f"{summary.get('tokens', 0):,} tokens"),
        ("tokens_per_second", "tokens a second", ""),
        ("seconds", "seconds", ""),
    ]
    rows = []
    for key, label, unit in names:
        if key in summary:
            value = summary[key]
            if key == "val/excess_loss":
                unit = f"± {summary['val/excess_loss_se']:.4f} (standard error)"
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
            rows.append((label, text, unit))
    print_table(rows)
    if told := [*leaks([summary]), *left(summary), *shortfalls([summary])]:
        print_text("\n".join(["", *told]))
    print_text(f"\nrun          {folder}\ncurves       tensorboard --logdir {quote(str(folder.parent))}")
