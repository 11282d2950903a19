#!/usr/bin/env python3
"""Build the documentation site from the notebooks, without Quarto.

    python scripts/make_docs.py              # into _docs/; what `make docs` runs
    python scripts/make_docs.py --out FOLDER

nbdev's processors read the notebooks, smalldocs turns them into HTML by `_quarto.yml`, and this
script adds what both leave out: pages under the names that links use, the source beside every
exported name, a reference of all modules, local KaTeX, a search that works from a folder, and the
look (`scripts/site/`). No page asks another host for anything. Any warning of smalldocs, such as a
link to a page that is not there, fails the build.
"""

import argparse
import ast
import html
import inspect
import json
import re
import shutil
import sys
import tempfile
import textwrap
import time
from dataclasses import is_dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from string import Template

import yaml
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import (
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    strip_ansi,
)
from execnb.nbio import mk_cell, write_nb
from smalldocs import api, config, highlight, layout, site

sys.path.insert(0, str(Path(__file__).resolve().parent))
import drawings
import live_weights
import npm_package
import project

ROOT = Path(__file__).resolve().parent.parent
LOOK = ROOT / "scripts" / "site"
OPERATOR = re.compile(r"custom_op|triton_op|_operator\(")  # decorators; no entry of their own
PACKAGE = "slot_attention_nbdev"
# what a formula in a heading or a search result is shown as, where none can be typeset
TEX = {r"\varepsilon": "ε", r"\epsilon": "ε", r"\mu": "μ", r"\sigma": "σ", r"\alpha": "α"}
TEX |= {r"\tau": "τ", r"\pi": "π", r"\log": "log", r"\sqrt": "√", r"\times": "×", r"\cdot": "·"}
TEX |= {
    r"\to": "→",
    r"\ge": "≥",
    r"\le": "≤",
    r"\in": "∈",
    r"\sum": "Σ",
    r"\top": "ᵀ",
    r"\infty": "∞",
}


# ---------------------------------------------------------------- notebooks to pages


def exported_names(source: str) -> list[str]:
    "The functions and classes that a cell defines; a function named `_` is only registered."
    return [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "_"
    ]


def module_of(notebook: Path) -> str | None:
    "The module that a notebook exports, without the package's name."
    found = re.search(r"#\|\s*default_exp\s+([\w.]+)", notebook.read_text(encoding="utf-8"))
    return found[1] if found else None


def export_bar(module: str, source: str) -> str:
    """The line above an exported cell: what it defines, linked to the reference, and the module it
    goes to.
    """
    names, page = exported_names(source), f"/api/{module.rpartition('.')[2]}.qmd"
    operators = {
        node.name
        for node in ast.parse(source).body
        if any(OPERATOR.search(ast.unparse(d)) for d in getattr(node, "decorator_list", ()))
    }
    links = " ".join(
        f"`{name}`"
        if name.startswith("_")
        else f"[`{name}`]({page}{'' if name in operators else '#' + name})"
        for name in names
    )
    return f"::: {{.export-bar}}\n{links} [in `{PACKAGE}.{module}`]({page}){{.module}}\n:::\n"


def only_imports(cell) -> bool:
    "Whether a code cell imports, and does nothing else."
    body = ast.parse(cell.source).body if cell.cell_type == "code" and not cell.outputs else []
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def fold_imports(cells: list) -> list:
    "Cells that only import, those in a row as one, folded away."
    kept, open_one = [], None
    for cell in cells:
        if not only_imports(cell):
            kept.append(cell)
            open_one = None
            continue
        source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        if open_one is None:
            cell.source = f'#| code-fold: true\n#| code-summary: "Imports"\n{source}'
            kept.append(cell)
            open_one = cell
        else:
            open_one.source += f"\n\n{source}"
    return kept


def prepare_notebook(path: Path, target: Path) -> None:
    """Write a notebook as smalldocs is to read it: front matter, no directives, every exported cell
    with its source.
    """
    procs = [
        FrontmatterProc,
        populate_language,
        strip_ansi,
        hide_line,
        filter_stream_,
        clean_magics,
        hide_,
    ]
    processor = NBProcessor(path, procs=procs)
    processor.process()
    module = module_of(path)
    cells = []
    for cell in processor.nb.cells:
        directives = getattr(cell, "directives_", {})
        if (
            cell.cell_type == "code"
            and not re.sub(r"^#\|.*$", "", cell.source, flags=re.M).strip()
            and not cell.outputs
        ):
            continue
        if module and {"export", "exports"} & directives.keys() and exported_names(cell.source):
            cells.append(mk_cell(export_bar(module, cell.source), "markdown"))
        if cell.cell_type == "markdown":
            top = r"\]\((?:\.\./)+CONTRIBUTING\.md"
            cell.source = re.sub(top, "](/CONTRIBUTING.md", cell.source)
        cells.append(cell)
    processor.nb.cells = fold_imports(cells)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(processor.nb, target)


def settings(pages: Path) -> dict:
    "`_quarto.yml` as smalldocs is to read it."
    text = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    given["project"]["output-dir"] = "_site"
    given["project"].pop("preview", None)
    given["format"] = {
        "html": {
            "toc": True,
            "toc-depth": given["format"]["html"].get("toc-depth", 3),
            "code-copy": False,
        }
    }
    given["website"].pop("reader-mode", None)
    given["website"]["sidebar"].pop("collapse-level", None)
    given["website"] |= {"llms-txt": True, "page-navigation": True}
    given["website"]["navbar"]["left"].append({"text": "Reference", "href": "api/index.md"})
    given["smalldocs"] = {"api": {"packages": [PACKAGE], "out": "api", "root": str(ROOT)}}
    return given


def source_page(path: Path) -> str:
    "A module's source as a page whose lines can be linked to."
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    lines = highlight.highlight(path.read_text(encoding="utf-8").rstrip("\n"), "python").split("\n")
    # a string over several lines is one span: close it at the end of a line, and open it again on
    # the next
    body, open_span = [], ""
    for number, line in enumerate(lines, 1):
        body.append(f'<span class="line" id="L{number}">{open_span}{line}')
        opened = re.findall(r"<span class=\"\w+\">|</span>", open_span + line)
        open_span = opened[-1] if opened and opened[-1] != "</span>" else ""
        body[-1] += "</span>" if open_span else ""
    address = (
        f"[In the repository]({project.source_url(path.relative_to(ROOT))})\n\n"
        if project.published()
        else ""
    )
    listing = "".join(f"{line}\n</span>" for line in body)
    return (
        f"---\ntitle: {json.dumps('Source of ' + name)}\ndescription: 'Written from its notebook'\n"
        f"toc: false\nsearch: false\n---\n\n{address}```{{=html}}\n"
        f'<pre class="listing"><code>{listing}</code></pre>\n```\n'
    )


def api_index(inventory: list[api.Symbol], notebooks: dict[str, Path]) -> str:
    "The page that lists every module and name with its one line."
    parts = [
        "---\ntitle: Reference\ndescription: Every module and name of the library, in a line each\n"
        "toc-depth: 2\n---\n"
    ]
    for module in sorted({s.module for s in inventory} & notebooks.keys()):
        short = module.rpartition(".")[2]
        summary = next((s.summary for s in inventory if s.module == module and not s.name), "")
        parts.append(
            f"## {module.removeprefix(PACKAGE + '.')}\n\n"
            f"[`{module}`]({short}.qmd): {summary}. Taught in {link_to(notebooks[module])}.\n"
        )
        rows = [
            f"| [`{s.name}`]({short}.qmd#{s.name}) | {s.summary.replace('|', chr(92) + '|')} |"
            for s in inventory
            if s.module == module and s.name and "." not in s.name
        ]
        parts.append("\n".join(["| name | what it does |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def link_to(notebook: Path) -> str:
    "A link to a notebook from anywhere, in the words of its title."
    return f"[{project.title_of(notebook)}](/{notebook.relative_to(project.NBS)})"


def unfold(line: str) -> str:
    "A signature that is too long for a line, with an argument on each."
    opened = re.match(r"((?:async )?[\w.]+\()(.*)(\)(?: -> .*)?)$", line)
    if len(line) <= 84 or not opened:
        return line
    arguments, depth = [""], 0
    for letter in opened[2]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            arguments.append("")
        else:
            arguments[-1] += letter
    return "\n".join([opened[1], *[f"    {a.strip()}," for a in arguments], opened[3]])


def shortened(text: str) -> str:
    "A reference whose defaults are short: of a long object its first words."
    for found in reversed(list(re.finditer(r"(?<=[=|] )`?[A-Z]\w*\(", text))):
        depth, at = 1, found.end()
        while depth and at < len(text):
            depth += (text[at] == "(") - (text[at] == ")")
            at += 1
        whole = text[found.start() : at]
        if len(whole) > 100 and "\n" not in whole:
            text = f"{text[: found.start()]}{whole.split(',')[0]}, …){text[at:]}"
    return text


@cache
def examples() -> dict[str, str]:
    "The examples of the main names, as fenced code."
    text = (ROOT / "scripts" / "site" / "examples.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\w+)\n\n(```python\n.*?^```)$", text, re.M | re.S))


def fields_table(kind: type) -> str:
    "The fields of a tuple with names or a dataclass: type, default, and the comment at each."
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.split("\n")
    rows = ["| Field | Type | Default | Description |", "| --- | --- | --- | --- |"]
    defaults = getattr(kind, "_field_defaults", vars(kind))
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        name, about, above = node.target.id, [], node.lineno - 2
        while lines[above].strip().startswith("#"):
            about.insert(0, lines[above].strip())
            above -= 1
        about += re.findall(r"#.*", lines[node.end_lineno - 1][node.end_col_offset :])
        about = " ".join(comment.lstrip("# ") for comment in about)
        default = defaults.get(name)
        shown = default.__name__ if isinstance(default, type) else repr(default)
        default = f"`{shown}`" if name in defaults else "required"
        cells = (f"`{name}`", ast.unparse(node.annotation), default, about)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def with_fields_and_example(section: str, module: str) -> str:
    "What the reference says of a name, with its fields, if it has some, and an example."
    name = re.match(r"## .*\{#(\w+)\}", section)
    found = getattr(sys.modules[module], name[1], None) if name else None
    more = []
    if hasattr(found, "_fields") or (isinstance(found, type) and is_dataclass(found)):
        more.append(fields_table(found))
    if name and name[1] in examples():
        more.append(f"**Example**\n\n{examples()[name[1]]}")
    head, method, rest = section.partition("\n### ")
    return "\n\n".join([head.rstrip("\n"), *more]) + "\n" + method + rest


def reference_page(text: str, notebook: Path) -> str:
    """A page of the reference: a short title, the notebook that teaches the module, the main
    names first, with an example, readable signatures, the fields of what has fields.
    """
    name = re.search(r'^title: "(.*)"$', text, re.M)[1]
    text = text.replace(f'title: "{name}"', f'title: "{name.rpartition(".")[2]}"', 1)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)  # a default that is a class
    text = shortened(text)
    text = "\n".join(map(unfold, text.split("\n")))
    head, front, body = text.split("---\n", 2)
    opening, *sections = re.split(r"^(?=## )", body, flags=re.M)
    sections = [with_fields_and_example(each, name) for each in sections]
    sections.sort(key=lambda each: "**Example**" not in each)  # stable: the others keep their order
    body = opening + "\n".join(sections)
    return f"---\n{front}---\n\n`{name}`, taught in {link_to(notebook)}.\n{body}"


def source_link(_, symbol: api.Symbol) -> str:
    "A link to the line that defines a name; a class may borrow a method from another module."
    owner = getattr(sys.modules[symbol.module], symbol.name.split(".")[0], None)
    page = getattr(owner, "__module__", symbol.module).rpartition(".")[2]
    return f"[source](/source/{page}.md#L{symbol.line}){{.source-link}}"


def bibtex_entry(kind: str, key: str, work: dict, fields: dict) -> str:
    "A work of CITATION.cff as an entry of BibTeX."
    authors = [
        f"{who['family-names']}, {who['given-names']}"
        if "name" not in who
        else f"{{{who['name']}}}"
        for who in work["authors"]
    ]
    fields = {"title": f"{{{work['title']}}}", "author": " and ".join(authors)} | fields
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"


def bibtex(given: dict) -> str:
    "CITATION.cff as BibTeX: the software, and the papers that it refers to."
    about = {"note": f"Version {given['version']}"}
    if project.published():
        about["url"] = project.settings()["git_url"]
    entries = [bibtex_entry("software", project.settings()["lib_name"], given, about)]
    for paper in given["references"]:
        key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}"
        about = {"booktitle": paper["collection-title"], "year": paper["year"], "url": paper["url"]}
        entries.append(bibtex_entry("inproceedings", key, paper, about))
    return "\n\n".join(entries)


def run_and_cite() -> str:
    "The page that says how to run a notebook, and what to cite."
    package, version = project.settings()["lib_name"], project.version()
    elsewhere = (
        "Each of these pages links to its notebook in Colab and in Binder, beside the download."
        if project.published()
        else "Make the package's file by `pip wheel --no-deps .` in the project's folder. "
        "In Colab, upload it and the downloaded notebook, and let its first cell say\n\n```python\n"
        f'%pip install "./{package}-{version}-py3-none-any.whl[notebooks]"\n```'
    )
    given = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return Template((LOOK / "run_and_cite.md").read_text(encoding="utf-8")).substitute(
        python=project.settings()["min_python"],
        elsewhere=elsewhere,
        message=given["message"],
        bibtex=bibtex(given),
    )


def prepare(pages: Path) -> None:
    "Fill a folder with everything smalldocs needs."
    notebooks = {}
    for path in project.all_notebooks():
        prepare_notebook(path, pages / path.relative_to(project.NBS))
        if module_of(path):
            notebooks[f"{PACKAGE}.{module_of(path)}"] = path
    shutil.copytree(ROOT / "nbs" / "images", pages / "images")
    title, _, text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n")
    text = text.replace("](nbs/", "](/")
    (pages / "CONTRIBUTING.md").write_text(
        f"---\ntitle: {title.removeprefix('# ')}\ndescription: How to change it\n---\n{text}",
        encoding="utf-8",
    )
    (pages / "_quarto.yml").write_text(
        yaml.safe_dump(settings(pages), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    (pages / "run_and_cite.md").write_text(run_and_cite(), encoding="utf-8")
    (pages / "404.md").write_text(
        "---\ntitle: Nothing here\ndescription: This page does not exist, or no longer\n"
        "toc: false\nsearch: false\n---\n\n"
        "Try the search above, or go to [the start](/index.ipynb).\n",
        encoding="utf-8",
    )
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.name not in ("__init__.py", "_modidx.py"):
            (pages / "source").mkdir(exist_ok=True)
            (pages / "source" / f"{path.stem}.md").write_text(source_page(path), encoding="utf-8")
    api.source_link = source_link
    chosen = api.Settings.read(pages, settings(pages)["smalldocs"]["api"])
    api.build(chosen)
    for module, notebook in notebooks.items():
        path = pages / "api" / f"{module.rpartition('.')[2]}.qmd"
        path.write_text(
            reference_page(path.read_text(encoding="utf-8"), notebook), encoding="utf-8"
        )
    (pages / "api" / "index.md").write_text(
        api_index(api.inventory([PACKAGE]), notebooks), encoding="utf-8"
    )


# ---------------------------------------------------------------- pages to HTML


class CourseSite(site.Site):
    "A site whose pages bear the names that nbdev gives them: `attention.html`, no number."

    def read(self, src: PurePosixPath) -> site.Page:
        page = super().read(src)
        if page.front.get("output-file"):
            page.out = src.with_name(page.front["output-file"])
        return page


def number_of(page: site.Page) -> str:
    "The notebook's number, as the sidebar shows it."
    found = re.match(r"(\d\d)_", page.src.stem)
    return found[1] if found and "solutions" not in page.src.parts else ""


def sidebar(nav: layout.SiteNav, page: site.Page) -> str:
    "The course, open; the other sections are folded, but for the one of this page."

    def entry(item: layout.Item) -> str:
        here = ' aria-current="page"' if item.page is page else ""
        number = number_of(item.page) if item.page else ""
        text = (
            re.sub(r"^Solutions:?\s*(to )?", "", item.text)
            if item.page and "solutions" in item.page.src.parts
            else item.text
        )
        number = f"<small>{number}</small>" if number else ""
        link = f'<a href="{site.rel(item.href, page)}"{here}>{number}<span>{text}</span></a>'
        return f"<li>{link}</li>"

    items = nav.sidebars[0]["items"]
    course = next(item for item in items if item.section)
    parts = []
    for item in items:
        if not item.section:
            parts.append(f"<ul>{entry(item)}</ul>")
            continue
        is_open = " open" if item is course or item.contains(page) else ""
        entries = "".join(map(entry, item.children))
        head = f"<details{is_open}><summary>{item.text}</summary>"
        parts.append(f"{head}<ul>{entries}</ul></details>")
    return "".join(parts) + reference_list(nav.site, page)


def reference_list(course: site.Site, page: site.Page) -> str:
    "The modules in the sidebar; open where one of them, or its source, is the page."
    folder = page.src.parts[0]
    entries = []
    for other in sorted(course.pages.values(), key=lambda p: (p.src.stem != "index", p.src.stem)):
        if other.src.parts[0] == "api":
            same = other is page or (folder == "source" and other.src.stem == page.src.stem)
            here = ' aria-current="page"' if same else ""
            text = "All names" if other.src.stem == "index" else html.escape(other.title)
            entries.append(
                f'<li><a href="{site.rel(other.out, page)}"{here}><span>{text}</span></a></li>'
            )
    is_open = " open" if folder in ("api", "source") else ""
    return f"<details{is_open}><summary>Reference</summary><ul>{''.join(entries)}</ul></details>"


def contents(page: site.Page) -> str:
    "The headings of the page, with their formulas."
    depth = int(page.meta.get("toc-depth", 3))
    found = re.findall(r'<h([23])[^>]*?data-anchor-id="([^"]*)"[^>]*>(.*?)</h\1>', page.html, re.S)
    rows = [
        (int(level), anchor, re.sub(r"</?(a|code)\b[^>]*>", "", text))
        for level, anchor, text in found
        if int(level) <= depth
    ]
    if not page.meta.get("toc") or len(rows) < 2:
        return ""
    if page.src.parts[0] == "api":  # a long name breaks between its words
        rows = [
            (level, anchor, re.sub(r"([._])(?=\w)", r"\1<wbr>", text))
            for level, anchor, text in rows
        ]
    items = "".join(
        f'<li class="level{level}"><a href="#{anchor}">{text}</a></li>'
        for level, anchor, text in rows
    )
    return (
        '<nav class="contents" aria-label="On this page"><details open>'
        f"<summary>On this page</summary><ul>{items}</ul></details></nav>"
    )


def neighbours(nav: layout.SiteNav, page: site.Page) -> str:
    "Links to the page before and the page after in the course."
    order = nav.order(page)
    if page not in order:
        return ""
    at = order.index(page)

    def link(index: int, side: str) -> str:
        if not 0 <= index < len(order):
            return "<span></span>"
        title, there = html.escape(order[index].title), site.rel(order[index].out, page)
        return f'<a class="{side}" href="{there}"><small>{side.capitalize()}</small>{title}</a>'

    both = link(at - 1, "previous") + link(at + 1, "next")
    return f'<nav class="neighbours" aria-label="Previous and next page">{both}</nav>'


def with_room(found: re.Match) -> str:
    "A table's cell that is as wide as its text needs, to be eight lines high at most."
    letters = len(html.unescape(re.sub(r"<[^>]*>", "", found[1])))
    room = f' style="min-width:{min(36, letters / 16 + 2):.0f}rem"' if letters > 64 else ""
    return f"<td{room}>{found[1].replace(' ± ', ' ±&nbsp;')}</td>"


def body_of(page: site.Page) -> str:
    """The page's own HTML, cleared of what is there for another style sheet, and made ready for
    ours.
    """
    text = page.html
    text = re.sub(r"<!-- .*? -->\n?", "", text, flags=re.S)
    # what a notebook says before it starts, as one box; the pager says what comes next
    text = re.sub(
        r"<p><strong>You will learn</strong>.*?<strong>Hardware:</strong>.*?</p>",
        r'<div class="brief">\g<0></div>',
        text,
        count=1,
        flags=re.S,
    )
    onward = r"<p><strong>(?:Next|Previous):</strong>(?:(?!</p>|See also).)*</p>\n?"
    text = re.sub(onward, "", text, flags=re.S) if page.src.suffix == ".ipynb" else text
    sizes = shown_sizes(page.src)
    text = re.sub(
        r'src="(?:data:[^,]*,|(?:\.\./)*images/)([^"]*)"',
        lambda found: f"{found[0]} {sizes.get(found[1], '')}",
        text,
    )
    # a picture's alt text is not its caption
    text = re.sub(r'(<img [^>]*alt="([^"]*)"[^>]*></p>)\s*<figcaption>\2</figcaption>', r"\1", text)
    text = re.sub(r'<img [^>]*src="(?:\.\./)*images/(\w+)\.svg"[^>]*>', drawing, text)
    text = re.sub(r"<td>(.*?)</td>", with_room, text, flags=re.S)
    text = text.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    heading = r'<(h[23])([^>]*data-anchor-id="([^"]*)"[^>]*)>(.*?)</\1>'
    anchor = r'<a class="anchor" href="#\3" aria-label="Link to this section">#</a>'
    return re.sub(heading, rf"<\1\2>\4{anchor}</\1>", text, flags=re.S)


def shown_sizes(page: PurePosixPath) -> dict[str, str]:
    """Width and height on the page of the pictures of pixels, as attributes: by their data of those
    that a notebook keeps, by their names of those in nbs/images.
    """
    sizes = {}
    for file in (project.NBS / "images").glob("*.png"):
        head = file.read_bytes()[16:24]
        sizes[file.name] = [int.from_bytes(side, "big") // 2 for side in (head[:4], head[4:])]
    if page.suffix == ".ipynb":
        notebook = json.loads((project.NBS / page).read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        for output in outputs:
            for kind in {"image/png", "image/jpeg"} & output.get("metadata", {}).keys():
                data, shown = "".join(output["data"][kind]).strip(), output["metadata"][kind]
                sizes[data] = [shown["width"], shown["height"]]
    return {name: 'width="{}" height="{}"'.format(*size) for name, size in sizes.items()}


def drawing(image: re.Match) -> str:
    "A drawing of the project in the page itself, where it follows the page's colors."
    alt = html.unescape(re.search(r'alt="([^"]*)"', image[0])[1])
    return drawings.inline(image[1], alt) if image[1] in drawings.DRAWINGS else image[0]


def live_head(page: site.Page, base: str, asset: str) -> str:
    "The style and the scripts of the figures that answer in the page, if it has any."
    figures = dict.fromkeys(re.findall(r'<div class="live" data-figure="(\w+)"', page.html))
    if not figures:
        return ""
    scripts = ["live", *(["model"] if "board" in figures else []), *figures]
    return f'<link rel="stylesheet" href="{base}live/live.css{asset}">' + "".join(
        f'<script defer src="{base}live/{name}.js{asset}"></script>' for name in scripts
    )


def card(title: str, description: str, out: PurePosixPath) -> str:
    "What a page says of itself to search engines, and where a link to it is shown."
    address = project.site_url() + ("" if str(out) == "index.html" else str(out))
    given = {
        "og:type": "article",
        "og:site_name": "Slot Attention",
        "og:title": html.unescape(title),
        "og:description": description,
        "og:url": address,
        "og:image": project.site_url() + "images/slots.png",
        "twitter:card": "summary_large_image",
    }
    tags = [
        f'<meta {"name" if key.startswith("twitter") else "property"}="{key}"'
        f' content="{html.escape(value)}">'
        for key, value in given.items()
    ]
    return "\n".join([f'<link rel="canonical" href="{address}">', *tags])


def sitemap(pages: list[PurePosixPath]) -> str:
    "The addresses of all pages, for search engines."
    urls = "".join(f"<url><loc>{project.site_url()}{page}</loc></url>\n" for page in sorted(pages))
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    schema = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'{head}<urlset xmlns="{schema}">\n{urls}</urlset>\n'


def write_page(page: site.Page, nav: layout.SiteNav, template: Template, asset: str) -> str:
    "One whole page."
    base = site.rel(".", page).rstrip("/") + "/"
    description = str(page.meta.get("description") or "")
    crumb = next(
        (i.text for i in nav.sidebars[0]["items"] if i.section and i.contains(page)),
        "Reference" if page.src.parts[0] in ("api", "source") else "",
    )
    number = number_of(page)
    maths = ""
    if page.env.get("math"):
        maths = (
            f'<link rel="stylesheet" href="{base}katex/katex.min.css">'
            f'<script defer src="{base}katex/katex.min.js"></script>'
        )
    links = {}
    if page.src.suffix == ".ipynb":
        links = {"Download this notebook": page.src.name} | project.notebook_links(page.src)
    current = {True: " aria-current=page", False: ""}
    return template.substitute(
        base=base,
        base_tag=f'<base href="{project.base_url()}">'
        if page.src.stem == "404" and project.published()
        else "",
        title=html.escape(page.title),
        description=html.escape(description),
        subtitle=layout.inline_md(description, nav.site, page) if description else "",
        crumb=" · ".join(filter(None, (crumb, number))),
        maths=maths,
        figures=live_head(page, base, asset),
        card=card(page.title, plain(description), page.out) if project.published() else "",
        navbar="".join(
            f'<a href="{site.rel(i.href, page)}"{current[i.page is page]}>{i.text}</a>'
            for i in nav.left
        ),
        sidebar=sidebar(nav, page),
        contents=contents(page),
        neighbours=neighbours(nav, page),
        actions="".join(
            f'<a class="action" href="{url}"{"" if "/" in url else " download"}>{text}</a>'
            for text, url in links.items()
        ),
        body=body_of(page),
        asset=asset,
    )


# ---------------------------------------------------------------- search


def plain(text: str) -> str:
    "A text with its formulas as letters."
    for command in sorted(TEX, key=len, reverse=True):
        text = re.sub(re.escape(command) + r"(?![a-zA-Z])\s?", TEX[command], text)
    text = re.sub(r"\\(?:text|mathbb|mathrm|mathbf|tfrac|frac|hat|bar|operatorname)\b", "", text)
    text = re.sub(r"\\[()\[\]]|\\[a-zA-Z]+|[{}$]", "", text)
    return re.sub(r"\s+", " ", re.sub(r"\\[^a-zA-Z]", " ", text)).strip()


class Sections(HTMLParser):
    "The sections of a page: anchor, heading, prose, and code; no output."

    def __init__(self):
        super().__init__()
        self.sections, self.skipping, self.heading, self.code = [["", "", [], []]], 0, False, False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "pre" and "sourceCode" in (given.get("class") or ""):
            self.code = True
        elif (
            tag in ("pre", "script", "style")
            or (self.skipping and tag == "div")
            or tag == "div"
            and given.get("class") == "export-bar"
        ):
            self.skipping += 1
        elif tag in ("h2", "h3"):
            self.sections.append([given.get("data-anchor-id") or given.get("id") or "", "", [], []])
            self.heading = True

    def handle_endtag(self, tag):
        if self.code:
            self.code = tag != "pre"
        elif self.skipping and tag in ("pre", "script", "style", "div"):
            self.skipping -= 1
        self.heading = self.heading and tag not in ("h2", "h3")

    def handle_data(self, data):
        if self.skipping:
            return
        if self.heading:
            self.sections[-1][1] += data
        else:
            self.sections[-1][3 if self.code else 2].append(data)


def names_in(code: str, text: str) -> str:
    "The names and options in code by which one would look for it, but for those in the text."
    code = re.sub(r"#.*", "", code)  # comments are prose of the code
    found = re.findall(r"--[a-z][\w-]+|\b[A-Za-z]\w*(?:\.[A-Za-z]\w*)*", code)
    names = {
        name.removeprefix("self.")
        for name in found
        if re.search(r"[a-z]{2,}_?[A-Z]|[A-Za-z]{2,}_[A-Za-z]|^--|torch\.", name)
    }
    return " ".join(sorted(name for name in names if name not in text))


def search_index(pages: list[site.Page]) -> list[list]:
    """What the search looks through: a row for each page (place, title, kind, sections), and in it
    a row for each section (anchor, heading, words, names in its code).
    """
    rows = []
    for page in pages:
        if page.meta.get("search") is False:
            continue
        reader = Sections()
        reader.feed(re.sub(r"<p><a [^>]*source-link.*?</p>", "", page.html, flags=re.S))
        kind = {"api": "reference", "solutions": "solutions"}.get(page.src.parts[0], "course")
        sections = []
        for anchor, heading, words, code in reader.sections:
            text = plain(" ".join(words))
            if not anchor:
                text = f"{plain(str(page.meta.get('description') or ''))} {text}".strip()
            # a signature says again what its table says
            names = "" if kind == "reference" else names_in(" ".join(code), text)
            sections.append([anchor, plain(heading), text, names])
        rows.append([str(page.out), html.unescape(page.title), kind, sections])
    return rows


# ---------------------------------------------------------------- the build


def build(out: Path) -> list[str]:
    "Build the site; returns the warnings."
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        pages.mkdir()
        prepare(pages)
        course = CourseSite(config.load(pages), quiet=True)
        for src in course.discover():
            course.pages[src] = course.read(src)
        course.load_symbols()
        for page in course.pages.values():
            course.render_page(page)
        nav = layout.SiteNav(course)
        result = Path(folder) / "site"
        result.mkdir()
        template = Template((LOOK / "page.html").read_text(encoding="utf-8"))
        stamp = f"?{project.version()}"
        for page in course.pages.values():
            target = result / page.out
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(write_page(page, nav, template, stamp), encoding="utf-8")
            if page.src.parts[0] != "source" and page.src.stem != "404":
                copy, files = course.llms_copy(page)
                target.with_suffix(".llms.md").write_text(plain_links(copy), encoding="utf-8")
                for name, data in files.items():
                    (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
                    (target.parent / name).write_bytes(data)
            if page.src.suffix == ".ipynb":
                shutil.copy(project.NBS / page.src, target.parent)
        course.out = result
        course.copy_resources()
        write_llms_index(course, nav, result)
        index = json.dumps(
            search_index(list(course.pages.values())), ensure_ascii=False, separators=(",", ":")
        )
        (result / "search").mkdir()
        (result / "search" / "pages.js").write_text(
            f"window.searchPages={index};\n", encoding="utf-8"
        )
        minisearch = npm_package.fetch("minisearch")
        shutil.copy(minisearch / "dist" / "umd" / "index.js", result / "search" / "minisearch.js")
        shutil.copy(minisearch / "LICENSE.txt", result / "search")
        shutil.copy(LOOK / "search.js", result / "search")
        for name in ("site.css", "site.js", "icon.svg"):
            shutil.copy(LOOK / name, result)
        shutil.copytree(ROOT / "slot_attention_nbdev" / "apps" / "live_js", result / "live")
        (result / "live" / "weights.js").write_text(live_weights.script(), encoding="utf-8")
        shutil.copytree(npm_package.katex(), result / "katex")
        (result / ".nojekyll").touch()
        if project.published():
            shown = [p.out for p in course.pages.values() if p.src.stem != "404"]
            (result / "sitemap.xml").write_text(sitemap(shown), encoding="utf-8")
            robots = f"User-agent: *\nAllow: /\nSitemap: {project.site_url()}sitemap.xml\n"
            (result / "robots.txt").write_text(robots, encoding="utf-8")
        warnings = [
            w for w in course.warnings if not w.endswith("output-file is not read by smalldocs")
        ]
        warnings += [f"{page}: broken link {href}" for page, href in course.broken]
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(result, out)
    return warnings


def plain_links(text: str) -> str:
    "A Markdown copy without links to source pages, which have no copy."
    return re.sub(r"\[source\]\([^)]*\)(\{[^}]*\})?\n?", "", text)


def write_llms_index(course: CourseSite, nav: layout.SiteNav, out: Path) -> None:
    "llms.txt: what the project is, and the Markdown copy of each page, by section."
    web = course.project.website
    base = project.site_url() if project.published() else ""
    lines = [f"# {web['title']}", "", f"> {web['description']}", ""]

    def row(page: site.Page) -> str:
        about = re.sub(
            r"\[([^]]*)\]\([^)]*\)", r"\1", plain(str(page.meta.get("description") or ""))
        )
        return f"- [{html.unescape(page.title)}]({base}{page.out.with_suffix('.llms.md')})" + (
            f": {about}" if about else ""
        )

    for item in nav.sidebars[0]["items"]:
        if item.section:
            lines += ["", f"## {html.unescape(item.text)}", "", *[row(p) for p in item.pages()]]
        else:
            lines.append(row(item.page))
    lines += [
        "",
        "## Reference",
        "",
        *[row(p) for p in course.pages.values() if p.src.parts[0] == "api"],
    ]
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_docs")
    arguments = parser.parse_args()
    start = time.time()
    warnings = build(arguments.out.resolve())
    print("\n".join(warnings), file=sys.stderr, end="\n" if warnings else "")
    pages = len(list(arguments.out.rglob("*.html")))
    print(f"{pages} pages after {time.time() - start:.0f} s; open {arguments.out / 'index.html'}")
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
