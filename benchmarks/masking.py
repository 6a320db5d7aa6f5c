"""Fetch and mask a batch of 64 rows of 128 tokens, 80/10/10: ours beside what a user would take instead.

    ours      ChunkRows: a memory-mapped token file  →  Bernoulli()
    theirs    rows of a `datasets.Dataset`           →  transformers' DataCollatorForLanguageModeling

Both fetch the same random rows, in turns, so that both see the same machine in the same state. `python benchmarks/masking.py`
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from table import Table

from mlm_lightning import randomness
from mlm_lightning.batch import Vocab
from mlm_lightning.data.text.rows import ChunkRows
from mlm_lightning.masking import Bernoulli, Masking, Single, Span, WholeWord

ROWS, BATCH, LENGTH, VOCAB = 20_000, 64, 128, 30_522
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def milliseconds(*functions: Callable[[], object], rounds: int = 30, calls: int = 20) -> list[float]:
    """The median time of a call of each function; they take turns of `calls` calls."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seen in zip(functions, times, strict=True):
            for _ in range(calls):
                start = time.perf_counter()
                function()
                seen.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(seen) for seen in times]


def main() -> None:
    import datasets
    import transformers

    names = SPECIALS + [f"{'##' if i % 4 == 0 else ''}w{i}" for i in range(VOCAB - len(SPECIALS))]
    vocab = Vocab(VOCAB, mask_id=4, special_ids=(0, 1, 2, 3), pad_id=0, continues_word=tuple(n.startswith("##") for n in names))
    generator = np.random.default_rng(0)
    tokens = generator.integers(len(SPECIALS), VOCAB, (ROWS, LENGTH))
    picks = [generator.integers(0, ROWS, BATCH) for _ in range(100)]
    key = randomness.key(0, 0)
    epochs_B = torch.zeros(BATCH, dtype=torch.int64)

    def next_pick(state: list[int]) -> np.ndarray:
        state[0] += 1
        return picks[state[0] % len(picks)]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        tokens.astype(np.uint16).tofile(path)
        rows = ChunkRows(path, np.dtype(np.uint16), LENGTH, LENGTH, tokens.size)

        def fetch_ours(state: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            index_B = torch.from_numpy(next_pick(state))
            return rows[index_B], index_B

        def ours(masking: Masking, state: list[int]) -> object:
            tokens_BL, row_ids_B = fetch_ours(state)
            return masking(tokens_BL, row_ids_B, vocab=vocab, key=key, epochs_B=epochs_B)

        tokenizer = transformers.BertTokenizerFast(vocab={name: i for i, name in enumerate(names)})
        dataset = datasets.Dataset.from_dict(
            {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()},
            features=datasets.Features(
                {"input_ids": datasets.List(datasets.Value("int32")), "attention_mask": datasets.List(datasets.Value("int8"))}
            ),
        )
        dataset.save_to_disk(str(Path(folder) / "dataset"))
        dataset = datasets.load_from_disk(str(Path(folder) / "dataset"))
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

        def theirs(state: list[int]) -> object:
            return collator(dataset.__getitems__(next_pick(state).tolist()))  # as torch's DataLoader fetches

        state, state_theirs = [0], [0]
        kept_B = fetch_ours([0])
        kept_theirs = dataset.__getitems__(picks[0].tolist())
        bernoulli = Bernoulli()
        times = milliseconds(
            lambda: ours(bernoulli, state),
            lambda: theirs(state_theirs),
            lambda: bernoulli(*kept_B, vocab=vocab, key=key, epochs_B=epochs_B),
            lambda: collator(kept_theirs),
        )
        kinds = [Bernoulli(mask_share=1), Single(), WholeWord(), Span()]
        others = milliseconds(*(lambda m=m: m(*kept_B, vocab=vocab, key=key, epochs_B=epochs_B) for m in kinds))

    title = f"A batch of {BATCH} × {LENGTH} tokens, {VOCAB:,} words, {torch.get_num_threads()} threads"
    table = Table("masking", title, {"what": "", "ms": ".3f", "theirs": ".3f", "times as fast": ".0f"})
    table.add(what="fetch and mask", ms=times[0], theirs=times[1], **{"times as fast": times[1] / times[0]})
    table.add(what="mask alone", ms=times[2], theirs=times[3], **{"times as fast": times[3] / times[2]})
    for masking, each in zip(kinds, others, strict=True):
        table.add(what=type(masking).__name__ + (" 100 % [MASK]" if masking.mask_share == 1 else ""), ms=each)


if __name__ == "__main__":
    main()
