"""`make test` in two lanes: some processes drive browsers, which keep a core busy, and the others mostly wait.

Without the lanes all processes drive browsers at the same time and all wait at the same time; each starts a browser.
"""

from __future__ import annotations

from typing import Any

import pytest

BROWSER = "tests/browser/"
"""How the names of the files begin that only the processes of the first lane take, until the other files are done."""

EVERY = 3
"""Every third process is in the first lane."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped, unused-ignore]

    class Lanes(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
        def _assign_work_unit(self, node: Any) -> None:
            """Give a process the first file of its lane, or of the other lane when its own has none left."""
            is_first = int(node.gateway.id.removeprefix("gw")) % EVERY == 0
            own = next((file for file in self.workqueue if file.startswith(BROWSER) is is_first), None)
            if own is not None:
                self.workqueue.move_to_end(own, last=False)
            super()._assign_work_unit(node)

    return Lanes(config, log)
