"""What the site has besides the pages of docs/: a reference made from the docstrings, and files that pages link to.

](../results/x/report.md)     the file becomes a page of the site, a picture a picture
](../launch/studies)          folders and sources are no pages: the link's words stay
[data.md](data.md)            has the page's title in the navigation for words
"""

import pkgutil
import posixpath
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)\)")
SHOWN = {".md", ".png"}
NAMED = re.compile(r"\[(\w+\.md)\]\((\1)(#[\w-]+)?\)")
"""A link whose words are its file, as pages read in the repository have them."""
KIND = re.compile(r"^```sh \w+$", flags=re.MULTILINE)
"""A block that says more than its language; that is for tests/test_docs.py."""
PACKAGES = ["dsllm", "dsllm.data", "dsllm.tokenizer", "dsllm.models", "dsllm.growth", "dsllm.growth.policies",
            "dsllm.training", "dsllm.comparison", "dsllm.planning", "dsllm.exchange", "data_prep"]  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference's pages stand behind the others."""
    assert config.nav is not None
    config.nav.append({"Reference": [{package: f"reference/{package}.md"} for package in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page of reference for each package, and all that pages link to outside of docs/."""
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=reference(package)))
    for page in list(files.documentation_pages()):
        if page.src_uri.startswith("reference/"):
            continue
        for _, _, target in OUTSIDE.findall(page.content_string):
            _add(target, files, config)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to where their files are in the site."""
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if files.get_file_from_path(target) is None:
            return words
        return f"{picture}[{words}]({'../' * depth}{target})"

    def titled(match: re.Match[str]) -> str:
        _, target, anchor = match.groups()
        return f"[{titles.get(target, target)}]({target}{anchor or ''})"

    if depth:
        return markdown
    titles = dict(_titles(config.nav))
    return KIND.sub("```sh", NAMED.sub(titled, OUTSIDE.sub(inside, markdown)))


def reference(package: str) -> str:
    """Every module of a package, in the order of their names."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    modules = [f"{package}.{module.name}" for module in found if not module.ispkg and not module.name.startswith("_")]
    itself = f"::: {package}\n    options:\n      show_root_heading: false"
    return "\n\n".join([f"# {package}", itself, *(f"::: {module}" for module in modules)])


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """File and title of every page of the navigation."""
    for entry in nav:
        for title, place in entry.items():
            if isinstance(place, str):
                yield place, title
            else:
                yield from _titles(place)


def _add(target: str, files: Files, config: MkDocsConfig) -> None:
    path = ROOT / target
    if path.suffix not in SHOWN or files.get_file_from_path(target) is not None:
        return
    file = File.generated(config, target, abs_src_path=str(path))
    files.append(file)
    if path.suffix == ".md":  # a report shows pictures beside it
        for picture in re.findall(r"!\[[^\]]*\]\(([^):]+)\)", path.read_text(encoding="utf-8")):
            _add(posixpath.join(posixpath.dirname(target), picture), files, config)
