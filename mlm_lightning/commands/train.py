"""`mlm train`: compose → check every job → a folder a job → fit → table."""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from mlm_lightning.config import Config, TrainerSettings, UserError, check

HELP = """\
mlm train [OVERRIDE…] [-m] [--config-dir DIR] [--debug]

Trains one run, or a sweep with -m. The same command continues an unfinished run.

  mlm train                                       the default: tree-structured data, a small transformer
  mlm train experiment=uniform_floor              a shipped experiment
  mlm train data.depth=5 model.num_layers=6       any key of the config
  mlm train -m masking.rate=0.1,0.2,0.4 seed=0,1  a sweep: 6 runs
  mlm train data=text data.path='texts/*.txt' data.tokenizer=train
  mlm train --cfg job                             shows the composed config

Hydra's own flags work: --cfg job, --info, -m, --config-dir, --config-name, --resolve, --package.
"""

_HYDRA_ONLY = ("cfg", "info", "hydra_help", "shell_completion", "version")
_outcomes: list[int] = []


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    from hydra._internal.utils import get_args_parser

    from mlm_lightning.compose import composer

    sys.path.append(os.getcwd())  # a `_target_` may name a package in this folder
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(arguments)
    with composer(flags.config_dir, flags.config_name) as hydra:
        overrides = hydra.plain(flags.overrides)
        if not any(getattr(flags, name, None) for name in _HYDRA_ONLY):
            _check_jobs(hydra, overrides, flags.multirun)
    return _hydra_main([*_flags_only(arguments, flags.overrides), *overrides])


def _refuse(message: str) -> NoReturn:
    raise UserError(f"mlm train: {message}; mlm train --help shows how to call it")


def train(config: DictConfig | Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains the run of a config, or continues it, and returns its summary.

    `overrides` names the folder. Raises UserError for a config that cannot be, `callbacks.Interrupted` where a signal stopped
    the run, and whatever stops the training; error.json then says why.
    """
    from mlm_lightning.compose import to_plain
    from mlm_lightning.runs import Run

    plain = to_plain(config) if isinstance(config, DictConfig) else config
    check(plain)
    parent = _parent(plain)
    run = Run.find(plain, overrides)
    if plain["resume"] == "never" or run.summary is None:
        _prepare(plain)
    if plain["resume"] == "never":
        _restart(run)
    with run.locked():
        if run.summary is not None:
            _say(f"complete: {run.folder} (resume=never runs it again)")
            return run.summary
        try:
            checkpoint = run.last_checkpoint() or parent
            if TrainerSettings(**plain["trainer"]).num_processes() > 1 and "LOCAL_RANK" not in os.environ:
                return _launch_ranks(run, checkpoint)
            return fit(run, checkpoint)
        except Exception as error:
            if not isinstance(error, UserError):
                run.fail(error)
            raise


def _parent(config: Config) -> Path | None:
    """The checkpoint of another run that this one is to start from."""
    from mlm_lightning.runs import locate

    return None if config["resume"] in ("auto", "never") else locate(config["resume"], "resume")[1]


def _prepare(config: Config) -> None:
    """Downloads and builds caches, and finds what is wrong with the data, before a run has a folder."""
    from mlm_lightning.config import build_source

    with mistakes():
        source = build_source(config)
        source.prepare()
        source.rows("train")
        source.rows("val")


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
    """What constructors and data refuse is the user's to mend."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UserError(str(error)) from error


def fit(run: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Trains in this process: one device, or one rank of several."""
    quiet()
    _keep_freed_memory()
    from mlm_lightning.config import build_each, build_source

    config = run.config
    settings = TrainerSettings(**config["trainer"])
    source = build_source(config)
    source.prepare()
    module, datamodule = _assemble(config, settings, source)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        _describe(run, module, source, checkpoint)
    step = _step_of(checkpoint)
    # curves that a killed process drew beyond its last checkpoint, or before its first, are drawn again
    continued = (run.folder / "metrics.csv").exists()
    loggers = build_each(config["logger"], save_dir=str(run.folder), purge_step=step + 1 if continued else None)
    trainer = build_trainer(settings, build_each(config["callbacks"], folder=str(run.checkpoints)), loggers)
    if checkpoint and trainer.is_global_zero:
        _say(f"continuing {run.folder} after step {step} of {module.total_steps}")
    try:
        trainer.fit(module, datamodule, ckpt_path=checkpoint)
    except SystemExit as error:  # Lightning's answer to a second Ctrl-C
        raise KeyboardInterrupt from error
    if not module.last_metrics:  # everything was trained before, and only the summary is missing
        trainer.validate(module, datamodule, verbose=False)
    summary = _summary(trainer, module)
    if trainer.is_global_zero:
        _log_hyperparameters(loggers, config, summary)
        for logger in loggers:
            logger.finalize("success")
        run.write_json("summary.json", summary)
    return summary


def _assemble(config: Config, settings: TrainerSettings, source: Any) -> tuple[Any, Any]:
    """The LightningModule and the LightningDataModule of a config."""
    from mlm_lightning.config import build_eval_maskings, build_masking, build_model, build_optimizer, build_schedule
    from mlm_lightning.data.datamodule import MLMDataModule
    from mlm_lightning.module import MLMModule

    plan = settings.plan(len(source.rows("train")), config["data"]["batch_size"])
    eval_maskings = build_eval_maskings(config)
    with mistakes():
        model = build_model(config, source.vocab, source.seq_len)
    module = MLMModule(
        model,
        oracle=source.oracle(),
        optimizer=build_optimizer(config),
        weight_decay=config["optim"].get("weight_decay", 0.0),
        schedule=build_schedule(config),
        total_steps=plan.total_steps,
        validate_every=plan.validate_every,
        steps_per_epoch=plan.steps_per_epoch,
        log_every_n_steps=settings.log_every_n_steps,
        seed=config["seed"],
        suffixes=list(eval_maskings),
    )
    datamodule = MLMDataModule(
        source,
        build_masking(config),
        eval_maskings,
        batch_size=config["data"]["batch_size"],
        seed=config["seed"],
        eval_seed=config["eval"]["seed"],
        num_workers=config["data"]["num_workers"],
        accumulate_grad_batches=settings.accumulate_grad_batches,
        rows_per_epoch=plan.rows_per_epoch,
        total_steps=plan.total_steps,
    )
    return module, datamodule


def _describe(run: Any, module: Any, source: Any, checkpoint: Path | None) -> None:
    """Writes all of the run's folder that is known before training."""
    from mlm_lightning.runs import describe_model

    parent = None if checkpoint is None or checkpoint.parent == run.checkpoints else str(checkpoint)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    run.start(data=source.fingerprint(), parent=parent, num_parameters=parameters)
    describe_model(run, module.model, source.vocab, source.seq_len)
    if hasattr(source, "save_tokenizer"):
        source.save_tokenizer(run.folder / "tokenizer")


def _step_of(checkpoint: Path | None) -> int:
    import torch

    return 0 if checkpoint is None else torch.load(checkpoint, weights_only=True, mmap=True)["global_step"]


def _summary(trainer: Any, module: Any) -> dict[str, Any]:
    from mlm_lightning.callbacks import Checkpoint, Throughput

    summary: dict[str, Any] = dict(module.last_metrics)
    for callback in trainer.callbacks:
        if isinstance(callback, Checkpoint) and callback.best_step:
            summary |= {"best/val/loss": callback.best_score, "best/step": callback.best_step}
        if isinstance(callback, Throughput):
            callback.state_dict()  # adds the time since the last checkpoint
            summary |= {"tokens_per_second": callback.tokens_per_second, "seconds": callback.seconds}
    return summary | {"steps": trainer.global_step, "tokens": module.tokens_trained}


def build_trainer(settings: TrainerSettings, callbacks: list[Any], loggers: list[Any]) -> Any:
    """Lightning's Trainer. One Lightning "epoch" is the whole run: the loader is one stream over all epochs."""
    import lightning as L
    from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from mlm_lightning.callbacks import AtomicCheckpointIO, Progress

    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # its requeueing would save inside a signal handler, in the middle of a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if not settings.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Progress)]
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.resolved_precision(),  # type: ignore[arg-type]
        max_epochs=1,
        max_time=settings.max_time,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val,
        gradient_clip_algorithm=settings.gradient_clip_algorithm,
        val_check_interval=2**62,  # MLMModule says when
        check_val_every_n_epoch=None,
        limit_val_batches=settings.limit_val_batches,
        limit_test_batches=settings.limit_test_batches,
        num_sanity_val_steps=settings.num_sanity_val_steps,
        log_every_n_steps=1,
        deterministic=settings.deterministic,
        benchmark=settings.benchmark,
        detect_anomaly=settings.detect_anomaly,
        inference_mode=settings.inference_mode,
        sync_batchnorm=settings.sync_batchnorm,
        profiler=settings.profiler,
        enable_progress_bar=False,
        enable_model_summary=bool(settings.enable_model_summary),
        enable_checkpointing=any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
    )


def _restart(run: Any) -> None:
    if run.folder.exists():
        with run.locked():
            aside = run.move_aside()
        _say(f"starting again; the old run is in {aside}")


def _launch_ranks(run: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Trains in one child process a device, each from the run's own saved config: never from this command line, which would
    start a sweep again in every rank."""
    settings = TrainerSettings(**run.config["trainer"])
    count = settings.num_processes()
    run.start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", "mlm_lightning.commands.rank", str(run.folder), *([str(checkpoint)] if checkpoint else [])]
    ranks = []
    for rank in range(count):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
        environment = os.environ | environment | {"LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=environment))
    forwarded = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
    handlers = {each: signal.signal(each, lambda signum, frame: _forward(ranks, signum)) for each in forwarded}
    try:
        statuses = _wait(ranks)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for process in ranks:
            process.kill()
    failed = next((status for status in statuses if status), 0)
    if failed in (75, 130):
        from mlm_lightning.callbacks import Interrupted

        raise Interrupted(signal.SIGINT if failed == 130 else signal.SIGTERM, -1)
    if failed:
        reason = json.loads((run.folder / "error.json").read_text()) if (run.folder / "error.json").exists() else {}
        raise RuntimeError(reason.get("message", f"a rank ended with status {failed}"))
    return run.summary or {}


def _forward(ranks: list["subprocess.Popen[bytes]"], signum: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signum)


def _wait(ranks: list["subprocess.Popen[bytes]"]) -> list[int]:
    """Waits for all ranks; where one fails, the others wait for it forever and are ended."""
    while any(rank.poll() is None for rank in ranks):
        statuses = [rank.poll() for rank in ranks]
        if any(status not in (None, 0, 75, 130) for status in statuses):
            time.sleep(5)
            _forward(ranks, signal.SIGKILL)
        time.sleep(0.05)
    # the rank that failed first says why; the killed ones only that they were killed
    return sorted((rank.returncode for rank in ranks), key=lambda status: status < 0)


def task(config: DictConfig) -> float | None:
    """Hydra's task function: one job. Returns the objective of a search."""
    from hydra.core.hydra_config import HydraConfig

    from mlm_lightning.commands.errors import report
    from mlm_lightning.compose import to_plain
    from mlm_lightning.runs import Run

    overrides = list(HydraConfig.get().overrides.task)
    try:
        summary = train(config, overrides)
        _show(Run.find(to_plain(config), overrides).folder, summary)
    except Exception as error:
        _outcomes.append(report(error))
        return None
    return summary.get("val/loss")


def _hydra_main(arguments: list[str]) -> int:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from mlm_lightning.compose import CONFIG_NAME, config_folder

    GlobalHydra.instance().clear()
    sys.argv = ["mlm train", *arguments]
    _outcomes.clear()
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)(task)()
    return max(_outcomes, default=0)


def _check_jobs(hydra: Any, overrides: list[str], multirun: bool) -> None:
    """Composes and checks every job; raises UserError with all problems before anything is created."""
    from mlm_lightning.compose import to_plain

    found: dict[str, list[str]] = {}
    jobs = hydra.jobs(overrides)
    if len(jobs) > 1 and not multirun:
        raise UserError("several values for one key: add -m to run a sweep, or quote a value that contains commas")
    for job in jobs:
        try:
            config = to_plain(hydra.compose(job))
            check(config)
            _parent(config)
        except UserError as error:
            for problem in str(error).splitlines():
                found.setdefault(problem, []).append(" ".join(each.lstrip("+") for each in job))
    if found:
        raise UserError("\n".join(found))


def _flags_only(arguments: list[str], overrides: list[str]) -> list[str]:
    remaining = list(overrides)
    flags = []
    for argument in arguments:
        if argument in remaining:
            remaining.remove(argument)
        else:
            flags.append(argument)
    return flags


def _log_hyperparameters(loggers: list[Any], config: Config, summary: dict[str, Any]) -> None:
    """Fills TensorBoard's HParams tab: the settings, beside the last values of curves that are there already. Lightning's own
    way shows -1, or draws a further one-point curve for each metric."""
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch.utils.tensorboard.summary import hparams

    skip = ("callbacks", "logger", "output_dir", "resume", "name", "sweep")
    settings = {key: value for key, value in _flat(config).items() if key.split(".")[0] not in skip}
    metrics = {name: value for name, value in summary.items() if name.startswith("val/")}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for part in hparams(settings, metrics):
                logger.experiment._get_file_writer().add_summary(part)


def _flat(node: Config, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _show(folder: Path, summary: dict[str, Any]) -> None:
    """The table at the end of a run."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, show_header=False, box=None, padding=(0, 2))
    rows = [
        ("val/loss", "validation loss", "nats a token"),
        ("val/oracle_loss", "best possible loss", "nats a token (oracle)"),
        ("val/excess_loss", "excess over the oracle", ""),
        ("val/perplexity", "perplexity", ""),
        ("val/accuracy", "accuracy", ""),
        ("val/oracle_accuracy", "best possible accuracy", "(oracle)"),
        ("best/val/loss", "best validation loss", f"at step {summary.get('best/step', 0)}"),
        ("steps", "steps", f"{summary.get('tokens', 0):,} tokens"),
        ("tokens_per_second", "tokens a second", ""),
        ("seconds", "seconds", ""),
    ]
    for key, label, unit in rows:
        if key in summary:
            value = summary[key]
            if key == "val/excess_loss":
                unit = f"± {summary['val/excess_loss_se']:.4f} (standard error)"
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
            table.add_row(label, shown, unit)
    console = Console()
    console.print(table)
    console.print(f"\nrun          {folder}", highlight=False, soft_wrap=True)
    console.print(f"curves       tensorboard --logdir {folder.parent}", highlight=False, soft_wrap=True)


def _keep_freed_memory() -> None:
    """Makes glibc reuse large blocks. By default it gives each back to the system, which then has to clear its pages for the
    next step: with the logits of a vocabulary of 30,000 that is half of the time of a step on a CPU."""
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def quiet() -> None:
    """Lightning's own advice does not apply to how it is used here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*ended before the epoch ended and your dataloader is not resumable.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*is smaller than the logging interval.*",
        ".*Found keys that are not in the model state dict.*",
        ".*The `srun` command is available.*",
        ".*lr_scheduler.step\\(\\)` before `optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
