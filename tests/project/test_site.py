"The documentation site, as files: its pages, links and order, and that the checker finds faults."

import gzip
import json
import re
import shutil
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import check_site
import make_docs
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
    start = text.index('<nav class="course"')
    return text[start : text.index("</nav>", start)]


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


def test_the_search_index_holds_prose_names_and_no_markup(site):
    data = (site / "search" / "pages.js").read_text()
    pages = json.loads(data.removeprefix("window.searchPages=").rstrip(";\n"))
    sections = {f"{page}#{row[0]}": row for page, _, _, rows in pages for row in rows}
    assert "course/attention.html#why-a-weighted-mean" in sections
    attention = sections["course/slot_attention.html#stage-3-the-module"]
    assert "num_iterations" in attention[2] + attention[3] and "import" not in attention[3].split()
    words = " ".join(f"{row[2]} {row[3]}" for row in sections.values()).split()
    assert {"--resume", "F.gru_cell"} <= set(words) or "--resume" in words
    markup = r"</?(a|code|div|em|p|pre|span|strong|t[dhr]|table)\b|<\w+ '|\\[a-zA-Z]{3,}"
    assert [where for where, row in sections.items() if re.search(markup, row[1] + row[2])] == []


def test_names_in_code_are_what_one_would_look_for():
    code = "x = self.decode_slots(SlotMLP(3))  # not_this\nslot-attention train --resume"
    assert make_docs.names_in(code, "SlotMLP is known") == "--resume decode_slots"


def test_only_who_searches_loads_what_it_looks_through(site):
    assert len(gzip.compress((site / "search" / "pages.js").read_bytes())) < 450_000
    assert 'src="search/' not in (site / "index.html").read_text()


def text_of(page: Path) -> str:
    "What stands between a page's sidebar and its end."
    text = page.read_text()
    return text[text.index("<main") :]


def test_each_notebook_can_be_downloaded_from_its_page(site):
    for notebook in NOTEBOOKS:
        page = site / page_of(notebook)
        link = re.search(r'<a class="action" href="([^"]+)" download>', page.read_text())
        assert (page.parent / link[1]).read_bytes() == notebook.read_bytes()


def test_a_page_begins_with_one_box_and_ends_with_one_next(site):
    for notebook in NOTEBOOKS:
        text, given = text_of(site / page_of(notebook)), notebook.read_text()
        box = re.findall(r'<div class="brief">(.*?)</div>', text, re.S)
        assert len(box) == ("**You will learn**" in given), notebook.name
        assert all(f"<strong>{word}:" in b for b in box for word in ("Time", "Hardware"))
        assert "<strong>Next:" not in text and text.count('class="next"') <= 1


def test_a_link_to_a_notebook_bears_its_title(site):
    assert ">Attention with competing slots</a>" in text_of(site / "course" / "slot_attention.html")
    names = {page_of(n).rpartition("/")[2].removesuffix(".html") for n in NOTEBOOKS}
    for notebook in NOTEBOOKS:
        shown = re.sub(r"<nav.*", "", text_of(site / page_of(notebook)), flags=re.S)
        links = re.findall(r'<a href="([^"#]*)[^"]*">(\w+)</a>', shown)
        assert not [
            (href, text)
            for href, text in links
            if text in names and href.endswith(f"{text}.html") and "api/" not in href
        ], notebook.name


def test_imports_are_folded_and_nothing_else_is():
    sources = ["#| export\nimport torch", "from torch import nn", "x = 1", "import torch\nprint(1)"]
    cells = [SimpleNamespace(cell_type="code", source=s, outputs=[]) for s in sources]
    folded = make_docs.fold_imports(cells)
    assert [c.source.startswith("#| code-fold: true") for c in folded] == [True, False, False]
    assert folded[0].source.endswith("import torch\n\nfrom torch import nn")


def test_only_a_published_page_says_where_it_is(site, monkeypatch):
    page = (site / "index.html").read_text()
    assert "og:title" not in page and "canonical" not in page
    assert not (site / "sitemap.xml").exists() and not (site / "robots.txt").exists()
    monkeypatch.setitem(project.settings(), "published", "True")
    address = project.site_url()
    card = make_docs.card('A "title"', "words", PurePosixPath("course/attention.html"))
    assert f'<link rel="canonical" href="{address}course/attention.html">' in card
    assert 'property="og:title" content="A &quot;title&quot;"' in card
    assert 'name="twitter:card"' in card
    picture = re.search(r'property="og:image" content="([^"]+)"', card)[1]
    assert (site / picture.removeprefix(address)).exists()
    found = make_docs.sitemap([PurePosixPath("b.html"), PurePosixPath("course/a.html")])
    assert re.findall("<loc>(.*?)</loc>", found) == [f"{address}b.html", f"{address}course/a.html"]


def test_the_citation_is_that_of_the_citation_file(site):
    page = re.sub(r"<[^>]*>", "", (site / "run_and_cite.html").read_text())
    assert "@software{slot_attention_nbdev," in page and "@inproceedings{locatello2020," in page
    assert "Locatello, Francesco and Weissenborn, Dirk" in page
    assert "run_and_cite.html" in (site / "index.html").read_text()


def test_a_default_in_the_reference_is_short(site):
    long = f"Schema(name='a', sizes=({'1, ' * 50}))"
    given = f"f(\n    x: Schema = {long},\n)\n| x | {long} | what |\n| y | Pair(1, 2) | z |"
    assert make_docs.shortened(given) == (
        "f(\n    x: Schema = Schema(name='a', …),\n)\n| x | Schema(name='a', …) | what |\n"
        "| y | Pair(1, 2) | z |"
    )
    page = re.sub(r"<[^>]*>", "", (site / "api" / "sets.html").read_text())
    assert "ObjectSchema(name=" in page and "low=-3" not in page


def test_the_reference_has_its_own_list_in_the_sidebar(site):
    sidebar = sidebar_of(site / "api" / "attention.html")
    last = re.findall(r"<details open><summary>Reference</summary><ul>(.*?)</ul>", sidebar)[0]
    assert re.search(r'href="attention.html" aria-current="page"', last)
    assert 'href="slot_attention.html"' in last and last.count("<li>") > 20


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
        "run_and_cite.html",
        "llms.txt",
    ):
        shutil.copy(site / path, copy)
    shutil.copytree(site / "search", copy / "search")
    (copy / "404.html").write_text(f"<html>{fault}</html>")
    assert any(
        found.startswith("404.html") and expected in found for found in check_site.check(copy)
    )


def test_the_reference_has_fields_and_an_example_of_each_main_name(site):
    for name in make_docs.examples():
        (page,) = [p for p in (site / "api").glob("*.html") if f'id="{name}"' in p.read_text()]
        text = page.read_text()
        first = re.search(r'<h2[^>]*id="(\w+)"|<section id="(\w+)"', text)
        assert text.index(f'id="{name}"') < text.index("Example"), (page.name, first)
    text = (site / "api" / "autoencoder.html").read_text()
    assert text.index('id="SlotAttentionAutoEncoder"') < text.index('id="AutoEncoderOutput"')
    output = text[text.index('id="AutoEncoderOutput"') :]
    assert "Each slot" in output and "<code>masks</code>" in output[: output.index("<h3")]
    assert "<code>num_slots</code>" in (site / "api" / "recipes.html").read_text()


def test_the_examples_of_the_reference_run():
    assert len(make_docs.examples()) == 10
    for name, text in make_docs.examples().items():
        code = text.removeprefix("```python\n").removesuffix("```")
        exec(compile(code, name, "exec"), {})
