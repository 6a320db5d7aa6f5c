"""`mlm COMMAND …`. Nothing heavy is imported before a command is known: `mlm --help` answers at once."""

import os
import sys
from importlib import import_module

HELP = """\
mlm COMMAND …

  train      trains one run, or a sweep with -m; continues an unfinished one
  evaluate   a run's metrics, also with other data settings
  predict    fills [MASK] in a text
  export     a run as a folder that opens anywhere, or on the hub
  prepare    builds the token cache of the chosen data
  report     tables and plots of a sweep, or of some runs
  analyse    what a trained model looks like inside
  runs       the runs of a folder: status, result, size on disk
  clean      what could go from a folder of runs; removes it when told

`mlm COMMAND --help` shows examples. --debug shows the traceback of an error.
"""
COMMANDS = ("train", "evaluate", "predict", "export", "prepare", "report", "analyse", "runs", "clean")


def main(arguments: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["MLM_DEBUG"] = "1"
    from mlm_lightning.messages import report, speak

    speak()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("mlm-lightning"))
        return 0
    from mlm_lightning.errors import Interrupted, UserError, interruptible

    command, *rest = arguments
    if command not in COMMANDS:
        from mlm_lightning.values import suggestion

        hint = suggestion(command, COMMANDS)
        return report(UserError(f"mlm {command}: no such command{hint} There are: {', '.join(COMMANDS)}"))
    try:
        with interruptible():
            return import_module(f"mlm_lightning.commands.{command}").main(rest)
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        return report(error, arguments)


if __name__ == "__main__":
    sys.exit(main())
