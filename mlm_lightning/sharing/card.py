"""The model card: what a model is, what it was trained on and how well it does, what it can't, and how to use it.

It is made from the folder's own manifest and config, which name no place of this machine.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from mlm_lightning.config.compose import read_config
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.settings import LOADER_KEYS, OPTIMIZATION_KEYS
from mlm_lightning.config.signatures import TRUSTED_MODULES, resolve_target
from mlm_lightning.errors import as_typed
from mlm_lightning.models.protocol import Exportable
from mlm_lightning.report.metric import label
from mlm_lightning.runs.load import LoadedRun
from mlm_lightning.sharing.folder import ONNX, is_place
from mlm_lightning.sharing.usage import usage

Manifest = Mapping[str, Any]


def write_card(loaded: LoadedRun, folder: Path, name: str, repo: str | None) -> None:
    """README.md of an exported folder that will be called `name`, and on the hub, if it goes there, `repo`."""
    config = read_config(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    title = (repo or name).rpartition("/")[2]
    front = yaml.safe_dump(_front_matter(loaded, manifest, title), sort_keys=False, allow_unicode=True)
    sections = {
        "How to use it": usage(loaded, name, repo, (folder / ONNX).is_file()),
        "Data": _data(loaded, manifest),
        "Training": _training(config, manifest),
        "Metrics": _metrics(manifest),
        "Limits": _limits(loaded, config, manifest),
        "Versions": _versions(config, manifest),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    whole = yaml.safe_dump(dict(config.config), sort_keys=False, allow_unicode=True)
    details = f"<details><summary>The whole config</summary>\n\n```yaml\n{whole}```\n\n</details>"
    card = f"---\n{front}---\n\n# {title}\n\n{_what_it_is(loaded, manifest)}\n\n{body}\n\n{details}\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _front_matter(loaded: LoadedRun, manifest: Manifest, title: str) -> dict[str, Any]:
    """What the hub reads. The license is the author's to choose."""
    dataset, base = (_hub_name(loaded, key) for key in ("data.dataset", "model.checkpoint"))
    metrics = manifest.get("metrics", {})
    kinds = {"val/loss": "loss", "val/perplexity": "perplexity", "val/accuracy": "accuracy", "val/macro_f1": "f1"}
    found = [{"type": kind, "value": metrics[key], "name": label(key)} for key, kind in kinds.items() if key in metrics]
    class_name = str(loaded.composed.get("data._target_")).rpartition(".")[2]
    about = {"type": dataset or class_name, "name": dataset or class_name, "split": "validation"}
    task = {"type": "fill-mask", "name": "Masked language modelling"}
    if loaded.classes is not None:
        task = {"type": "text-classification", "name": "Labels of rows"}
    front: dict[str, Any] = {
        "library_name": "transformers" if isinstance(loaded.model, Exportable) else "mlm-lightning",
        "pipeline_tag": task["type"],
        "tags": ["masked-language-modeling" if loaded.classes is None else "text-classification", "mlm-lightning"],
    }
    front |= {"datasets": [dataset]} if dataset else {}
    front |= {"base_model": base} if base else {}
    if found:
        front["model-index"] = [{"name": title, "results": [{"task": task, "dataset": about, "metrics": found}]}]
    return front


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _hub_name(loaded: LoadedRun, key: str) -> str | None:
    """A value that the hub knows, and not a folder."""
    value = loaded.composed.get(key)
    is_folder = isinstance(value, str) and (is_place(value) or value.startswith(".") or PurePath(value).name == value)
    return value if isinstance(value, str) and not is_folder and value.count("/") == 1 else None


def _what_it_is(loaded: LoadedRun, manifest: Manifest) -> str:
    model, steps = type(loaded.model), manifest.get("steps")
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    of = f" of {steps:,}" if steps else ""
    own = (
        "" if model.__module__ in TRUSTED_MODULES else f" It is a class of its author's, `{model.__module__}.{model.__name__}`."
    )
    what = "A masked language model: given a row of tokens some of which are hidden, it predicts the hidden ones."
    if loaded.classes is not None:
        what = f"A classifier: given a row of tokens, it predicts its label ({_few(loaded.classes)})."
    return (
        f"{what} It is a "
        f"`{model.__name__}` of {parameters:,} parameters, trained with mlm_lightning; the weights are those after step "
        f"{loaded.step:,}{of}. Nothing in this folder is executed when it is opened.{own}"
    )


def _data(loaded: LoadedRun, manifest: Manifest) -> str:
    data = dict(loaded.composed.get("data"))
    target = str(data.pop("_target_"))
    rows = f"A row has {loaded.seq_len} tokens; the vocabulary has {loaded.vocab.size}, special tokens among them."
    if loaded.tokenizer is not None:
        return f"{_text_source(loaded)} {rows}{_splits(manifest)}"
    words = ""
    if target.rpartition(".")[0] in TRUSTED_MODULES:
        words = " ".join((inspect.getdoc(resolve_target(target)) or "").split("\n\n")[0].split())
    settings = {key: value for key, value in data.items() if key not in LOADER_KEYS}
    return f"`{target.rpartition('.')[2]}`: {words} {rows}\n\n{_table(('setting', 'value'), settings)}"


def _text_source(loaded: LoadedRun) -> str:
    dataset, path = loaded.composed.get("data.dataset"), loaded.composed.get("data.path")
    if hub := _hub_name(loaded, "data.dataset"):
        return f"Text of the dataset [{hub}](https://huggingface.co/datasets/{hub})."
    names = [
        PurePath(each).name for each in ([path] if isinstance(path, str) else path or [dataset] if path or dataset else [])
    ]
    return (
        f"Text of {', '.join(f'`{name}`' for name in names)}." if names else "Text of files that are not part of this folder."
    )


def _splits(manifest: Manifest) -> str:
    columns = ("split", "documents", "tokens", "rows")
    lines = [[str(split[column]) for column in columns] for split in manifest.get("splits") or []]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines])
    digest = f"\n\nFingerprint of the tokens: `{manifest['data']}`." if manifest.get("data") else ""
    return (f"\n\n{table}" if lines else "") + digest


def _training(config: Composed, manifest: Manifest) -> str:
    facts = {"steps": manifest.get("steps"), "tokens": manifest.get("tokens")}
    optim = {key: value for key, value in config.get("optim").items() if key not in OPTIMIZATION_KEYS}
    task = config.get("task") or {}
    what = ("masking", config.get("masking")) if "label" not in task else ("task", task)
    calls = (what, ("optimizer", optim), ("schedule", config.get("schedule")))
    facts |= {name: _call(node) for name, node in calls}
    facts |= {f"optim.{key}": value for key in sorted(OPTIMIZATION_KEYS) if (value := config.get(f"optim.{key}"))}
    settings = {"rows of a micro-batch": "data.batch_size", "accumulated micro-batches": "trainer.accumulate_grad_batches"}
    settings |= {"precision": "trainer.precision", "gradient clipping": "trainer.gradient_clip_val"}
    facts |= {name: config.get(key) for name, key in settings.items()}
    facts |= {f"{key}, as it was settled": value for key, value in manifest.get("settled", {}).items() if "." in key}
    return _table(("what", "value"), {name: value for name, value in facts.items() if value is not None})


def _metrics(manifest: Manifest) -> str:
    metrics = manifest.get("metrics")
    if not metrics:
        return "The run has not measured these very weights: `mlm evaluate` does."
    masks = "On the validation split, with masks that are the same in every run; each predicted token counts alike."
    unit = "token"
    if "val/macro_f1" in metrics:
        masks, unit = "On the validation split; each row counts alike.", "row"
    oracle = ""
    if "val/oracle_loss" in metrics:
        excess, error = metrics["val/excess_loss"], metrics.get("val/excess_loss_se", 0.0)
        oracle = (
            " No model can have a lower expected loss than the oracle, the exact posterior, which has "
            f"{metrics['val/oracle_loss']:.4f} nats a {unit}; this one lies {excess:.4f} above it (standard error {error:.4f})."
        )
    counted = ""
    if "val/unigram_loss" in metrics:
        counted = (
            f" On the same tokens, token frequencies (unigram) have a loss of {metrics['val/unigram_loss']:.4f} nats, and "
            f"counts of pairs of neighbours (bigram) {metrics['val/bigram_loss']:.4f}."
        )
    words = {name: "" if label(name) == name else f", {label(name)}" for name in metrics}
    rows = {f"`{name}`{words[name]}": f"{value:.5g}" for name, value in metrics.items()}
    return f"{masks}{oracle}{counted}\n\n{_table(('metric', 'value'), rows)}"


def _limits(loaded: LoadedRun, config: Composed, manifest: Manifest) -> str:
    rate = config.get("masking.rate")
    limits = [f"Rows have at most {loaded.seq_len} tokens."]
    if loaded.tokenizer is None:
        limits += [
            f"It knows no natural language: its tokens are the symbols 0 to {loaded.vocab.size - 2} of the language above, and "
            "other settings are another language.",
            f"Every row in training had {loaded.seq_len} tokens; shorter ones were never seen.",
        ]
    else:
        limits += [
            "It has learnt what its texts say, with their errors and biases; on text of another kind, or in another language, "
            "expect less than the metrics above.",
        ]
    if loaded.classes is None:
        limits += ["Hidden tokens are predicted independently of each other: two of them need not fit together."]
    if rate is not None and loaded.classes is None:
        limits += [
            f"It was trained with a masking rate of {as_typed(rate)}; how it does at another rate is not known from that."
        ]
    if steps := manifest.get("steps"):
        limits += [f"It was trained for {steps:,} optimizer steps, from one seed; another seed gives other weights."]
    return "\n".join(f"- {limit}" for limit in limits)


def _versions(config: Composed, manifest: Manifest) -> str:
    facts = {"seed": config.get("seed"), "identity of the config": manifest.get("identity"), "Python": manifest.get("python")}
    facts |= dict(manifest.get("packages", {})) | {"threads": manifest.get("threads"), "device": manifest.get("device")}
    return _table(("what", "value"), {name: value for name, value in facts.items() if value is not None})


def _call(node: Mapping[str, Any]) -> str:
    """`AdamW(lr=0.003, weight_decay=0.01)`."""
    arguments = ", ".join(f"{name}={as_typed(value)}" for name, value in node.items() if name != "_target_")
    return f"`{str(node.get('_target_')).rpartition('.')[2]}({arguments})`"


def _table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    lines += [f"| {name} | {value if isinstance(value, str) else _number(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else as_typed(value)
