"""What axe-core finds in a page."""

from __future__ import annotations

from typing import Any

from tests.requirements import require_or_skip

# Only what is asked for crosses over from the page: all that passes is a hundred times as long.
RUN = """
async () => {
  const { violations, passes } = await axe.run({ resultTypes: ["violations"] });
  return [violations, passes.length];
}
"""


def find_by_axe(page: Any) -> tuple[list[dict[str, Any]], int]:
    """List the violations in the page as it is now, and count the rules that it keeps.

    A document is given axe once: that costs twice as much as a look at it.
    """
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        require_or_skip("axe-playwright-python (pip install -r requirements-dev.txt)", present=False)
    if page.evaluate("() => !window.axe"):
        page.evaluate(Axe().axe_script)
    violations, kept = page.evaluate(RUN)
    return violations, kept
