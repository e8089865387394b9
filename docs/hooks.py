"""Build the documents' site from the repository as it is: README is its first page.

Documents link to files of the repository beside docs/. What they link to becomes part of the site,
so that a strict build checks every link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages that are documents of the repository's root."""


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages, and every file beside docs/ that a document links to."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=_as_of_docs((ROOT / source).read_text())))
    for page in [f for f in files if f.src_uri.endswith(".md")]:
        for target in _outside(page.content_string):
            if files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave docs/ lead to the copies."""
    for target, source in PAGES.items():
        markdown = markdown.replace(f"](../{source})", f"]({target})")
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\(\.\./(?=[\w.])", f"]({up}", markdown)


def _as_of_docs(text: str) -> str:
    """Write the links of a document of the root as they would be in docs/."""

    def moved(link: re.Match[str]) -> str:
        target = link[1]
        if "://" in target or target.startswith("#"):
            return link[0]
        for page, source in PAGES.items():
            if target == source:
                return f"]({page})"
        inside = target.startswith("docs/")
        return f"]({target.removeprefix('docs/')})" if inside else f"](../{target})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def _outside(text: str) -> set[str]:
    """Return the files beside docs/ that a text links to, as paths from the root."""
    targets = {posixpath.normpath(t) for t in re.findall(r"\]\(\.\./([^)#\s]+)", text)}
    return targets - {*PAGES.values()}
