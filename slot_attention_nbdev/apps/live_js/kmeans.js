// Soft k-means in the plane: softmax over the slots, weighted mean, repeat. Points and slots can be dragged.
live.figures.kmeans = (place) => {
  const UNIT = 70, LEFT = -4, RIGHT = 4, BOTTOM = -3.2, TOP = 4; // the notebook's axes
  const CORNERS = [[-2, -1.2], [2, -1.2], [0, 2.2]], EACH = 15, FIRST = [[-2.6, -0.2], [-1, -1.8], [0.2, 1.4]]; // two slots share a cluster
  const colors = [1, 0, 3, 2, 4, 5].map((at) => live.colors[at]);
  const toX = (x) => (x - LEFT) * UNIT, toY = (y) => (TOP - y) * UNIT;
  const inside = ([x, y]) => [Math.max(LEFT + 0.2, Math.min(RIGHT - 0.2, x)), Math.max(BOTTOM + 0.2, Math.min(TOP - 0.2, y))];
  const { normal } = live.random(1);
  const home = CORNERS.flatMap(([x, y]) => Array.from({ length: EACH }, () => inside([x + 0.55 * normal(), y + 0.55 * normal()])));

  let points, slots, start, paths, steps, moved, timer;
  let K = 3, temperature = 0.5, eps = 1e-8, axis = "slots", seed = 0;

  // the rule
  const closeness = (point, slot) => -((point[0] - slot[0]) ** 2 + (point[1] - slot[1]) ** 2) / (2 * temperature);
  const scores = () => points.map((point) => slots.map((slot) => closeness(point, slot)));
  const overSlots = () => scores().map(live.softmax); // [N][K]
  function step() {
    let attn = overSlots();
    if (axis === "tokens") {
      const columns = slots.map((slot) => live.softmax(points.map((point) => closeness(point, slot))));
      attn = points.map((_, i) => columns.map((column) => column[i]));
    }
    const next = slots.map((_, j) => {
      const weights = attn.map((row) => row[j] + eps), total = weights.reduce((a, b) => a + b);
      return [0, 1].map((c) => points.reduce((sum, point, i) => sum + weights[i] * point[c], 0) / total);
    });
    moved = Math.max(...next.map((slot, j) => Math.hypot(slot[0] - slots[j][0], slot[1] - slots[j][1])));
    slots = next;
    slots.forEach((slot, j) => paths[j].push(slot));
    steps += 1;
  }

  // the picture
  const svg = live.svg("svg", { viewBox: `0 0 ${(RIGHT - LEFT) * UNIT} ${(TOP - BOTTOM) * UNIT}`, role: "group", "aria-label": "Points and slots in the plane. Arrow keys move what has the focus." });
  const dots = home.map((_, i) => {
    const dot = live.svg("g", { class: "handle", role: "button", "aria-roledescription": "movable point" }, live.svg("circle", { class: "touch", r: 14 }), live.svg("circle", { class: "dot", r: 6.5 }));
    const to = (point) => { points[i] = inside(point); moved = undefined; draw(); };
    live.draggable(svg, dot, { move: (x, y) => to([x / UNIT + LEFT, TOP - y / UNIT]), nudge: (dx, dy) => to([points[i][0] + 0.1 * dx, points[i][1] - 0.1 * dy]) });
    return dot;
  });
  live.rove(dots, (at, key) => at + [-1, 1][key], ["PageUp", "PageDown"]);
  const trails = colors.map(({ hex }) => live.svg("polyline", { class: "trail", style: `stroke:${hex}` }));
  const crosses = colors.map(({ name, hex }, j) => {
    const cross = live.svg("g", { class: "handle slot", tabindex: 0, role: "button", "aria-roledescription": "movable slot" },
      live.svg("circle", { class: "touch", r: 24 }), live.svg("path", { class: "edge", d: "M-9 -9L9 9M-9 9L9 -9" }), live.svg("path", { d: "M-9 -9L9 9M-9 9L9 -9", style: `stroke:${hex}` }));
    const to = (slot) => {
      slots[j] = inside(slot);
      if (!steps) start[j] = slots[j];
      paths[j] = [slots[j]];
      moved = undefined;
      draw();
    };
    cross.dataset.name = name;
    live.draggable(svg, cross, { move: (x, y) => to([x / UNIT + LEFT, TOP - y / UNIT]), nudge: (dx, dy) => to([slots[j][0] + 0.1 * dx, slots[j][1] - 0.1 * dy]) });
    return cross;
  });
  svg.append(...dots, ...trails, ...crosses);

  const at = ([x, y]) => `${x.toFixed(1)}, ${y.toFixed(1)}`;
  function draw() {
    const attn = overSlots(), chosen = colors.slice(0, K);
    dots.forEach((dot, i) => {
      dot.setAttribute("transform", `translate(${toX(points[i][0])} ${toY(points[i][1])})`);
      dot.lastChild.style.fill = live.mix(chosen, attn[i]);
      dot.setAttribute("aria-label", `point ${i + 1} of ${points.length} at ${at(points[i])}; page up and page down choose another`);
    });
    crosses.forEach((cross, j) => {
      cross.style.display = trails[j].style.display = j < K ? "" : "none";
      if (j >= K) return;
      cross.style.transform = `translate(${toX(slots[j][0])}px, ${toY(slots[j][1])}px)`;
      cross.setAttribute("aria-label", `${cross.dataset.name} slot at ${at(slots[j])}`);
      trails[j].setAttribute("points", paths[j].map(([x, y]) => `${toX(x)},${toY(y)}`).join(" "));
    });
    write(attn);
  }
  const words = live.words();
  function write(attn) {
    if (timer) return; // while it plays, only the end is read out
    const held = slots.map((_, j) => attn.reduce((sum, row) => sum + row[j], 0).toFixed(1));
    const pairs = slots.flatMap((a, j) => slots.slice(0, j).map((b, i) => [Math.hypot(a[0] - b[0], a[1] - b[1]), i, j]));
    const together = pairs.filter(([distance]) => distance < 0.15).map(([, i, j]) => `${colors[i].name} and ${colors[j].name}`);
    words.textContent = [
      steps ? `After ${steps} ${steps === 1 ? "step" : "steps"}` : "Before the first step", ", sums of attention over the slots: ",
      held.map((n, j) => `${colors[j].name} ${n}`).join(", "), ` of ${points.length} points. `,
      together.length ? `At the same position: ${together.join("; ")}. ` : "", moved < 0.005 ? "The slots are at rest." : "",
    ].join("");
  }

  // the controls
  const play = live.button("Play", () => (timer ? stop() : run()));
  function stop() {
    clearInterval(timer);
    timer = undefined;
    play.textContent = "Play";
    draw();
  }
  function run() {
    play.textContent = "Pause";
    let left = 60;
    timer = setInterval(() => {
      step();
      draw();
      if (moved < 0.005 || !--left) stop();
    }, 350);
  }
  function begin(from) {
    [start, slots] = [from.map((s) => [...s]), from.map((s) => [...s])];
    paths = slots.map((slot) => [slot]);
    [steps, moved] = [0, undefined];
    stop();
  }
  function draws() { // the notebook's start for seed 0, else random ones
    const { uniform } = live.random(100 + seed);
    const any = Array.from({ length: K }, () => inside([LEFT + (RIGHT - LEFT) * uniform(), BOTTOM + (TOP - BOTTOM) * uniform()]));
    return seed ? any : any.map((slot, j) => FIRST[j] ?? slot);
  }
  const again = live.button("New start (seed 1)", () => {
    seed += 1;
    again.textContent = `New start (seed ${seed + 1})`;
    begin(draws());
  });
  const controls = [
    live.html("div", { class: "live-buttons" },
      play, live.button("Step", () => { if (timer) stop(); step(); draw(); }),
      live.button("Reset", () => { points = home.map((p) => [...p]); begin(start); }), again),
    live.choice({ legend: "Softmax over", value: axis, options: [["slots", "slots"], ["tokens", "tokens (no competition)"]], onchange: (v) => { axis = v; moved = undefined; draw(); } }).element,
    live.range({ label: "Slots K", min: 1, max: 6, step: 1, value: K, onchange: (v) => { K = v; begin(draws()); } }).element,
    live.range({ label: "Temperature τ", min: -2, max: 1, step: 0.1, value: -0.3, show: (v) => (10 ** v).toPrecision(2), onchange: (v) => { temperature = 10 ** v; moved = undefined; draw(); } }).element,
    live.range({ label: "ε", min: -8, max: 1, step: 1, value: -8, show: (v) => (v < -3 ? `10⁻${"⁰¹²³⁴⁵⁶⁷⁸"[-v]}` : String(+(10 ** v).toFixed(3))), onchange: (v) => { eps = 10 ** v; moved = undefined; draw(); } }).element,
  ];
  place.append(live.html("div", { class: "live-stage" }, svg, live.html("div", { class: "live-controls" }, ...controls)), words);
  points = home.map((p) => [...p]);
  begin(draws());
};
