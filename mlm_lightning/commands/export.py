"""`mlm export`: a folder that `transformers` opens."""

import os
import shutil
from pathlib import Path
from typing import Any

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import UserError

HELP = """\
mlm export RUN DIR [--trust]

Writes a Hugging Face folder (safetensors, tokenizer, config, model card) that AutoModelForMaskedLM opens.

  mlm export outputs/xsum_distilbert/default-1a2b3c4d my-distilbert
  python -c "from transformers import pipeline; print(pipeline('fill-mask', 'my-distilbert')('the [MASK] said'))"
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--trust", action="store_true")
    flags = parser.parse(arguments)
    print(export(flags.run, flags.folder, flags.trust))
    return 0


def export(run: str, folder: str | Path, trust: bool = False) -> Path:
    """Writes the folder, whole or not at all, and returns it."""
    from mlm_lightning.models.protocol import Exportable
    from mlm_lightning.runs.load import load_run

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DIR={folder}: is there already; give a new folder")
    loaded = load_run(run, trust)
    if not isinstance(loaded.model, Exportable):
        raise UserError(
            f"RUN={run}: its model is no Hugging Face architecture, so AutoModelForMaskedLM can't open it; "
            "train with model=distilbert or model=pretrained, or open the run from Python: mlm_lightning.load_run(RUN)"
        )
    if loaded.tokenizer is None:
        raise UserError(
            f"RUN={run}: has no tokenizer/ in its folder, which an exported model needs; train it on text (data=text)"
        )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    place = folder.resolve()  # "." has no name
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(_model_card(loaded))
        if place.is_dir():  # empty, perhaps the folder that the user is in: it has to stay the same one
            for path in temporary.iterdir():
                path.rename(place / path.name)
        else:
            temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _model_card(loaded: Any) -> str:
    from mlm_lightning.runs.folder import Run

    summary = Run(loaded.folder).summary or {}
    names = ("val/loss", "val/perplexity", "val/accuracy", "steps", "tokens")
    rows = "\n".join(f"| {name} | {summary[name]:.5g} |" for name in names if name in summary)
    base = loaded.composed.get("model.checkpoint")
    front = "---\nlibrary_name: transformers\npipeline_tag: fill-mask\n" + (f"base_model: {base}\n" if base else "") + "---\n"
    results = f"\n| metric at the end of training | value |\n|---|---|\n{rows}\n" if rows else ""
    return (
        f"{front}\n# {loaded.folder.name}\n\n"
        f"A masked language model trained with mlm_lightning; the weights are those after step {loaded.step}.\n{results}\n"
        f"```yaml\n{(loaded.folder / 'config.yaml').read_text()}```\n"
    )
