// What the figures share that answer in the page: parts of a form, seeded random numbers, dragging. No dependency, no request.
// A notebook has <div class="live" data-figure="softmax">what stands there without a script</div>; a figure fills it.
const live = { figures: {}, base: document.currentScript?.src.replace(/[^/]*$/, "") ?? "" };

// Okabe and Ito's colors, which color-blind readers can tell apart, in the order of the library
live.colors = [["blue", "#0072B2"], ["orange", "#E69F00"], ["green", "#009E73"], ["pink", "#CC79A7"], ["sky blue", "#56B4E9"], ["vermilion", "#D55E00"], ["yellow", "#F0E442"]]
  .map(([name, hex]) => ({ name, hex, rgb: [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) }));
live.mix = (colors, shares) => `rgb(${[0, 1, 2].map((c) => Math.round(colors.reduce((sum, { rgb }, k) => sum + shares[k] * rgb[c], 0))).join(" ")})`;

// elements
const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};
live.html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
live.svg = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
live.button = (text, onclick, attributes = {}) => live.html("button", { type: "button", onclick, ...attributes }, text);
// the line under a figure that says what is to be seen
live.words = () => live.html("p", { class: "live-words", "aria-live": "polite" });

// a slider with its name and value; `show` writes the value, `onchange` is called with it
live.range = ({ label, min, max, step, value, show = String, onchange }) => {
  const output = live.html("span", { "aria-hidden": "true" }, show(value)); // the slider itself says its value
  const input = live.html("input", { type: "range", min, max, step, value, "aria-valuetext": show(value) });
  const write = () => { output.textContent = show(+input.value); input.setAttribute("aria-valuetext", show(+input.value)); };
  input.addEventListener("input", () => { write(); onchange(+input.value); });
  const element = live.html("label", { class: "live-range" }, live.html("span", {}, label, " ", output), input);
  return { element, set(v) { input.value = v; write(); } };
};
// one of several: options are [value, text] or [value, text, style]
live.choice = ({ legend, options, value, onchange }) => {
  const name = `live-${Math.random()}`;
  const inputs = options.map(([v]) => live.html("input", { type: "radio", name, value: v, checked: v === value, onchange: () => onchange(v) }));
  const labels = options.map(([, text, style], at) => live.html("label", {}, inputs[at], live.html("span", { style }, text)));
  return { element: live.html("fieldset", { class: "live-choice" }, live.html("legend", {}, legend), ...labels), set(v) { inputs[options.findIndex(([o]) => o === v)].checked = true; } };
};

// random numbers: the same seed, the same numbers (mulberry32; pairs of Box and Muller)
live.random = (seed) => {
  let state = seed * 2654435761 + 1;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return { uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()) };
};

live.softmax = (scores) => {
  const most = Math.max(...scores), powers = scores.map((s) => Math.exp(s - most)), total = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / total);
};

// Let an element of an SVG be moved by mouse, finger and arrow keys. `move(x, y)` takes coordinates of the SVG, `nudge(dx, dy)` steps.
live.draggable = (svg, element, { move, nudge }) => {
  const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    element.focus({ preventScroll: true });
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) move(at(event).x, at(event).y);
  });
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    nudge(...step.map((s) => s * (event.shiftKey ? 4 : 1)));
  });
};
// move the focus among many elements by arrow keys; only one of them is a stop of the Tab key
live.rove = (elements, step, keys) => elements.forEach((element, at) => {
  element.setAttribute("tabindex", at ? -1 : 0);
  element.addEventListener("focus", () => elements.forEach((e) => e.setAttribute("tabindex", e === element ? 0 : -1)));
  element.addEventListener("keydown", (event) => {
    const next = elements[step(at, keys.indexOf(event.key))];
    if (!keys.includes(event.key) || !next) return;
    event.preventDefault();
    next.focus();
  });
});

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".live[data-figure]")) {
    const figure = live.figures[place.dataset.figure];
    if (!figure) continue;
    place.replaceChildren();
    place.classList.add("ready");
    figure(place);
  }
});
