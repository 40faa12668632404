"""`python -m app --version` tells which version this is. `python -m app` tells how the service is started."""

from __future__ import annotations

import sys

from app.version import VERSION

__all__ = ["main"]

NOT_HERE = """\
ChatWait was not started, because this command cannot run it: gunicorn does.
The settings come from the environment or from the file .env; docs/settings.md lists them.
Run `make run` in the project's directory, or `gunicorn wsgi:app` where the requirements are installed.
`python -m app --version` tells the version."""


def main(arguments: list[str]) -> int:
    """Print the version, or how the service is started. Return the exit code: 0, or 2 without a version."""
    if arguments == ["--version"]:
        print(f"ChatWait {VERSION}")
        return 0
    print(NOT_HERE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
