"""What reaches the user, and what does not."""

import subprocess
import sys
from pathlib import Path


def said(code: str, folder: Path) -> tuple[str, str]:
    """Standard output and standard error of a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_library_s_warning_is_said_once_without_the_line_of_its_source(tmp_path: Path) -> None:
    code = """
import warnings
from mlm_lightning.messages import speak
speak()
for _ in range(2):
    warnings.warn("the disk is slow")
warnings.warn("the name will change", FutureWarning)
warnings.warn("the name has changed", DeprecationWarning)
"""
    assert said(code, tmp_path) == ("", "warning: the disk is slow\n")


def test_transformers_says_nothing_of_long_texts_and_of_reading_weights(tmp_path: Path) -> None:
    code = """
import logging
from mlm_lightning.messages import speak
speak()
from mlm_lightning.models.pretrained import PretrainedMLM
shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
PretrainedMLM(architecture="distilbert", config=shape, vocab_size=12, seq_len=8).save_pretrained("weights")
PretrainedMLM(checkpoint="weights", vocab_size=12, seq_len=8)
from transformers import BertTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=4)
assert len(tokenizer("a " * 600)["input_ids"]) == 602
"""
    assert said(code, tmp_path) == ("", "")
