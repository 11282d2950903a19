// What a reader's words find: MiniSearch ranks the sections of all pages; here stands what it cannot
// know, namely what words mean in this field. Loaded, with its data, when somebody first searches.

// said by readers → said on the pages (both are looked for)
const synonyms = {
  "(my|own|custom) (own )?(data ?sets?|data|images|photos|pictures)": "your own images folder",
  "multi[- ]?gpus?|multiple gpus|several gpus|distributed|ddp|multi[- ]?node": "several processes rank gpus",
  "amp|fp16|half precision|bfloat16|bf16": "mixed precision bf16",
  "mixed precision": "bf16",
  "save|saving|export": "saving weights",
  "load|loading|download|checkpoint zoo|model zoo": "loading weights from_pretrained",
  "pretrained|pre-trained": "weights from_pretrained saving loading models",
  "resum\\w*|continue|interrupt\\w*|restart": "checkpoints resume",
  "warm ?up|scheduler?|lr|learning rate": "learning rate rises falls",
  "positional (embedding|encoding)|position encoding|coordinates": "position embedding",
  "equivarian\\w*|invarian\\w*|permutation\\w*|order": "symmetry shuffle",
  "hungarian|assignment|linear_sum_assignment|munkres": "matching sets cheapest",
  "(adjusted )?rand( index)?|fg-?ari|ari": "adjusted Rand index ARI foreground",
  "iou|jaccard|dice": "mIoU overlap",
  "background slot": "background slot foreground only",
  "k-?means|clustering|em|gaussian mixture": "soft k-means",
  "(number|count) of slots|how many slots|num_slots": "how many slots K at every call",
  "install\\w*|pip|setup|requirements|getting started|quick ?start": "install pip need Python machine",
  "cite|citation|bibtex|reference this": "how to cite citation",
  "segment\\w*|predict\\w*|inference": "segment images predicting from files",
  "onnx|torchscript|deploy\\w*|edge": "onnx model without this package export",
  "video|savi|temporal|tracking": "video SAVi",
  "colab|binder|run online|cloud": "open in Colab Binder notebook",
  "color ?mnist|colou?red? ?mnist|mnist|coco|imagenet|pascal|real images|photo\\w*": "your own images folder",
  "compile|torch\\.compile|inductor": "torch.compile other switches",
  "fast\\w*|speed|slow|benchmark": "timing faster",
};
const stopWords = new Set("a an and are as at be by can do does for from how i in is it its me my of on or our own that the this to use we what when where which why with you your".split(" "));
const endings = /(?:izations?|isations?|ization|ations?|ators?|ances?|ences?|ancy|ant|ents?|ating|ated|ates?|izing|ising|ized|ised|izes?|ises?|ings?|ed|ers?|ies|es|s|y|e)$/;
const known = new Set();

const stem = (word) => {
  if (word.length < 4 || /[\d_.-]/.test(word)) return word;
  const short = word.replace(endings, "");
  return short.length < 3 || !/[aeiouy]/.test(short) ? word.replace(/s$/, "") : short.replace(/([bdgmnprt])\1$/, "$1");
};
const memory = new Map();
const tokens = (text) => text.match(/--[a-z][\w-]*|[\p{L}\p{N}_]+(?:[-.'’][\p{L}\p{N}_]+)*/gu) ?? [];
// A compound is looked for whole and in its parts: FG-ARI, from_pretrained, SlotAttention, --resume
function terms(token) {
  if (memory.has(token)) return memory.get(token);
  const whole = token.toLowerCase().replace(/['’]s$/, "");
  const parts = token.replace(/([a-z\d])([A-Z])/g, "$1 $2").toLowerCase().split(/[-_.\s'’]+/).filter(Boolean);
  const found = parts.length > 1 || token.startsWith("--") ? [whole, ...parts.map(stem)] : [stem(whole)];
  const wanted = [...new Set(found.filter((term) => !stopWords.has(term)))];
  memory.set(token, wanted);
  return wanted;
}
function indexTerms(token) {
  const found = terms(token);
  found.forEach((term) => known.add(term));
  return found;
}
const words = (text) => tokens(text).flatMap(terms);
const phrase = (text) => words(text).join(" ");

const kinds = { course: 1, reference: 0.5, solutions: 0.4 };
const shelves = { course: 1.15, speed: 0.85 }; // what explains comes before what makes it faster
const codeLike = /_|--|\(|[a-z][A-Z]|\w\.\w/; // somebody who types a name wants the reference as well
const asides = /^(references|exercises|summary|what can go wrong|solutions?)$/i;
const all = new Map(); // the sections, by their address
let mini, ready;
window.prepareSearch = () => ready ??= (() => {
  mini = new MiniSearch({
    idField: "href",
    fields: ["heading", "page", "names", "text"],
    tokenize: tokens,
    processTerm: indexTerms,
  });
  for (const [out, title, kind, sections] of window.searchPages) {
    for (const [anchor, section, text, names] of sections) {
      const href = anchor ? `${out}#${anchor}` : out;
      const weight = (shelves[out.split("/")[0]] ?? 1) * (asides.test(section) ? 0.5 : 1) * (anchor ? 1 : 1.25);
      all.set(href, { href, kind, weight, title, section, heading: section || title, page: section ? title : "", names, text });
    }
  }
  return mini.addAllAsync([...all.values()], { chunkSize: 200 }); // in steps: the page stays alive
})();

// the rows that a query finds, the best first
window.findSections = (query, limit = 12) => {
  const low = query.toLowerCase().trim();
  const meant = Object.entries(synonyms).filter(([said]) => new RegExp(`(?<![\\w-])(?:${said})(?![\\w-])`).test(low)).map(([, say]) => say);
  const exact = phrase(query), isCode = codeLike.test(query);
  const isKnown = (term) => known.has(term) || [...known].some((word) => word.startsWith(term));
  const options = {
    processTerm: terms,
    boost: { heading: 4, page: 2, names: 1.5 },
    weights: { fuzzy: 0.3, prefix: 0.3 },
    bm25: { k: 1.2, b: 0.6, d: 0.4 },
    prefix: (term, at, list) => at === list.length - 1 && term.length > 1,
    fuzzy: (term) => (term.length < 4 || isKnown(term) ? false : term.length < 5 ? 1 : 2),
    boostDocument: (href) => { const { weight, kind } = all.get(href); return weight * (isCode ? 1 : kinds[kind]); },
  };
  const queries = [query, ...meant.map((say) => ({ queries: [say], boost: options.boost, prefix: false, boostTerm: () => 0.6 }))];
  const found = mini.search({ combineWith: "OR", queries }, options);
  for (const hit of found.slice(0, 60)) {
    const row = all.get(hit.id), heading = phrase(row.heading);
    if (exact && heading === exact) hit.score *= isCode || row.kind === "course" ? 3 : 1.3;
    else if (exact && heading.includes(exact)) hit.score *= row.section ? 1.5 : 2;
    else if (exact.includes(" ") && phrase(row.text).includes(exact)) hit.score *= 1.4;
  }
  const pages = new Map(), best = [];
  for (const hit of found.sort((a, b) => b.score - a.score)) {
    const row = all.get(hit.id), seen = pages.get(row.title) ?? 0;
    pages.set(row.title, seen + 1);
    if (seen < 3) best.push({ ...row, marks: hit.terms, score: hit.score });
    if (best.length === limit) break;
  }
  return best;
};
