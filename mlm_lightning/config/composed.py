"""A config as it was composed, before anything is checked: plain data, which needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Composed:
    """A config as it was composed: `config` in plain dicts and lists, and what it was composed of (`overrides` None: unknown,
    for it was read from a run's folder)."""

    config: Mapping[str, Any]
    overrides: tuple[str, ...] | None = None
    config_dir: str | None = None
    config_name: str | None = None

    @property
    def typed_overrides(self) -> list[str]:
        """The overrides of a command that makes this run by itself: as typed, without its number in a search."""
        plain = (override.removeprefix("++") for override in self.overrides or ())
        return [override for override in plain if override.partition("=")[0] != "sweep.trial"]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key such as `data.chunk_size`."""
        node: Any = self.config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return default
            node = node[name]
        return node

    def changed(self, group: str, values: Mapping[str, Any] | None) -> "Composed":
        """With other values of those keys of a group that it has; None switches the group off."""
        there = self.config.get(group)
        if values is not None and isinstance(there, Mapping):
            values = {**there, **{key: value for key, value in values.items() if key in there}}
        return Composed({**self.config, group: values})
