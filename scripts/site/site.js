// What a page does beyond being read: maths, search, dark colours, the drawer, copying. No dependency but KaTeX, and no request to anyone.
const root = document.documentElement, base = document.body.dataset.base;

// maths
for (const formula of document.querySelectorAll(".math")) {
  const display = formula.classList.contains("display"), source = formula.textContent.replace(/^\\[([]|\\[)\]]$/g, "");
  katex.render(source, formula, { displayMode: display, throwOnError: false, strict: "ignore" });
}

// dark colours: the reader's choice, else the system's
const prefersDark = matchMedia("(prefers-color-scheme: dark)"), schemeButton = document.querySelector(".scheme");
const isDark = () => (root.dataset.scheme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const showScheme = () => schemeButton.setAttribute("aria-pressed", isDark());
schemeButton.addEventListener("click", () => {
  root.dataset.scheme = isDark() ? "light" : "dark";
  try { localStorage.setItem("scheme", root.dataset.scheme); } catch (error) { /* a page read from a folder may have no storage */ }
  showScheme();
});
prefersDark.addEventListener("change", showScheme);
showScheme();

// the course as a drawer on a narrow screen; in the sidebar, this page is brought into view
const menu = document.querySelector(".menu"), course = document.querySelector(".course");
const openMenu = (open) => { course.classList.toggle("open", open); menu.setAttribute("aria-expanded", open); };
menu.addEventListener("click", () => openMenu(!course.classList.contains("open")));
document.querySelector("main").addEventListener("click", () => openMenu(false));
const current = course.querySelector("[aria-current]");
if (current) course.scrollTop = current.offsetTop - course.clientHeight / 2;

// code can be copied, and whatever scrolls sideways can be reached by keyboard
for (const block of document.querySelectorAll("div.sourceCode")) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}
const fitFormulas = () => { // a formula a little wider than its column is set a little smaller
  const formulas = [...document.querySelectorAll("main .math.display")];
  for (const formula of formulas) formula.style.fontSize = "";
  const ratios = formulas.map((formula) => formula.clientWidth / formula.scrollWidth);
  formulas.forEach((formula, index) => { if (ratios[index] < 1) formula.style.fontSize = `${Math.max(0.65, 0.985 * ratios[index])}em`; });
};
const markScrolling = () => {
  fitFormulas();
  for (const box of document.querySelectorAll("pre, .table, .math.display, .contents, .course")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
  }
};
addEventListener("resize", markScrolling);
(document.fonts?.ready ?? Promise.resolve()).then(markScrolling);
markScrolling();

// the contents of the page are folded where they stand above the text
const narrow = matchMedia("(max-width: 78rem)"), headingsOfPage = document.querySelector(".contents details");
const fold = () => { if (headingsOfPage) headingsOfPage.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();

// where in the page the reader is
const places = [...document.querySelectorAll(".contents a")];
if (places.length) {
  const headings = places.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1)))).map((at) => at?.querySelector("h2, h3") ?? at);
  const follow = () => {
    const passed = headings.filter((heading) => heading && heading.getBoundingClientRect().top < 140).length;
    places.forEach((link, index) => link.classList.toggle("here", index === Math.max(0, passed - 1)));
  };
  addEventListener("scroll", follow, { passive: true });
  follow();
}

// search: what it looks through and what it looks with are scripts, so that they also load from a folder, and only when someone searches
const field = document.getElementById("search"), found = document.getElementById("found"), count = document.getElementById("found-count");
const load = (name) => new Promise((done) => {
  const script = Object.assign(document.createElement("script"), { src: `${base}search/${name}.js`, async: false });
  script.onload = done;
  document.head.append(script);
});
let loading;
const loadSearch = () => loading ??= Promise.all(["minisearch", "pages", "search"].map(load)).then(() => window.prepareSearch());
const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
function excerpt(text, marks) {
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])((?:${marks.map(escaped).join("|") || "$^"})[\\p{L}\\p{N}]*)`, "giu");
  const at = Math.max(0, text.search(pattern)), from = at < 60 ? 0 : text.indexOf(" ", at - 60) + 1, part = document.createElement("p");
  part.append(from ? "… " : "");
  const cut = text.length > from + 150 ? text.slice(from, from + 150).replace(/\s+\S*$/, " …") : text.slice(from);
  cut.split(pattern).forEach((piece, index) => {
    if (index % 2) part.append(Object.assign(document.createElement("mark"), { textContent: piece })); else part.append(piece);
  });
  return part;
}
function result({ href, title, section, text, kind, marks }) {
  const link = Object.assign(document.createElement("a"), { href: base + href });
  const under = [kind === "reference" ? "Reference" : "", section ? title : ""].filter(Boolean).join(" · ");
  link.append(Object.assign(document.createElement("b"), { textContent: section || title }));
  if (under) link.append(Object.assign(document.createElement("small"), { textContent: under }));
  link.append(excerpt(text, marks));
  return link;
}
let chosen = -1;
const choose = (index) => {
  const links = [...found.querySelectorAll("a")];
  chosen = Math.max(0, Math.min(links.length - 1, index));
  links.forEach((link, at) => link.classList.toggle("chosen", at === chosen));
  links[chosen]?.scrollIntoView({ block: "nearest" });
};
async function search() {
  const query = field.value.trim();
  if (query.length < 2) { found.hidden = true; count.textContent = ""; return; }
  await loadSearch();
  if (query !== field.value.trim()) return; // typed on, while it loaded
  const best = window.findSections(query);
  found.replaceChildren(...best.map(result));
  if (!best.length) found.append(Object.assign(document.createElement("p"), { className: "none", textContent: "Nothing found." }));
  found.hidden = false;
  count.textContent = `${best.length} results`;
  choose(0);
}
field.addEventListener("focus", loadSearch);
field.addEventListener("input", search);
field.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") choose(chosen + 1);
  else if (event.key === "ArrowUp") choose(chosen - 1);
  else if (event.key === "Enter") found.querySelector("a.chosen")?.click();
  else if (event.key === "Escape") { field.value = ""; search(); field.blur(); }
  else return;
  event.preventDefault();
});
addEventListener("keydown", (event) => {
  const typing = /^(input|textarea|select)$/i.test(document.activeElement.tagName) || document.activeElement.isContentEditable;
  if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) { event.preventDefault(); field.focus(); }
  if (event.key === "Escape") openMenu(false);
});
addEventListener("click", (event) => { if (!event.target.closest(".search") || event.target.closest(".found a")) found.hidden = true; });
