// Two softmaxes of one matrix of scores: over the slots, as in Slot Attention, or over the tokens, as in ordinary attention.
live.figures.softmax = (place) => {
  const colors = [1, 0, 3].map((at) => live.colors[at]); // orange, blue, pink: as in the notebook
  const START = [[2, -1, -1], [1.5, -0.5, -1], [-1, 2, -1], [-1, -1, 2], [-3, -3, -3.5]];
  const N = START.length, K = START[0].length;
  let scores = START.map((row) => [...row]), axis = "slots", temperature = 1;

  const table = (caption, cells, last) => live.html("table", {}, live.html("caption", {}, caption),
    live.html("thead", {}, live.html("tr", {}, live.html("td"), ...colors.map(({ hex }, j) => live.html("th", { scope: "col", style: `--slot:${hex}` }, `slot ${j + 1}`)), ...last)),
    live.html("tbody", {}, ...cells));
  const head = (i) => live.html("th", { scope: "row" }, `token ${i + 1}`);

  // left: the scores, each a slider
  const sliders = START.map((row, i) => row.map((score, j) => live.range({
    label: live.html("span", { class: "quiet" }, `Score of token ${i + 1} for slot ${j + 1}`),
    min: -4, max: 4, step: 0.5, value: score, show: (v) => v.toFixed(1).replace("-", "−"),
    onchange: (v) => { scores[i][j] = v; draw(); },
  })));
  const left = sliders.map((row, i) => live.html("tr", {}, head(i), ...row.map(({ element }, j) => live.html("td", { style: `--slot:${colors[j].hex}` }, element))));

  // right: the weights, their sums by row and by column
  const weights = START.map((row) => row.map((_, j) => live.html("td", { class: "weight", style: `--slot:${colors[j].hex}` })));
  const ofToken = START.map(() => live.html("td", { class: "sum" })), ofSlot = START[0].map(() => live.html("td", { class: "sum" }));
  const right = weights.map((row, i) => live.html("tr", {}, head(i), ...row, ofToken[i]));
  right.push(live.html("tr", {}, live.html("th", { scope: "row" }, "sum"), ...ofSlot, live.html("td")));

  const words = live.words();
  const choice = live.choice({
    legend: "Softmax over", value: axis, options: [["slots", "the slots (they compete)"], ["tokens", "the tokens (ordinary attention)"]],
    onchange: (v) => { axis = v; draw(); },
  });
  const heat = live.range({
    label: "Temperature", min: -1, max: 1, step: 0.1, value: 0, show: (v) => (10 ** v).toFixed(2),
    onchange: (v) => { temperature = 10 ** v; draw(); },
  });
  const reset = live.button("Reset the scores", () => {
    scores = START.map((row) => [...row]);
    sliders.forEach((row, i) => row.forEach((slider, j) => slider.set(START[i][j])));
    draw();
  });

  function attention() { // [N][K]
    if (axis === "slots") return scores.map((row) => live.softmax(row.map((s) => s / temperature)));
    const columns = scores[0].map((_, j) => live.softmax(scores.map((row) => row[j] / temperature)));
    return scores.map((_, i) => columns.map((column) => column[i]));
  }
  function draw() {
    const attn = attention(), rows = attn.map((row) => row.reduce((a, b) => a + b)), columns = attn[0].map((_, j) => attn.reduce((sum, row) => sum + row[j], 0));
    weights.forEach((row, i) => row.forEach((cell, j) => {
      cell.textContent = attn[i][j].toFixed(2);
      cell.style.setProperty("--share", `${100 * attn[i][j]}%`);
    }));
    ofToken.forEach((cell, i) => { cell.textContent = rows[i].toFixed(2); cell.classList.toggle("fixed", axis === "slots"); });
    ofSlot.forEach((cell, j) => { cell.textContent = columns[j].toFixed(2); cell.classList.toggle("fixed", axis === "tokens"); });
    const least = rows.indexOf(Math.min(...rows)), richest = columns.indexOf(Math.max(...columns));
    words.textContent = axis === "slots"
      ? `Over the slots: the weights of every token sum to 1, so no token is ignored. Slot ${richest + 1} has the most, ${columns[richest].toFixed(2)} of ${N} tokens.`
      : `Over the tokens: the weights of every slot sum to 1. Token ${least + 1} gets the least of all slots together, ${rows[least].toFixed(2)}${rows[least] < 0.1 ? ": it is nearly ignored." : "."}`;
  }
  place.append(
    live.html("div", { class: "live-controls" }, choice.element, heat.element, reset),
    live.html("div", { class: "live-tables" }, table("Scores: move one", left, []), table("Attention weights", right, [live.html("th", { scope: "col" }, "sum")])),
    words,
  );
  draw();
};
