"""Run the load suite: `python -m load`."""

# First of all: locust patches the standard library when it is imported, and warns of what was imported before.
import locust  # noqa: F401, I001

import sys

from load.run import main

if __name__ == "__main__":
    sys.exit(main())
