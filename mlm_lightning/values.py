"""Whether values have the types and the ranges that a signature asks for.

    depth: Annotated[int, Interval(ge=1, le=16), "a row has 2^depth tokens"]

    depth=three    data.depth='three': should be a whole number; a row has 2^depth tokens
    depth=40       data.depth=40: must be from 1 to 16; a row has 2^depth tokens

Bounds are those of `annotated_types` (Ge, Gt, Le, Lt, Interval); a text beside them says what to give. The same check serves a
config, whose keys are a constructor's parameters, and the constructor itself when Python calls it (`checked`).
"""

import difflib
import functools
import inspect
import json
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from mlm_lightning.errors import NO_VALUE, ConfigError, refuse


@dataclass(frozen=True)
class Located:
    """Beside a type: the value is a path or a glob, or several. With `or_name` it may be the name of something else (on the
    hub), unless it leads somewhere; `word` is no path in any case."""

    or_name: bool = False
    word: str | None = None


def expanded(path: str | Path) -> Path:
    """A path as it is opened, with `~` for the home folder. A config keeps what was typed."""
    found = Path(os.path.expanduser(path))
    return found.absolute() if str(found).startswith("~") else found  # "./~", which Path shortens to "~"


def expanded_name(name: str) -> str:
    """The same for what may be a name on the hub: that it is, unless it leads somewhere."""
    found = expanded(name)
    return str(found) if found.exists() else name


_BOUNDS = {Ge: (operator.ge, "at least"), Gt: (operator.gt, "above"), Le: (operator.le, "at most"), Lt: (operator.lt, "below")}

Init = TypeVar("Init", bound=Callable[..., None])


def checked(group: str) -> Callable[[Init], Init]:
    """Makes a constructor check its arguments against its signature, as those of a config's `group`: ConfigError."""

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)

        @functools.wraps(init)
        def checking(self: Any, *args: Any, **kwargs: Any) -> None:
            _refuse_wrong(group, signature.bind(self, *args, **kwargs).arguments, init)
            init(self, *args, **kwargs)

        return typing.cast(Init, checking)

    return decorate


def check_fields(settings: Any, group: str) -> None:
    """The same for a dataclass, from its `__post_init__`."""
    _refuse_wrong(group, {field.name: getattr(settings, field.name) for field in fields(settings)}, type(settings))


def _refuse_wrong(group: str, values: Mapping[str, Any], target: Any) -> None:
    hints = _hints(target)
    refuse(error for name, value in values.items() if name in hints for error in check(f"{group}.{name}", value, hints[name]))


def check(key: str, value: Any, hint: Any) -> list[ConfigError]:
    """What is wrong with a value."""
    if isinstance(value, str) and value == "???":
        return [ConfigError(key, NO_VALUE, "no value given", f"add {key}=VALUE to the command")]
    if isinstance(value, dict) and (node := next(filter(is_dataclass, _members(hint)), None)):
        return check_arguments(key, value, node)
    if not matches(value, hint):
        kind = WholeNumberError if matches(whole(value), hint) else ConfigError
        typed, remedy = (repr(value) if isinstance(value, str) else value), _remedy(hint)
        with suppress(ValueError):
            if isinstance(value, str) and matches(json.loads(value), hint):
                unquoted = "leave out its quotes; a variable of the environment is '${oc.decode:${oc.env:NAME}}'"
                remedy = f"{remedy}; {unquoted}" if remedy else unquoted
        return [kind(key, typed, f"should be {describe(hint)}", remedy)]
    return list(_outside(key, value, hint, value))


def check_arguments(
    key: str, arguments: Mapping[str, Any], target: Any, provided: Collection[str] = (), also: Collection[str] = ()
) -> list[ConfigError]:
    """Unknown, missing and wrong arguments of a callable. `provided` are those that the framework passes itself, `also` keys of
    the same group that are somebody else's."""
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    owner = getattr(target, "OWNER", target.__name__)
    prefix = f"{key}." if key else ""
    found: list[ConfigError] = []
    for name, value in arguments.items():
        if name not in named and not takes_any:
            found.append(UnknownKeyError(f"{prefix}{name}", owner, [*sorted(named - set(provided)), *also]))
        else:
            found += check(f"{prefix}{name}", value, hints.get(name, Any))
    for name in sorted(named - set(arguments) - set(provided)):
        if parameters[name].default is inspect.Parameter.empty:
            remedy = f"{owner} needs it" if owner == target.__name__ else ""
            found.append(ConfigError(f"{prefix}{name}", NO_VALUE, "no value given", remedy))
    return found


class WholeNumberError(ConfigError):
    """A whole number written as a float (1e3), where its type asks for an int; in a config it counts as one."""


def whole(value: Any) -> Any:
    """A value; an int where it is a float that is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class UnknownKeyError(ConfigError):
    """A key that its owner doesn't have; `names` are those that it has, `elsewhere` keys of others that may be meant."""

    def __init__(self, key: str, owner: str, names: Sequence[str], elsewhere: Sequence[str] = ()) -> None:
        self.owner, self.names = owner, tuple(names)
        hint = suggestion(key.rpartition(".")[2], names)
        if elsewhere:
            hint = f"; did you mean {' or '.join(map(repr, elsewhere))}?"
        elif hint == "." and names:
            hint = f". There are: {', '.join(names)}"
        super().__init__(key, NO_VALUE, f"unknown key of {owner}{hint}")


def not_one_of(key: str, value: object, options: Sequence[object]) -> ConfigError:
    names = list(dict.fromkeys(map(str, options)))
    return ConfigError(key, value, f"unknown{suggestion(str(value), names)} There are: {', '.join(names)}")


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean 'candidate'?`, or a full stop."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value of a config has the type that a signature asks for; its range is another matter."""
    return _type(hint)[1](value)


def describe(hint: Any) -> str:
    """A type in words."""
    return _type(hint)[0]


_GROUP = "a group of keys"
_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str | Path)),
    Path: ("a path", lambda value: isinstance(value, str | Path)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    **dict.fromkeys((None, type(None)), ("null", lambda value: value is None)),
}


def _type(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """A type in words, and its test of a plain value."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        members = [_type(each) for each in arguments if not _is_tensor(each)]
        return " or ".join(dict.fromkeys(words for words, _ in members)), lambda value: any(test(value) for _, test in members)
    if origin is Literal:
        return " or ".join(map(str, arguments)), lambda value: value in arguments
    if hint in _TYPES:
        return _TYPES[hint]
    if is_dataclass(hint):
        kinds = dict | typing.cast(type, hint)
        return f"{_GROUP} ({', '.join(field.name for field in fields(hint))})", lambda value: isinstance(value, kinds)
    container = origin or hint
    if isinstance(container, type) and issubclass(container, dict | typing.Mapping):
        return _GROUP, lambda value: isinstance(value, dict)
    if isinstance(container, type) and issubclass(container, Sequence):
        if origin is tuple and Ellipsis not in arguments:  # tuple[float, float]
            words = f"a list of {len(arguments)} values"
            return words, lambda value: _is_list(value) and len(value) == len(arguments) and all(map(matches, value, arguments))
        element = arguments[0] if arguments else Any
        return "a list", lambda value: _is_list(value) and all(matches(each, element) for each in value)
    return getattr(hint, "__name__", str(hint)), lambda value: not _is_tensor(hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_tensor(hint: Any) -> bool:
    """torch's optimizers take `float | Tensor`; a config holds none."""
    return getattr(hint, "__module__", None) == "torch" and hint.__name__ == "Tensor"


def located(target: Any) -> dict[str, Located]:
    """Those parameters of a callable that are paths: by `Located` beside their type, or by the type `pathlib.Path`."""
    found = {name: _located(hint) for name, hint in _hints(target).items()}
    return {name: each for name, each in found.items() if each is not None}


def _located(hint: Any) -> Located | None:
    if hint is Path:
        return Located()
    beside = (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Located))
    return next(beside, None) or next(filter(None, map(_located, get_args(hint))), None)


def _outside(key: str, value: Any, hint: Any, whole: Any) -> Iterator[ConfigError]:
    """A value, or an element of it, that has the right type and lies outside of its range."""
    member = next((each for each in _members(hint) if matches(value, each)), hint)
    inner = member
    if get_origin(member) is typing.Annotated:
        inner, *metadata = get_args(member)
        bounds: list[Any] = [bound for each in metadata for bound in (each if isinstance(each, GroupedMetadata) else [each])]
        limits = {type(each): getattr(each, type(each).__match_args__[0]) for each in bounds if type(each) in _BOUNDS}
        if not all(_BOUNDS[kind][0](value, limit) for kind, limit in limits.items()):  # a comparison with nan does not hold
            must_be = " and ".join(f"{_BOUNDS[kind][1]} {limit:g}" for kind, limit in limits.items())
            if set(limits) == {Ge, Le}:
                must_be = f"from {limits[Ge]:g} to {limits[Le]:g}"
            is_element = value is not whole  # of a list
            problem = f"{value} must be {must_be}" if is_element else f"must be {must_be}"
            yield ConfigError(key, NO_VALUE if is_element else value, problem, _remedy(member))
    if _is_list(value) and (elements := get_args(inner)):
        for each in value:
            yield from _outside(key, each, elements[0], whole)


def _remedy(hint: Any) -> str:
    """The text beside a type, or beside a member of a union."""
    metadata = (each for member in _members(hint) for each in getattr(member, "__metadata__", ()))
    return next((each for each in metadata if isinstance(each, str)), "")


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) and "__init__" in vars(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}
