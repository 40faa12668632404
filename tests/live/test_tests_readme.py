"""The example of tests/README.md, as pasted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.harness.server import ChatWait
from tests.harness.upstream import ScriptedUpstream

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_example_test_of_the_tests_readme_passes_as_pasted(chatwait: ChatWait, upstream: ScriptedUpstream) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    pasted: dict[str, Any] = {}
    exec(compile(block, "tests/README.md", "exec"), pasted)
    tests = [thing for name, thing in pasted.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0](chatwait=chatwait, upstream=upstream)
    assert len(upstream.completions) == 1  # premise: it did ask
