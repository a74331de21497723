"""What mkdocs.yml cannot say: decisions, links to files of the repository, and no fetching from elsewhere."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

FETCHED = ("mermaid.min.js", "iframe-worker.js")
"""Scripts that ``scripts/setup-docs`` gets, for those that the theme would load from elsewhere."""

LINK = re.compile(r"\[(?P<text>[^]]+)\]\((?P<target>\.\./[^)#]+)\)")
SHIM = "https://unpkg.com/iframe-worker/shim"
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe)[^>]* src="?(https?:[^" >]*)|<link rel="?stylesheet"? href="?(https?:[^" >]*)"""
)


def on_config(config: MkDocsConfig) -> None:
    """Add each decision to the navigation, in its order."""
    records = sorted(path.name for path in Path(config.docs_dir, "decisions").glob("0*.md"))
    for section in config.nav or []:
        for page in section.get("Explanation", []):
            page.get("Decisions", []).extend(f"decisions/{name}" for name in records)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Put the scripts into the site."""
    for name in FETCHED:
        source = Path(config.config_file_path).parent / "build" / "docs" / name
        if not source.exists():
            raise PluginError(f"{source} is missing; scripts/setup-docs fetches it")
        files.append(File.generated(config, f"javascripts/{name}", abs_src_path=str(source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave of a link to a file of the repository, which is not on the site, its text."""
    docs = Path(config.docs_dir).resolve()
    folder = docs / Path(page.file.src_uri).parent

    def text_or_link(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        return link["text"] if target.exists() and not target.is_relative_to(docs) else link[0]

    return LINK.sub(text_or_link, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Take the scripts that are here, and refuse a site that needs others."""
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        shim = get_relative_url("javascripts/iframe-worker.js", page.relative_to(site).as_posix())
        if SHIM in html:
            html = html.replace(SHIM, shim)
            page.write_text(html, encoding="utf-8")
        if found := ELSEWHERE.search(html):
            raise PluginError(f"{page.relative_to(site)} would fetch {found[0]}")
