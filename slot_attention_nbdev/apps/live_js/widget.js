// The same figures as a widget of a notebook; these files one after the other are its module.
export default {
  render({ model, el }) {
    const place = live.html("div", { class: "live", "data-lm-suppress-shortcuts": true }); // else JupyterLab takes the arrow keys
    const numbers = (bytes) => Float64Array.from(new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)));
    live.loadWeights(Object.fromEntries(Object.entries(model.get("weights")).map(([name, bytes]) => [name, numbers(bytes)])), "");
    place.addEventListener("keydown", (event) => event.stopPropagation());
    el.append(place);
    live.figures[model.get("figure")](place);
  },
};
