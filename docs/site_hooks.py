"""Makes a site of the documents: brings pages from the root in, and links other files to the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents in the root of the repository, each with its name on the site."""


def on_config(config: Any) -> Any:
    """Takes the repository's address from pyproject.toml."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Homepage"]
    config["repo_url"], config["repo_name"] = address, "GitHub"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from the root of the repository."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_from_root(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links to files that are not on the site at the repository."""
    for source, name in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    return re.sub(r"\]\(\.\./([^)#\s]+)", rf"]({config['repo_url']}/blob/main/\1", markdown)


def _from_root(text: str) -> str:
    """The text of a page in the root as it would stand in `docs`."""
    text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text)
    return text.replace("](docs/", "](")
