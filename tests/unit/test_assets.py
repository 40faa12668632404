"""Test how the tree of pages is read: what its address depends on, what is served, and what is not."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import pytest

from app.routes.pages import STATIC
from app.web import assets as files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="{{assets}}/a.js"></script>{{assets}}{{other}}')
    (tmp_path / "assets" / "a.js").write_text("a()\n" * 100)
    (tmp_path / "assets" / "b.css").write_text("b {}")
    return tmp_path


def test_tree_gives_its_files_their_addresses_and_the_pages_the_prefix(tree: Path) -> None:
    read = files.read(tree)

    assert read.prefix.removeprefix("/assets/") == f"{int(read.prefix[-16:], 16):016x}"
    assert read.assets.keys() == {f"{read.prefix}/a.js", f"{read.prefix}/b.css"}
    assert read.pages == {
        "index.html": f'<script src="{read.prefix}/a.js"></script>{read.prefix}{{{{other}}}}'.encode()
    }
    assert files.read(tree) == read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("assets/a.js", "// changed"),
        ("assets/b.css", ""),
        ("assets/c.svg", ""),
        ("index.html", "{{assets}}"),
        ("docs.html", ""),
    ],
)
def test_address_changes_with_any_content_and_any_name(tree: Path, name: str, content: str) -> None:
    before = files.read(tree).prefix
    (tree / name).write_text(content)

    assert files.read(tree).prefix != before


def test_file_at_an_address_of_its_own_is_told_where_the_assets_are_and_what_they_are_called(tree: Path) -> None:
    read = files.read(tree)

    assert read.fill(b'"{{assets}}/" "{{files}}" {{other}}') == f'"{read.prefix}/" "a.js b.css" {{{{other}}}}'.encode()


def test_address_changes_when_a_file_is_renamed_or_bytes_move_from_one_to_the_next(tree: Path) -> None:
    (tree / "assets" / "a.js").write_text("ab.css")
    before = files.read(tree).prefix
    (tree / "assets" / "a.js").write_text("a")
    (tree / "assets" / "b.css").write_text("b.cssb {}")
    moved = files.read(tree).prefix
    (tree / "assets" / "b.css").rename(tree / "assets" / "c.css")

    assert len({before, moved, files.read(tree).prefix}) == 3


@pytest.mark.parametrize(
    "name", ["a.js~", ".a.js", "#a.js#", "A.js", "a.js.swp", "notes.txt", "a.html", "x/a.js", "-.js"]
)
def test_leftovers_are_neither_served_nor_part_of_the_address(tree: Path, name: str) -> None:
    before = files.read(tree)
    (tree / "assets" / name).parent.mkdir(exist_ok=True)
    (tree / "assets" / name).write_text("left")

    assert files.read(tree) == before


def test_file_is_packed_where_that_is_shorter_and_comes_out_the_same(tree: Path) -> None:
    read = files.read(tree)
    long, short = read.assets[f"{read.prefix}/a.js"], read.assets[f"{read.prefix}/b.css"]

    assert long.packed is not None and len(long.packed) < len(long.plain)
    assert gzip.decompress(long.packed) == long.plain == b"a()\n" * 100
    assert short.packed is None and short.plain == b"b {}"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("// one\na(); // stays\n  // two\nb();", "\na(); // stays\n\nb();"),
        ("/** one */\na();\n  /**\n   * two\n   */\nb();\n", "\na();\n\n\n\nb();\n"),
        ("/** one */ a();\nb(); /** two */\n/* three */\n", "/** one */ a();\nb(); /** two */\n/* three */\n"),
        ('const a = "// b";\nconst c = /[/]/;\n', 'const a = "// b";\nconst c = /[/]/;\n'),
        ("/** one */\nlet b = 1;\n/** two\n * three */\n", "\nlet b = 1;\n\n\n"),
        ("/** never closed\na();\n", "/** never closed\na();\n"),
    ],
)
def test_script_is_sent_without_the_comments_that_have_their_own_lines(tree: Path, written: str, sent: str) -> None:
    (tree / "assets" / "a.js").write_text(written)
    read = files.read(tree)

    assert read.assets[f"{read.prefix}/a.js"].plain.decode() == sent


def test_tree_that_is_too_large_for_memory_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    monkeypatch.setattr(files, "MOST_BYTES", size)
    files.read(tree)
    (tree / "assets" / "c.svg").write_text("c")

    with pytest.raises(ValueError, match=f"holds more than {size} bytes"):
        files.read(tree)


def test_tree_of_the_service_is_served_whole() -> None:
    """What stands in assets/ is an asset: none is skipped for its name."""
    read = files.read(STATIC)
    there = {path.name for path in (STATIC / "assets").iterdir()}

    assert {path.rpartition("/")[2] for path in read.assets} == there
    assert read.pages.keys() == {"index.html", "docs.html"}
    assert sum(len(asset.plain) for asset in read.assets.values()) < files.MOST_BYTES / 10


def test_record_of_a_tree_gives_its_assets_under_its_own_hash_and_no_other(tree: Path) -> None:
    read = files.read(tree)

    assert files.published(read.name, read.record) == read.assets
    assert files.published(files.read(STATIC).name, files.read(STATIC).record) == files.read(STATIC).assets
    record = zlib.decompress(read.record)
    wrong = [
        b"",
        b"x",
        read.record[:-1],
        read.record[:50],
        zlib.compress(record + b"c.js\x001\0c"),
        zlib.compress(record[1:]),
    ]
    wrong += [zlib.compress(record.replace(b"a()", b"b()", 1)), files.read(STATIC).record]
    for packed in wrong:
        with pytest.raises(ValueError, match="record"):
            files.published(read.name, packed)
    with pytest.raises(ValueError, match="record"):
        files.published("0" * 16, read.record)


def test_record_that_unpacks_to_more_than_may_stay_in_memory_is_refused_before_it_has(tree: Path) -> None:
    bomb = zlib.compress(bytes(16 * files.MOST_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="record"):
            files.published("0" * 16, bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * files.MOST_BYTES
