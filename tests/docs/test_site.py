"""The site: complete, with links that hold, and nothing fetched from anywhere."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import markdown
import pytest
import yaml
from command_page import command_page
from figures import FIGURES
from markdown_it import MarkdownIt
from site_hooks import pages_elsewhere
from site_links import BrokenLink, rewrite

import mpcfl
from mpcfl.report.run_record import ModelRecord, PrivacyRecord, RoundRecord, RunRecord

GENERATED = "reference/command-line.md"
# What both ways to read a page must agree on.
COUNTED = ("li", "tr", "pre", "h1", "h2", "h3", "em", "strong")


@pytest.fixture(scope="module")
def settings(docs: Path) -> dict[str, Any]:
    return yaml.safe_load((docs.parent / "mkdocs.yml").read_text())


def pages(docs: Path) -> set[str]:
    return {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}


def in_nav(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for part in inner for page in in_nav(part)]


def test_the_menu_names_every_page_once(docs: Path, settings: dict[str, Any]) -> None:
    named = in_nav(settings["nav"])
    assert len(named) == len(set(named))
    assert set(named) == pages(docs) | set(pages_elsewhere().values()) | {GENERATED}


def test_the_site_builds_strictly_and_fetches_nothing(docs: Path, tmp_path: Path) -> None:
    # Without --quiet, which would also keep its warnings from being counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=docs.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    site = list((tmp_path / "site").rglob("*.html"))
    assert len(site) > len(pages(docs))
    for page in site:
        html = page.read_text()
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//', html)
        assert not re.findall(r'<link[^>]*\shref="(?:https?:)?//', html)
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"@import|url\([\"']?(?:https?:)?//", style.read_text())


@pytest.mark.parametrize(
    "place",
    sorted(Path(__file__).parents[2].glob("docs/**/*.md")),
    ids=lambda place: f"{place.parent.name}-{place.stem}",
)
def test_a_page_reads_alike_in_the_repository_and_on_the_site(
    place: Path, settings: dict[str, Any]
) -> None:
    """Lists without a blank line before them, say, are lists to one reader only."""
    text = place.read_text()
    there = MarkdownIt("commonmark").enable("table").render(text)
    named = [next(iter(e)) if isinstance(e, dict) else e for e in settings["markdown_extensions"]]
    # The one makes anchors, the other colors; neither changes what is a list.
    extensions = [name for name in named if name not in ("toc", "pymdownx.highlight")]
    here = markdown.markdown(text, extensions=extensions)
    for element in COUNTED:
        tag = re.compile(f"<{element}[ >]")
        assert len(tag.findall(here)) == len(tag.findall(there)), element
    starts = re.compile(r'<ol start="(\d+)"')
    assert starts.findall(here) == starts.findall(there)


PLACES = {
    "docs/a.md": "a.md",
    "docs/how-to/b.md": "how-to/b.md",
    "benchmarks/README.md": "benchmarks/about.md",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*PLACES, "mpcfl/round.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("docs/a.md", "[b](how-to/b.md)", "[b](how-to/b.md)"),
        ("docs/how-to/b.md", "[a](../a.md#x)", "[a](../a.md#x)"),
        ("docs/a.md", "[m](../benchmarks/README.md)", "[m](benchmarks/about.md)"),
        ("benchmarks/README.md", "[a](../docs/a.md)", "[a](../a.md)"),
        ("docs/a.md", "[mpcfl/round.py](../mpcfl/round.py)", "`mpcfl/round.py`"),
        ("docs/a.md", "[the thread](../mpcfl/round.py)", "the thread (`mpcfl/round.py`)"),
        ("docs/a.md", "[w](https://example.org/x)", "[w](https://example.org/x)"),
        ("docs/a.md", "[here](#x)", "[here](#x)"),
        ("docs/a.md", "`[b](nowhere.md)`", "`[b](nowhere.md)`"),
        ("docs/a.md", "```\n[b](nowhere.md)\n```", "```\n[b](nowhere.md)\n```"),
    ],
)
def test_links_hold_in_the_site(page: str, text: str, wanted: str, root: Path) -> None:
    assert rewrite(text, page, PLACES, root) == wanted


@pytest.mark.parametrize("way", ["nowhere.md", "../nowhere.py", "../../outside.md"])
def test_a_link_to_nothing_is_refused(way: str, root: Path) -> None:
    with pytest.raises(BrokenLink, match="is no file"):
        rewrite(f"[x]({way})", "docs/a.md", PLACES, root)


def test_the_command_page_has_every_command_and_its_options() -> None:
    page = command_page()
    for command in ("run", "plan", "doctor", "keygen", "ledger verify", "bench compare"):
        assert f"## `mpcfl {command}`" in page
    assert "| `--party-files DIR` | Folder of party files" in page


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("# run.json", RunRecord),
        ("## `privacy`", PrivacyRecord),
        ("## `rounds`", RoundRecord),
    ],
)
def test_the_page_on_run_json_names_every_key(docs: Path, heading: str, record: type) -> None:
    page = (docs / "reference" / "run-json.md").read_text()
    section = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    cells = [line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `")]
    named = [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(record))


def test_the_page_on_run_json_names_the_keys_of_the_model(docs: Path) -> None:
    page = (docs / "reference" / "run-json.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `model` "))
    for field in dataclasses.fields(ModelRecord):
        assert f"`{field.name}`" in row


@pytest.mark.parametrize("name", ["accuracy-by-epsilon", "time-by-backend"])
def test_a_figure_is_what_its_records_give(name: str, docs: Path) -> None:
    """`make figures` mends it, if the records or the code changed."""
    assert (docs / "figures" / f"{name}.svg").read_text() == FIGURES[name]()


def test_every_figure_is_shown_and_every_shown_one_is_made(docs: Path) -> None:
    shown = re.findall(r"!\[[^\]]+\]\(figures/([\w-]+)\.svg\)", (docs / "figures.md").read_text())
    assert sorted(shown) == sorted(FIGURES)
    assert {path.stem for path in (docs / "figures").iterdir()} == set(FIGURES)


def test_the_reference_has_every_public_name(docs: Path) -> None:
    python = (docs / "reference" / "python.md").read_text()
    privacy = (docs / "reference" / "dp.md").read_text()
    documented = set(re.findall(r"^::: (\S+)$", python + privacy, re.MULTILINE))
    public = {f"mpcfl.{name}" for name in mpcfl.__all__ if name not in ("dp", "__version__")}
    assert public <= documented
    assert {f"mpcfl.dp.{name}" for name in mpcfl.dp.__all__} <= documented
