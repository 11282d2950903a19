// A board of Tetrominoes pieces, and what a trained model makes of it: who takes what, iteration by iteration.
live.figures.board = (place) => {
  const SIDE = 35, CELLS = 7, TOKENS = 12, ZOOM = 4;
  const SHAPES = { O: ["11/11"], I: ["1111", "1/1/1/1"], T: ["010/111", "10/11/10", "111/010", "01/11/01"], S: ["011/110", "10/11/01"], Z: ["110/011", "01/11/10"],
    L: ["001/111", "10/10/11", "111/100", "11/01/01"], J: ["100/111", "11/10/10", "111/001", "01/01/11"] }; // each with its rotations
  const COLORS = { red: [1, 0, 0], green: [0, 1, 0], blue: [0, 0, 1], yellow: [1, 1, 0], magenta: [1, 0, 1], cyan: [0, 1, 1] };
  const RELIEF = [[191, 255, 255, 255, 223], ...Array(3).fill([127, 159, 159, 159, 191]), [95, 63, 63, 63, 127]]; // of a cell, as in sprites
  const START = [{ row: 0, column: 1, shape: "T", turn: 0, color: "red" }, { row: 1, column: 4, shape: "O", turn: 0, color: "magenta" }, { row: 4, column: 2, shape: "S", turn: 0, color: "blue" }];
  const [SLOTS, D] = [live.colors, live.model.D];

  let pieces = START.map((piece) => ({ ...piece })), chosen = null, brush = { shape: "L", turn: 0, color: "green" }, K = 4, T = 5, draw = 0;

  // pieces and their cells
  const cells = ({ row, column, shape, turn }) => SHAPES[shape][turn % SHAPES[shape].length].split("/")
    .flatMap((line, r) => [...line].flatMap((cell, c) => (cell === "1" ? [[row + r, column + c]] : [])));
  const pieceAt = (row, column) => pieces.find((piece) => cells(piece).some(([r, c]) => r === row && c === column));
  const fits = (piece, old) => cells(piece).every(([r, c]) => r >= 0 && c >= 0 && r < CELLS && c < CELLS && [undefined, old].includes(pieceAt(r, c)));
  const nameOf = ({ color, shape }) => `${color} ${shape}`;
  function pixels() { // bytes [35, 35, 3]
    const image = new Uint8Array(SIDE * SIDE * 3);
    for (const piece of pieces) for (const [r, c] of cells(piece)) for (let y = 0; y < 5; y++) for (let x = 0; x < 5; x++) for (let i = 0; i < 3; i++) {
      image[((5 * r + y) * SIDE + 5 * c + x) * 3 + i] = COLORS[piece.color][i] * RELIEF[y][x];
    }
    return image;
  }

  // the board: a picture under 49 buttons
  const canvas = (size, name) => live.html("canvas", { width: size, height: size, role: "img", "aria-label": name });
  const paint = (target, byteAt) => { // of a pixel's number and a channel
    const data = new ImageData(SIDE, SIDE);
    for (let p = 0; p < SIDE * SIDE; p++) for (let i = 0; i < 4; i++) data.data[4 * p + i] = i < 3 ? byteAt(p, i) : 255;
    target.getContext("2d").putImageData(data, 0, 0);
  };
  const input = canvas(SIDE, "The image on the board");
  const squares = Array.from({ length: CELLS * CELLS }, (_, at) => live.button("", () => click(Math.floor(at / CELLS), at % CELLS)));
  live.rove(squares, (at, key) => {
    const [row, column] = [Math.floor(at / CELLS) + [0, 0, -1, 1][key], (at % CELLS) + [-1, 1, 0, 0][key]];
    return row < 0 || column < 0 || row >= CELLS || column >= CELLS ? -1 : row * CELLS + column;
  }, ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);
  const board = live.html("div", { class: "live-board", role: "group", "aria-label": "Board of 7 by 7 cells; arrow keys go from cell to cell" }, input, ...squares);

  function click(row, column) {
    const there = pieceAt(row, column);
    if (there) { chosen = there === chosen ? null : there; if (chosen) take(chosen); return show(); }
    // the corner of its box goes there, or as near as the border lets it
    const corners = [...Array(CELLS * CELLS).keys()].map((at) => ({ ...brush, row: Math.floor(at / CELLS), column: at % CELLS }));
    const piece = corners.filter((p) => fits(p) && cells(p).some(([r, c]) => r === row && c === column))
      .sort((a, b) => Math.hypot(a.row - row, a.column - column) - Math.hypot(b.row - row, b.column - column))[0];
    if (!piece) return say(`There is no room for the ${nameOf(brush)} here.`);
    pieces.push(piece);
    chosen = piece;
    look();
  }
  function change(how) { // the chosen piece, and what is placed next
    const next = { ...(chosen ?? brush), ...how };
    const room = chosen && [0, -1, 1, -2, 2].flatMap((r) => [0, -1, 1, -2, 2].map((c) => ({ ...next, row: next.row + r, column: next.column + c }))).find((p) => fits(p, chosen));
    if (chosen && !room) { take(chosen); return say("There is no room to turn or change this piece."); }
    take(next);
    if (!chosen) return show();
    pieces[pieces.indexOf(chosen)] = chosen = room;
    look();
  }
  function take({ shape, turn, color }) {
    brush = { shape, turn, color };
    shapes.set(shape);
    hues.set(color);
  }

  // the model
  let picture;
  const noise = (seed) => { const { normal } = live.random(seed); return Float64Array.from({ length: K * (D + 2) }, normal); };
  const run = (seed) => live.model.run(picture, noise(seed), K, T);
  const winner = (shares, at) => { let best = 0; for (let k = 1; k < K; k++) if (shares[at * K + k] > shares[at * K + best]) best = k; return best; };
  const results = live.html("div", { class: "live-strip" }), looks = live.html("div", { class: "live-strip" }), words = live.words();
  const say = (text) => { words.textContent = text; };
  const panels = new Map(); // made once: a canvas takes longer to make than to paint
  const panel = (name, caption, size = SIDE, hex) => {
    if (!panels.has(name)) {
      const target = canvas(size, name);
      panels.set(name, { target, figure: live.html("figure", hex ? { style: `--slot:${hex}` } : {}, target, live.html("figcaption", {}, caption)) });
    }
    return panels.get(name);
  };
  const lay = (strip, found) => {
    if (found.length !== strip.children.length) strip.replaceChildren(...found.map(({ figure }) => figure));
  };

  function show(found) {
    const image = pixels();
    paint(input, (p, i) => image[3 * p + i]);
    squares.forEach((square, at) => {
      const piece = pieceAt(Math.floor(at / CELLS), at % CELLS);
      square.setAttribute("aria-label", `row ${Math.floor(at / CELLS) + 1}, column ${(at % CELLS) + 1}: ${piece ? nameOf(piece) : "empty"}`);
      square.setAttribute("aria-pressed", Boolean(piece && piece === chosen));
    });
    [turn, remove].forEach((button) => { button.ariaDisabled = !chosen; });
    if (!found) return;
    const byte = (v) => (v + 1) * 127.5, pictures = [panel("Reconstruction", "reconstruction"), panel("Which slot has the largest mask in each pixel", "largest mask")];
    paint(pictures[0].target, (p, i) => byte(found.reconstruction[3 * p + i]));
    paint(pictures[1].target, (p, i) => SLOTS[winner(found.masks, p)].rgb[i]);
    found.images.forEach((image, k) => {
      const own = panel(`What the ${SLOTS[k].name} slot draws, times its mask`, `${SLOTS[k].name} slot`, SIDE, SLOTS[k].hex);
      paint(own.target, (p, i) => byte(image[3 * p + i]) * found.masks[p * K + k] + 128 * (1 - found.masks[p * K + k]));
      pictures.push(own);
    });
    lay(results, pictures);
    lay(looks, found.attention.map((attention, t) => {
      const look = panel(`Attention of the slots at t = ${t}`, `t = ${t}`, SIDE * ZOOM), context = look.target.getContext("2d");
      for (let i = 0; i < TOKENS ** 2; i++) { // a token is the middle of three pixels
        context.fillStyle = live.mix(SLOTS.slice(0, K), attention.subarray(i * K, (i + 1) * K));
        context.fillRect(((i % TOKENS) * 3 - 1) * ZOOM, (Math.floor(i / TOKENS) * 3 - 1) * ZOOM, 3 * ZOOM, 3 * ZOOM);
      }
      const pixel = (v) => ((v + 1) / 2) * (SIDE - 1) * ZOOM, reach = Math.sqrt(3);
      found.frames[t].forEach(({ position: [y, x], scale: [h, w] }) => { // where the slots were when they looked
        const box = [pixel(x - reach * w), pixel(y - reach * h), pixel(x + reach * w) - pixel(x - reach * w), pixel(y + reach * h) - pixel(y - reach * h)];
        for (const [color, width] of [["#000", 3.5], ["#fff", 1.5]]) { Object.assign(context, { strokeStyle: color, lineWidth: width }); context.strokeRect(...box); }
      });
      return look;
    }));
    const held = pieces.map((piece) => {
      const counts = Array(K).fill(0);
      for (const [r, c] of cells(piece)) for (let y = 0; y < 5; y++) for (let x = 0; x < 5; x++) counts[winner(found.masks, (5 * r + y) * SIDE + 5 * c + x)] += 1;
      const best = counts.indexOf(Math.max(...counts));
      return `${nameOf(piece)} → ${SLOTS[best].name} slot${counts[best] < 90 ? ` (${counts[best]} % of it)` : ""}`;
    });
    say(`Draw ${draw + 1}: ${held.join("; ") || "an empty board"}. Squared error of the reconstruction: ${found.error.toFixed(4)}.`);
  }
  const think = () => show(run(draw));
  const look = () => { picture = Float64Array.from(pixels(), (v) => v / 127.5 - 1); think(); }; // after a change of the pieces

  // the controls
  const shapes = live.choice({ legend: "Piece", value: brush.shape, options: Object.keys(SHAPES).map((s) => [s, s]), onchange: (shape) => change({ shape, turn: 0 }) });
  const hues = live.choice({ legend: "Color", value: brush.color, options: Object.entries(COLORS).map(([name, rgb]) => [name, name, `--swatch:rgb(${rgb.map((v) => 200 * v).join(" ")})`]), onchange: (color) => change({ color }) });
  const NONE = "Choose a piece first, by a click on it.";
  const turn = live.button("Rotate", () => (chosen ? change({ turn: chosen.turn + 1 }) : say(NONE)));
  const remove = live.button("Remove", () => { if (!chosen) return say(NONE); pieces = pieces.filter((piece) => piece !== chosen); chosen = null; look(); });
  const clear = live.button("Clear", () => { pieces = []; chosen = null; look(); });
  const again = live.button("New draw of slots", () => { draw += 1; think(); });
  const best = live.button("Best of the next 8 draws", async () => {
    const first = draw + 1, errors = [];
    if (words.ariaLive === "off") return; // still at it
    words.ariaLive = "off";
    while (errors.length < 8) {
      draw = first + errors.length;
      const found = run(draw);
      errors.push(found.error);
      show(found);
      await new Promise((next) => setTimeout(next, 60)); // the page stays responsive
    }
    words.ariaLive = "polite";
    draw = first + errors.indexOf(Math.min(...errors));
    think();
  });
  const controls = live.html("div", { class: "live-controls" }, shapes.element, hues.element, live.html("div", { class: "live-buttons" }, turn, remove, clear),
    live.range({ label: "Slots K", min: 2, max: 7, step: 1, value: K, onchange: (v) => { K = v; think(); } }).element,
    live.range({ label: "Iterations T", min: 1, max: 7, step: 1, value: T, onchange: (v) => { T = v; think(); } }).element,
    live.html("div", { class: "live-buttons" }, again, best));
  place.append(live.html("div", { class: "live-stage" }, board, controls), words,
    live.html("p", { class: "live-title" }, "What the slots draw"), results, live.html("p", { class: "live-title" }, "Who attends to what, look by look; frames are where the slots were"), looks);
  show();
  say("The model's weights are on their way.");

  // on the site the weights are a script, so that they load from a folder too, and only when the figure comes near
  if (live.base) new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    document.head.append(live.html("script", { src: `${live.base}weights.js` }));
  }, { rootMargin: "800px" }).observe(place);
  live.model.loaded.then(look);
};
