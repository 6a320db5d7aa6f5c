"""What the source of a class says of its keys is what the class itself says, and nothing is imported for it."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlm_lightning.config.compose import config_folder
from mlm_lightning.config.unimported import parameters_of

SHIPPED = sorted(
    {
        node["_target_"]
        for file in (*config_folder().glob("callbacks/*.yaml"), *config_folder().glob("logger/*.yaml"))
        for name, node in OmegaConf.to_container(OmegaConf.load(file)).items()  # type: ignore[union-attr]
        if isinstance(node, dict)
    }
)


@pytest.mark.parametrize("target", SHIPPED)
def test_the_source_says_what_the_class_says(target: str) -> None:
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        assert parameters_of(target) is None
    else:
        assert parameters_of(target) == [each.name for each in parameters]


def test_there_are_such_classes_and_most_are_known() -> None:
    assert sum(parameters_of(target) is not None for target in SHIPPED) >= 5


def test_where_the_source_leaves_it_open_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open_ended.py").write_text(
        "raise RuntimeError('imported')\n"
        "class Any:\n    def __init__(self, a, **more): ...\n"
        "class Inherits(Any): ...\n"
        "class Wrapped:\n    @wrap\n    def __init__(self, a): ...\n"
        "@dataclass\nclass Data:\n    a: int\n"
        "class Plain:\n    def __init__(self, a, *, b=1): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("Any", "Inherits", "Wrapped", "Data", "Missing", "Plain")
    assert [parameters_of(f"open_ended.{name}") for name in names] == [None] * 5 + [["a", "b"]]
    assert [parameters_of(target) for target in ("no_such_package.x.Class", "Class", "", "mlm_lightning.x.Class")] == [None] * 4
