// What papers print, cell by cell, with the verdict.

const SYMBOLS = { holds: "✓", "does not hold": "✕", "accounting differs": "≠", "other protocol": "⇄", "not run here": "○", undecided: "?", "not published": "–" };
const verdictClass = (word) => `v-${word.replaceAll(" ", "-")}`;
const chip = (word, count) => el("span", { class: `chip ${verdictClass(word)}` }, el("i", { "aria-hidden": "true" }, SYMBOLS[word]), word, count === undefined ? null : el("b", {}, String(count)));

section("papers", "Papers", "The papers' tables, cell by cell", (body) => {
  if (!DATA.papers.length) { body.append(note("No published numbers.")); return; }
  state.paper = state.paper || DATA.papers[0].name;
  const cells = DATA.papers.flatMap((table) => table.rows.flatMap((row) => Object.values(row.cells)));
  body.append(el("div", { class: "chips" }, Object.keys(DATA.verdicts).map((word) =>
    verdictCount(word, cells.filter((cell) => cell.verdict === word).length))));
  body.append(el("div", { class: "tabs", role: "group", "aria-label": "Table" }, DATA.papers.map((table) =>
    el("button", { type: "button", "aria-pressed": String(table.name === state.paper), onclick: () => { state.paper = table.name; redraw(["papers"]); } }, table.title))));
  const table = DATA.papers.find((one) => one.name === state.paper);
  body.append(el("p", { class: "lead" }, `${table.title}: ${table.what}. `, el("span", { class: "faint" }, "Only runs of the profile paper stand beside a published number.")));
  body.append(paperMatrix(table));
  body.append(el("details", {}, el("summary", {}, "Sources, remarks and the rule behind a verdict"),
    el("ul", {}, [...table.notes, ...Object.entries(DATA.verdicts).map(([word, text]) => `${word}: ${text}`), DATA.inequality].map((text) => el("li", {}, text)))));
});

function verdictCount(word, count) {
  const node = chip(word, count);
  node.classList.toggle("none", count === 0);
  node.tabIndex = 0;
  return hint(node, () => [word, DATA.verdicts[word]]);
}

function paperMatrix(table) {
  const scoped = table.rows.some((row) => row.scope);
  const value = (row, column) => { const cell = row.cells[column]; return cell && cell.published !== undefined ? cell.published : null; };
  const columns = [
    { key: "title", label: "Method", value: (row) => row.title, text: (row) => [LOOKS.has(row.method) ? badge(row.method, row.title) : el("span", { class: "method other" }, row.title), el("sup", { class: "source" }, row.source)] },
    ...(scoped ? [{ key: "scope", label: "What it counts", value: (row) => row.scope, text: (row) => el("span", { class: "faint" }, row.scope || DASH) }] : []),
    ...Object.entries(table.columns).map(([key, label]) => ({ key, label, numeric: true, value: (row) => value(row, key),
      text: (row) => paperCell(row.cells[key]), cell: (node, row) => paperHint(node, row, row.cells[key]) })),
  ];
  return sortableTable(columns, table.rows, { name: `paper-${table.name}`, label: table.title });
}

function paperCell(cell) {
  if (!cell) return el("span", { class: "faint" }, "");
  return el("span", { class: `cell ${verdictClass(cell.verdict)}` }, el("span", { class: "value" }, cell.shown),
    cell.ours ? el("small", {}, `ours ${cell.ours}`) : null, cell.ours ? el("small", {}, cell.difference) : null,
    el("i", { class: "sign", title: cell.verdict }, SYMBOLS[cell.verdict]), el("span", { class: "sr" }, cell.verdict));
}

const SHOWN = [["basis", ""], ["scope", ""], ["metric", "metric: "], ["split", "split: "], ["epoch_rule", "evaluation: "], ["model", "model: "]];

function paperHint(node, row, cell) {
  if (!cell) return;
  const lines = () => [`${row.title}, ${cell.column}: ${cell.shown}`, `verdict: ${cell.verdict}`, ...cell.reasons,
    cell.ours ? `ours: ${cell.ours}; difference ${cell.difference}` : null,
    ...SHOWN.map(([name, label]) => (cell[name] ? label + cell[name] : null)),
    cell.published === undefined ? null : `seeds behind it: ${cell.published_seeds || "not stated"}`,
    cell.remark || null, `[${cell.source}] ${cell.source_name}, ${cell.place} (${cell.status})`];
  pressable(hint(node, lines), () => openCell(row, cell), `${row.title}, ${cell.column}: ${cell.shown}, ${cell.verdict}`);
  node.classList.add("press");
  node.removeAttribute("role");
}

section("other", "Other numbers", "Other published and foreign numbers", (body) => {
  body.append(el("h3", {}, "The same cell in different papers"), el("p", { class: "lead" }, "Kept as printed, neither averaged nor corrected."));
  body.append(sortableTable([
    { key: "cell", label: "Cell", value: (row) => conflictName(row), text: (row) => conflictName(row) },
    { key: "values", label: "Values", value: (row) => row.cells[0].published, text: (row) => row.cells.map((cell) =>
      hint(el("span", { class: "quoted", tabindex: "0" }, cell.shown, el("sup", { class: "source" }, cell.source)),
        () => [`${cell.title}: ${cell.shown}`, cell.setting || null, cell.basis, cell.remark || null, `[${cell.source}] ${cell.source_name}, ${cell.place} (${cell.status})`])) },
    { key: "ratio", label: "Largest ÷ smallest", numeric: true, value: (row) => row.ratio, text: (row) => number(row.ratio, 2) },
  ], DATA.conflicts, { name: "conflicts", label: "The same cell in different papers" }));
  foreignPart(body);
  body.append(el("details", {}, el("summary", {}, `Other published numbers, nothing of the kind is run here (${DATA.elsewhere.length})`), sortableTable([
    { key: "title", label: "Method", value: (row) => row.title, text: (row) => row.title },
    ...["benchmark", "quantity", "column"].map((key) => ({ key, label: key[0].toUpperCase() + key.slice(1), value: (row) => row[key], text: (row) => row[key].replaceAll("_", " ") })),
    { key: "published", label: "Published", numeric: true, value: (row) => row.published ?? null, text: (row) => row.shown },
    { key: "source", label: "Source", value: (row) => row.source, text: (row) => `[${row.source}] ${row.place}` },
  ], DATA.elsewhere, { name: "elsewhere", label: "Other published numbers" })));
  const left = [...DATA.duplicates.map(([out, kept, alike]) => `${out}: same plan as ${kept}, left out; ${alike ? "both ended alike" : "the two differ in how they ended"}`),
    ...DATA.others.map((path) => `${path}: not a record of a run, left out`)];
  if (left.length) body.append(el("details", {}, el("summary", {}, `What was left out (${left.length})`), el("ul", {}, left.slice(0, 200).map((line) => el("li", {}, line)))));
});

const conflictName = ({ cells: row }) => `${row[0].benchmark} ${row[0].quantity.replaceAll("_", " ")}, ${LOOKS.has(row[0].method) ? title(row[0].method) : row[0].title}${row[0].rank ? `, rank ${row[0].rank}` : ""}, ${row[0].column}`;

function foreignPart(body) {
  if (!DATA.foreign.length) return;
  body.append(el("h3", {}, "Foreign: result files of another suite"), sortableTable([
    { key: "title", label: "Method", value: (row) => row.title, text: (row) => badge(row.method, row.title) },
    { key: "experiment", label: "Experiment", value: (row) => row.experiment, text: (row) => row.experiment },
    { key: "score", label: "Test accuracy, %", numeric: true, value: (row) => row.last_score, text: (row) => (row.last_score === null ? DASH : number(100 * row.last_score, 2)) },
    { key: "peak", label: "Peak reserved", numeric: true, value: (row) => row.cuda_reserved_peak_bytes, text: (row) => bytes(row.cuda_reserved_peak_bytes) },
    { key: "time", label: "Training, s", numeric: true, value: (row) => row.train_s, text: (row) => number(row.train_s, 0) },
    { key: "status", label: "Status", value: (row) => row.status, text: (row) => row.status },
  ], DATA.foreign, { name: "foreign", label: "Foreign runs", press: (row) => openFacts(row.title, [["Foreign run", row]]), rowLabel: (row) => row.experiment }));
}
