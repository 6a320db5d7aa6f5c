"""A checked config: frozen, typed, and the only form in which settings travel below this folder.

{"seed": 0, "data": {"_target_": "…TreeSource", "depth": 4, "batch_size": 64}, …}      composed: a plain dict
Settings(seed=0, data=Node("…TreeSource", {"depth": 4}), loader=Loader(batch_size=64), …)      parsed
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval, Lt

from mlm_lightning.config.composed import Composed
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.warmup import LengthSchedule
from mlm_lightning.errors import NO_VALUE, ConfigError, UserError, refuse
from mlm_lightning.masking import MASKINGS, Masking
from mlm_lightning.tasks import MLM, Task
from mlm_lightning.values import Located, check, check_fields, describe, not_one_of

Seed = Annotated[int, Interval(ge=-(2**63), le=2**64 - 1), "64 bits of it count"]


@dataclass(frozen=True)
class Node:
    """A class and its checked arguments: what stands where a config has a `_target_`."""

    target: str
    arguments: dict[str, Any]
    trusted: bool = True

    @cached_property
    def callable(self) -> Any:
        return resolve_target(self.target, self.trusted)

    @cached_property
    def instance(self) -> Any:
        """What the node names, built once a process."""
        return self.build()

    def build(self, **provided: Any) -> Any:
        """Builds it, with those of `provided` that its signature asks for."""
        given = {name: value for name, value in provided.items() if self.takes(name) and name not in self.arguments}
        return self.callable(**self.arguments, **given)

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.callable).parameters

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("target", "arguments", "trusted")}


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The keys of `data` that are the loader's: `batch_size` rows of a micro-batch on one device, cut short at first by a
    `length_schedule` (or the mapping of its arguments)."""

    OWNER: ClassVar = "data"

    batch_size: Annotated[int, Ge(1), "give a number of rows"]
    num_workers: Annotated[int, Ge(0), "0: no worker processes"]
    length_schedule: LengthSchedule | None = None

    def __post_init__(self) -> None:
        if isinstance(self.length_schedule, dict):  # as a config writes it
            object.__setattr__(self, "length_schedule", LengthSchedule(**self.length_schedule))


LOADER_KEYS = frozenset(each.name for each in fields(Loader))
"""Those keys of `data` that are no source's."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The keys of `optim` that are not the optimizer's: what holds for each of them."""

    OWNER: ClassVar = "optim"

    layer_decay: (
        Annotated[float, Interval(gt=0, le=1), "it multiplies the learning rate from layer to layer; null: not"] | None
    ) = None
    z_loss: Annotated[float, Ge(0), Lt(math.inf), "it weighs squared log-normalisers, e.g. 1e-4; 0: without"] = 0.0
    auto_lr: bool = False
    """Whether the optimizer's learning rate is still to be settled, by the length of the run: no key, but `lr: auto`."""


OPTIMIZATION_KEYS = frozenset(each.name for each in fields(Optimization)) - {"auto_lr"}
"""Those keys of `optim` that are no optimizer's."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """`data` has further sources: by a name, the keys that differ from the run's own, or a whole `_target_`. `oracles` names
    such sources whose oracles are asked about the run's own rows."""

    OWNER: ClassVar = "eval"

    seed: Seed
    mask_rates: list[Annotated[float, Interval(gt=0, le=1), "give masking rates, e.g. [0.15, 0.3]"]] | None
    masking: str | None
    data: dict[str, Any] | None = None  # runs of earlier versions have none
    oracles: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        kinds = [] if self.masking in (None, *MASKINGS) else [not_one_of("eval.masking", self.masking, tuple(MASKINGS))]
        further = {"eval.data": self.data or {}, "eval.oracles": self.oracles or {}}
        named = [(f"{group}.{name}", name, keys) for group, each in further.items() for name, keys in each.items()]
        wrong = (_name_errors(key, name) or check(key, keys, dict) for key, name, keys in named)
        refuse([*check("eval.seed", self.seed, Seed), *kinds, *self._alike(), *itertools.chain.from_iterable(wrong)])

    def _alike(self) -> Iterator[ConfigError]:
        """Rates whose metrics would have one name."""
        by_name: dict[str, float] = {}
        for rate in self.mask_rates or ():
            if by_name.setdefault(f"{rate:.2f}", rate) != rate:
                problem = f"{by_name[f'{rate:.2f}']} and {rate} would both be val/loss_rate_{rate:.2f}"
                yield ConfigError("eval.mask_rates", self.mask_rates, problem, "give rates that differ when rounded to 0.01")


def _name_errors(key: str, name: object) -> list[ConfigError]:
    """A name of further data or oracles ends those of metrics: k0 gives val/loss_k0."""
    if not isinstance(name, str):  # a YAML key without quotes
        return [ConfigError(key, NO_VALUE, f"is {describe(type(name))}, not a name; give one such as k{name}")]
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        remedy = "it ends those of metrics (val/loss_k0): use letters, digits, '_', '.' and '-'"
        return [ConfigError(key, NO_VALUE, "is no name", remedy)]
    if re.match(r"(se|rate)(_|$)", name):
        taken = "val/excess_loss_se" if name.startswith("se") else "val/loss_rate_0.30"
        return [ConfigError(key, NO_VALUE, f"other metrics end like that ({taken})", "choose another name")]
    return []


@dataclass(frozen=True, kw_only=True)
class Init:
    """Where weights come from: the checkpoint of another run, `weights` being the digest of its content, and which of them stay
    as they are."""

    OWNER: ClassVar = "init"

    from_run: Annotated[str, Located()] | None = None
    freeze: Literal["encoder"] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "init")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    OWNER: ClassVar = "sweep"

    jobs: Annotated[int, Ge(1)] | Literal["auto"]
    retries: Annotated[int, Ge(0)]
    objective: str
    direction: Literal["minimize", "maximize"]
    trials: Annotated[int, Ge(1)] | None
    prune: bool
    seed: int
    trial: int | None = None
    """The number of this run in a search."""

    def __post_init__(self) -> None:
        check_fields(self, "sweep")


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """A run. `maskings` and `sources` are those of an evaluation, by the names of its conditions: the training's (`""`) first;
    a condition without a source of its own is on that of the training. `with_` changes them."""

    seed: int
    name: str
    output_dir: str
    resume: str
    loader: Loader
    eval: Eval
    data: Node
    sources: dict[tuple[str, ...], Node]
    maskings: dict[tuple[str, ...], Masking]
    oracles: dict[str, Node] = field(default_factory=dict)
    masking: Node
    model: Node
    optim: Node
    schedule: Node
    trainer: TrainerSettings
    optimization: Optimization = Optimization()
    task: Task = field(default_factory=MLM)
    init: Init = field(default_factory=Init)
    prepare: Node | None = None
    sweep: SweepSettings | None = None
    callbacks: dict[str, Node] = field(default_factory=dict)
    logger: dict[str, Node] = field(default_factory=dict)
    composed: Composed
    """What it was parsed from: for config.yaml, the manifest and the run's identity."""
    compose: InitVar[Callable[..., "Settings"] | None] = None
    """What composes them again. `dataclasses.replace` doesn't hand it on."""
    _compose: Callable[..., "Settings"] = field(init=False, repr=False)

    def __post_init__(self, compose: Callable[..., "Settings"] | None) -> None:
        if compose is None:
            problem = "settings can't be replaced by hand: their run would still be the one that they were composed for"
            raise UserError(f'{problem}; compose them again: settings.with_("seed=3")')
        object.__setattr__(self, "_compose", compose)

    def with_(self, *overrides: str) -> "Settings":
        """Those of the same command with further overrides, or others of a key: `settings.with_("seed=3", "optim.lr=1e-3")`.
        Raises UserError as `mlm_lightning.settings` does, and where they were read from a run's folder."""
        if self.composed.overrides is None:
            problem = "settings that were read from a run's folder can't be composed again"
            raise UserError(f'{problem}; give all overrides: mlm_lightning.settings(["seed=3", …])')
        given = {override.lstrip("+").partition("=")[0]: override for override in [*self.composed.typed_overrides, *overrides]}
        return self._compose(list(given.values()), self.composed.config_dir, self.composed.config_name)

    def settled(self, **parts: Any) -> "Settings":
        """The same run, by its identity, with parts that its config left open, or that are only to be tried."""
        return replace(self, **parts, compose=self._compose)

    @property
    def rows_per_step(self) -> int:
        """The rows of an optimizer step, on all ranks."""
        return self.loader.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size()
