// The panel at the side: where a number comes from, down to machine, commit and file.

const drawer = $("#drawer");
let back = [];

function open(heading, content, push = true) {
  if (push && drawer.open) back.push({ nodes: [...drawer.childNodes], run: state.run });
  if (!drawer.open) back = [];
  state.run = null;
  const tools = el("div", { class: "tools" }, back.length ? el("button", { type: "button", class: "plain", onclick: goBack }, "← back") : null,
    el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => drawer.close() }, "✕"));
  drawer.replaceChildren(tools, el("h2", { id: "drawer-title", tabindex: "-1" }, heading), ...content);
  tip.hidden = true;
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
  $("#drawer-title").focus();
}

function goBack() {
  const { nodes, run } = back.pop();
  drawer.replaceChildren(...nodes);
  state.run = run;
  remember();
  $("#drawer-title", drawer).focus();
}

drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
drawer.addEventListener("close", () => { state.run = null; remember(); });

/** A nested value as rows of name and text; units stand in the names. */
function facts(value, prefix = "") {
  return Object.entries(value).flatMap(([name, item]) => {
    const label = (prefix + name).replaceAll("_", " ");
    if (item !== null && typeof item === "object" && !Array.isArray(item)) return facts(item, `${prefix}${name}: `);
    return [el("tr", {}, el("th", { scope: "row" }, label), el("td", {}, factText(name, item)))];
  });
}

function factText(name, item) {
  if (item === null || item === undefined || item === "") return el("span", { class: "faint" }, "unknown");
  if (Array.isArray(item)) return item.length ? item.join("; ") : "none";
  if (name.endsWith("_bytes") && typeof item === "number") return `${bytes(item)} (${item.toLocaleString("en-US")})`;
  if (typeof item === "boolean") return item ? "yes" : "no";
  return String(item);
}

const block = (heading, value, shown = false) => el("details", { open: shown }, el("summary", {}, heading),
  value === null || value === undefined ? el("p", { class: "faint" }, "not recorded: the run did not get that far, or did not measure it") : el("table", { class: "facts" }, el("tbody", {}, facts(value))));

function openFacts(heading, blocks) {
  open(heading, blocks.map(([name, value]) => block(name, value, true)));
}

const runName = (run) => `${title(run.method)}, ${taskTitle(run.task, run.suite)}, seed ${run.seed}`;

/** The run's file; a file that does not lie where its path says from here is no link. */
function fileLink({ path, outside }) {
  if (DATA.link === null || outside) return el("code", {}, path);
  return el("a", { href: DATA.link + path.split("/").map(encodeURIComponent).join("/") }, path);
}

function openRun(run) {
  const metrics = Object.fromEntries(run.evaluations.map(([step, epoch, values]) => [`step ${step}${epoch === null ? "" : `, epoch ${significant(epoch)}`}`,
    Object.fromEntries(Object.entries(values).map(([key, value]) => [POOLS.keys[key], value === null ? "undefined" : value]))]));
  const losses = run.curve[1].length ? curveChart(Math.min(480, innerWidth - 60), taskTitle(run.task, run.suite), [oneLine(run)]) : null;
  open(runName(run), [
    el("p", { class: "badges" }, el("span", { class: `status ${run.status}` }, run.status.replaceAll("_", " ")),
      el("span", {}, `${run.suite}, profile ${run.profile}${run.rank === null ? "" : `, rank ${run.rank}`}`), run.purpose === "result" ? null : el("span", {}, run.purpose)),
    run.error ? warn(run.error) : null,
    el("p", { class: "file" }, "Record: ", fileLink(run)),
    block("Scores", run.evaluations.length ? metrics : null, true),
    losses ? el("figure", {}, el("figcaption", {}, "Training loss"), losses) : null,
    block("Environment and code", POOLS.environment[run.environment], true),
    block("Provenance: model, data", { model: POOLS.model[run.model], data: POOLS.data[run.data], loaded: run.facts === null ? null : POOLS.facts[run.facts] }, true),
    block("Method", { method: run.method, targets: run.targets, ...POOLS.config[run.config] }),
    block("Training plan", POOLS.training[run.training]),
    block("Engagement certificate", run.engagement),
    block("Memory", run.memory), block("Time", run.timing),
    block("Run", { plan_hash: run.id, started_at: run.started, finished_at: run.finished, main_metric: run.main, skipped_steps: run.skipped }),
  ].filter(Boolean));
  state.run = run.id;
  remember();
}

const oneLine = (run) => ({ method: run.method, steps: traceOf(run).steps, mean: run.curve[1], sd: [], n: 1 });

/** The runs of one method, of one task or of all. */
function openRuns(method, task) {
  const runs = groupRuns().filter((run) => run.method === method && (task === "all" || run.task === task));
  if (runs.length === 1) { openRun(runs[0]); return; }
  open(`${title(method)}, ${task === "all" ? groupTitle() : taskTitle(task)}`, [runTable(runs, runs.length, "cell-runs")]);
}

function openCell(row, cell) {
  const { verdict, reasons, ours, difference, records, ...quoted } = cell;
  const found = DATA.runs.filter((run) => records.includes(run.path));
  open(`${row.title}, ${cell.column}`, [
    el("p", {}, chip(verdict), " ", DATA.verdicts[verdict]),
    block("Verdict", { published: cell.shown, ours: ours || "no run", difference: difference || null, reasons }, true),
    block("Published", quoted, true),
    found.length ? runTable(found, found.length, "cell-runs") : el("p", { class: "faint" }, "No record stands behind this cell."),
  ]);
}

function runTable(runs, limit, name = "runs") {
  const head = (key, label, text, value = text) => ({ key, label, text, value });
  const numeric = (key, label, value, text) => ({ key, label, value, text: (run) => text(value(run)), numeric: true });
  const score = (run) => (typeof scoreOf(run) === "number" ? scoreOf(run) : null);
  return sortableTable([
    { key: "method", label: "Method", value: (run) => title(run.method), text: (run) => badge(run.method) },
    head("suite", "Suite", (run) => run.suite), head("profile", "Profile", (run) => run.profile), head("task", "Task", (run) => taskTitle(run.task, run.suite)),
    numeric("rank", "Rank", (run) => run.rank, (value) => (value === null ? DASH : String(value))),
    numeric("seed", "Seed", (run) => run.seed, String),
    { key: "status", label: "Status", value: (run) => run.status, text: (run) => el("span", { class: `status ${run.status}` }, run.status.replaceAll("_", " ")) },
    numeric("score", "Score", score, (value) => number(value, 2)),
    numeric("peak", "Peak", (run) => run.peak, (value) => (value === null ? "not measured" : bytes(value))),
    numeric("step", "Step", (run) => run.step, milliseconds),
    numeric("rate", "Learning rate", (run) => POOLS.training[run.training].learning_rate, (value) => significant(value, 2)),
    head("started", "Started", (run) => run.started.slice(0, 10), (run) => run.started),
  ], runs, { name, label: "Runs", press: openRun, rowLabel: runName, limit });
}
