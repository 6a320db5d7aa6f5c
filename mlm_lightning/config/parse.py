"""A composed config is checked as a whole before anything is made of it: Settings, or everything that is wrong at once.

Composed ─► keys, types, ranges   by the signatures of what is named
         ─► values                constructors check their own: built, without the memory that a model takes
         ─► what goes together    further sources, rows without end, the model for these rows, the conditions
         ─► Settings
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from mlm_lightning.config.build import (
    MASKINGS,
    build_optimizer,
    check_same_rows,
    eval_data_key,
    eval_maskings,
    evaluated_sources,
    model_for,
    moved_errors,
)
from mlm_lightning.config.compose import composer
from mlm_lightning.config.settings import Composed, Eval, Loader, Node, Settings, SweepSettings
from mlm_lightning.config.signatures import check_node
from mlm_lightning.config.trainer import OWNED_KEYS, TrainerSettings
from mlm_lightning.data.source import Source
from mlm_lightning.errors import NO_VALUE, ConfigError, config_errors, refuse
from mlm_lightning.masking import Masking
from mlm_lightning.models.protocol import MayBeAnotherTask
from mlm_lightning.processes import Workers
from mlm_lightning.values import check, check_arguments, describe, not_one_of

T = TypeVar("T")
Sources = dict[tuple[str, ...], Node]
Maskings = dict[tuple[str, ...], Masking]

_LOADER_KEYS = tuple(each.name for each in fields(Loader))


# the keys of a config and their types
_TopLevel = make_dataclass(
    "_TopLevel",
    [
        *[("seed", int), ("name", str), ("output_dir", str), ("resume", str)],
        *((group, dict) for group in ("eval", "data", "masking", "model", "optim", "schedule", "trainer")),
        *((group, dict | None, None) for group in ("prepare", "callbacks", "logger", "sweep")),
    ],
    namespace={"OWNER": "the config"},
)


class _Findings:
    """What is wrong so far."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    def attempt(self, key: str, build: Callable[[], T]) -> T | None:
        """What `build` returns; None where it refuses, which is noted."""
        try:
            return build()
        except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
            self.errors += config_errors(error, key)
            return None

    def part(self, key: str, node: Any, kind: type[T]) -> T | None:
        """One of our own groups of keys."""
        if not isinstance(node, dict):
            return None
        if found := check_arguments(key, node, kind):
            self.errors += found
            return None
        return self.attempt(key, lambda: kind(**node))

    def node(self, key: str, node: Any, base: Any, trusted: bool, also: tuple[str, ...] = ()) -> Node | None:
        """A group with a `_target_`."""
        if not isinstance(node, dict):
            return None
        if found := check_node(key, node, base, trusted, also):
            self.errors += found
            return None
        return Node(node["_target_"], {name: value for name, value in node.items() if name != "_target_"}, trusted)

    def nodes(self, key: str, nodes: Any, base: str, trusted: bool) -> dict[str, Node]:
        """A group of named nodes, such as callbacks; a null switches one off."""
        named = nodes if isinstance(nodes, dict) else {}
        found = {name: self.node(f"{key}.{name}", node, base, trusted) for name, node in named.items() if node}
        return {name: node for name, node in found.items() if node is not None}


@dataclass
class _Parts:
    """What has been parsed so far; None where it is missing or wrong."""

    loader: Loader | None = None
    eval: Eval | None = None
    sweep: SweepSettings | None = None
    trainer: TrainerSettings | None = None
    data: Node | None = None
    masking: Node | None = None
    model: Node | None = None
    optim: Node | None = None
    schedule: Node | None = None
    prepare: Node | None = None
    callbacks: dict[str, Node] = field(default_factory=dict)
    logger: dict[str, Node] = field(default_factory=dict)


def parse(composed: Composed, trusted: bool = True) -> Settings:
    """Raises ConfigError, or InvalidConfigError with all that is wrong; builds nothing that costs memory, writes nothing.

    A config that is not `trusted` is one to evaluate: its optimizer, schedule and workers are never built, so never looked at.
    """
    config, findings = composed.config, _Findings()
    findings.errors += check_arguments("", config, _TopLevel)
    for name in ("name", "output_dir", "resume"):
        if isinstance(value := config.get(name, "default"), str) and not value.strip():
            findings.errors.append(ConfigError(name, "", "give it a value, or leave it out"))
    parts = _parse_parts(findings, config, trusted)
    sources, maskings = _check_together(findings, parts)
    refuse(findings.errors)
    for name in ("optim", "schedule"):
        if not trusted:  # refused if it is ever built
            setattr(parts, name, Node(str(composed.get(f"{name}._target_")), {}, trusted=False))
    top = {name: config[name] for name in ("seed", "name", "output_dir", "resume")}
    return Settings(**top, **vars(parts), sources=sources, maskings=maskings, composed=composed)


def _parse_parts(findings: _Findings, config: Mapping[str, Any], trusted: bool) -> _Parts:
    """Each part on its own: keys, types, ranges, and what its constructor refuses."""
    parts, data = _Parts(), config.get("data")
    if isinstance(data, dict):
        parts.loader = findings.part("data", {k: v for k, v in data.items() if k in _LOADER_KEYS}, Loader)
        arguments = {name: value for name, value in data.items() if name not in _LOADER_KEYS}
        parts.data = findings.node("data", arguments, Source, trusted, also=_LOADER_KEYS)
    evaluation = findings.part("eval", config.get("eval"), Eval)
    if evaluation is not None:
        wrong = _eval_errors(evaluation)
        findings.errors += wrong
        parts.eval = None if wrong else evaluation
    parts.sweep = findings.part("sweep", config.get("sweep"), SweepSettings)
    parts.trainer = _parse_trainer(findings, config.get("trainer"))
    parts.masking = findings.node("masking", config.get("masking", {}), Masking, trusted)
    parts.model = findings.node("model", config.get("model", {}), nn.Module, trusted)
    if trusted:
        parts.optim = findings.node("optim", config.get("optim", {}), Optimizer, trusted)
        parts.schedule = findings.node("schedule", config.get("schedule", {}), None, trusted)
        parts.prepare = findings.node("prepare", config.get("prepare"), Workers, trusted)
    parts.callbacks = findings.nodes("callbacks", config.get("callbacks"), "Callback", trusted)
    parts.logger = findings.nodes("logger", config.get("logger"), "Logger", trusted)
    for key in ("data", "masking", "schedule", "prepare"):
        if (node := getattr(parts, key)) is not None and findings.attempt(key, partial(getattr, node, "instance")) is None:
            setattr(parts, key, None)
    if (optim := parts.optim) is not None:
        precision = parts.trainer.precision if parts.trainer else "auto"
        one_parameter = [{"params": [nn.Parameter(torch.zeros(1))]}]
        findings.attempt("optim", lambda: build_optimizer(optim, precision)(one_parameter))
    return parts


def _check_together(findings: _Findings, parts: _Parts) -> tuple[Sources, Maskings]:
    """What must fit each other, as far as it is right itself; returns the sources and the maskings to evaluate on."""
    sources: Sources = {}
    maskings: Maskings | None = None
    if parts.data is None:
        return sources, {}
    train_source: Source = parts.data.instance
    if parts.eval is not None:
        sources = evaluated_sources(parts.data, parts.eval.data or {})
        for names, node in list(sources.items())[1:]:
            if not _check_further(findings, names, node, train_source):
                del sources[names]
    if train_source.endless and parts.trainer is not None:
        findings.errors += _endless_errors(parts.trainer, parts.callbacks)
    if (model := parts.model) is not None:
        findings.attempt("model", lambda: _build_on_meta(model, train_source, sources))
    if (masking := parts.masking) is not None and (evaluation := parts.eval) is not None:
        kind, rates = evaluation.masking, evaluation.mask_rates
        maskings = findings.attempt("eval", lambda: eval_maskings(masking.instance, kind, rates, list(sources)))
    return sources, maskings or {}


def settings(overrides: Sequence[str] = (), config_dir: str | None = None, config_name: str | None = None) -> Settings:
    """The settings of a command line: `settings(["data.depth=3", "optim.lr=1e-3"])`. `config_dir` has your own configs."""
    with composer(config_dir, config_name) as hydra:
        return parse(hydra.composed(hydra.plain(overrides)))


def _parse_trainer(findings: _Findings, node: Any) -> TrainerSettings | None:
    if not isinstance(node, dict):
        return None
    problem = "mlm_lightning sets this itself"
    findings.errors += [ConfigError(f"trainer.{k}", NO_VALUE, problem, OWNED_KEYS[k]) for k in node if k in OWNED_KEYS]
    return findings.part("trainer", {k: v for k, v in node.items() if k not in OWNED_KEYS}, TrainerSettings)


def _eval_errors(evaluation: Eval) -> list[ConfigError]:
    found = []
    if evaluation.masking is not None and evaluation.masking not in MASKINGS:
        found.append(not_one_of("eval.masking", evaluation.masking, tuple(MASKINGS)))
    for name, keys in (evaluation.data or {}).items():
        found += _eval_name_errors(name) or check(f"eval.data.{name}", keys, dict)
    return found


def _eval_name_errors(name: object) -> list[ConfigError]:
    """A name ends those of metrics: k0 gives val/loss_k0."""
    key = f"eval.data.{name}"
    if not isinstance(name, str):  # a YAML key without quotes
        return [ConfigError(key, NO_VALUE, f"is {describe(type(name))}, not a name; give one such as k{name}")]
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        remedy = "it ends those of metrics (val/loss_k0): use letters, digits, '_', '.' and '-'"
        return [ConfigError(key, NO_VALUE, "is no name", remedy)]
    if re.match(r"(se|rate)(_|$)", name):
        taken = "val/excess_loss_se" if name.startswith("se") else "val/loss_rate_0.30"
        return [ConfigError(key, NO_VALUE, f"other metrics end like that ({taken})", "choose another name")]
    return []


def _check_further(findings: _Findings, names: tuple[str, ...], node: Node, train_source: Source) -> bool:
    """Whether a further source has good keys and values, and the run's model can read it."""
    key, before = eval_data_key(names), len(findings.errors)
    for name in _LOADER_KEYS:
        if name in node.arguments:
            problem = f"is not set in eval.data; data.{name} is meant for it too"
            findings.errors.append(ConfigError(f"{key}.{name}", NO_VALUE, problem))
    if len(findings.errors) == before:
        findings.errors += check_node(key, node.arguments | {"_target_": node.target}, Source, node.trusted)
    if len(findings.errors) == before:

        def build() -> None:
            with moved_errors(names):
                node.instance  # noqa: B018
            check_same_rows(names, node.instance, train_source, prepared=False)

        findings.attempt(key, build)
    return len(findings.errors) == before


def _endless_errors(trainer: TrainerSettings, callbacks: dict[str, Node]) -> list[ConfigError]:
    """What asks for epochs, where there are none."""
    found = trainer.endless_errors()
    for name, node in callbacks.items():
        if (epochs := node.arguments.get("every_n_epochs")) is not None:
            key = f"callbacks.{name}.every_n_epochs"
            found.append(ConfigError(key, epochs, "the training rows have no end, and so no epochs", f"set {key}=null"))
    return found


def _build_on_meta(model: Node, train_source: Source, sources: Sources) -> None:
    """Builds the model without memory, for a vocabulary that nothing is known about yet."""
    packs = any(source.packs_documents for source in [train_source, *(node.instance for node in sources.values())])
    with torch.device("meta"):
        built = model_for(model, train_source.seq_len, packs, vocab_size=8)
    if isinstance(built, MayBeAnotherTask):
        built.check_masked_lm()
