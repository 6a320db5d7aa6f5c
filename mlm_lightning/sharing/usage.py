"""The lines of a model card that one copies to use the model: they run as they stand, beside the folder."""

import json
import shlex

from mlm_lightning.config.settings import LOADER_KEYS, Node
from mlm_lightning.config.signatures import TRUSTED_MODULES
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.models.protocol import Exportable
from mlm_lightning.runs.load import LoadedRun

_SENTENCE = "this is a [MASK] ."


def usage(loaded: LoadedRun, name: str, repo: str | None, onnx: bool) -> str:
    """Of a folder called `name`, which the hub has as `repo`."""
    folder = repo.rpartition("/")[2] if repo else name
    is_own = type(loaded.model).__module__ not in TRUSTED_MODULES
    text, trust = _text(loaded), " --trust" if is_own else ""
    has_files = loaded.tokenizer is not None and loaded.composed.get("data.dataset") is None
    lines = [f"hf download {repo} --local-dir {shlex.quote(folder)}"] if repo else []
    lines += [f"mlm predict {shlex.quote(folder)} {shlex.quote(text)}{trust}"]
    lines += [f"mlm evaluate {shlex.quote(folder)}{' data.path=your-texts.txt' if has_files else ''}{trust}"]
    parts = ["With mlm_lightning installed:", _block("bash", lines)]
    if is_own:
        parts.append("`--trust` builds its author's class, which must be importable.")
    parts.append(_block("python", _python(loaded, folder, text, is_own)))
    if isinstance(loaded.model, Exportable):
        masked = text.replace("[MASK]", loaded.tokenizer.mask_token)  # type: ignore[union-attr]
        task = "fill-mask" if loaded.classes is None else "text-classification"
        lines = [
            "from transformers import pipeline",
            "",
            f'print(pipeline("{task}", {_quoted(repo or folder)})({_quoted(masked)}))',
        ]
        parts += ["With transformers alone:", _block("python", lines)]
    if onnx:
        parts += ["With ONNX Runtime alone:", _block("python", _onnx(loaded, folder, text))]
    return "\n\n".join(parts)


def _python(loaded: LoadedRun, folder: str, text: str, is_own: bool) -> list[str]:
    made = f"torch.tensor([{_ids(loaded, text)}])  # {loaded.vocab.mask_id} is [MASK]"
    if loaded.tokenizer is not None:
        masked = text.replace("[MASK]", loaded.tokenizer.mask_token)
        made = f'torch.tensor([loaded.tokenizer({_quoted(masked)})["input_ids"]])'
    if loaded.classes is not None:
        made = made.partition("  #")[0]
        answer = ["print(loaded.classes[int(probabilities[0].argmax())])"]
    else:
        answer = [
            "position = input_ids[0].tolist().index(loaded.vocab.mask_id)",
            "_, best = loaded.vocab.best(probabilities[0, position], 1)",
            "print(loaded.vocab.token(int(best)))",
        ]
    return [
        "import mlm_lightning",
        "import torch",
        "",
        f"loaded = mlm_lightning.load_run({_quoted(folder)}{', trust=True' if is_own else ''})",
        f"input_ids = {made}",
        "with torch.no_grad():",
        "    probabilities = loaded.model(input_ids).softmax(-1)",
        *answer,
    ]


def _onnx(loaded: LoadedRun, folder: str, text: str) -> list[str]:
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({_quoted(f'{folder}/model.onnx')})",
        f"input_ids = np.array([{_ids(loaded, text)}])  # any number of rows"
        + f"; {loaded.vocab.mask_id} is [MASK]" * (loaded.classes is None),
        'inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}',
        '(logits,) = session.run(["logits"], inputs)',
        f"print(logits[0, {_ids(loaded, text).index(loaded.vocab.mask_id)}].argmax())"
        if loaded.classes is None
        else "print(logits[0].argmax())",
    ]


def _text(loaded: LoadedRun) -> str:
    """A text to predict, short enough for the model: a sentence, or a row of the language with gaps."""
    if loaded.tokenizer is not None and loaded.classes is not None:
        return "this is a text ."
    if loaded.tokenizer is not None:
        text = _SENTENCE.replace("[MASK]", loaded.tokenizer.mask_token)
        fits = loaded.seq_len is None or len(loaded.tokenizer(text)["input_ids"]) <= loaded.seq_len
        return _SENTENCE if fits else "[MASK]"
    data = dict(loaded.composed.get("data"))
    length, symbols = loaded.seq_len or 8, loaded.vocab.regular_ids.tolist()
    row = [symbols[position % len(symbols)] for position in range(length)]
    source = Node(data.pop("_target_"), {key: value for key, value in data.items() if key not in LOADER_KEYS})
    if source.target.rpartition(".")[0] in TRUSTED_MODULES and issubclass(source.callable, SyntheticSource):
        import torch

        row = source.instance.rows("val")[torch.tensor([0])][0].tolist()
    if loaded.classes is not None:
        return " ".join(map(str, row))
    return " ".join("_" if position % 7 == 1 or length == 1 else str(symbol) for position, symbol in enumerate(row))


def _ids(loaded: LoadedRun, text: str) -> list[int]:
    if loaded.tokenizer is None:
        return [loaded.vocab.mask_id if word == "_" else int(word) for word in text.split()]
    return loaded.tokenizer(text.replace("[MASK]", loaded.tokenizer.mask_token))["input_ids"]


def _quoted(text: str) -> str:
    """As a literal of Python: tokens of a foreign tokenizer may say anything."""
    return json.dumps(text, ensure_ascii=False)


def _block(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
