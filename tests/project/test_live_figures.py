"""The figures that answer in the page: their numbers against PyTorch's, and moved in a browser."""

import base64
import gzip
import os
import re
from pathlib import Path

import live_weights
import psutil
import pytest
import torch
from conftest import ROOT
from test_browser import CLOSE, SHOW_CELL, axe, lab, lab_tab, opened, wide_parts  # noqa: F401 (fixtures)

from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.segmentation import foreground_ari
from slot_attention_nbdev.models.autoencoder import SlotAttentionAutoEncoder
from slot_attention_nbdev.nn.attention import slot_softmax, weighted_mean

LIVE = ROOT / "slot_attention_nbdev" / "apps" / "live_js"
PAGES = {"softmax": "course/attention", "kmeans": "course/attention", "board": "ten_minutes"}
# what is moved in each figure: a handle, and a button
HANDLES = {
    "softmax": "td input[type=range]",
    "kmeans": ".slot",
    "board": ".live-board button:nth-of-type(47)",
}
BUTTONS = {
    "softmax": "label:has-text('ordinary attention')",
    "kmeans": "button:text('Step')",
    "board": "button:text('New draw')",
}
FIGURES = pytest.mark.parametrize("name", PAGES)


# ---------------------------------------------------------------- the numbers


@pytest.fixture(scope="module")
def models():
    "The shipped model, and the one with the rounded weights that the page runs."
    shipped = SlotAttentionAutoEncoder.from_pretrained(live_weights.MODEL).eval()
    return shipped, live_weights.shrink(shipped)[1]


@torch.no_grad()
def test_rounded_weights_are_nearly_the_shipped_ones(models):
    scenes = evaluation_scenes("tetrominoes", 224)  # of these, 160 chose the patches
    image, label = to_model(scenes["image"])[160:], scenes["label"][160:]
    noise = models[0].initial_noise(len(image), generator=torch.Generator().manual_seed(0))
    shipped, rounded = (model.from_noise(image, noise) for model in models)
    same = (shipped.masks.argmax(1) == rounded.masks.argmax(1)).float().mean()
    score = [float(foreground_ari(label, output.masks).mean()) for output in (shipped, rounded)]
    assert same > 0.985 and score[1] > score[0] - 0.02 > 0.8, (same, score)


RUN = """([image, noise, K, T]) => {
    const found = live.model.run(Float64Array.from(image), Float64Array.from(noise), K, T);
    return [found.masks, found.reconstruction, ...found.attention].map(part => [...part]);
}"""


@pytest.mark.parametrize("rounded", [True, False], ids=["site", "widget"])
@pytest.mark.parametrize("K, T", [(4, 5), (6, 7), (2, 1)])
@torch.no_grad()
def test_the_model_in_the_page_is_that_of_pytorch(browser, models, K, T, rounded):
    image = to_model(evaluation_scenes("tetrominoes", K + 1)["image"])[K:]
    noise = models[rounded].initial_noise(1, K, generator=torch.Generator().manual_seed(T))
    want = models[rounded].from_noise(image, noise, num_iterations=T, return_attention=True)
    tab = browser.new_page()
    try:
        for part in ("live", "model"):
            tab.add_script_tag(path=LIVE / f"{part}.js")
        if rounded:
            tab.add_script_tag(content=live_weights.script())
        else:
            exact = {name: w.flatten().tolist() for name, w in models[0].state_dict().items()}
            tab.evaluate("exact => live.loadWeights(exact, '')", exact)
        given = [image[0].permute(1, 2, 0).flatten().tolist(), noise.flatten().tolist(), K, T]
        masks, reconstruction, *attention = map(torch.tensor, tab.evaluate(RUN, given))
    finally:
        tab.close()
    close = dict(atol=1e-3, rtol=0)
    torch.testing.assert_close(masks.view(35, 35, K), want.masks[0].permute(1, 2, 0), **close)
    rows = want.reconstruction[0].permute(1, 2, 0)
    torch.testing.assert_close(reconstruction.view(35, 35, 3), rows, **close)
    found = torch.stack(attention).view(T + 1, 144, K)
    torch.testing.assert_close(found, want.attention[0], **close)


@pytest.mark.parametrize("over", ["slots", "tokens"])
def test_the_softmax_is_that_of_pytorch(browser, site_address, over):
    with opened(browser, site_address, "course/attention.html") as (tab, _):
        figure = tab.locator("[data-figure=softmax]")
        figure.locator(f"input[value={over}]").check()
        numbers = "cells => cells.map(cell => +(cell.value ?? cell.textContent))"
        scores = figure.locator("td input").evaluate_all(numbers)
        weights = torch.tensor(figure.locator("td.weight").evaluate_all(numbers)).view(5, 3)
    scores = torch.tensor(scores).view(5, 3)
    want = slot_softmax(scores) if over == "slots" else scores.softmax(0)
    torch.testing.assert_close(weights, want, atol=0.006, rtol=0)


POSITIONS = """figure => ["circle.dot", ".slot .edge"].map(kind =>
    [...figure.querySelectorAll(kind)].filter(e => e.parentNode.style.display != "none").map(e =>
        { const at = e.getCTM(), own = figure.querySelector("svg").getCTM();
          return [(at.e - own.e) / own.a / 70, (at.f - own.f) / own.d / 70]; }))"""


@pytest.mark.parametrize("over", ["slots", "tokens"])
def test_a_step_of_soft_kmeans_is_that_of_pytorch(browser, site_address, over):
    page = "course/attention.html"
    with opened(browser, site_address, page, reduced_motion="reduce") as (tab, _):
        figure = tab.locator("[data-figure=kmeans]")
        figure.locator(f"input[value={over}]").check()
        points, slots = map(torch.tensor, figure.evaluate(POSITIONS))
        figure.locator("button:text('Step')").click()
        moved = torch.tensor(figure.evaluate(POSITIONS)[1])
    scores = -torch.cdist(points, slots).square() / (2 * 10**-0.3)
    attn = slot_softmax(scores) if over == "slots" else scores.softmax(0)
    torch.testing.assert_close(moved, weighted_mean(attn, points), atol=1e-3, rtol=0)
    assert points.shape == (45, 2) and (moved - slots).abs().max() > 0.3


# ---------------------------------------------------------------- in the hand


def shown(tab, name: str):
    "A figure that is ready, brought into view."
    figure = tab.locator(f"[data-figure={name}]")
    figure.evaluate("e => e.scrollIntoView()")
    if name == "board":
        figure.locator("figure canvas").first.wait_for()
    return figure


LOOK = """figure => [figure.querySelector(".live-words").textContent,
    ...[...figure.querySelectorAll("canvas")].map(canvas => canvas.toDataURL()),
    ...[...figure.querySelectorAll("[style], [points], [transform]")].map(
        e => e.outerHTML.split(">")[0])].join()"""


def drag(tab, figure, handle, kind: str) -> None:
    "Move a handle by 30 pixels, or press it where it is a button."
    handle.evaluate("e => e.scrollIntoView({block: 'center'})")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    if kind == "mouse":
        tab.mouse.move(x, y)
        tab.mouse.down()
        if "button" not in handle.evaluate("e => e.localName"):
            tab.mouse.move(x + 15, y + 3)
            tab.mouse.move(x + 30, y + 5)
        tab.mouse.up()
        return
    if handle.evaluate("e => e.localName") == "button":
        handle.tap()
        return
    finger = tab.context.new_cdp_session(tab)
    for event, at in (("Start", 0), ("Move", 12), ("Move", 24), ("Move", 30), ("End", None)):
        points = [] if at is None else [{"x": x + at, "y": y + at / 10}]
        finger.send("Input.dispatchTouchEvent", {"type": f"touch{event}", "touchPoints": points})


@FIGURES
@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_figures_move_by_mouse_and_touch(browser, site_address, name, kind):
    options = dict(width=390, has_touch=True) if kind == "touch" else {}
    with opened(browser, site_address, f"{PAGES[name]}.html", **options) as (tab, faults):
        figure = shown(tab, name)
        before = figure.evaluate(LOOK)
        drag(tab, figure, figure.locator(HANDLES[name]).first, kind)
        after = figure.evaluate(LOOK)
        assert after != before, "the handle changed nothing"
        button = figure.locator(BUTTONS[name])
        button.tap() if kind == "touch" else button.click()
        assert figure.evaluate(LOOK) != after, "the button changed nothing"
        assert faults == []


@FIGURES
def test_figures_move_by_keyboard(browser, site_address, name):
    with opened(browser, site_address, f"{PAGES[name]}.html") as (tab, faults):
        figure = shown(tab, name)
        before = figure.evaluate(LOOK)
        stops, seen = 0, set()
        # the Tab key goes through the whole figure, and each stop can be seen
        figure.evaluate("e => { e.tabIndex = -1; e.focus(); }")
        while stops < 60:
            tab.keyboard.press("Tab")
            stops += 1
            at = tab.evaluate(
                """() => { const e = document.activeElement, figure = e.closest(".live");
                    if (!figure) return null;
                    const part = e.matches("g") ? e.querySelector(".touch")
                        : e.matches("[type=radio]") ? e.nextSibling : e;
                    const { outlineStyle, stroke } = getComputedStyle(part);
                    return [e.localName + e.type + e.className.baseVal,
                            outlineStyle != "none" || stroke != "none"]; }"""
            )
            if at is None or figure.evaluate("f => !f.contains(document.activeElement)"):
                break
            assert at[1], f"the focus is not to be seen on {at[0]}"
            seen.add(at[0])
        assert 6 <= stops < 60 and len(seen) >= (2 if name == "softmax" else 3), (stops, seen)
        figure.locator(HANDLES[name]).first.focus()
        tab.keyboard.press("Enter" if name == "board" else "ArrowRight")
        assert figure.evaluate(LOOK) != before
        assert faults == []


def test_the_board_takes_pieces(browser, site_address):
    "A piece is placed, turned, recolored and removed, by the keyboard."
    with opened(browser, site_address, "ten_minutes.html") as (tab, faults):
        figure = shown(tab, "board")
        words = figure.locator(".live-words")
        assert words.inner_text().count("→") == 3
        board = figure.locator(".live-board")
        at_first = board.locator("[aria-label*=green]").count()
        board.locator("button").nth(6 * 7 + 4).focus()
        for key in ("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
            tab.keyboard.press(key)
        assert at_first == 0 and board.locator("[aria-label*='green L']").count() == 4
        assert words.inner_text().count("→") == 4 and "green L" in words.inner_text()
        cells = lambda: board.locator("[aria-pressed=true]").evaluate_all(
            "a => a.map(e => e.ariaLabel)"
        )
        one = cells()
        figure.locator("button:text('Rotate')").press("Enter")
        assert len(cells()) == 4 and cells() != one
        figure.locator("input[value=cyan]").check()
        assert all("cyan L" in cell for cell in cells()) and "cyan L" in words.inner_text()
        figure.locator("button:text('Remove')").press("Enter")
        assert cells() == [] and words.inner_text().count("→") == 3
        figure.locator("button:text('Rotate')").press("Enter")
        assert "Choose a piece first" in words.inner_text()
        assert figure.locator("figure").count() == 2 + 4 + 6  # two images, K slots, T + 1 looks
        figure.get_by_role("slider", name="Slots K").fill("6")
        figure.get_by_role("slider", name="Iterations T").fill("7")
        assert figure.locator("figure").count() == 2 + 6 + 8 and faults == []


def test_the_best_draw_is_kept(browser, site_address):
    error = lambda: float(re.search(r"\d\.\d{4}", words.inner_text())[0])
    with opened(browser, site_address, "ten_minutes.html") as (tab, _):
        figure = shown(tab, "board")
        words = figure.locator(".live-words")
        draws = []
        for _ in range(8):
            figure.locator("button:text('New draw')").click()
            draws.append(error())
        tab.reload()
        figure = shown(tab, "board")
        figure.locator("button:text('Best of')").click()
        tab.wait_for_function(
            "() => document.querySelector('.live-words').ariaLive == 'polite'", timeout=60_000
        )
        assert error() == min(draws) < max(draws)


def test_the_same_seed_gives_the_same_slots(browser, site_address):
    page = "course/attention.html"
    with opened(browser, site_address, page, reduced_motion="reduce") as (tab, _):
        figure = shown(tab, "kmeans")
        looks = []
        for _ in range(2):
            figure.locator("button:text('New start')").click()
            start = figure.evaluate(POSITIONS)
            figure.locator("button:text('Step')").click()
            figure.locator("button:text('Reset')").click()
            assert figure.evaluate(POSITIONS) == start
            looks.append(start)
            figure.locator("button:text('New start')").click()
            looks.append(figure.evaluate(POSITIONS))
            tab.reload()
            figure = shown(tab, "kmeans")
        assert looks[:2] == looks[2:] and looks[0] != looks[1]


def test_it_plays_until_the_slots_are_at_rest(browser, site_address):
    with opened(browser, site_address, "course/attention.html") as (tab, _):
        figure = shown(tab, "kmeans")
        figure.locator("button:text('Play')").click()
        figure.locator("button:text('Pause')").wait_for()
        figure.locator("text=at rest").wait_for(timeout=60_000)
        assert figure.locator("button:text('Play')").count() == 1
        held = re.findall(r"\d+\.\d", figure.locator(".live-words").inner_text())
        assert [round(float(each)) for each in held] == [15, 15, 15]


# ---------------------------------------------------------------- as a widget


RUN_FIGURES = """async path => {
    const panel = await jupyterapp.commands.execute("docmanager:open", {path});
    await panel.context.ready; await panel.sessionContext.ready;
    jupyterapp.shell.activateById(panel.id);
    const notebook = panel.content, shown = notebook.widgets.flatMap((cell, at) =>
        cell.model.type == "code" && /^LivePage\\(/m.test(cell.model.sharedModel.source) ? at : []);
    for (let at = 0; at <= shown.at(-1); at++) {
        notebook.activeCellIndex = at;
        await jupyterapp.commands.execute("notebook:run-cell");
    }
    const outputs = notebook.widgets.flatMap(c => c.model.sharedModel.outputs ?? []);
    const wrong = outputs.filter(o => o.output_type == "error").map(o => o.evalue);
    if (wrong.length) throw new Error(wrong.join());
    return shown;
}"""


def inside_jupyterlab(stack: str) -> bool:
    """Whether JupyterLab's own core went wrong, and no code of a figure was running.

    Its `_runOnIdleTime` now and then looks for a cell that is not there yet. A figure's code is no
    file of JupyterLab, so a fault in it, or below it, has another line in its stack.
    """
    lines = [line for line in stack.split("\n") if line.strip().startswith("at ")]
    return bool(lines) and all("/static/lab/jlab_core" in line for line in lines)


def test_a_figures_fault_is_not_taken_for_jupyterlabs():
    core = "    at x._runOnIdleTime (http://localhost:1/static/lab/jlab_core.js?v=1:1:1)"
    figure = "    at render (blob:http://localhost:1/2:3:4)"
    assert inside_jupyterlab(f"TypeError: no\n{core}")
    assert not inside_jupyterlab(f"TypeError: no\n{figure}\n{core}")
    assert not inside_jupyterlab("TypeError: no")


@pytest.mark.parametrize(
    "notebook, names",
    [
        ("course/01_attention", ["softmax", "kmeans"]),
        ("ten_minutes", ["board"]),
        ("library/17_live", ["softmax", "kmeans"]),
        ("library/18_live_scenes", ["board"]),
    ],
)
def test_figures_move_in_jupyterlab(lab_tab, notebook, names):  # noqa: F811
    faults = []

    def log(message):
        # now and then the server is asked for its kernels while one of them is starting, and fails
        if message.type == "error" and "/api/kernels?" not in message.location["url"]:
            faults.append(message.text)

    lab_tab.on("console", log)
    lab_tab.on(
        "pageerror", lambda error: inside_jupyterlab(error.stack) or faults.append(str(error))
    )
    try:
        for name, at in zip(
            names, lab_tab.evaluate(RUN_FIGURES, f"nbs/{notebook}.ipynb"), strict=True
        ):
            lab_tab.evaluate_handle(SHOW_CELL, at)
            figure = lab_tab.locator(f"[data-windowed-list-index='{at}'] .jp-OutputArea .live")
            handle = figure.locator(HANDLES[name]).first
            handle.wait_for()
            handle.evaluate("e => e.scrollIntoView({block: 'center'})")
            lab_tab.wait_for_timeout(1000)  # JupyterLab lays the cells out anew where it scrolls
            looks = [figure.evaluate(LOOK)]
            drag(lab_tab, figure, handle, "mouse")
            looks.append(figure.evaluate(LOOK))
            for key in ["Enter"] if name == "board" else ["ArrowLeft", "ArrowDown"]:
                at = figure.locator("button:text('Rotate')") if name == "board" else handle
                at.press(key)
                looks.append(figure.evaluate(LOOK))
            figure.locator(BUTTONS[name]).click()
            looks.append(figure.evaluate(LOOK))
            drag(lab_tab, figure, handle, "touch")
            looks.append(figure.evaluate(LOOK))
            followed = [a != b for a, b in zip(looks, looks[1:])]
            assert all(followed), (name, "mouse, keys, button, finger", followed)
            # the keys went to the figure, not to the notebook
            assert figure.evaluate("figure => figure.contains(document.activeElement)")
            if os.environ.get("SLOT_ATTENTION_SCREENSHOTS"):
                folder = Path(os.environ["SLOT_ATTENTION_SCREENSHOTS"])
                figure.screenshot(path=folder / f"widget_{name}.png")
        assert faults == []
    finally:
        lab_tab.evaluate(CLOSE)


# ---------------------------------------------------------------- as a page


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_figures_on_every_screen(browser, site_address, page, width, scheme):
    with opened(browser, site_address, f"{page}.html", width, scheme) as (tab, faults):
        for name in (name for name in PAGES if PAGES[name] == page):
            figure = shown(tab, name)
            outside = """f => [...f.querySelectorAll("*")].filter(e => !e.closest("svg, .quiet") &&
                (e.getBoundingClientRect().right > f.getBoundingClientRect().right + 1
                 || e.scrollWidth > e.clientWidth + 1 && e.matches("button, td, th, label span")))
                .map(e => e.outerHTML.slice(0, 100))"""
            assert figure.evaluate(outside) == []
        assert wide_parts(tab) == [] and faults == []
        tab.evaluate(axe())
        found = tab.evaluate("() => axe.run('.live', {resultTypes: ['violations']})")
        wrong = [(v["id"], v["nodes"][0]["html"][:150]) for v in found["violations"]]
        assert wrong == []


@FIGURES
def test_figures_work_from_a_folder(browser, site, name):
    folder = site.resolve().as_uri()
    with opened(browser, folder, f"{PAGES[name]}.html") as (tab, faults):
        figure = shown(tab, name)
        before = figure.evaluate(LOOK)
        drag(tab, figure, figure.locator(HANDLES[name]).first, "mouse")
        assert figure.evaluate(LOOK) != before and faults == []


@FIGURES
def test_without_scripts_a_sentence_stands_there(browser, site_address, name):
    page = f"{PAGES[name]}.html"
    with opened(browser, site_address, page, java_script_enabled=False) as (tab, _):
        assert "figure that you can move" in tab.locator(f"[data-figure={name}]").inner_text()


def seconds_of_pages() -> float:
    "Processor time that all open pages have used."
    processes = psutil.Process().children(recursive=True)
    pages = [p for p in processes if "--type=renderer" in p.cmdline()]
    return sum(sum(p.cpu_times()[:2]) for p in pages)


@FIGURES
def test_figures_answer_at_once(browser, site_address, name):
    "Less than 50 ms of one core's time from a key to the new picture, whatever else runs here."
    with opened(browser, site_address, f"{PAGES[name]}.html") as (tab, _):
        figure = shown(tab, name)
        if name == "board":  # a new piece is more work than a new draw: the image is encoded anew
            figure.locator(HANDLES[name]).first.focus()
            tab.keyboard.press("Enter")
        handle = figure.locator("button:text('Rotate')" if name == "board" else HANDLES[name]).first
        handle.focus()
        keys = ["Enter"] if name == "board" else ["ArrowLeft", "ArrowRight"]

        def press(times: int) -> float:
            before = seconds_of_pages()
            for at in range(times):
                tab.keyboard.press(keys[at % len(keys)])
                tab.evaluate("() => new Promise(requestAnimationFrame).then(() => true)")
            return 1000 * (seconds_of_pages() - before) / times

        press(10)  # the browser compiles what is used often
        times = [press(10)]
        while min(times) >= 50 and len(times) < 8:  # a core that others use counts more
            times.append(press(5))
        assert min(times) < 50, times


def weight(site: Path, page: Path) -> int:
    "Bytes, compressed, of a page, its scripts, style and pictures; no fonts and no search."
    text = page.read_text(encoding="utf-8")
    names = re.findall(r'(?:src|href)="([^":]*\.(?:js|css|svg|png))(?:\?[^"]*)?"', text)
    files = {page, *((page.parent / name).resolve() for name in names)}
    if "live/board.js" in text:
        files.add(site / "live" / "weights.js")
    data = [(file.suffix, file.read_bytes()) for file in files]
    return sum(len(each if suffix == ".png" else gzip.compress(each)) for suffix, each in data)


def test_pages_with_figures_stay_light(site):
    "At most 400 KB of each page of the course, and of each with a live figure."
    pages = {*(site / "course").glob("*.html"), *(site / f"{page}.html" for page in PAGES.values())}
    assert len(pages) > 15
    weights = {page.stem: weight(site, page) for page in pages}
    assert {page: bytes for page, bytes in weights.items() if bytes > 400_000} == {}


def test_a_heavy_page_is_found(tmp_path):
    page, picture = tmp_path / "page.html", os.urandom(300_000)
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b.js").write_text("x = 1;" * 100_000)
    page.write_text('<img src="a.png"><script src="b.js?v=1"></script><script src="b.js"></script>')
    assert 300_000 < weight(tmp_path, page) < 310_000
    inside = base64.b64encode(picture).decode()
    page.write_text(f'<img src="a.png"><img src="data:image/png;base64,{inside}">')
    assert weight(tmp_path, page) > 600_000
