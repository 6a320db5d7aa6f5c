"""`mlm evaluate`: a run's metrics, also on other data or at other mask rates."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import NO_VALUE, ConfigError, mistakes, one_line
from mlm_lightning.messages import print_table

if TYPE_CHECKING:
    from mlm_lightning.data.splits import Split

HELP = """\
mlm evaluate RUN [OVERRIDE…] [--split val|test] [--json] [--trust]

The metrics of a run (its best checkpoint, else its last) or of one checkpoint, on frozen masks.

  mlm evaluate outputs/default/default-1a2b3c4d
  mlm evaluate RUN --split test --json
  mlm evaluate RUN eval.mask_rates=[0.15,0.3,0.5]
  mlm evaluate RUN data.filter_level=2              the same model on other data
  mlm evaluate RUN 'eval.data={k2: {filter_level: 2}}'  on further data beside the run's own

--trust also builds classes that are not part of this package.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trust", action="store_true")
    flags = parser.parse(arguments)
    metrics = evaluate(flags.run, flags.overrides, flags.split, flags.trust)
    if flags.json:
        print(json.dumps(metrics, indent=2))
    else:
        print(f"  {metrics.pop('checkpoint')}")
        print_table([(name, f"{value:.5f}" if isinstance(value, float) else str(value)) for name, value in metrics.items()])
    return 0


def evaluate(run: str, overrides: list[str] | None = None, split: "Split" = "val", trust: bool = False) -> dict[str, Any]:
    """The metrics of a run on a split, by name (`val/loss` …)."""
    import torch

    from mlm_lightning.config.build import prepare
    from mlm_lightning.config.compose import changed, read_config
    from mlm_lightning.config.parse import parse
    from mlm_lightning.data.condition import packs_documents
    from mlm_lightning.data.datamodule import MLMDataModule
    from mlm_lightning.data.text.tokenizer.load import TRAIN, keys_of
    from mlm_lightning.runs.load import WEIGHTS, load_run, locate_weights, tokenizer_folder
    from mlm_lightning.training.fit import build_trainer, quiet
    from mlm_lightning.training.module import MLMModule

    quiet()
    folder, weights = locate_weights(run)
    composed = changed(read_config(folder), overrides or []).changed("callbacks", None).changed("logger", None)
    tokenizer, is_export = tokenizer_folder(folder), weights.name == WEIGHTS
    if tokenizer and (is_export or any(each.lstrip("+").startswith("data.") for each in overrides or [])):
        # other documents, but the run's own tokens: data.tokenizer=train would train another tokenizer on them
        composed = composed.changed("data", keys_of(tokenizer))
    settings = parse(composed, trust)
    loaded = load_run(run, trust)
    with mistakes():
        conditions = prepare(settings, evaluated=split)
    source = conditions[0].source
    if not source.vocab.has_tokens_of(loaded.vocab):
        trained = settings.data.arguments.get("tokenizer") == TRAIN
        problem = f"its vocabulary ({source.vocab.size} tokens) is not the one that the run was trained with"
        remedy = "evaluate on data of the same vocabulary"
        if trained:
            remedy += ". Its files have changed since: name them, also by the same data.path=…, and they are read with the "
            remedy += "tokenizer of the run"
        raise ConfigError("data", NO_VALUE, f"{problem} ({loaded.vocab.size} tokens)", remedy)
    try:
        with torch.inference_mode():
            loaded.model(torch.full((1, source.seq_len), loaded.vocab.mask_id))
    except (ValueError, IndexError, RuntimeError) as error:
        problem = f"its rows have {source.seq_len} tokens, and the run's model can't read them ({one_line(error)})"
        raise ConfigError("data", NO_VALUE, problem, "evaluate on rows as long as the run's") from error
    if packs_documents(conditions):  # the rows that it was trained on may not
        with mistakes():
            loaded = load_run(run, trust, separate_documents=True)
    trainer = build_trainer(replace(settings.trainer, devices=1, num_nodes=1, strategy="auto"), [], [])
    module = MLMModule(loaded.model, conditions)
    batch_size, eval_seed = settings.loader.batch_size, settings.eval.seed
    datamodule = MLMDataModule(source, settings.masking.instance, conditions, batch_size=batch_size, eval_seed=eval_seed)
    (trainer.validate if split == "val" else trainer.test)(module, datamodule, verbose=False)
    return {"checkpoint": str(loaded.checkpoint), "step": loaded.step, **module.last_metrics}
