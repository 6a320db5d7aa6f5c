"""Settings become objects, each built once: sources and the conditions of an evaluation, model, optimizer, callbacks."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mlm_lightning.config.settings import Node, Settings
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.source import LatentOracle, NGrams, Oracle, Source, Split
from mlm_lightning.errors import NO_VALUE, ConfigError, InvalidConfigError, config_errors
from mlm_lightning.masking import MASKINGS, Masking, Single
from mlm_lightning.models.protocol import CanHide, HasEmbeddings
from mlm_lightning.randomness import Stream, seed_torch
from mlm_lightning.tasks import MLM, Classify, Task

ANY_CLASSES: dict[str, Any] = {"num_outputs": 2, "num_classes": 2, "class_names": ["0", "1"]}
"""Of a model that is built to be checked, before the data is known."""

# what a run is evaluated on


def evaluated_sources(data: Node, further: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, ...], Node]:
    """The sources to evaluate on by the names of their conditions, the run's own (`""`) first. Names for equal keys share one
    source, which is evaluated once."""
    nodes = {"": data} | further_sources(data, further)
    alike: dict[str, list[str]] = {}
    for name, node in nodes.items():
        alike.setdefault(json.dumps([node.target, node.arguments], sort_keys=True), []).append(name)
    return {tuple(names): nodes[names[0]] for names in alike.values()}


def further_sources(data: Node, further: Mapping[str, Mapping[str, Any]]) -> dict[str, Node]:
    """By their names. Keys with a `_target_` are whole, any others say what differs from `data`."""
    nodes = {}
    for name, keys in further.items():
        arguments = {key: value for key, value in keys.items() if key != "_target_"}
        shared = {} if "_target_" in keys else data.arguments
        nodes[name] = Node(keys.get("_target_", data.target), shared | arguments, data.trusted)
    return nodes


def eval_data_key(names: Sequence[str]) -> str:
    """`eval.data.k0`."""
    return f"eval.data.{names[0]}"


def eval_maskings(
    training: Masking, kind: str | None, mask_rates: Sequence[float] | None, names: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Masking]:
    """The frozen masking of each condition by its names: first the training's, then further rates, then the training's on the
    further sources, whose names are given."""
    rate = training.rate_at(1.0)
    if kind is None:
        masking = training.frozen()
    elif kind == "single":
        masking = Single(hiding=training.hiding).frozen()
    else:
        masking = MASKINGS[kind](hiding=training.hiding, **({} if rate is None else {"rate": rate})).frozen()
    rates = dict.fromkeys(mask_rates or [])
    plain, *further = names
    if rate in rates:
        plain += (f"rate_{rate:.2f}",)
    maskings: dict[tuple[str, ...], Masking] = {plain: masking}
    maskings |= {(f"rate_{each:.2f}",): masking.frozen(rate=each) for each in rates if each != rate}
    return maskings | dict.fromkeys(further, masking)


@exactly()
def prepare(settings: Settings, evaluated: Split | None = None, trained_on: str | None = None) -> list[Condition]:
    """Prepares the sources, and returns the conditions of an evaluation, that of the training first. `trained_on` is the
    fingerprint of what the model was trained on, where that may be something else.

    Raises ValueError or FileNotFoundError for data that will not do: its documents, vocabularies that differ, or no split
    `evaluated`.
    """
    workers = None if settings.prepare is None else settings.prepare.instance
    train_source: Source = settings.data.instance
    train_source.prepare(workers=workers)
    train_source.check(prepared=True)
    if evaluated is not None:
        train_source.rows(evaluated)
    sources = {}
    for names, node in settings.sources.items():
        if node is settings.data:
            sources[names] = train_source
            continue
        if node.arguments.get("tokenizer") == "train":  # training another one on these documents would give them other tokens
            node = replace(node, arguments=node.arguments | train_source.tokenizer_keys())
        with moved_errors(eval_data_key(names)):
            source = sources[names] = node.instance
            source.prepare(workers=workers)
            if evaluated is not None:
                source.rows(evaluated)
        check_same_rows(eval_data_key(names), source, train_source, prepared=True)
    by_name = {name: source for names, source in sources.items() for name in names}
    oracles = {source: oracle_for(settings.task, source) for source in sources.values()}
    pairs = [(names, masking, by_name.get(names[0], train_source)) for names, masking in settings.maskings.items()]
    counts: dict[Source, NGrams | None] = {}
    if isinstance(settings.task, MLM):
        # text stands beside the counts of what the model is trained on, a language between its own and its optimum
        counts = {source: (train_source if oracles[source] is None else source).ngrams(trained_on) for source in oracles}
    conditions = [Condition(names, masking, source, oracles[source], counts.get(source)) for names, masking, source in pairs]
    asked = {name: oracle_for(settings.task, node.instance) for name, node in settings.oracles.items()}
    further = {name: oracle for name, oracle in asked.items() if oracle is not None}
    return [replace(conditions[0], further_oracles=further), *conditions[1:]]


def oracle_for(task: Task, source: Source) -> Oracle | None:
    """What knows the best possible answer to a task; None where nothing does."""
    oracle = source.oracle()
    if isinstance(task, Classify) and not (task.label and isinstance(oracle, LatentOracle)):
        return None
    return oracle


def check_same_rows(key: str, source: Source, train_source: Source, prepared: bool) -> None:
    """Raises ConfigError where a model of `train_source` can't read a further source, as far as that is known by now."""
    if source.seq_len != train_source.seq_len:
        problem = f"its rows have {source.seq_len} tokens, and those of data {train_source.seq_len}"
        raise ConfigError(key, NO_VALUE, problem, "one model reads both, so evaluate on rows as long as the run's")
    if not prepared and not all(type(each).prepare is Source.prepare for each in (train_source, source)):
        return  # preparing makes the vocabulary
    if not source.vocab.has_tokens_of(train_source.vocab):
        problem = f"its vocabulary is not that of data (data → here: {source.vocab.difference_from(train_source.vocab)})"
        raise ConfigError(key, NO_VALUE, problem, "one model reads both, so evaluate on data of the same vocabulary")


@contextmanager
def moved_errors(key: str) -> Iterator[None]:
    """What a further source refuses names it, instead of the run's own data."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise InvalidConfigError([each.moved("data", key) for each in config_errors(error, key)]) from error


# model and training


def build_model(
    model: Node, seed: int, source: Source, separate_documents: bool = False, task: Task | None = None
) -> nn.Module:
    """The model for a source, initialised as a function of the seed alone."""
    seed_torch(seed, Stream.INITIALISATION)
    task = task or MLM()
    arguments = {"vocab_size": source.vocab.size, "pad_token_id": source.vocab.pad_id} | task.model_arguments(source)
    return model_for(for_task(model, task), source.seq_len, separate_documents, **arguments)


def with_labels(data: Node, task: Classify) -> Node:
    """The data with the column that has its labels; ConfigError where it has no columns."""
    if task.label_column is None:
        return data
    if not data.takes("label_column"):
        raise ConfigError(
            "task.label_column", task.label_column, f"{data.callable.__name__} has no columns", "choose data=text"
        )
    return replace(data, arguments=data.arguments | {"label_column": task.label_column, "class_names": task.classes})


def for_task(model: Node, task: Task) -> Node:
    """The model as a task needs it; ConfigError where it can't be of use."""
    if not isinstance(task, Classify):
        return model
    if not any(map(model.takes, ANY_CLASSES)):
        name, remedy = model.callable.__name__, "choose model=transformer or a model of Hugging Face"
        raise ConfigError("task", "classify", f"{name} predicts tokens alone: its constructor has no num_outputs", remedy)
    given, changed = model.arguments, dict[str, Any]()
    if model.takes("embedding_agg") and given.get("embedding_agg") is None:
        changed["embedding_agg"] = "mean"  # one vector a row
    if model.takes("tie_embeddings"):
        changed["tie_embeddings"] = False  # classes are no tokens
    return replace(model, arguments=given | changed)


def check_hiding(masking: Masking, model: nn.Module) -> None:
    """Raises ConfigError where the model can't be trained with tokens that are hidden like that."""
    key, value, remedy = "masking.hiding", masking.hiding, "set masking.hiding=token"
    if value == "token_detached" and not isinstance(model, HasEmbeddings):
        name = type(model).__name__
        raise ConfigError(key, value, f"the model {name} doesn't say which are its embeddings: get_input_embeddings()", remedy)
    if value in ("key_padding", "both"):
        if not isinstance(model, CanHide):
            raise ConfigError(key, value, f"the model {type(model).__name__} cannot hide positions: check_hiding()", remedy)
        model.check_hiding()


def model_for(model: Node, seq_len: int, separate_documents: bool, **arguments: Any) -> nn.Module:
    """A model that keeps documents apart where rows pack them; ConfigError where it can't."""
    if separate_documents:
        arguments["separate_documents"] = True
        if not model.takes("separate_documents"):
            name, remedy = model.callable.__name__, "choose data.packing=chunk or document, or model=transformer"
            problem = f"the model {name} cannot keep documents apart: its constructor has no separate_documents"
            raise ConfigError("data.packing", "sentence_pack", problem, remedy)
    return model.build(seq_len=seq_len, **arguments)


def build_optimizer(optim: Node, precision: int | str) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Makes the optimizer from parameter groups."""
    arguments = dict(optim.arguments)
    if "lr" in arguments and not 0 < arguments["lr"] < math.inf:
        raise ConfigError("optim.lr", arguments["lr"], "give a learning rate above 0")
    if isinstance(arguments.get("betas"), list):
        arguments["betas"] = tuple(arguments["betas"])
    if "fused" in arguments and str(precision).startswith("16"):
        arguments["fused"] = False  # a fused optimizer would undo the scaling of float16 gradients only after they were clipped
    return partial(optim.callable, **arguments)


def build_each(nodes: Iterable[Node], **provided: Any) -> list[Any]:
    """The callbacks or loggers."""
    return [node.build(**provided) for node in nodes]
