"""The version stands in `app/version.py`. Every file that holds a copy of it agrees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.version import VERSION

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def contract() -> Any:
    return yaml.safe_load(text("contracts/openapi.yaml"))


COPIES: dict[str, Callable[[], Any]] = {
    "the contract": lambda: contract()["info"]["version"],
    "the contract's example": lambda: contract()["components"]["examples"]["Health"]["value"]["version"],
    "the golden exchange": lambda: json.loads(text("contracts/examples/showHealth/200.http").splitlines()[-1])[
        "version"
    ],
    "the image": lambda: re.findall(r'org\.opencontainers\.image\.version="([^"]*)"', text("Dockerfile"))[0],
    "the changelog": lambda: re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[0],
}


@pytest.mark.parametrize("place", COPIES)
def test_version_in_every_copy_is_that_of_the_service(place: str) -> None:
    """`app/version.py` is changed by hand, and so are the label and the changelog; `make golden` writes the others."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert COPIES[place]() == VERSION
