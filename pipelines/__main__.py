"""`python -m pipelines`, which is `interlace`: command.py's, or a line about what this Python lacks for it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; 2 where a library is not there."""
    try:
        from pipelines import command
    except ModuleNotFoundError as error:
        print(
            f"interlace: {sys.executable} has no {error.name}: install what pyproject.toml and constraints.txt name, "
            "let the site name another `python`, or build its image from the Dockerfile",
            file=sys.stderr,
        )
        sys.exit(2)
    command.main(arguments)


if __name__ == "__main__":
    main()
