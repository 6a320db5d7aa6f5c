"""How the cost of a step, of rows and of posteriors grows: with rows a batch, length, vocabulary, width, depth of `tree`, runs.

    python benchmarks/scaling.py [steps|tree|runs]

Steps are those of `mlm train`, each size in a process of its own, with the default model; the share of peak is the matrix work
that the loss needs, by the time of a step and the rate of matrix products in the same process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import torch
from steps import Work, bare_loop, measure
from synthetic_data import rows_per_second
from table import Table

from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.training.fit import keep_freed_memory

TEXT = {"rows": 16, "length": 128, "vocabulary": 1024, "width": 128}
SIZES = {
    "rows": (4, 16, 64, 256),
    "length": (16, 64, 256, 1024, 4096),
    "vocabulary": (64, 1024, 8192, 65_536),
    "width": (32, 128, 512),
}
STEPS = 8
RUNS = ("trainer.max_steps=200", "data.batch_size=32", "model.d_model=32", "model.num_layers=2", "callbacks.samples=null")


def work(rows: int, length: int, vocabulary: int, width: int) -> Work:
    data = ["data=random_text", f"data.length={length}", f"data.vocabulary={vocabulary}", f"data.batch_size={rows}"]
    model = [f"model.d_model={width}", f"model.dim_feedforward={4 * width}", "masking.rate=0.15"]
    return Work("", [*data, *model], bare_loop, STEPS, "")


def steps() -> None:
    columns = {"what": "", "size": ",", "ms": ",.1f", "tokens/s": ",.0f", "share of peak": ".2f", "GB": ".2f"}
    title = "A step of the default model (4 layers) on random text: 16 rows of 128 tokens, V = 1,024, width 128, but for"
    table = Table("scaling_steps", title, columns)
    for what, sizes in SIZES.items():
        for size in sizes:
            # as many tokens a step where rows are longer
            changed = {what: size} | ({"rows": max(1, 16 * 128 // size)} if what == "length" else {})
            command = [sys.executable, __file__, "--point", json.dumps(TEXT | changed)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rate = found["tokens"] / found["seconds"]
            costs = {"ms": 1000 * found["seconds"], "tokens/s": rate, "share of peak": found["share_of_peak"]}
            table.add(what=what, size=size, GB=found["memory_gb"], **costs)


def tree() -> None:
    keep_freed_memory()
    title = f"Rows and exact posteriors of `tree`, 4 symbols, {torch.get_num_threads()} threads"
    columns = {"depth": "", "positions": ",", "rows/s": ",.0f", "posteriors/s": ",.0f", "million positions/s": ".1f"}
    table = Table("scaling_tree", title, columns)
    for depth in range(2, 15, 2):
        num_rows = max(4, 2**18 >> depth)
        source = TreeSource(depth=depth, num_symbols=4, train_size=num_rows)
        rows, oracle, index_B = source.rows("train"), source.oracle(), torch.arange(num_rows)
        tokens_BL = rows[index_B]
        observed_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(0)) >= 0.15
        sampled = rows_per_second(lambda rows=rows, index_B=index_B: rows[index_B], num_rows, repeats=3)
        answered = rows_per_second(
            lambda oracle=oracle, pair=(tokens_BL, observed_BL): oracle.posterior(*pair), num_rows, repeats=3
        )
        rates = {"rows/s": sampled, "posteriors/s": answered, "million positions/s": answered * 2**depth / 1e6}
        table.add(depth=depth, positions=2**depth, **rates)


def runs() -> None:
    table = Table(
        "scaling_runs", "Runs of 200 steps by one command, sweep.jobs=auto", {"runs": "", "seconds": ".1f", "a run": ".1f"}
    )
    for number in (1, 2, 4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            seeds = f"seed={','.join(map(str, range(number)))}"
            command = [*["-m", "mlm_lightning", "train", "-m", "sweep.jobs=auto"], seeds, *RUNS, f"output_dir={folder}"]
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds = time.perf_counter() - start
        table.add(runs=number, seconds=seconds, **{"a run": seconds / number})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {each.__name__: each for each in (steps, tree, runs)}
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(tables)}; all of them without one")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(work(**json.loads(arguments.point)), "ours")))
        return
    for name in arguments.tables or tables:
        tables[name]()


if __name__ == "__main__":
    main()
