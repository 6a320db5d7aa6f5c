"""A composed config is checked as a whole before anything is made of it: Settings, or everything that is wrong at once.

Composed ─► keys, types, ranges   by the signatures of what is named
         ─► values                constructors check their own: built, without the memory that a model takes
         ─► what goes together    further sources, rows without end, the model for these rows, the conditions
         ─► what takes seconds    only where all is right so far: torch's optimizer, callbacks and loggers by Lightning
         ─► Settings
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from mlm_lightning.config.build import (
    ANY_CLASSES,
    build_optimizer,
    check_hiding,
    check_same_rows,
    eval_data_key,
    eval_maskings,
    evaluated_sources,
    for_task,
    further_sources,
    model_for,
    moved_errors,
    with_labels,
)
from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.feasible import (
    growing_and_compiled,
    nothing_masked,
    too_large_batches,
    too_large_model,
    too_large_training,
    unknown_metrics,
)
from mlm_lightning.config.findings import Findings
from mlm_lightning.config.hints import hinted
from mlm_lightning.config.located import with_weights
from mlm_lightning.config.settings import (
    LOADER_KEYS,
    OPTIMIZATION_KEYS,
    Eval,
    Init,
    Loader,
    Node,
    Optimization,
    Seed,
    Settings,
    SweepSettings,
)
from mlm_lightning.config.signatures import check_node
from mlm_lightning.config.trainer import OWNED_KEYS, TrainerSettings
from mlm_lightning.data.source import Source
from mlm_lightning.errors import NO_VALUE, ConfigError, one_line, refuse
from mlm_lightning.masking import Masking
from mlm_lightning.models.protocol import HasOwnTokens, MayBeAnotherTask, MayClassify
from mlm_lightning.processes import Workers
from mlm_lightning.tasks import MLM, Classify, Task
from mlm_lightning.values import WholeNumberError, check_arguments, expanded, whole

Sources = dict[tuple[str, ...], Node]
Maskings = dict[tuple[str, ...], Masking]


# the keys of a config and their types
_TopLevel = make_dataclass(
    "_TopLevel",
    [
        *[("seed", Seed), ("name", str), ("output_dir", str), ("resume", str)],
        *((group, dict) for group in ("eval", "data", "masking", "model", "optim", "schedule", "trainer")),
        *((group, dict | None, None) for group in ("task", "init", "prepare", "callbacks", "logger", "sweep")),
    ],
    namespace={"OWNER": "the config"},
)


def parse(composed: Composed, trusted: bool = True, announce: Callable[[Settings], object] | None = None) -> Settings:
    """Raises ConfigError, or InvalidConfigError with all that is wrong; builds nothing that costs memory, writes nothing.

    A config that is not `trusted` is one to evaluate: its optimizer, schedule and workers are never built, so never looked at.
    `announce` hears of the settings once they are right as far as that is known without Lightning, whose import takes seconds.
    """
    findings = Findings(trusted)
    composed = findings.attempt("init.from_run", lambda: with_weights(composed)) or composed
    config = composed.config
    findings.errors += check_arguments("", config, _TopLevel)
    for name in ("name", "output_dir", "resume"):
        if isinstance(value := config.get(name, "default"), str) and not value.strip():
            findings.errors.append(ConfigError(name, "", "give it a value, or leave it out"))
    place = Path(str(config.get("name")))
    if ".." in place.parts or place.is_absolute():
        findings.errors.append(
            ConfigError("name", str(place), "leads out of output_dir", "set output_dir to where runs are to lie")
        )
    parts = _parse_parts(findings, config)
    sources, maskings = _check_together(findings, parts, composed.overrides)
    if composed.overrides is not None:  # else it is of a run that was checked before it was trained
        output = expanded(str(config.get("output_dir")))
        if any(each.exists() and not each.is_dir() for each in (output / place, output, *output.parents)):
            findings.errors.append(ConfigError("output_dir", str(output), "there is a file of that name", "give a folder"))
        findings.errors += too_large_training(parts["trainer"], parts["loader"])
        findings.errors += growing_and_compiled(parts["trainer"], parts["loader"])
        if maskings:
            findings.errors += unknown_metrics(parts, sources, maskings)
    if (mended := _with_whole_numbers(composed, findings)) is not None:
        return parse(mended, trusted, announce)
    refuse(hinted(findings.errors, composed))
    if not trusted:  # refused if it is ever built
        parts |= {name: Node(str(composed.get(f"{name}._target_")), {}, trusted=False) for name in ("optim", "schedule")}
    top = {name: config[name] for name in ("seed", "name", "output_dir", "resume")}
    parsed = Settings(**top, **parts, sources=sources, maskings=maskings, composed=composed, compose=settings)
    if announce is not None:
        announce(parsed)
    _check_slowly(findings, parsed)
    if (mended := _with_whole_numbers(composed, findings)) is not None:
        return parse(mended, trusted, announce)
    refuse(hinted(findings.errors, composed))
    return parsed


def _with_whole_numbers(composed: Composed, findings: Findings) -> Composed | None:
    """The config with 10 for 1e1 where that was found to be wrong; None where it wasn't."""
    wrong = [each for each in findings.errors if isinstance(each, WholeNumberError) and composed.get(each.key) == each.value]
    if not wrong:
        return None
    config = OmegaConf.create(dict(composed.config))
    for each in wrong:
        OmegaConf.update(config, each.key, whole(each.value))
    return replace(composed, config=to_plain(config))


def _check_slowly(findings: Findings, settings: Settings) -> None:
    """What torch's optimizer says to its arguments, and what callbacks and loggers are: the first optimizer of a process
    imports torch's compiler, and the others Lightning."""
    if findings.trusted:
        one_parameter = [{"params": [nn.Parameter(torch.zeros(1))]}]
        findings.attempt("optim", lambda: build_optimizer(settings.optim, settings.trainer.precision)(one_parameter))
    for group, base in (("callbacks", "Callback"), ("logger", "Logger")):
        for name in getattr(settings, group):
            findings.node(f"{group}.{name}", settings.composed.config[group][name], base)


def _parse_parts(findings: Findings, config: Mapping[str, Any]) -> dict[str, Any]:
    """Each part on its own: keys, types, ranges, and what its constructor refuses. By the fields of Settings; None where it is
    missing or wrong."""
    loader, data = _split(config.get("data"), LOADER_KEYS)
    parts: dict[str, Any] = {
        "loader": findings.part("data", loader, Loader),
        "data": findings.node("data", data, Source, also=tuple(sorted(LOADER_KEYS))),
        "eval": findings.part("eval", config.get("eval"), Eval),
        "sweep": findings.part("sweep", config.get("sweep"), SweepSettings),
        "init": findings.part("init", config.get("init") or {}, Init),
    }
    owned, trainer = _split(config.get("trainer"), OWNED_KEYS)
    problem = "mlm_lightning sets this itself"
    findings.errors += [ConfigError(f"trainer.{name}", NO_VALUE, problem, OWNED_KEYS[name]) for name in owned or ()]
    parts["trainer"] = findings.part("trainer", trainer, TrainerSettings)
    optimization, optim = _split(config.get("optim", {}), OPTIMIZATION_KEYS)
    parts["optimization"] = findings.part("optim", optimization if findings.trusted else {}, Optimization)
    if optim is not None and optim.get("lr") == "auto" and parts["optimization"] is not None:
        parts["optimization"] = replace(parts["optimization"], auto_lr=True)
        optim = optim | {"lr": 1e-3}  # stands in until it is settled
    nodes = {key: config.get(key, {}) for key in ("masking", "model", "schedule")}
    nodes |= {"optim": optim, "prepare": config.get("prepare")}
    bases = {"masking": Masking, "model": nn.Module, "optim": Optimizer, "schedule": None, "prepare": Workers}
    for key, base in bases.items():
        ignored = not findings.trusted and key in ("optim", "schedule", "prepare")
        also = tuple(sorted(OPTIMIZATION_KEYS)) if key == "optim" else ()
        parts[key] = None if ignored else findings.node(key, nodes[key], base, also)
    for key in ("callbacks", "logger"):
        parts[key] = findings.unimported(key, config.get(key))
    task = findings.node("task", config.get("task") or {"_target_": f"{MLM.__module__}.{MLM.__qualname__}"}, Task)
    parts["task"] = task and findings.attempt("task", lambda: task.instance)
    if isinstance(parts["task"], Classify) and parts["data"]:
        parts["data"] = findings.attempt("task", lambda: with_labels(parts["data"], parts["task"]))
    for key in ("data", "masking", "schedule", "prepare"):
        if (node := parts[key]) is not None and findings.attempt(key, partial(getattr, node, "instance")) is None:
            parts[key] = None
    data, evaluation = parts["data"], parts["eval"]
    parts["oracles"] = further_sources(data, evaluation.oracles or {}) if data and evaluation else {}
    if (optim := parts["optim"]) is not None:
        precision = parts["trainer"].precision if parts["trainer"] else "auto"
        findings.attempt("optim", lambda: build_optimizer(optim, precision))
    return parts


def _split(node: Any, keys: Collection[str]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Those of `keys` that a group has, and its others; None for what is no group."""
    if not isinstance(node, dict):
        return None, None
    return {k: v for k, v in node.items() if k in keys}, {k: v for k, v in node.items() if k not in keys}


def _check_together(findings: Findings, parts: Mapping[str, Any], overrides: Sequence[str] | None) -> tuple[Sources, Maskings]:
    """What must fit each other, as far as it is right itself; returns the sources and the maskings to evaluate on."""
    data, evaluation, trainer, masking, model = (parts[name] for name in ("data", "eval", "trainer", "masking", "model"))
    if data is None:
        return {}, {}
    train_source: Source = data.instance
    before = len(findings.errors)
    findings.attempt("data", train_source.check)
    if len(findings.errors) > before:
        return {}, {}
    sources = evaluated_sources(data, evaluation.data or {}) if evaluation else {}
    for names, node in list(sources.items())[1:]:
        if not _check_further(findings, eval_data_key(names), node, train_source):
            del sources[names]
    for name, node in (parts["oracles"] or {}).items():
        key = f"eval.oracles.{name}"
        if _check_further(findings, key, node, train_source) and type(node.instance).oracle is Source.oracle:
            problem = f"{type(node.instance).__name__} has no oracle"
            findings.errors.append(ConfigError(key, NO_VALUE, problem, "give keys of a language whose optimum is known"))
    if train_source.endless and trainer is not None:
        findings.errors += trainer.endless_errors()
        for name, node in parts["callbacks"].items():
            if (epochs := node.arguments.get("every_n_epochs")) is not None:
                key, problem = f"callbacks.{name}.every_n_epochs", "the training rows have no end, and so no epochs"
                findings.errors.append(ConfigError(key, epochs, problem, f"set {key}=null"))
    if loader := parts["loader"]:
        findings.errors += too_large_batches(loader, [train_source, *(node.instance for node in sources.values())])
    if model is not None:
        built = findings.attempt("model", lambda: _build_on_meta(model, train_source, sources, parts["task"] or MLM()))
        if built is not None and overrides is not None:  # it is to be trained
            findings.errors += too_large_model(model, built)
        if built is not None and masking is not None:
            findings.attempt("masking", lambda: check_hiding(masking.instance, built))
    if isinstance(parts["task"], Classify):
        findings.errors += nothing_masked(parts, overrides or ())
        if type(train_source).prepare is Source.prepare:  # else classes are known once it is prepared
            findings.attempt("task", lambda: parts["task"].class_names(train_source))
    if masking is None or evaluation is None:
        return sources, {}
    kind, rates = evaluation.masking, evaluation.mask_rates
    maskings = findings.attempt("eval", lambda: eval_maskings(masking.instance, kind, rates, list(sources)))
    return sources, maskings or {}


def settings(overrides: Sequence[str] = (), config_dir: str | None = None, config_name: str | None = None) -> Settings:
    """The settings of a command line: `settings(["data.depth=3", "optim.lr=1e-3"])`. `config_dir` has your own configs.

    Raises UserError where they can't be composed, and ConfigError or InvalidConfigError with all that is wrong with them.
    """
    with composer(config_dir, config_name) as hydra:
        return parse(hydra.composed(hydra.plain(overrides)))


def _check_further(findings: Findings, key: str, node: Node, train_source: Source) -> bool:
    """Whether a further source has good keys and values, and the run's model can read it."""
    before, group = len(findings.errors), key.rpartition(".")[0]
    for name in sorted(LOADER_KEYS):
        if name in node.arguments:
            problem = f"is not set in {group}; data.{name} is meant for it too"
            findings.errors.append(ConfigError(f"{key}.{name}", NO_VALUE, problem))

    def build() -> None:
        with moved_errors(key):
            node.instance  # noqa: B018
        check_same_rows(key, node.instance, train_source, prepared=False)

    if len(findings.errors) == before:
        findings.errors += check_node(key, node.arguments | {"_target_": node.target}, Source, node.trusted)
    if len(findings.errors) == before:
        findings.attempt(key, build)
    return len(findings.errors) == before


def _build_on_meta(model: Node, train_source: Source, sources: Sources, task: Task) -> nn.Module:
    """Builds the model without memory, for a vocabulary that nothing is known about yet."""
    packs = any(source.packs_documents for source in [train_source, *(node.instance for node in sources.values())])
    try:
        with torch.device("meta"), _NoRandomNumbers():
            classes = ANY_CLASSES if isinstance(task, Classify) else {}
            built = model_for(for_task(model, task), train_source.seq_len, packs, vocab_size=8, **classes)
    except (RuntimeError, OverflowError) as error:  # sizes beyond 64 bits
        raise ConfigError("model", NO_VALUE, one_line(error)) from error
    if isinstance(task, Classify) and isinstance(built, MayClassify):
        built.check_classifier()
    elif isinstance(task, MLM) and isinstance(built, MayBeAnotherTask):
        built.check_masked_lm()
    if isinstance(built, HasOwnTokens) and type(train_source).prepare is Source.prepare:  # the vocabulary is known
        built.check_tokens(train_source.vocab)
    return built


class _NoRandomNumbers(TorchFunctionMode):
    """On the meta device there is nothing to fill; torch would import its compiler for that, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):  # of a tensor, and of torch.nn.init
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
