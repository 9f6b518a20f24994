"""The tutorial, typed: every command of every page, in order, in one fresh folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typed_pages import Block, Shell, blocks, matches, steps

# In the order in which a reader meets them.
PAGES = (
    "index",
    "alice-and-bob",
    "nobody-sees-an-update",
    "your-own-task",
    "privacy-budget",
    "four-hospitals",
    "where-next",
)


def page_text(docs: Path, name: str) -> str:
    return (docs / "tutorial" / f"{name}.md").read_text()


@pytest.fixture(scope="module")
def shell(new_shell: Callable[[str], Shell]) -> Shell:
    return new_shell("tutorial")


@pytest.mark.mpi
@pytest.mark.parametrize("name", PAGES)
def test_every_command_prints_what_the_page_shows(name: str, docs: Path, shell: Shell) -> None:
    page = page_text(docs, name)
    typed = shell.follow(page)
    # However the page is cut into blocks, no line with a prompt was left out.
    assert len(typed) == len(re.findall(r"^\s*\$ ", page, re.MULTILINE))


def test_no_page_is_left_out(docs: Path) -> None:
    assert {path.stem for path in (docs / "tutorial").glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_to_type_hides_in_another_kind_of_block(name: str, docs: Path) -> None:
    for block in blocks(page_text(docs, name)):
        if block.language == "console":
            assert not block.title
            assert steps(block)
        elif not block.title:
            # What is set up once, before the tutorial, and can't be in a test.
            assert block.language == "text"
            assert block.text == "make setup\n. .venv/bin/activate\n"


@pytest.mark.parametrize("name", PAGES)
def test_pages_lead_from_one_to_the_next(name: str, docs: Path) -> None:
    following = dict(itertools.pairwise(PAGES[1:])).get(name)
    last = page_text(docs, name).rstrip().splitlines()[-1]
    assert following is None or re.fullmatch(rf"Next: \[.+\]\({following}\.md\)\.", last)


def test_the_task_is_the_one_of_the_task_page(docs: Path) -> None:
    own = next(b for b in blocks(page_text(docs, "your-own-task")) if b.title == "wine_task.py")
    assert own.text in (docs / "tasks.md").read_text()


@pytest.mark.parametrize(
    ("output", "printed", "equal"),
    [
        (("a",), "a\n", True),
        (("a",), "b\n", False),
        ((), "", True),
        ((), "a\n", False),
        (("a", "...", "d"), "a\nb\nc\nd\n", True),
        (("a", "...", "d"), "a\nd\n", True),
        (("a", "...", "d"), "a\nb\n", False),
        (("x ... y",), "x 1.5 y\n", True),
        (("x ... y",), "x\ny\n", False),
        (("1.5",), "1x5\n", False),
    ],
)
def test_dots_stand_for_what_varies_and_nothing_else(
    output: tuple[str, ...], printed: str, equal: bool
) -> None:
    assert matches(output, printed) == equal


def test_a_block_is_a_list_of_commands_and_their_output() -> None:
    first, second = steps(Block("console", "", "$ a\nb\nc\n$ d\nmpcfl: error: e\n"))
    assert (first.command, first.output, first.fails) == ("a", ("b", "c"), False)
    assert second.fails


def test_output_without_a_command_is_refused() -> None:
    with pytest.raises(AssertionError, match="output of no command"):
        steps(Block("console", "", "b\n"))
