// The small model of the course in plain JavaScript: encoder, Slot Attention with frames, decoder of patches.
// It reads the weights that scripts/live_weights.py writes, or exact ones; names, shapes and order of the steps are those of
// slot_attention_nbdev/models/framed.py and nn/frames.py. A table [n, d] is a Float64Array of n * d numbers, row by row.
{
  const SIDE = 35, STRIDE = 3, CELLS = 12, TOKENS = CELLS * CELLS, D = 64, PATCH = 25, MAX_SHIFT = 2;
  const ORDERS = 5, F = 1 + 2 * ORDERS, REACH = 1.7, START_SCALE = 0.5, MIN_SCALE = 0.06, EPS = 1e-8;
  const AXIS = Array.from({ length: CELLS }, (_, i) => (STRIDE * i * 2) / (SIDE - 1) - 1); // a token's coordinate in the image
  const weights = {};
  let ready;
  live.model = { D, loaded: new Promise((done) => { ready = done; }) };

  live.loadWeights = (written, letters) => {
    const value = Object.fromEntries([...letters].map((letter, index) => [letter, index - (letters.length - 1) / 2]));
    for (const [name, { text, step, shape }] of Object.entries(written)) {
      if (!text) { weights[name] = Float64Array.from(written[name]); continue; }
      const width = text.length / shape[0];
      weights[name] = Float64Array.from(text, (letter, at) => value[letter] * step[Math.floor(at / width)]);
    }
    ready();
  };

  // layers
  const relu = (x) => x.map((v) => Math.max(0, v));
  const sigmoid = (v) => 1 / (1 + Math.exp(-v));
  const add = (a, b) => a.map((v, i) => v + b[i]);
  function dot(a, i, b, j, n) { // of n numbers from a[i] and b[j] on; four sums, so that none waits for the other
    let s = 0, t = 0, u = 0, v = 0, d = 0;
    for (; d + 3 < n; d += 4) {
      s += a[i + d] * b[j + d];
      t += a[i + d + 1] * b[j + d + 1];
      u += a[i + d + 2] * b[j + d + 2];
      v += a[i + d + 3] * b[j + d + 3];
    }
    for (; d < n; d++) s += a[i + d] * b[j + d];
    return s + t + u + v;
  }
  function linear(x, name, n, suffix = ".weight") { // [n, in] -> [n, out]
    const W = weights[name + suffix], b = suffix === ".thin" ? undefined : weights[`${name}.bias`];
    const width = x.length / n, out = W.length / width, y = new Float64Array(n * out);
    for (let i = 0; i < n; i++) for (let o = 0; o < out; o++) y[i * out + o] = (b ? b[o] : 0) + dot(x, i * width, W, o * width, width);
    return y;
  }
  function layerNorm(x, name, n) {
    const scale = weights[`${name}.weight`], shift = weights[`${name}.bias`], width = x.length / n, y = new Float64Array(x.length);
    for (let i = 0; i < n; i++) {
      let mean = 0, variance = 0;
      for (let d = 0; d < width; d++) mean += x[i * width + d] / width;
      for (let d = 0; d < width; d++) variance += (x[i * width + d] - mean) ** 2 / width;
      for (let d = 0; d < width; d++) y[i * width + d] = ((x[i * width + d] - mean) / Math.sqrt(variance + 1e-5)) * scale[d] + shift[d];
    }
    return y;
  }
  // LayerNorm, then linear layers with ReLU between them
  const mlp = (x, name, n, layers = [1, 3]) => layers.reduce((h, layer, at) => linear(at ? relu(h) : h, `${name}.${layer}`, n), layerNorm(x, `${name}.0`, n));
  function convolution(x, size, channels, name, kernel, stride) { // [size, size, channels] -> [cells, cells, out], padded by half a kernel
    const pad = (kernel - 1) / 2, cells = Math.ceil(size / stride), patches = new Float64Array(cells ** 2 * channels * kernel ** 2);
    let at = 0; // the patch under the kernel as a row, then a linear layer
    for (let r = 0; r < cells; r++) for (let c = 0; c < cells; c++) for (let i = 0; i < channels; i++) {
      for (let dy = -pad; dy <= pad; dy++) for (let dx = -pad; dx <= pad; dx++, at++) {
        const row = r * stride + dy, column = c * stride + dx;
        if (row >= 0 && column >= 0 && row < size && column < size) patches[at] = x[(row * size + column) * channels + i];
      }
    }
    return linear(patches, name, cells ** 2);
  }
  function softmax(x, n) { // over the last axis of [n, K]
    const K = x.length / n, y = new Float64Array(x.length);
    for (let i = 0; i < n; i++) {
      let most = -Infinity, total = 0;
      for (let at = i * K; at < (i + 1) * K; at++) most = Math.max(most, x[at]);
      for (let at = i * K; at < (i + 1) * K; at++) total += y[at] = Math.exp(x[at] - most);
      for (let at = i * K; at < (i + 1) * K; at++) y[at] /= total;
    }
    return y;
  }

  // line 1 of Algorithm 1: a mean for each of four slots, further ones from a Gaussian over these means; positions uniform
  function initialSlots(noise, K) {
    const mu = weights["slot_attention.slots_mu"], sigma = weights["slot_attention.slots_log_sigma"].map(Math.exp), known = mu.length / D;
    const vectors = new Float64Array(K * D), frames = [];
    for (let k = 0; k < K; k++) {
      for (let d = 0; d < D; d++) {
        const all = Array.from({ length: known }, (_, j) => mu[j * D + d]), mean = all.reduce((a, b) => a + b) / known;
        const spread = Math.sqrt(all.reduce((a, b) => a + (b - mean) ** 2, 0) / known + sigma[d] ** 2);
        const z = noise[k * (D + 2) + d];
        vectors[k * D + d] = k < known ? all[k] + sigma[d] * z : mean + spread * z;
      }
      const [y, x] = [0, 1].map((axis) => erf(noise[k * (D + 2) + D + axis] / Math.SQRT2)); // normal to uniform in (-1, 1)
      frames.push({ position: [y, x], scale: [START_SCALE, START_SCALE] });
    }
    return [vectors, frames];
  }
  function erf(x) { // Abramowitz and Stegun, 7.1.26; error below 2e-7
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return Math.sign(x) * (1 - series * Math.exp(-x * x));
  }

  // Fourier features of the tokens' rows or columns in a slot's frame, [12, F]
  const waves = (position, scale) => AXIS.map((at) => {
    const u = Math.max(-REACH, Math.min(REACH, (at - position) / (Math.sqrt(3) * scale))), phase = (order) => (u * (order + 1) * Math.PI) / REACH;
    const orders = Array.from({ length: ORDERS }, (_, order) => phase(order));
    return [1, ...orders.map(Math.sin), ...orders.map(Math.cos)];
  });
  const features = (frames) => frames.map(({ position, scale }) => [waves(position[0], scale[0]), waves(position[1], scale[1])]);
  // [a, b] of `form` seen through rows and columns: sum over a, b of rows[r][a] * form[a, b] * columns[c][b]
  function spread([rows, columns], form) { // [F, F] -> [12, 12]
    const half = rows.map((row) => columns[0].map((_, b) => row.reduce((sum, v, a) => sum + v * form[a * F + b], 0)));
    return half.flatMap((line) => columns.map((column) => column.reduce((sum, v, b) => sum + v * line[b], 0)));
  }
  function gather([rows, columns], image) { // [12, 12] -> [F, F]
    const half = rows.map((_, r) => columns[0].map((_, b) => columns.reduce((sum, column, c) => sum + column[b] * image[r * CELLS + c], 0)));
    return rows[0].flatMap((_, a) => columns[0].map((_, b) => rows.reduce((sum, row, r) => sum + row[a] * half[r][b], 0)));
  }
  // the weights of the weighted mean, an image for each slot: [K][12 * 12]
  const tokenWeights = (attention, K) => Array.from({ length: K }, (_, k) => {
    const image = Array.from({ length: TOKENS }, (_, i) => attention[i * K + k] + EPS), total = image.reduce((a, b) => a + b);
    return image.map((v) => v / total);
  });
  function measure(image) { // mean and deviation of the attention along both axes
    const along = [(i) => AXIS[Math.floor(i / CELLS)], (i) => AXIS[i % CELLS]];
    const position = along.map((at) => image.reduce((sum, w, i) => sum + w * at(i), 0));
    const variance = along.map((at, axis) => image.reduce((sum, w, i) => sum + w * (at(i) - position[axis]) ** 2, 0));
    return { position, scale: variance.map((v) => Math.sqrt(v + MIN_SCALE ** 2)) };
  }

  // lines 7 and 8 of Algorithm 1, and the new frames
  function attend(keys, values, slots, frames, K) {
    const q = linear(layerNorm(slots, "slot_attention.norm_slots", K), "slot_attention.project_q", K);
    const forms = linear(q, "slot_attention.position_k", K), seen = features(frames), scores = new Float64Array(TOKENS * K);
    for (let k = 0; k < K; k++) {
      const near = spread(seen[k], forms.subarray(k * F * F, (k + 1) * F * F));
      for (let i = 0; i < TOKENS; i++) {
        scores[i * K + k] = (near[i] + dot(keys, i * D, q, k * D, D)) / Math.sqrt(D);
      }
    }
    const attention = softmax(scores, TOKENS); // line 7: over the slots
    const means = tokenWeights(attention, K), updates = new Float64Array(K * D);
    means.forEach((image, k) => image.forEach((w, i) => { for (let d = 0; d < D; d++) updates[k * D + d] += w * values[i * D + d]; }));
    const shapes = Float64Array.from(means.flatMap((image, k) => gather(seen[k], image)));
    return { attention, updates: add(updates, linear(shapes, "slot_attention.position_v", K)), frames: means.map(measure) };
  }
  function update(updates, slots, K) { // lines 9 and 10
    const given = linear(updates, "slot_attention.gru", K, ".weight_ih"), kept = linear(slots, "slot_attention.gru", K, ".weight_hh");
    const [bi, bh] = ["ih", "hh"].map((which) => weights[`slot_attention.gru.bias_${which}`]), next = new Float64Array(K * D);
    for (let k = 0; k < K; k++) for (let d = 0; d < D; d++) {
      const [reset, keep, candidate] = [0, 1, 2].map((gate) => [given[(k * 3 + gate) * D + d] + bi[gate * D + d], kept[(k * 3 + gate) * D + d] + bh[gate * D + d]]);
      const z = sigmoid(keep[0] + keep[1]), n = Math.tanh(candidate[0] + sigmoid(reset[0] + reset[1]) * candidate[1]);
      next[k * D + d] = (1 - z) * n + z * slots[k * D + d];
    }
    const hidden = relu(linear(layerNorm(next, "slot_attention.norm_mlp", K), "slot_attention.mlp.0", K));
    return add(next, linear(hidden, "slot_attention.mlp.2", K));
  }
  // what the shape of its last attention says to each slot
  function readShape(slots, { attention, frames }, K) {
    const seen = features(frames), shapes = tokenWeights(attention, K).map((image, k) => gather(seen[k], image));
    const both = Float64Array.from(shapes.flatMap((shape, k) => [...slots.subarray(k * D, (k + 1) * D), ...shape]));
    return add(slots, linear(relu(linear(both, "slot_attention.readout.0", K)), "slot_attention.readout.2", K));
  }

  // one patch for each slot, in one color with shading, laid on the image at its position; then the mixture
  function decode(slots, frames, K) {
    const shift = mlp(slots, "decoder.shift", K), color = mlp(slots, "decoder.color", K).map(sigmoid), least = weights["decoder.min_shading"][0];
    const hidden = relu(mlp(slots, "decoder.patch", K));
    const thin = weights["decoder.patch.5.thin"] && linear(hidden, "decoder.patch.5", K, ".thin"); // not in exact weights
    const patches = linear(thin ?? hidden, "decoder.patch.5", K, thin ? ".wide" : ".weight");
    patches.forEach((v, at) => { // the first of a slot's two planes is shading, the second the mask's logit
      if (Math.floor(at / PATCH ** 2) % 2 === 0) patches[at] = least + (1 - least) * sigmoid(v + 1);
    });
    const logits = new Float64Array(SIDE * SIDE * K), shading = new Float64Array(SIDE * SIDE * K);
    frames.forEach(({ position }, k) => {
      const place = (pixel, axis) => { // where a pixel lies in the patch: the cell before it, and how far behind that
        const middle = ((position[axis] + 1) * (SIDE - 1)) / 2 + MAX_SHIFT * Math.tanh(shift[2 * k + axis]);
        const cell = Math.max(0, Math.min(PATCH - 1, pixel - middle + (PATCH - 1) / 2)), before = Math.min(PATCH - 2, Math.floor(cell));
        return { before, behind: cell - before };
      };
      const [rows, columns] = [0, 1].map((axis) => Array.from({ length: SIDE }, (_, pixel) => place(pixel, axis)));
      const read = (at, down, right) => (1 - down) * ((1 - right) * patches[at] + right * patches[at + 1])
        + down * ((1 - right) * patches[at + PATCH] + right * patches[at + PATCH + 1]);
      for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
        const at = (2 * k * PATCH + rows[y].before) * PATCH + columns[x].before;
        shading[(y * SIDE + x) * K + k] = read(at, rows[y].behind, columns[x].behind);
        logits[(y * SIDE + x) * K + k] = read(at + PATCH ** 2, rows[y].behind, columns[x].behind);
      }
    });
    const masks = softmax(logits, SIDE * SIDE);
    const images = Array.from({ length: K }, () => new Float64Array(3 * SIDE * SIDE)), reconstruction = new Float64Array(3 * SIDE * SIDE);
    for (let at = 0; at < reconstruction.length; at++) for (let k = 0; k < K; k++) {
      const pixel = Math.floor(at / 3) * K + k;
      images[k][at] = 2 * color[3 * k + (at % 3)] * shading[pixel] - 1;
      reconstruction[at] += masks[pixel] * images[k][at];
    }
    return { masks, images, reconstruction };
  }

  // Image [35, 35, 3] in [-1, 1] and noise [K, D + 2] to attention [T + 1][144, K], frames [T + 2][K], masks [35 * 35, K], images
  let last = {}; // the keys and values of the last image
  function encode(image) {
    if (last.image === image) return last.tokens;
    const convolved = relu(convolution(relu(convolution(image, SIDE, 3, "encoder.convs.0", 5, STRIDE)), CELLS, 32, "encoder.convs.2", 3, 1));
    const inputs = layerNorm(mlp(convolved, "encoder.mlp", TOKENS), "slot_attention.norm_inputs", TOKENS); // line 3
    last = { image, tokens: ["k", "v"].map((which) => linear(inputs, `slot_attention.project_${which}`, TOKENS)) };
    return last.tokens;
  }
  live.model.run = (image, noise, K, T) => {
    const [keys, values] = encode(image);
    const attention = [];
    let [slots, start] = initialSlots(noise, K), frames = [start];
    for (let t = 0; t <= T; t++) { // T updates, and a last look
      const found = attend(keys, values, slots, frames.at(-1), K);
      attention.push(found.attention);
      frames.push(found.frames);
      if (t < T) slots = update(found.updates, slots, K);
    }
    slots = readShape(slots, { attention: attention.at(-1), frames: frames.at(-1) }, K);
    const decoded = decode(slots, frames.at(-1), K);
    const error = decoded.reconstruction.reduce((sum, v, at) => sum + (v - image[at]) ** 2, 0) / image.length;
    return { attention, frames, error, ...decoded };
  };
}
