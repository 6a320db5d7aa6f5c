"""README and docs: what they tell a user to type works, and the pages can be built without a network."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from documented import PAGES, REPOSITORY, blocks, commands, follow, is_for_any_shell

from mlm_lightning.__main__ import COMMANDS, main
from mlm_lightning.analysis import probe
from mlm_lightning.report import style


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By their names on the hub: a tiny checkpoint with its tokenizer, and a dataset of documents."""
    return make_stand_ins(tmp_path_factory.mktemp("hub"))


def make_stand_ins(folder: Path) -> dict[str, str]:
    from transformers import BertTokenizerFast, DistilBertConfig, DistilBertForMaskedLM

    words = sorted({word for line in TEXT for word in line.split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    weights, dataset = folder / "distilbert", folder / "xsum"
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=128)
    tokenizer.save_pretrained(weights)
    shape = {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 128}
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=len(tokens), **shape)).save_pretrained(weights)
    dataset.mkdir()
    for split in ("train", "validation", "test"):
        lines = (json.dumps({"document": " ".join(TEXT), "summary": "one", "id": str(number)}) for number in range(40))
        (dataset / f"{split}.jsonl").write_text("\n".join(lines))
    return {"distilbert/distilbert-base-uncased": str(weights), "EdinburghNLP/xsum": str(dataset)}


TEXT = [
    f"the {noun} of the united states is {number} years old"
    for noun in ("capital", "river", "president")
    for number in range(9)
]


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    for number in range(4):
        lines = [f"{line} in part {number} of volume {volume}" for volume in range(8) for line in TEXT]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))


def test_the_code_beside_equations_is_that_of_the_package() -> None:
    shown = [block.content.splitlines() for block in blocks("languages.md") if block.content.startswith("# mlm_lightning/")]
    assert len(shown) == 4
    for head, *lines in shown:
        code = [line.partition("  #")[0].strip() for line in (REPOSITORY / head.removeprefix("# ")).read_text().splitlines()]
        assert set(lines) <= set(code), head


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_type_works(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    # what takes longest, and has tests of its own
    monkeypatch.setattr(probe, "MAX_EXAMPLES", 64)
    monkeypatch.setattr(style, "FORMATS", {"png": style.FORMATS["png"]})
    write_texts(tmp_path)

    def run(words: list[str]) -> None:
        assert main(words) == 0, " ".join(words)

    follow(page, tmp_path, run, stand_ins)
    for name in ("my_package", "my_model"):
        sys.modules.pop(name, None)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python" and block.file is None:
            exec(compile(block.content, page, "exec"), namespace)


def test_a_command_that_is_not_run_needs_what_a_test_has_not() -> None:
    """The hub, a cluster, a browser: everything else belongs in an `sh` block."""
    needs = ("--onnx", "launcher=", "prepare=ray", "srun", "num_nodes", "streaming", "--push")
    for page in PAGES:
        for block in blocks(page):
            if block.language == "text":
                for words in commands(block):
                    assert any(need in word for word in words for need in needs), f"{page}: mlm {' '.join(words)}"


def test_what_is_told_to_type_is_quoted_for_any_shell() -> None:
    lines = [line for page in PAGES for block in blocks(page) if block.language == "sh" for line in block.content.splitlines()]
    helps = [import_module(f"mlm_lightning.commands.{command}").HELP for command in COMMANDS]
    examples = [line.split("  ")[1] for text in helps for line in text.splitlines() if line.startswith("  mlm ")]
    assert len(lines) > 100
    assert len(examples) > 30
    assert [each for each in lines + examples if not is_for_any_shell(each)] == []


def test_brackets_are_quoted_wherever_a_setting_is_shown() -> None:
    """In the text of pages, the comments of configs and the messages of the package."""
    texts = {path: re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S) for path in PAGES.values()}
    texts |= {path: path.read_text() for path in REPOSITORY.glob("conf/**/*.yaml")}
    for path in REPOSITORY.glob("mlm_lightning/**/*.py"):
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        texts[path] = "\n".join(each for each in strings if isinstance(each, str))
    bare = re.compile(r"(?<!['\"\w.])[a-z_][\w.]*=[\[{]\S*")
    found = {(path.name, each) for path, text in texts.items() for each in bare.findall(text)}
    assert found == set()


def test_every_command_is_in_the_docs() -> None:
    told = {words[0] for page in PAGES for block in blocks(page) if block.language == "sh" for words in commands(block)}
    assert set(COMMANDS) <= told


def test_the_pages_are_built_without_a_network(tmp_path: Path) -> None:
    # a proxy that is not there: whatever asks the network fails
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    for name in ("MLMDataModule", "TreeSource", "Bernoulli", "load_run"):
        assert f'id="{name}' in api or f".{name}" in api
    for page in (tmp_path / "site").glob("*.html"):
        outside = [part for part in page.read_text().split('src="')[1:] if part.startswith("http")]
        assert not outside, f"{page.name} fetches {outside[0][:80]}"


def test_each_message_of_the_troubleshooting_page_is_one() -> None:
    source = "".join(path.read_text() for path in sorted((REPOSITORY / "mlm_lightning").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts over several lines
    rows = [line for line in PAGES["troubleshooting.md"].read_text().splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []
