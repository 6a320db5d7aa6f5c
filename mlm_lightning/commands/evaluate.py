"""`mlm evaluate`: a run's metrics, also on other data or at other mask rates."""

import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import ConfigError, mistakes, refuse
from mlm_lightning.messages import print_table, print_text

if TYPE_CHECKING:
    from mlm_lightning.config.settings import Settings
    from mlm_lightning.data.condition import Condition
    from mlm_lightning.data.splits import Split

HELP = """\
mlm evaluate RUN [OVERRIDE…] [--split val|test] [--json] [--trust]

The metrics of a run (its best checkpoint, else its last) or of one checkpoint, on frozen masks.

  mlm evaluate outputs/default/default-1a2b3c4d
  mlm evaluate RUN --split test --json
  mlm evaluate RUN 'eval.mask_rates=[0.15,0.3,0.5]'
  mlm evaluate RUN data.filter_level=2              the same model on other data
  mlm evaluate RUN 'eval.data={k2: {filter_level: 2}}'  on further data beside the run's own

--trust also builds classes that are not part of this package.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP, "json", "trust")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    flags = parser.parse(arguments)
    metrics = evaluate(flags.run, flags.overrides, flags.split, flags.trust)
    if flags.json:
        print(json.dumps(metrics, indent=2))
    else:
        print_text(f"  {metrics.pop('checkpoint')}")
        print_table([(name, f"{value:.5f}" if isinstance(value, float) else str(value)) for name, value in metrics.items()])
    return 0


_OF_TRAINING = (
    "task",
    "init",
    "optim",
    "schedule",
    "model",
    "callbacks",
    "logger",
    "sweep",
    "seed",
    "name",
    "output_dir",
    "resume",
)
_OF_EVALUATION = {
    *("accelerator", "precision", "limit_val_batches", "limit_test_batches", "inference_mode", "deterministic"),
    *("benchmark", "profiler", "enable_progress_bar", "enable_model_summary"),
}


def check_effect(overrides: list[str]) -> None:
    """Raises for keys that a training alone reads: a result would look as if they had changed something."""
    from mlm_lightning.config.trainer import TrainerSettings

    trainer, found = {field.name for field in fields(TrainerSettings)} - _OF_EVALUATION, []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group, _, name = key.partition(".")
        if group in _OF_TRAINING or (group == "trainer" and name in trainer):
            remedy = "leave it out" + ("; the seed of the masks is eval.seed" if key == "seed" else "")
            found.append(ConfigError(key, value, "has no effect on the evaluation of a run that is trained", remedy))
    refuse(found)


def evaluate(run: str, overrides: list[str] | None = None, split: "Split" = "val", trust: bool = False) -> dict[str, Any]:
    """The metrics of a run (its best checkpoint, else its last), of one checkpoint, or of an export, on frozen masks.

    `overrides` change what it is evaluated on, as in `mlm evaluate`: `["data.filter_level=2", "eval.mask_rates=[0.15,0.3]"]`.
    With `trust`, classes that are not this package's own are built. Returns `checkpoint`, `step` and the metrics by name:
    `val/loss` in nats a predicted token, `val/loss_rate_0.30` … Raises UserError for what can't be.
    """
    from mlm_lightning.training import evaluate as evaluation

    settings, conditions = prepared(run, overrides or [], split, trust)
    return evaluation.evaluate(run, settings, conditions, split, trust)


def prepared(run: str, overrides: list[str], split: "Split", trust: bool) -> "tuple[Settings, list[Condition]]":
    """The settings of a run, changed by `overrides`, and the conditions that it is evaluated under; their data is there."""
    from mlm_lightning.config.build import prepare
    from mlm_lightning.config.compose import WRITTEN_AGAIN, changed, read_config
    from mlm_lightning.config.parse import parse
    from mlm_lightning.config.paths import resolved
    from mlm_lightning.data.text.tokenizer.load import keys_of
    from mlm_lightning.files import damaged
    from mlm_lightning.runs.folder import Run
    from mlm_lightning.runs.load import WEIGHTS, locate_weights, see_packages_of, tokenizer_folder
    from mlm_lightning.training.check import trainer_errors
    from mlm_lightning.training.fit import quiet

    quiet()
    folder, weights = locate_weights(run)
    check_effect(overrides)
    if trust:
        see_packages_of(folder)
    written = read_config(folder)
    if missing := {"data", "eval", "masking", "model", "trainer"} - set(written.config):
        raise damaged(folder / "config.yaml", ValueError(f"it lacks {', '.join(sorted(missing))}"), WRITTEN_AGAIN)
    composed = resolved(changed(written, overrides), Run(folder).working_directory, overrides, trust)
    for unused in ("callbacks", "logger", "prepare", "sweep"):
        composed = composed.changed(unused, None)
    tokenizer, is_export = tokenizer_folder(folder), weights.name == WEIGHTS
    if tokenizer and (is_export or any(each.lstrip("+").startswith("data.") for each in overrides)):
        # other documents, but the run's own tokens: data.tokenizer=train would train another tokenizer on them
        composed = composed.changed("data", keys_of(tokenizer))
    settings = parse(composed, trust)
    refuse(trainer_errors(replace(settings.trainer, devices=1, num_nodes=1, strategy="auto")))
    with mistakes():
        return settings, prepare(settings, evaluated=split, trained_on=Run(folder).manifest.get("data") or "")
