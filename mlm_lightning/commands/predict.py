"""`mlm predict`: what a run's model would write for each `[MASK]`."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlm_lightning.commands.arguments import Parser, print_json
from mlm_lightning.errors import UserError
from mlm_lightning.messages import print_text

if TYPE_CHECKING:
    from torch import Tensor

    from mlm_lightning.data.source import Oracle
    from mlm_lightning.runs.load import LoadedRun

log = logging.getLogger(__name__)

HELP = """\
mlm predict RUN TEXT… [--top-k N] [--json] [--trust]

Fills [MASK] in each text; a run of task=classify labels each text. For synthetic data a text is the row's integers, with _
where a token is to be predicted; beside each probability is the exact one, by the language's oracle.

  mlm predict RUN "the [MASK] of the united states"
  mlm predict RUN "0 3 _ 1 2 2 _ 0" --top-k 2 --json
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP, "json", "trust")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--top-k", type=int)
    flags = parser.parse(arguments)
    predictions = predict(flags.run, flags.texts, flags.top_k, flags.trust)
    if flags.json:
        print_json(predictions)
        return 0
    for of_text in predictions:
        print_text(of_text[0]["text"])
        if "position" not in of_text[0]:
            print_text("  " + "  ".join(f"{each['label']} {each['probability']:.3f}" for each in of_text[0]["predictions"]))
            continue
        for mask in of_text:
            line = "  ".join(map(_shown, mask["predictions"]))
            print_text(f"  position {mask['position']:>3}  {line}")
    return 0


def _shown(prediction: dict[str, Any]) -> str:
    exact = f" (exact {prediction['oracle']:.3f})" if "oracle" in prediction else ""
    return f"{prediction['token']} {prediction['probability']:.3f}{exact}"


def predict(run: str, texts: list[str], top_k: int | None = None, trust: bool = False) -> list[list[dict[str, Any]]]:
    """For each text a list with a dict a mask: `position` (in tokens, special ones counted), `predictions` (the `top_k` best, 5
    by default, each with `token` and `probability`, and of a language with an oracle the exact one, `oracle`) and `text`, the
    text with every mask filled with its best token. Of a run that labels rows, a list with one dict: `predictions`, each with
    `label` and `probability`, and `text`."""
    import torch

    from mlm_lightning.runs.load import load_run

    loaded = load_run(run, trust)
    num_outputs = len(loaded.vocab.named_ids) if loaded.classes is None else len(loaded.classes)
    if top_k is None:
        top_k = min(5, num_outputs)
    if not 1 <= top_k <= num_outputs:
        what = "size of the vocabulary" if loaded.classes is None else "number of labels"
        raise UserError(f"--top-k {top_k}: give a number between 1 and the {what}, {num_outputs}")
    if loaded.classes is not None:
        return [_labels(loaded, text, top_k) for text in texts]
    if (hiding := loaded.composed.get("masking.hiding")) == "key_padding":
        problem = "it reads the very tokens that it is to predict, and knows no [MASK]"
        raise UserError(f"RUN={run}: was trained with masking.hiding=key_padding: {problem}; give a run with another hiding")
    encoded = [_encode_text(loaded, text) if loaded.tokenizer is not None else _encode_symbols(loaded, text) for text in texts]
    oracle = _oracle(loaded, trust) if loaded.tokenizer is None else None
    answers = []
    for text in encoded:
        with torch.inference_mode():
            input_ids_1L, masks_1K = torch.tensor([text.input_ids]), torch.tensor([text.masks])
            hidden = [torch.zeros_like(input_ids_1L, dtype=torch.bool).scatter(1, masks_1K, True)] if hiding == "both" else []
            logits_1KV = loaded.model(input_ids_1L, torch.ones_like(input_ids_1L), masks_1K, *hidden)
        values_KT, ids_KT = loaded.vocab.best(logits_1KV[0].float().softmax(-1), top_k)
        names = [[text.name(token_id) for token_id in ids] for ids in ids_KT.tolist()]
        filled, answer = text.fill([tokens[0] for tokens in names]), []
        exact_KV = _exact(oracle, input_ids_1L, masks_1K, loaded.vocab.mask_id)
        for place, (position, tokens, probabilities) in enumerate(zip(text.masks, names, values_KT.tolist(), strict=True)):
            pairs = zip(tokens, probabilities, strict=True)
            predictions = [{"token": token, "probability": probability} for token, probability in pairs]
            if exact_KV is not None:
                for prediction, exact in zip(predictions, exact_KV[place][ids_KT[place]].tolist(), strict=True):
                    prediction["oracle"] = exact
            answer.append({"position": position, "predictions": predictions, "text": filled})
        answers.append(answer)
    return answers


def _oracle(loaded: "LoadedRun", trust: bool) -> "Oracle | None":
    """That of the language that the run was trained on."""
    from mlm_lightning.config.parse import parse
    from mlm_lightning.config.paths import resolved
    from mlm_lightning.runs.folder import Run

    try:
        composed = resolved(loaded.composed, Run(loaded.folder).working_directory, [], trust)
        for unused in ("callbacks", "logger", "prepare", "sweep"):
            composed = composed.changed(unused, None)
        return parse(composed, trust).data.instance.oracle()
    except UserError as error:  # a class that is not trusted, a file that is gone: the model predicts all the same
        log.info("no exact probabilities: %s", error)
        return None


def _exact(oracle: "Oracle | None", input_ids_1L: "Tensor", masks_1K: "Tensor", mask_id: int) -> "Tensor | None":
    """The posterior at the masks; None where there is none, or where the language cannot have such a row."""
    from mlm_lightning.data.exact import exactly

    if oracle is None:
        return None
    try:
        with exactly():
            return oracle.posterior(input_ids_1L, input_ids_1L != mask_id)[0, masks_1K[0]]
    except ValueError as error:
        log.info("no exact probabilities: %s", error)
        return None


def _labels(loaded: Any, text: str, top_k: int) -> list[dict[str, Any]]:
    import torch

    if loaded.tokenizer is None:
        input_ids = _symbols(loaded, text, text.split())
    else:  # truncated as rows are
        input_ids = loaded.tokenizer(text, truncation=True, max_length=loaded.seq_len)["input_ids"]
    input_ids_1L = torch.tensor([input_ids])
    with torch.inference_mode():
        best = loaded.model(input_ids_1L, torch.ones_like(input_ids_1L))[0].float().softmax(-1).topk(top_k)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"predictions": [{"label": loaded.classes[i], "probability": p} for i, p in pairs], "text": text}]


def _symbols(loaded: Any, text: str, words: list[str], blank: str = "") -> list[int]:
    """Their ids; [MASK]'s at each `blank`."""
    vocab = loaded.vocab
    for word in words:
        if word != blank and not (word.isdecimal() and int(word) < vocab.size and int(word) not in vocab.special_ids):
            also = ", and _ for [MASK]" if blank else ""
            raise UserError(f"TEXT='{text}': '{word}' is no symbol; give integers from 0 to {vocab.size - 2}{also}")
    if loaded.seq_len is not None and len(words) != loaded.seq_len:
        raise UserError(f"TEXT='{text}': has {len(words)} symbols; a row of this run has {loaded.seq_len}")
    return [vocab.mask_id if word == blank else int(word) for word in words]


@dataclass
class _Encoded:
    """A text as the model reads it, and the way back."""

    input_ids: list[int]
    masks: list[int]
    name: Any
    fill: Any


def _encode_text(loaded: Any, text: str) -> _Encoded:
    tokenizer = loaded.tokenizer
    mask_token = tokenizer.mask_token
    text = text.replace("[MASK]", mask_token)
    if mask_token not in text:
        raise UserError(f"TEXT='{text}': has no [MASK]; write [MASK] where a word is to be predicted")
    input_ids = tokenizer(text)["input_ids"]
    limit = loaded.seq_len or len(input_ids)
    if len(input_ids) > limit:
        raise UserError(f"TEXT has {len(input_ids)} tokens; the model was trained on rows of {limit}: shorten it")
    masks = [position for position, token_id in enumerate(input_ids) if token_id == tokenizer.mask_token_id]

    def fill(words: list[str]) -> str:
        first, *others = text.split(mask_token)
        return first + "".join(word.strip().removeprefix("##") + other for word, other in zip(words, others, strict=True))

    return _Encoded(input_ids, masks, lambda token_id: tokenizer.decode([token_id]), fill)


def _encode_symbols(loaded: Any, text: str) -> _Encoded:
    vocab = loaded.vocab
    words = text.replace("[MASK]", "_").split()
    if "_" not in words:
        raise UserError(f"TEXT='{text}': has no _; write _ where a symbol is to be predicted")
    input_ids = _symbols(loaded, text, words, blank="_")
    masks = [position for position, word in enumerate(words) if word == "_"]

    def fill(names: list[str]) -> str:
        remaining = iter(names)
        return " ".join(next(remaining) if word == "_" else word for word in words)

    return _Encoded(input_ids, masks, vocab.token, fill)
