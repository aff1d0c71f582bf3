"""What the report's page does: draws its figures, filters them by their legends, sorts tables."""

SCRIPT = """
const views = new Map();

function rows(table) {
  const names = Object.keys(table);
  const row = (n) => Object.fromEntries(names.map((name) => [name, table[name][n]]));
  return (table[names[0]] ?? []).map((_, n) => row(n));
}

function spec(name) {
  const datasets = specs[name].datasets.map((id) => [id, rows(tables[id])]);
  return {...specs[name], datasets: Object.fromEntries(datasets)};
}

// Errors only: a chart whose legend has switched everything off is no reason for a warning.
const drawing = {ast: true, actions: false, renderer: "svg", logLevel: 1};

for (const place of document.querySelectorAll("[data-spec]")) {
  vegaEmbed(place, spec(place.dataset.spec), drawing)
    .then((drawn) => { views.set(place, drawn.view); })
    .catch((error) => { place.textContent = "This figure could not be drawn: " + error.message; });
}

document.addEventListener("click", (event) => {
  const key = event.target.closest(".legend button");
  if (!key) return;
  key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") !== "true");
  const group = key.closest("[data-group]");
  const off = [...group.querySelectorAll("[aria-pressed=false]")].map((k) => k.dataset.kind);
  for (const chart of group.querySelectorAll(".chart")) {
    views.get(chart)?.signal("hidden", off).runAsync();
  }
});

function value(row, column, isWord) {
  const cell = row.cells[column];
  const text = cell.querySelector("data")?.value ?? cell.textContent.trim();
  return isWord ? text : parseFloat(text.replace("−", "-").replaceAll(",", ""));
}

function sort(table, head) {
  const isWord = head.classList.contains("word");
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => isWord ? a.localeCompare(b, "en", {numeric: true}) : a - b;
  const missing = (a) => !isWord && Number.isNaN(a);
  const keyed = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex, isWord), row]);
  keyed.sort(([a], [b]) => missing(a) - missing(b) || (up ? order(a, b) : order(b, a)) || 0);
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table")) {
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  for (const head of table.tHead.rows[0].cells) {
    if (!head.textContent) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
"""
