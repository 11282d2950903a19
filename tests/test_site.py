"The documentation site, as files: what it holds, what its pages link to, and that the checker finds planted faults."

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if not {"runs", ".ipynb_checkpoints"} & set(p.parts)
)


def load(name: str):
    "A script as a module."
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_site, project = load("check_site"), load("project")


def page_of(notebook: Path) -> str:
    "The name of a notebook's page: its number is dropped."
    return re.sub(r"^\d\d_", "", notebook.stem) + ".html"


def test_every_link_anchor_picture_and_size_is_right(site):
    assert check_site.check(site) == []


def test_every_notebook_has_a_page(site):
    assert [
        n.name
        for n in NOTEBOOKS
        if not (site / n.relative_to(ROOT / "nbs").parent / page_of(n)).exists()
    ] == []


def test_pages_keep_the_sidebar_in_course_order(site):
    text = (site / "attention.html").read_text()
    sidebar = text[text.index('<nav class="course"') : text.index("<main")]
    numbers = [int(n) for n in re.findall(r"<small>(\d\d)</small>", sidebar)]
    assert numbers == sorted(numbers) and len(numbers) == len(
        [n for n in NOTEBOOKS if re.match(r"\d\d_", n.name) and n.parent.name == "nbs"]
    )


def test_exported_code_is_shown_with_its_reference_and_source(site):
    page = (site / "attention.html").read_text()
    assert 'href="api/attention.html#slot_softmax"' in page and "Eq. (1): over slots" in page
    reference = (site / "api" / "attention.html").read_text()
    line = re.search(r'href="../source/attention.html#L(\d+)"[^>]*>source', reference)[1]
    assert (
        (ROOT / "slot_attention_nbdev" / "attention.py")
        .read_text()
        .split("\n")[int(line) - 1]
        .startswith("def ")
    )
    assert "sums to one over the slots for each token" in reference


def test_no_link_goes_to_an_address_that_the_project_has_not(site):
    assert project.published() is False
    address = project.settings()["user"]
    assert [
        p.name
        for p in site.rglob("*.html")
        if f"//{address}" in p.read_text() or f"/{address}/" in p.read_text()
    ] == []


def test_a_published_project_gets_links_and_badges(monkeypatch):
    monkeypatch.setitem(project.settings(), "published", "True")
    links = project.notebook_links(Path("10_attention.ipynb"))
    assert "colab" in links["Open in Colab"] and links["Open in Binder"].endswith(
        "10_attention.ipynb"
    )


def test_llms_txt_lists_every_course_page(site):
    text = (site / "llms.txt").read_text()
    assert all(page_of(n).replace(".html", ".llms.md") in text for n in NOTEBOOKS)


def test_the_search_index_holds_prose_and_no_markup(site):
    rows = json.loads(
        (site / "search.js").read_text().removeprefix("window.searchIndex=").rstrip(";\n")
    )
    assert any(row[0] == "attention.html#why-a-weighted-mean" for row in rows)
    assert not any(
        re.search(
            r"</?(a|code|div|em|p|pre|span|strong|t[dhr]|table)\b|<\w+ '|\\[a-zA-Z]{3,}", text
        )
        for row in rows
        for text in row[1:4]
    )


PLANTED = {
    "a broken link": ('<a href="nowhere.html">x</a>', "broken link: nowhere.html"),
    "a broken anchor": ('<a href="notation.html#no-such-place">x</a>', "broken anchor"),
    "a broken anchor of its own": ('<a href="#no-such-place">x</a>', "broken anchor"),
    "a link out of the site": ('<a href="../../x.html">x</a>', "broken link"),
    "another host": ('<script src="https://cdn.example.org/x.js"></script>', "asks another host"),
    "a script that is not there": ('<script src="missing.js"></script>', "loads what is not there"),
    "a picture without a text": ('<img src="icon.svg" alt="">', "without alt text"),
    "two places of one name": ('<b id="twice"></b><b id="twice"></b>', "two places named twice"),
    "too large": ("x" * 1_000_000, "at most 1000"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault(site, tmp_path, name):
    copy, (fault, expected) = tmp_path / "site", PLANTED[name]
    copy.mkdir()
    for path in (
        "404.html",
        "index.html",
        "notation.html",
        "icon.svg",
        "site.css",
        "site.js",
        "search.js",
        "llms.txt",
    ):
        shutil.copy(site / path, copy)
    (copy / "404.html").write_text(f"<html>{fault}</html>")
    assert any(
        found.startswith("404.html") and expected in found for found in check_site.check(copy)
    )
