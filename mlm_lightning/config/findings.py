"""What is wrong with a config, gathered while its parts are made: all of it is told at once."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mlm_lightning.config.settings import Node
from mlm_lightning.config.signatures import check_node, mistyped_keys
from mlm_lightning.errors import ConfigError, UserError, config_errors, mistakes
from mlm_lightning.values import check, check_arguments

T = TypeVar("T")


class Findings:
    """What is wrong so far."""

    def __init__(self, trusted: bool) -> None:
        self.trusted = trusted
        self.errors: list[ConfigError] = []

    def attempt(self, key: str, build: Callable[[], T]) -> T | None:
        """What `build` returns; None where it refuses, which is noted."""
        try:
            with mistakes():
                return build()
        except (UserError, TypeError) as error:
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

    def node(self, key: str, node: Any, base: Any, also: tuple[str, ...] = ()) -> Node | None:
        """A group with a `_target_`."""
        if not isinstance(node, dict):
            return None
        if found := check_node(key, node, base, self.trusted, also):
            self.errors += found
            return None
        return self._made(node)

    def unimported(self, key: str, nodes: Any) -> dict[str, Node]:
        """A group of named nodes, such as callbacks, by what is known of them without Lightning; a null switches one off."""
        every = nodes if isinstance(nodes, dict) else {}
        for name, node in every.items():
            if node is not None:
                remedy = f"choose what there is with {key}=NAME; {key}.{name}=null switches it off"
                wrong = check(f"{key}.{name}", node, dict)
                self.errors += [ConfigError(each.key, each.value, each.problem, remedy) for each in wrong]
        named = {name: node for name, node in every.items() if isinstance(node, dict) and node}
        found = {name: mistyped_keys(f"{key}.{name}", node) for name, node in named.items()}
        self.errors += itertools.chain.from_iterable(found.values())
        return {name: self._made(node) for name, node in named.items() if not found[name]}

    def _made(self, node: Mapping[str, Any]) -> Node:
        return Node(node["_target_"], {name: value for name, value in node.items() if name != "_target_"}, self.trusted)
