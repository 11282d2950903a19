#!/usr/bin/env python3
"""Check a built site.

Every link and anchor leads somewhere, no page asks another host for anything, every picture has a
text, no page is too large.

    python scripts/check_site.py          # _docs/
    python scripts/check_site.py FOLDER

Prints a line per fault and exits 1 if there is any. Needs the standard library alone.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 1_000_000
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}


class Page(HTMLParser):
    "What a page links to, what it loads, which places it has, and which pictures have no text."

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.loads = []
        self.ids = set()
        self.doubled = []
        self.bare_images = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("id"):
            if given["id"] in self.ids:
                self.doubled.append(given["id"])
            self.ids.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADS.get(tag, "")):
            self.loads.append(given[LOADS[tag]])
        if tag == "img" and not (given.get("alt") or "").strip():
            self.bare_images += 1

    handle_startendtag = handle_starttag


def local_target(page: Path, link: str) -> tuple[Path, str] | None:
    "The file and the anchor that a link means; None if it leads away from the site."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return (target / "index.html" if target.is_dir() else target), unquote(parts.fragment)


def faults_of_page(path: Path, site: Path, pages: dict[Path, Page]) -> list[str]:
    "All faults of one page."
    page, faults = pages[path], []
    if path.stat().st_size > MAX_BYTES:
        faults.append(f"{path.stat().st_size / 1000:.0f} KB, at most {MAX_BYTES // 1000}")
    for link in page.loads:
        found = local_target(path, link)
        if found is None and not link.startswith("data:"):
            faults.append(f"asks another host: {link}")
        elif found and not found[0].exists():
            faults.append(f"loads what is not there: {link}")
    for link in page.links:
        found = local_target(path, link)
        if found is None:
            continue
        target, anchor = found
        if not target.is_relative_to(site) or not target.exists():
            faults.append(f"broken link: {link}")
        elif anchor and target in pages and anchor not in pages[target].ids:
            faults.append(f"broken anchor: {link}")
    faults += [f"two places named {name}" for name in page.doubled]
    if page.bare_images:
        faults.append(f"{page.bare_images} pictures without alt text")
    return faults


def faults_of_text(path: Path) -> list[str]:
    "Faults of a style sheet, a script or a Markdown index."
    text, faults = path.read_text(encoding="utf-8"), []
    if path.suffix == ".css":
        for link in re.findall(r"url\(['\"]?([^)'\"]+)", text):
            if not link.startswith("data:") and (
                urlsplit(link).netloc or not (path.parent / link).exists()
            ):
                faults.append(f"loads what is not there: {link}")
    if path.suffix == ".txt":
        faults += [
            f"broken link: {link}"
            for link in re.findall(r"\]\(([^)\s]+)\)", text)
            if not urlsplit(link).netloc and not (path.parent / link).exists()
        ]
    return faults


def check(site: Path) -> list[str]:
    "All faults of a site, a line each."
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    faults = [] if pages else ["no pages"]
    for name in ("index.html", "404.html", "llms.txt", "search/pages.js"):
        if not (site / name).exists():
            faults.append(f"{name}: missing")
    for path in pages:
        faults += [
            f"{path.relative_to(site)}: {what}" for what in faults_of_page(path, site, pages)
        ]
    for path in sorted(p for kind in ("*.css", "llms.txt") for p in site.rglob(kind)):
        faults += [f"{path.relative_to(site)}: {what}" for what in faults_of_text(path)]
    return faults


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs"
    found = check(folder)
    print(
        "\n".join(found)
        if found
        else f"{len(list(folder.rglob('*.html')))} pages: every link leads somewhere."
    )
    sys.exit(1 if found else 0)
