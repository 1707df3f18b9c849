// A table whose columns sort: by a button in the head, first falling for numbers, rising for text.

/**
 * columns: [{key, label, text: row -> string or node, value: row -> number|string|null, numeric, pin, cell, csv: row -> {head: value}}]
 * A column with `pin` stays in sight at the right edge, whatever the table's width.
 * options: {name, label, press: row -> void, rowLabel: row -> string, limit, dense}; `name` keeps the order in the address
 */
function sortableTable(columns, rows, options = {}) {
  const sorting = options.name ? state.sorts[options.name] || (state.sorts[options.name] = { key: null, down: false }) : { key: null, down: false };
  const body = el("tbody");
  const heads = columns.map((column) => {
    const mark = el("span", { class: "arrow", "aria-hidden": "true" });
    const button = el("button", { type: "button", onclick: () => {
      const same = sorting.key === column.key;
      sorting.down = same ? !sorting.down : Boolean(column.numeric);
      sorting.key = column.key;
      draw();
      remember();
    } }, column.label, mark);
    return el("th", { scope: "col", class: classes(column), title: column.title }, button);
  });

  function draw() {
    columns.forEach((column, index) => {
      const active = sorting.key === column.key;
      heads[index].setAttribute("aria-sort", active ? (sorting.down ? "descending" : "ascending") : "none");
      $(".arrow", heads[index]).textContent = active ? (sorting.down ? " ▼" : " ▲") : "";
    });
    const sorted = inOrder();
    body.replaceChildren(...sorted.slice(0, options.limit || sorted.length).map(line));
  }

  function inOrder() {
    const column = columns.find((one) => one.key === sorting.key);
    return column ? [...rows].sort((a, b) => compare(column.value(a), column.value(b), sorting.down)) : rows;
  }

  function csv() {
    const parts = (row) => columns.map((column) => (column.csv ? column.csv(row) : { [column.label]: column.value(row) }));
    return csvText(inOrder().map((row) => Object.assign({}, ...parts(row))));
  }

  function line(row) {
    const cells = columns.map((column, index) => {
      const node = el(index ? "td" : "th", { scope: index ? null : "row", class: classes(column) }, column.text(row));
      if (column.cell) column.cell(node, row);
      return node;
    });
    const node = el("tr", {}, cells);
    if (options.press) pressable(node, () => options.press(row), options.rowLabel && options.rowLabel(row));
    if (options.press) node.removeAttribute("role");
    return node;
  }

  draw();
  const save = saveButton("CSV", options.label, () => download(`${options.name || "table"}.csv`, new Blob([csv()], { type: "text/csv" })));
  return el("div", { class: "table" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.label },
    el("table", { class: options.dense ? "dense" : null }, el("thead", {}, el("tr", {}, heads)), body)), el("span", { class: "saves" }, save));
}

const classes = (column) => [column.numeric ? "num" : "", column.pin ? "pin" : ""].filter(Boolean).join(" ") || null;

/** Unknown values last, whichever way the column runs. */
function compare(a, b, down) {
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const rising = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
  return down ? -rising : rising;
}

/** A method's name with its mark and colour. */
function badge(method, text = title(method)) {
  const mark = svg("svg", { class: "mark", viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true" },
    marker(lookOf(method).marker, 0, 0, 5.5, { style: `fill:${colour(method)};stroke:${colour(method)}` }));
  return el("span", { class: "method" }, mark, text);
}

/** A plot marker by matplotlib's letter, so that page and figures show a method alike. */
function marker(letter, x, y, r, attributes) {
  const polygon = (list) => svg("polygon", { points: list.map(([dx, dy]) => `${x + dx * r},${y + dy * r}`).join(" "), ...attributes });
  const turned = (sides, start) => Array.from({ length: sides }, (_, i) => {
    const angle = start + (2 * Math.PI * i) / sides;
    return [1.1 * Math.cos(angle), 1.1 * Math.sin(angle)];
  });
  const shapes = {
    s: () => svg("rect", { x: x - 0.9 * r, y: y - 0.9 * r, width: 1.8 * r, height: 1.8 * r, ...attributes }),
    "^": () => polygon([[0, -1.15], [1.1, 0.85], [-1.1, 0.85]]),
    v: () => polygon([[0, 1.15], [1.1, -0.85], [-1.1, -0.85]]),
    "<": () => polygon([[-1.15, 0], [0.85, 1.1], [0.85, -1.1]]),
    ">": () => polygon([[1.15, 0], [-0.85, 1.1], [-0.85, -1.1]]),
    D: () => polygon([[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]]),
    d: () => polygon([[0, -1.3], [0.8, 0], [0, 1.3], [-0.8, 0]]),
    p: () => polygon(turned(5, -Math.PI / 2)),
    h: () => polygon(turned(6, -Math.PI / 2)),
    P: () => polygon([[-0.42, -1.15], [0.42, -1.15], [0.42, -0.42], [1.15, -0.42], [1.15, 0.42], [0.42, 0.42], [0.42, 1.15],
      [-0.42, 1.15], [-0.42, 0.42], [-1.15, 0.42], [-1.15, -0.42], [-0.42, -0.42]]),
    X: () => polygon([[-1.05, -0.65], [-0.65, -1.05], [0, -0.4], [0.65, -1.05], [1.05, -0.65], [0.4, 0], [1.05, 0.65], [0.65, 1.05],
      [0, 0.4], [-0.65, 1.05], [-1.05, 0.65], [-0.4, 0]]),
  };
  return shapes[letter] ? shapes[letter]() : svg("circle", { cx: x, cy: y, r, ...attributes });
}
