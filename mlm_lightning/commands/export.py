"""`mlm export`: a run as a folder that opens anywhere, also on the hub."""

import os
import shutil
from pathlib import Path

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import UserError
from mlm_lightning.files import disk_named
from mlm_lightning.messages import print_text
from mlm_lightning.values import expanded

HELP = """\
mlm export RUN DIR [--onnx] [--push USER/NAME [--public]] [--trust]

Writes a folder that opens on any machine, without the run: weights as safetensors, what builds the model, its tokens, and a
model card. `mlm predict DIR`, `mlm evaluate DIR` and `mlm_lightning.load_run(DIR)` open it; that of a Hugging Face
architecture, and model=modern on text, is AutoModelForMaskedLM's, too.

  mlm export outputs/default/default-1a2b3c4d my-model
  mlm predict my-model "0 3 _ 1 2 2 _ 0 1 1 0 2 3 3 1 0"
  mlm export RUN my-model --onnx                    model.onnx beside it, for any number of rows
  mlm export RUN my-model --push USER/NAME          and onto the hub, private unless --public
  python -c "from transformers import pipeline; print(pipeline('fill-mask', 'my-distilbert')('the [MASK] said'))"

--trust also builds classes that are not part of this package.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP, "onnx", "public", "trust")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--push", metavar="USER/NAME")
    flags = parser.parse(arguments)
    if flags.public and flags.push is None:
        raise UserError("--public: says how to --push USER/NAME, which is not given")
    print_text(export(flags.run, flags.folder, flags.trust, flags.onnx, flags.push, flags.public))
    return 0


def export(
    run: str, folder: str | Path, trust: bool = False, onnx: bool = False, push: str | None = None, public: bool = False
) -> Path | str:
    """Writes the folder, whole or not at all, and returns it; with `push` (USER/NAME), its address on the hub."""
    from mlm_lightning.sharing import hub

    folder = expanded(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DIR={folder}: is there already; give a new folder")
    api = None if push is None else hub.open_hub(push)

    from mlm_lightning.runs.load import load_run
    from mlm_lightning.sharing.card import write_card
    from mlm_lightning.sharing.folder import ONNX, as_shared, write_model
    from mlm_lightning.sharing.onnx import check_onnx, write_onnx

    if onnx:
        check_onnx()
    loaded = as_shared(load_run(run, trust))
    place = folder.resolve()  # "." has no name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"DIR={folder}: cannot be made there: {error.strerror}") from error
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with disk_named(place, "Nothing is left there: free space or give access, and export again"):
            write_model(loaded, temporary)
            if onnx:
                write_onnx(loaded, temporary / ONNX)
            write_card(loaded, temporary, place.name, push)
            if place.is_dir():  # empty, perhaps the folder that the user is in: it has to stay the same one
                for path in temporary.iterdir():
                    path.rename(place / path.name)
            else:
                temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder if push is None else hub.push(api, folder, push, public)
