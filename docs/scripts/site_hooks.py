"""What MkDocs calls while it builds the site: pages from elsewhere, and links that hold there.

Source: the hooks of MkDocs, https://www.mkdocs.org/dev-guide/plugins/#events
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The modules beside this file: MkDocs runs a hook as a file, not as a part of a package.
sys.path.append(str(Path(__file__).parent))

from command_page import command_page
from site_links import BrokenLink, rewrite

_ROOT = Path(__file__).resolve().parents[2]
_DOCS = "docs/"
# Pages of the repository that the site shows though they lie outside of docs/.
_ELSEWHERE = ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/results/*.md", "mpcfl/README.md")
# Where two of them would get the name of a folder's own page.
_RENAMED = {"benchmarks/README.md": "benchmarks/about.md", "mpcfl/README.md": "reference/code.md"}
_COMMANDS = "reference/command-line.md"
# The package as it is once installed, of links: two of its parts are top-level folders here.
_PACKAGE = _ROOT / "build" / "package" / "mpcfl"
_MAPPED = ("launch", "parties")


def pages_elsewhere() -> dict[str, str]:
    """Return path in the repository to path in the site, of pages that lie outside of docs/."""
    found = sorted(path for pattern in _ELSEWHERE for path in _ROOT.glob(pattern))
    names = [path.relative_to(_ROOT).as_posix() for path in found]
    return {name: _RENAMED.get(name, name) for name in names}


def on_startup(command: str, dirty: bool) -> None:
    """Lay out the package for the pages that are made of docstrings, which are read, not run."""
    del command, dirty  # MkDocs hands them over by name
    _PACKAGE.mkdir(parents=True, exist_ok=True)
    parts = [*(_ROOT / "mpcfl").iterdir(), *(_ROOT / name for name in _MAPPED)]
    for part in parts:
        link = _PACKAGE / part.name
        with suppress(FileExistsError):
            link.symlink_to(part)
    for link in _PACKAGE.iterdir():
        if not link.exists():
            link.unlink(missing_ok=True)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and those that are written from code."""
    for source, place in pages_elsewhere().items():
        files.append(File.generated(config, place, content=(_ROOT / source).read_text()))
    files.append(File.generated(config, _COMMANDS, content=command_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page into links that hold in the site."""
    del config  # MkDocs hands it over by name
    elsewhere = pages_elsewhere()
    pages = {_DOCS + file.src_uri: file.src_uri for file in files} | elsewhere
    sources = {place: source for source, place in elsewhere.items()}
    place = page.file.src_uri
    source = sources.get(place, _DOCS + place)
    try:
        return rewrite(markdown, source, pages, _ROOT)
    except BrokenLink as error:
        raise PluginError(str(error)) from error
