"""What README and docs tell a user to type and to write, page by page, in its order:

```sh                   commands: those that begin with `mlm`, each joined over its lines
```python title="…"     a file to write
```python               to run, in one namespace a page
```text                 to read: what needs a cluster, the hub or a browser
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = {path.name: path for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]}

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# of a real size it would take minutes; a command's own keys win, but for the steps of a real training
_TOY = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=4")
_REAL_STEPS = re.compile(r"trainer\.(max_steps|val_check_interval)=\d{3,}")
# each value of a sweep is a run
_SEEDS = re.compile(r"^(seed=\d+,\d+),.*")
_FEWER_RUNS = {"sweep=hiding": "seed=0", "sweep=learned_levels": "data.filter_level=0,4"}


@dataclass(frozen=True)
class Block:
    language: str
    file: str | None
    content: str


def blocks(page: str) -> list[Block]:
    found = _FENCE.findall(PAGES[page].read_text(encoding="utf-8"))
    return [Block(language, file or None, content) for language, file, content in found]


def commands(block: Block) -> Iterator[list[str]]:
    """The words after `mlm`, of each command of a block."""
    for line in block.content.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mlm"]:
            yield words[1:]


def is_for_any_shell(command: str) -> bool:
    """Whether its brackets, braces and globs are quoted: zsh refuses a pattern that matches no file."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command.partition(" #")[0])
    return not re.search(r"[\[\]{}*?]|(^|\s)[=~]", bare)


def follow(page: str, folder: Path, run: Callable[[list[str]], None], stand_ins: dict[str, str]) -> None:
    """Does in `folder` what a page says: writes its files, and hands its commands to `run`, toy-sized, with the newest run in
    place of RUN, and `stand_ins` for what comes from the hub."""
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.content)
        elif block.language == "sh":
            for words in commands(block):
                run(_in_toy_size([_replaced(word, folder, stand_ins) for word in words], stand_ins))


def _replaced(word: str, folder: Path, stand_ins: dict[str, str]) -> str:
    if word == "RUN":
        return str(
            max(folder.glob("outputs/*/*/summary.json"), key=lambda path: path.stat().st_mtime).parent.relative_to(folder)
        )
    if word.endswith(("=RUN", ",RUN")):
        return f"{word.removesuffix('RUN')}{_replaced('RUN', folder, stand_ins)}"
    for name, stand_in in stand_ins.items():
        word = word.replace(name, stand_in)
    return word


def _in_toy_size(words: list[str], stand_ins: dict[str, str]) -> list[str]:
    if words[0] == "analyse" and "--rows" not in words:
        return [*words, "--rows", "16"]
    if words[0] not in ("train", "prepare"):
        return words
    words = [_SEEDS.sub(r"\1", word) for word in words if not _REAL_STEPS.fullmatch(word)]
    given = {word.partition("=")[0] for word in words}
    toy = [each for each in _TOY if each.partition("=")[0] not in given]
    toy += [fewer for sweep, fewer in _FEWER_RUNS.items() if sweep in words]
    if any(word.startswith("experiment=tree_") for word in words):
        toy += ["model.num_layers=1", "model.d_model=16"]
    measured = {"experiment=text_scratch", "experiment=tree_paper"} & set(words)
    if measured and "trainer.time_budget" not in given:  # whose measurement alone would take a while
        toy.append("trainer.time_budget=0.01")
    if "experiment=text_adapt" in words:
        toy.append("trainer.max_epochs=null")
    if "experiment=xsum_distilbert" in words:
        weights = stand_ins["distilbert/distilbert-base-uncased"]
        toy += [f"data.dataset={stand_ins['EdinburghNLP/xsum']}", f"data.tokenizer={weights}", f"model.checkpoint={weights}"]
        toy += ["data.train_size=null", "data.val_size=null", "trainer.max_epochs=null"]
    return [*words, *toy]
