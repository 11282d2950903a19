"The drawings: what the script draws, used, readable in light and dark, and nothing over the edge."

import json
import re
from xml.etree import ElementTree

import drawings
import pytest
from project import NBS, ROOT, all_notebooks

SVG = "{http://www.w3.org/2000/svg}"
NAMES = sorted(drawings.DRAWINGS)
SCHEMES = [
    dict(re.findall(r"--(\w+): (#\w{6})", part))
    for part in drawings.SCHEME.split("prefers-color-scheme: dark")
]


def luminance(color: str) -> float:
    "Relative luminance of a color such as `#0072B2`, as WCAG defines it."
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, two: str) -> float:
    "The contrast of two colors, from 1 to 21."
    dark, light = sorted(luminance(c) for c in (one, two))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_the_files_are_what_the_script_draws(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["drawings.py", "--check"])
    assert drawings.main() == 0, "run scripts/drawings.py"
    monkeypatch.setattr(drawings, "IMAGES", tmp_path)
    assert NAMES[0] in drawings.main()  # no file is there
    monkeypatch.setattr("sys.argv", ["drawings.py"])
    assert drawings.main() == 0
    (tmp_path / "old.svg").touch()
    monkeypatch.setattr("sys.argv", ["drawings.py", "--check"])
    assert drawings.main().endswith("draws: old.svg")


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_small_and_says_what_it_is(name):
    path = NBS / "images" / f"{name}.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert path.stat().st_size <= 40_000
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    for kind, attribute in (("title", "aria-labelledby"), ("desc", "aria-describedby")):
        said = root.find(f"{SVG}{kind}")
        assert said.text.strip() and said.get("id") == root.get(attribute)


def test_every_drawing_is_used_with_an_alt_text():
    used = {}
    for notebook in all_notebooks():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+\.svg)\)", text):
            assert (notebook.parent / target).resolve().parent == NBS / "images"
            used.setdefault(target.rpartition("/")[2].removesuffix(".svg"), []).append(alt)
    assert sorted(used) == NAMES
    for name, texts in used.items():
        assert all(len(alt) > 60 for alt in texts), f"{name}: say what is to be seen"


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_words_and_shapes_stand_out_from_what_is_behind_them(scheme):
    assert sorted(scheme) == ["faint", "ink", "line", "paper", "soft"]
    for behind in (scheme["paper"], scheme["soft"]):
        assert contrast(scheme["ink"], behind) >= 7
        assert contrast(scheme["faint"], behind) >= 4.5
    assert min(contrast(color, scheme["paper"]) for color in drawings.COLORS) >= 3


def test_on_a_page_a_drawing_takes_the_colors_of_the_page():
    page = (ROOT / "scripts" / "site" / "site.css").read_text(encoding="utf-8")
    for name in NAMES:
        text = drawings.inline(name, 'What "it" shows')
        root = ElementTree.fromstring(text)
        assert root.get("aria-label") == 'What "it" shows' and root.find(f"{SVG}title") is None
        assert "prefers-color-scheme" not in text and " id=" not in text
        for variable in set(re.findall(r"var\(--(\w+)\)", text)):
            assert len(re.findall(rf"--{variable}: #", page)) == 3, variable  # light, dark twice


def test_the_site_has_them_in_the_page(site):
    for page, name in (("index", "algorithm"), ("course/object_discovery", "autoencoder")):
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert f"images/{name}.svg" not in text
        alt = re.search(r'<svg [^>]*class="drawing" role="img" aria-label="([^"]*)"', text)[1]
        assert len(alt) > 60
    as_an_image = (site / "index.llms.md").read_text(encoding="utf-8")
    assert re.search(r"!\[[^\]]{60,}\]\(images/algorithm.svg\)", as_an_image)


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_cut_covered_or_too_small(browser, name):
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.set_content(
        f'<body style="margin:16px"><style>svg{{max-width:100%;height:auto}}</style>'
        f"{drawings.draw(name)}"
    )
    found = tab.evaluate("""() => {
        const at = e => e.getBoundingClientRect(), all = q => [...document.querySelectorAll(q)];
        const svg = document.querySelector("svg"), edge = at(svg), texts = all("text");
        const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1
            || a.bottom <= b.top + 4 || b.bottom <= a.top + 4;  // a line's box has air in it
        const faults = [], say = (what, e) => faults.push(`${what}: ${e.textContent}`);
        texts.forEach((e, i) => {
            const size = parseFloat(getComputedStyle(e).fontSize) * edge.width / 440;
            if (size < 12) say(`${size.toFixed(1)} px`, e);
            const a = at(e);
            if (a.left < edge.left || a.right > edge.right || a.bottom > edge.bottom)
                say("over the edge", e);
            for (const other of texts.slice(i + 1))
                if (!apart(a, at(other))) say("overlap", e), say("with", other);
            for (const b of all(".box").map(at))
                if (!apart(a, b) && (a.left < b.left || a.right > b.right))
                    say("out of its box", e);
        });
        return faults;
    }""")
    tab.close()
    assert found == []
