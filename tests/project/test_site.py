"The documentation site, as files: its pages, links and order, and that the checker finds faults."

import json
import re
import shutil
from pathlib import Path

import check_site
import project
import pytest
from project import NBS, ROOT, all_notebooks, reading_order

NOTEBOOKS = all_notebooks()


def page_of(notebook: Path) -> str:
    "The name of a notebook's page: its number is dropped."
    name = re.sub(r"^\d\d_", "", notebook.stem) + ".html"
    return str(notebook.relative_to(NBS).with_name(name))


def test_every_link_anchor_picture_and_size_is_right(site):
    assert check_site.check(site) == []


def test_every_notebook_has_a_page(site):
    assert [n.name for n in NOTEBOOKS if not (site / page_of(n)).exists()] == []


def sidebar_of(page: Path) -> str:
    "The sidebar of a page."
    text = page.read_text()
    return text[text.index('<nav class="course"') : text.index("<main")]


def test_the_sidebar_has_the_course_first_and_open_and_everything_else_folded(site):
    sidebar = sidebar_of(site / "index.html")
    sections = re.findall(r"<details( open)?><summary>(.*?)</summary>", sidebar)
    assert sections[0] == (" open", "The course") and len(sections) >= 5
    assert not any(is_open for is_open, _ in sections[1:])
    linked = re.findall(r'href="([^"]+)"', sidebar)
    in_order = [page_of(NBS / name) for name in reading_order()]
    assert [page for page in linked if page in in_order] == in_order
    assert {page_of(n) for n in NOTEBOOKS} <= set(linked), "a notebook cannot be reached"


def test_the_section_of_a_page_is_open(site):
    sidebar = sidebar_of(site / page_of(NBS / "library" / "01_core.ipynb"))
    open_ones = re.findall(r"<details open><summary>(.*?)</summary>", sidebar)
    assert open_ones == ["The course", "Using the library"]


def test_the_pager_walks_the_course_and_then_the_shelves(site):
    walked, page = [], site / page_of(NBS / reading_order()[0])
    while page.exists() and page not in walked:
        walked.append(page)
        onward = re.search(r'<a class="next" href="([^"]+)"', page.read_text())
        if onward is None:
            break
        page = (page.parent / onward[1]).resolve()
    names = [str(page.relative_to(site)) for page in walked]
    lessons = [page_of(NBS / name) for name in reading_order()]
    assert names[: len(lessons)] == lessons
    assert set(names[len(lessons) :]) == {page_of(n) for n in project.all_solutions()}


def test_next_and_previous_in_the_text_follow_the_sidebar():
    order = [name for name in reading_order() if name.startswith("course/")]
    for before, after in zip(order, order[1:]):
        for name, word, wanted in ((before, "Next", after), (after, "Previous", before)):
            cells = json.loads((NBS / name).read_text())["cells"]
            text = "\n".join("".join(c["source"]) for c in cells)
            said = re.search(rf"\*\*{word}:\*\*[^\]]*\]\(([^)#]+)", text)
            assert said, f"{name} has no **{word}:**"
            there = ((NBS / name).parent / said[1]).resolve()
            assert there == NBS / wanted, f"{name}: {word}"


def test_exported_code_is_shown_with_its_reference_and_source(site):
    page = (site / "course" / "attention.html").read_text()
    assert 'href="../api/attention.html#slot_softmax"' in page
    assert "def slot_softmax(" in re.sub(r"<[^>]*>", "", page)
    reference = (site / "api" / "attention.html").read_text()
    line = re.search(r'href="../source/attention.html#L(\d+)"[^>]*>source', reference)[1]
    module = ROOT / "slot_attention_nbdev" / "nn" / "attention.py"
    assert module.read_text().split("\n")[int(line) - 1].startswith("def ")
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
    links = project.notebook_links(Path("course/01_attention.ipynb"))
    assert "colab" in links["Open in Colab"]
    assert links["Open in Binder"].endswith("nbs/course/01_attention.ipynb")


def test_llms_txt_lists_every_course_page(site):
    text = (site / "llms.txt").read_text()
    assert all(page_of(n).replace(".html", ".llms.md") in text for n in NOTEBOOKS)


def test_the_search_index_holds_prose_and_no_markup(site):
    rows = json.loads(
        (site / "search.js").read_text().removeprefix("window.searchIndex=").rstrip(";\n")
    )
    assert any(row[0] == "course/attention.html#why-a-weighted-mean" for row in rows)
    assert not any(
        re.search(
            r"</?(a|code|div|em|p|pre|span|strong|t[dhr]|table)\b|<\w+ '|\\[a-zA-Z]{3,}", text
        )
        for row in rows
        for text in row[1:4]
    )


PLANTED = {
    "a broken link": ('<a href="nowhere.html">x</a>', "broken link: nowhere.html"),
    "a broken anchor": ('<a href="gallery.html#no-such-place">x</a>', "broken anchor"),
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
        "gallery.html",
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
