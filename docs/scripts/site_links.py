"""Links of a page that hold in the repository, turned into links that hold in the site.

A page is written for the repository: its links are paths from its own file. The site has fewer
files, in other places. A link to a page of the site becomes the way there; a link to any other
file, such as source code, becomes that file's path as code, since no address of the
repository is known. A link to nothing is an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

_FENCE = re.compile(r"^ *(```+|~~~+)")
# A link or picture whose target is a path: no scheme, no anchor of the same page.
_LINK = re.compile(
    r"(?P<mark>!?)\[(?P<text>[^\[\]]*)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)"
)
_CODE = re.compile(r"(`+).+?\1")


class BrokenLink(Exception):
    """A page of the site links to a file that the repository does not have."""


def rewrite(text: str, page: str, pages: Mapping[str, str], root: Path) -> str:
    """Return a page with every link as the site needs it.

    Args:
        text: the page, Markdown.
        page: its path in the repository.
        pages: path in the repository to path in the site, of all that the site holds.
        root: of the repository.

    Raises:
        BrokenLink: a link leads nowhere in the repository.
    """
    lines = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            fence = ""
        elif not fence:
            line = _rewrite_line(line, page, pages, root)
        lines.append(line)
    return "\n".join(lines)


def _rewrite_line(line: str, page: str, pages: Mapping[str, str], root: Path) -> str:
    code = [match.span() for match in _CODE.finditer(line)]

    def replaced(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in code):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match["path"]))
        if target in pages:
            way = posixpath.relpath(pages[target], posixpath.dirname(pages[page]) or ".")
            return f"{match['mark']}[{match['text']}]({way}{match['anchor'] or ''})"
        if target.startswith("..") or not (root / target).exists():
            raise BrokenLink(f"{page} links to {match['path']}, which is no file; mend the link")
        return _as_code(match["text"], target)

    return _LINK.sub(replaced, line)


def _as_code(text: str, target: str) -> str:
    named = f"`{target}`"
    return named if text.strip("`") == target else f"{text} ({named})"
