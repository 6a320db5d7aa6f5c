"""What commands share: flags by argparse, and results as JSON."""

import argparse
import json
import re
import sys
from typing import Any, NoReturn

from mlm_lightning.config.flags import Once
from mlm_lightning.errors import UserError
from mlm_lightning.processes import see_own_packages


class Parser(argparse.ArgumentParser):
    """Prints `help_text` for --help, and one line with exit status 2 for anything it can't take."""

    def __init__(self, help_text: str, *switches: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.help_text = help_text
        for name in switches:
            self.add_argument(f"--{name}", action="store_true")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        if "-h" in arguments or "--help" in arguments:
            print(self.help_text, end="")
            sys.exit(0)
        flags = self.parse_intermixed_args(arguments, Once())
        if getattr(flags, "trust", False):
            see_own_packages()
        return flags

    def error(self, message: str) -> NoReturn:
        usage = self.help_text.partition("\n")[0]
        raise UserError(f"{message.replace(', OVERRIDE', '')}\n{usage}")


def print_json(content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    print(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))  # json escapes the other control characters
