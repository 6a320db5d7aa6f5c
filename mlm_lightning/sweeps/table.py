"""The table at the end of a sweep: every run, or the best ones and all that have no result."""

from collections.abc import Sequence

from mlm_lightning.sweeps.jobs import Job, Sweep

_MOST_ROWS = 40


def show(sweep: Sweep, jobs: Sequence[Job], seconds: float) -> None:
    """The table at the end: every run, or the best ones and all that have no result."""
    from rich.console import Console
    from rich.table import Table

    objective, best = sweep.settings.objective, sweep.best(jobs)
    table = Table(box=None, padding=(0, 2))
    for column in (*sweep.swept, "status", objective, "steps", "seconds"):
        table.add_column(column, justify="left" if column in (*sweep.swept, "status") else "right")
    worst_first = sweep.settings.direction == "maximize"
    listed = list(jobs)
    if len(listed) > _MOST_ROWS:
        with_value = sorted((job for job in jobs if sweep.value(job) is not None), key=sweep.value, reverse=worst_first)  # type: ignore[arg-type]
        listed = [*with_value[:_MOST_ROWS], *(job for job in jobs if sweep.value(job) is None)]
    for job in listed:
        values = dict(each.partition("=")[::2] for each in job.swept)
        summary, value = job.run.summary or {}, sweep.value(job)
        cells = [values.get(key, "") for key in sweep.swept]
        cells += [job.run.status, "" if value is None else f"{value:.4f}" + (" *" if job is best else "")]
        cells += [f"{summary['steps']:,}" if summary else "", f"{summary['seconds']:.0f}" if summary else ""]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    if len(listed) < len(jobs):
        console.print(f"  … and {len(jobs) - len(listed)} further runs")
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.run.status] = counts.get(job.run.status, 0) + 1
    console.print(
        "\n" + ", ".join(f"{number} {status}" for status, number in counts.items()) + f"; {seconds:.0f} s", highlight=False
    )
    for job in jobs:
        if job.run.status == "failed":
            console.print(f"failed   {job.difference}: {job.run.reason}", highlight=False, soft_wrap=True)
    if best is not None:
        console.print(f"best     {best.run.folder}", highlight=False, soft_wrap=True)
    console.print(f"report   mlm report {sweep.folder}", highlight=False, soft_wrap=True)
    console.print(f"curves   tensorboard --logdir {sweep.folder}", highlight=False, soft_wrap=True)
