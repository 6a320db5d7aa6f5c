"""What a run computes, as eight hex digits: the same command finds the same folder.

    config, number of processes ─► deciding(…)  the part that decides the result  ─► sha256 ─► 1a2b3c4d

Where the run computes is no part of it, but for the number of processes: it divides the rows of a step, and seeds dropout.

Finished runs must be found again by later versions, so three rules hold: a key that a later version adds is left out while it
holds the value that means the old behaviour (LATER_KEYS); a class that has moved is known by its first name; and a test pins
the hashes of three configs.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.config.signatures import MOVED

LATER_KEYS: dict[str, Any] = {
    "callbacks.monitor": None,
    "data.length_schedule": None,
    "trainer.batch_schedule": None,
    "trainer.time_budget": None,
    "trainer.compile": False,
    "masking.hiding": "token",
    "trainer.val_steps": None,
    "eval.oracles": None,
    "task": {"_target_": "mlm_lightning.tasks.MLM"},
    "init": {"from_run": None, "freeze": None},
    "optim.layer_decay": None,
    "optim.z_loss": 0.0,
}
"""Keys that are younger than the first release, with the value that means what was done before them."""
LATER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlm_lightning.models.transformer.TransformerClassifier": {
        "size": None,
        "norm": "layer",
        "norm_eps": 1e-5,
        "embedding_norm": False,
        "bias": True,
        "rope_theta": 10_000.0,
        "local_rope_theta": None,
        "attention_window": None,
        "global_every_n_layers": 3,
        "qk_norm": False,
        "tie_embeddings": False,
        "decoder_norm": False,
        "decoder_bias": True,
    },
}
"""The same for arguments of a class, wherever it stands."""

# They decide where, how fast or how watched a run is, not its result.
_NOT_IDENTITY = frozenset(
    {
        *("name", "resume", "output_dir", "logger", "sweep", "launcher", "hydra"),
        *("prepare", "data.cache_dir", "data.num_workers"),
        "init.from_run",  # init.weights says what is there
        *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.auto_requeue"),
    }
)
_NOT_IN_NAMES = _NOT_IDENTITY - {"trainer.devices", "trainer.num_nodes", "init.from_run"}
# They may differ where one run goes on from another as if it were the same: its length, and the parts of its batches.
_NOT_OF_SIBLINGS = frozenset(
    {"trainer.max_steps", "trainer.max_epochs", "trainer.time_budget", "data.batch_size", "trainer.accumulate_grad_batches"}
)
_ONLY_WATCHES = "mlm_lightning.training.callbacks.monitor.Monitor"
"""A callback that changes no number of a run. By its class: users call theirs what they like."""
_FIRST_NAMES = {now: before for before, now in MOVED.items()}


def deciding(config: Mapping[str, Any], processes: int = 1, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The part of a config that decides the result, and the number of processes where it is not 1."""

    def decides(key: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            is_target = key.rpartition(".")[2] == "_target_"
            return _FIRST_NAMES.get(value, value) if is_target else value
        paths = {name: f"{key}.{name}" if key else name for name in value}
        later = LATER_ARGUMENTS.get(str(value.get("_target_")), {})
        return {
            name: decides(path, value[name])
            for name, path in paths.items()
            if path not in _NOT_IDENTITY | without
            and not (path in LATER_KEYS and value[name] == LATER_KEYS[path])
            and not (name in later and value[name] == later[name])
            and not (isinstance(value[name], Mapping) and value[name].get("_target_") == _ONLY_WATCHES)
        }

    return decides("", config) | ({"processes": processes} if processes != 1 else {})


def identity(config: Mapping[str, Any], processes: int = 1) -> str:
    """Of everything that decides the result."""
    return _hash8(deciding(config, processes))


def sibling_hash(settings: Settings) -> str:
    """What runs share that differ in their length alone, or in how the rows of a step are divided."""
    return _hash8([deciding(settings.composed.config, without=_NOT_OF_SIBLINGS), settings.rows_per_step])


def slug(overrides: Sequence[str], config: Mapping[str, Any]) -> str:
    """A readable name from the overrides that decide the result, in their order, at most 80 characters. A key is shortened to
    its last part where no other key of the config ends so: `rate=0.1` is masking.rate, but data.seed is not the seed."""
    ends = Counter(key.rpartition(".")[2] for key in _keys(config))
    words = []
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        key, value = key.partition("@")[0].replace("/", "."), value.strip("[]{}'\" ")
        if key in _NOT_IN_NAMES or key.partition(".")[0] in _NOT_IN_NAMES or f"{key}.".startswith("callbacks.monitor."):
            continue
        if key == "callbacks":  # one in every run, and one that only watches
            value = "-".join(each for each in re.findall(r"\w+", value) if each not in ("default", "monitor"))
            if not value:
                continue
        if key == "init.from_run":  # which the name of the other run says
            key, value = "from", Path(value).name
        if re.fullmatch(r"-?\d*\.\d{7,}(e[-+]?\d+)?", value):  # drawn from an interval
            value = f"{float(value):.4g}"
        last = key.rpartition(".")[2]
        word = f"{last if ends[last] == 1 else key}{equals}{value}"
        words.append(re.sub(r"[^A-Za-z0-9._=+-]+", "-", word).strip("-"))
    words = list(filter(None, words))
    while len(",".join(words)) > 80 and len(words) > 1:  # half a value would be another value
        words.pop()
    return ",".join(words)[:80].strip("-,.") or "default"


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All keys of a config, those of its groups too. `eval.data` has the keys of `data` over again."""
    for name, value in config.items():
        yield (key := f"{prefix}{name}")
        if isinstance(value, Mapping) and key != "eval.data":
            yield from _keys(value, f"{key}.")


def _hash8(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]
