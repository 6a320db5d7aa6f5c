"""A dataset of the user's own: `vocab` and `seq_len` come in whichever way a class has them, and a missing one is named."""

from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from helpers import problems, timeless, train

from mlm_lightning.errors import UserError

HEAD = """
import torch
from mlm_lightning.batch import Vocab
from mlm_lightning.data.source import Source

class Alternating:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return 64

    def __getitem__(self, index_B):
        return (index_B[:, None] + torch.arange(self.length)) % 2

class Mine(Source):
    vocab: Vocab
    seq_len: int

    def rows(self, split):
        return Alternating(self.seq_len)
"""
WAYS = {
    "attributes": """
    def __init__(self, seq_len: int = 8):
        self.seq_len, self.vocab = seq_len, Vocab(size=3, mask_id=2)
""",
    "attributes of the class": """
    vocab, seq_len = Vocab(size=3, mask_id=2), 8
""",
    "properties": """
    @property
    def vocab(self):
        return Vocab(size=3, mask_id=2)

    @property
    def seq_len(self):
        return 8
""",
    "a vocabulary that prepare makes": """
    seq_len = 8

    def prepare(self, workers=None):
        self.vocab = Vocab(size=3, mask_id=2)
""",
}


@pytest.fixture
def of_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy config on the rows of a class whose body ends like this; each in a module of its own."""

    def config(body: str, name: str = "mine") -> dict[str, Any]:
        (tmp_path / f"{name}.py").write_text(HEAD + body)
        made = composed(f"output_dir={tmp_path / 'outputs'}")
        made["data"] = {"_target_": f"{name}.Mine", "batch_size": 16, "num_workers": 0}
        return made

    monkeypatch.syspath_prepend(tmp_path)
    return config


def test_every_way_to_have_them_is_the_same_dataset(of_class):
    summaries = [timeless(train(of_class(body, f"own_source_{number}"))) for number, body in enumerate(WAYS.values())]
    assert summaries[0]["steps"] == 8
    assert all(summary == summaries[0] for summary in summaries)


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        (
            "no_seq_len",
            "    vocab = Vocab(size=3, mask_id=2)",
            "has no seq_len; set it in __init__: the number of tokens of a row",
        ),
        ("no_vocab", "    seq_len = 8", "has no vocab; set it in __init__: such as self.vocab = Vocab(size=5, mask_id=4)"),
        ("text_seq_len", "    vocab, seq_len = Vocab(size=3, mask_id=2), '8'", "has no whole number as its seq_len; set it"),
        ("a_number_as_vocab", "    vocab, seq_len = 3, 8", "has no Vocab as its vocab; set it in __init__: such as self.vocab"),
    ],
)
def test_what_a_class_forgets_is_named(of_class, name, body, problem):
    [found] = problems(of_class(body, name))
    assert found.startswith(f"data._target_={name}.Mine: {problem}")


def test_a_vocabulary_that_prepare_forgets_is_named_before_there_is_a_folder(of_class, tmp_path):
    config = of_class("    seq_len = 8\n\n    def prepare(self, workers=None): ...", "forgetful")
    assert problems(config) == []
    with pytest.raises(UserError, match=r"^data\._target_=forgetful\.Mine: has no vocab"):
        train(config)
    assert not (tmp_path / "outputs").exists()


def test_a_class_without_rows_is_named(of_class):
    [found] = problems(of_class("    seq_len = 8\n\nclass Mine(Source): ...", "rowless"))
    assert found.startswith("data: ")
    assert "Mine" in found
    assert "abstract method rows" in found.replace("'", "")
