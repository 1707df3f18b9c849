// The sections about our own runs.

const note = (...lines) => el("p", { class: "note" }, ...lines);
const warn = (...lines) => el("p", { class: "note warn", role: "note" }, ...lines);
const widthOf = (body) => Math.max(280, Math.floor(body.clientWidth || 640));
const KINDS = { holds: ["✓", "may be concluded"], open: ["?", "may not be concluded"], limits: ["i", "what it is about"] };

const line = ([kind, text]) => el("li", { class: `line-${kind}` }, el("i", { "aria-hidden": "true" }, KINDS[kind][0]), el("span", { class: "sr" }, `${KINDS[kind][1]}: `), el("span", {}, text));

section("conclusions", "Conclusions", "What may be concluded", (body) => {
  const found = group();
  body.append(el("ul", { class: "lines" }, line(DATA.published)));
  if (!found) return;
  body.append(el("h3", {}, found.title), el("ul", { class: "lines" }, found.conclusions.map(line)));
  const others = DATA.groups.filter((one) => one !== found);
  if (others.length) body.append(el("details", {}, el("summary", {}, `The other groups of runs (${others.length})`), others.map((one) => [
    el("h3", {}, one.title, " ", el("button", { type: "button", class: "plain", onclick: () => show(one) }, "show")), el("ul", { class: "lines" }, one.conclusions.map(line))])));
});

function show(one) {
  Object.assign(state, { suite: one.suite, profile: one.profile, rank: one.rank, variant: one.variant, budget: null });
  redraw();
  $("#conclusions").scrollIntoView();
}

function groupWarnings() {
  const found = group();
  if (!found) return [];
  return [found.micro ? warn("Profile micro: checks the pipeline and the ordering of methods. Never the paper's numbers.") : null,
    found.variant ? note("At equal memory: every method has the most rows a step that fit in the same room. Peaks differ by what no whole row fills, so they order nothing.") : null,
  ].filter(Boolean);
}

section("front", "Memory", "Score against memory", (body) => {
  const found = standing();
  const list = found ? points(found) : [];
  const shown = list.filter((point) => point.peak !== null && point.n);
  body.append(...groupWarnings());
  if (found && state.task === "all" && group().unordered) {
    body.append(note(`The average is not drawn: ${group().unordered}. What may be concluded stands above, where a task by itself can be chosen too.`));
    return;
  }
  if (!shown.length) {
    body.append(note("Nothing to plot here: no method has both a score and a measured peak. ", missingWords(list, shown)));
    return;
  }
  const low = Math.min(...shown.map((point) => point.peak));
  const high = Math.max(...shown.map((point) => point.peak));
  const hollow = shown.some((point) => point.n < 2);
  let budget = state.budget === null || state.budget < low * 0.95 || state.budget > high ? high : state.budget;
  const place = el("div", { class: "plot" });
  const answer = el("div", { class: "answer", "aria-live": "polite" });
  const [unit, size] = unitOf(high);
  // In four hundred steps, so that both ends are reached exactly.
  const from = low * 0.95;
  const slider = el("input", { type: "range", id: "budget", min: 0, max: 400, step: 1, value: Math.round((400 * (budget - from)) / (high - from)),
    oninput: () => { budget = from + (slider.value / 400) * (high - from); state.budget = Number(slider.value) === 400 ? null : budget; draw(); remember(); } });
  const shownBudget = el("output", { for: "budget" });
  const draw = () => {
    shownBudget.textContent = `${(budget / size).toFixed(2)} ${unit}`;
    slider.setAttribute("aria-valuetext", shownBudget.textContent);
    place.replaceChildren(frontChart(widthOf(place), shown, { scoreLabel: found.label, digits: found.digits, budget, hollow, press: (method) => openRuns(method, state.task) }));
    answer.replaceChildren(budgetAnswer(shown.filter((point) => point.peak <= budget), found));
  };
  body.append(el("div", { class: "split" }, el("div", {}, place, figureTools("front", "Score against peak memory", () => $("svg", place))), el("div", { class: "side" },
    el("label", { for: "budget", class: "big" }, "Best score within ", shownBudget), slider, answer)));
  draw();
  if (hollow) body.append(warn("One seed: every mark is hollow, since one seed cannot say what lies on the front. The dashed line joins what this seed happened to give."));
  body.append(note(hollow ? "" : "Filled: on the front of the means (nothing that needs no more memory scores as well). Bars: ± standard deviation over seeds. ",
    "Peak: bytes tracked in one step at the longest batch, the highest over tasks. ", missingWords(list, shown)));
});

function missingWords(list, shown) {
  const left = list.filter((point) => !shown.includes(point));
  return left.length ? `Not shown: ${left.map((point) => `${title(point.method)} (${point.peak === null ? "memory not measured on all of the tasks" : "no score for every task and seed"})`).join(", ")}.` : "";
}

function budgetAnswer(fitting, { lower, digits }) {
  if (!fitting.length) return el("p", { class: "best" }, "Nothing fits.");
  const sorted = [...fitting].sort((a, b) => (lower ? a.mean - b.mean : b.mean - a.mean));
  const best = sorted[0];
  const alike = sorted.filter((point) => best.alike.includes(point.method));
  const chance = fitting.some((point) => point.chance !== null);
  return el("div", {}, el("p", { class: "best" }, badge(best.method), el("b", {}, spread(best.mean, best.sd, digits))),
    el("ol", { class: "fits" }, sorted.map((point) => el("li", {}, badge(point.method), el("span", {}, spread(point.mean, point.sd, digits)),
      el("span", { class: "faint" }, bytes(point.peak)), point.chance === null ? null : el("span", { class: "faint", title: "chance of being on the front" }, percent(point.chance))))),
    alike.length ? el("p", { class: "faint" }, `The seeds do not tell it apart from ${names(alike.map((point) => point.method))} (paired 95 % interval; three seeds at least).`) : null,
    el("p", { class: "faint" }, chance ? "Percent: chance of being on the front of all methods here, 2,000 bootstrap draws over shared seeds."
      : "Fewer than two shared seeds: no chance of being on the front can be told."));
}

section("scores", "Scores", "Scores by task", (body) => {
  const found = group();
  const methods = shownMethods();
  if (!methods.length) { body.append(note("No runs here.")); return; }
  if (Object.keys(suiteOf(state.suite).choices).length) body.append(conventionControls());
  const columns = found.columns.filter((column) => state.task === "all" || column.task === state.task);
  const average = state.task === "all" && columns.length > 1 ? standing() : null;
  const place = (row) => found.methods.indexOf(row.method);
  const table = sortableTable([{ key: "method", label: "Method", value: (row) => title(row.method), text: (row) => badge(row.method) },
    ...columns.map((column) => scoreColumn(column, (row) => column.cells[way(found.suite, column.task)][place(row)])),
    ...(average ? [averageColumn(average, (row) => average.rows[place(row)])] : [])],
  methods.map((method) => ({ method })), { name: "scores", label: `Scores, ${groupTitle()}`, dense: true });
  const constants = columns.map((column) => column.constant[way(found.suite, column.task)] ?? null);
  if (constants.some((value) => value !== null)) $("table", table).append(constantRow(columns, constants, average !== null));
  body.append(table);
  const units = unique(columns.map((column) => column.unit));
  body.append(note(units.length === 1 && units[0] === "%" ? "Percent, mean" : "Mean", " ± standard deviation over seeds, on the evaluated split. ",
    columns.some((column) => column.lower) ? `Lower is better: ${columns.filter((column) => column.lower).map((column) => column.title).join(", ")}. ` : "",
    average ? `The average ${found.shared ? "takes the seeds that all tasks have" : "needs the same seeds on every task"}; a run that brought no score leaves none. ` : "", "Press a cell for its runs."));
  if (average && average.range && !found.unordered) body.append(conventionStrip(average));
});

function scoreColumn(column, cell) {
  const known = (row) => (Array.isArray(cell(row)) ? cell(row) : null);
  return { key: column.name, label: column.title, numeric: true, value: (row) => (known(row) ? known(row)[0] : null),
    text: (row) => (known(row) ? meanText(...known(row), column.digits) : el("span", { class: cell(row) ? "bad" : "faint" }, cell(row) || "not run")),
    cell: (node, row) => scoreHint(node, row.method, column, cell(row)),
    csv: (row) => meanFields(column.title, known(row)) };
}

function averageColumn(average, cell) {
  return { key: "average", label: "Average", numeric: true, pin: true, value: (row) => (cell(row) ? cell(row)[0] : null),
    text: (row) => el("b", {}, cell(row) ? meanText(...cell(row).slice(0, 3), average.digits) : DASH), csv: (row) => meanFields("Average", cell(row)) };
}

const meanText = (mean, sd, n, digits) => spread(mean, sd, digits) + (n === 1 ? " (n=1)" : "");

function meanFields(head, found) {
  const [mean, sd, n] = found || [null, null, null];
  return { [head]: mean, [`${head}, sd`]: sd, [`${head}, seeds`]: n };
}

/** What the best constant prediction would score, as a foot that does not sort; a dash where that is undefined. */
function constantRow(columns, values, average) {
  const cells = values.map((value, index) => el("td", { class: "num" }, value === null ? DASH : number(value, columns[index].digits)));
  return el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "Constant prediction"), cells, average ? el("td", { class: "num pin" }, DASH) : null));
}

function scoreHint(node, method, column, cell) {
  if (cell === null) return;
  const told = (run) => { const score = scoreOf(run); return typeof score === "number" ? number(score, column.digits + 1) : score || "not recorded"; };
  const lines = () => [`${title(method)}, ${column.title}`, ...(column.front ? groupRuns().filter((run) => run.method === method && run.task === column.task).map((run) => `seed ${run.seed}: ${told(run)}`) : [])];
  pressable(hint(node, lines), () => openRuns(method, column.task), `${title(method)}, ${column.title}: show runs`);
  node.classList.add("press");
  node.removeAttribute("role");
}

/** The protocol switchboard: the same runs under another convention. */
function conventionControls() {
  const { choices, words } = suiteOf(state.suite);
  return el("fieldset", { class: "switchboard" }, el("legend", {}, "Convention"), Object.entries(choices).map(([name, options]) =>
    el("label", {}, words[name].title, el("select", { id: `choice-${name}`, onchange: (event) => { state.convention[name] = event.target.value; redraw(["front", "scores", "runs"]); } },
      options.map((option) => el("option", { value: option, selected: state.convention[name] === option }, words[name].values[option] || option))))));
}

/** How far the average moves over all conventions: a line from lowest to highest, a mark at the chosen one. */
function conventionStrip(average) {
  const { methods } = group();
  const rows = methods.map((method, index) => ({ method, range: average.range[index], mean: average.rows[index] ? average.rows[index][0] : null })).filter((row) => row.range && visible(row.method));
  if (!rows.length) return note("No average under any convention: a task is missing or a run brought no score.");
  const [low, high] = padded(Math.min(...rows.map((row) => row.range[0])), Math.max(...rows.map((row) => row.range[1])), 0.06);
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const count = Object.values(suiteOf(state.suite).choices).reduce((product, values) => product * values.length, 1);
  return el("div", { class: "strips" }, el("h3", {}, `The same runs under all ${count} conventions`), rows.map(({ method, range, mean }) => {
    const node = el("div", { class: "strip", tabindex: "0" }, badge(method), el("div", { class: "track" },
      el("i", { class: "span", style: `left:${at(range[0])};right:calc(100% - ${at(range[1])});background:${colour(method)}` }),
      mean === null ? null : el("i", { class: "dot", style: `left:${at(mean)};background:${colour(method)}` })),
    el("span", { class: "range" }, `${number(range[0], average.digits)} to ${number(range[1], average.digits)}`));
    return hint(node, () => [title(method), `lowest ${number(range[0], 2)}, highest ${number(range[1], 2)}`, `as chosen ${number(mean, 2)}`]);
  }));
}

section("curves", "Curves", "Training loss", (body) => {
  const found = group();
  const methods = shownMethods();
  const tasks = found ? found.tasks.filter((task) => state.task === "all" || task === state.task) : [];
  const grid = el("div", { class: "panels" });
  body.append(el("div", { class: "legend" }, methods.map((method) => badge(method))), grid);
  const room = widthOf(grid);
  const columns = tasks.length === 1 ? 1 : Math.max(1, Math.min(3, Math.floor(room / 300)));
  for (const task of tasks) {
    const lines = found.curves[task].map((one, index) => ({ ...one, method: found.methods[index] })).filter((one) => methods.includes(one.method));
    const broken = groupRuns().filter((run) => run.task === task && methods.includes(run.method) && run.status !== "ok").map(traceOf);
    const chart = curveChart(Math.floor((room - (columns - 1) * 16) / columns), taskTitle(task), lines, broken);
    if (chart) grid.append(el("figure", {}, el("figcaption", {}, taskTitle(task), figureTools(`loss-${task}`, `Training loss, ${taskTitle(task)}`, () => chart)), chart));
  }
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  body.append(note(grid.children.length ? "Line: mean over the seeds that finished, of losses averaged in up to 48 bins a run; band: ± standard deviation; dotted: a run that did not finish." : "No run here recorded its loss."));
});

const traceOf = (run) => ({ method: run.method, steps: POOLS.steps[run.curve[0]], losses: run.curve[1] });

section("parts", "Parts", "What the peak is made of", (body) => {
  const found = group();
  if (!found) { body.append(note("No runs here.")); return; }
  const all = found.parts[state.task][state.phase].map((one, index) => ({ method: found.methods[index], run: one && DATA.runs[one[0]], amounts: one && one[1] })).filter((row) => visible(row.method));
  const rows = all.filter((row) => row.amounts);
  body.append(el("div", { class: "segments", role: "group", "aria-label": "Kind of step" }, [["step", "plain step"], ["refresh", "refresh step"]].map(([value, label]) =>
    el("button", { type: "button", "aria-pressed": String(state.phase === value), onclick: () => { state.phase = value; redraw(["parts"]); } }, label))));
  if (rows.length) {
    const chart = partsChart(widthOf(body), rows, { press: openRun });
    body.append(chart, el("div", { class: "legend" }, Object.entries(DATA.parts).map(([name, fillColour]) => el("span", {}, el("i", { class: "swatch", style: `background:${fillColour}` }), name)),
      figureTools(`parts-${state.phase}`, `What the peak is made of, ${state.phase === "step" ? "plain step" : "refresh step"}`, () => chart)));
  }
  const left = all.filter((row) => !row.amounts).map((row) => row.method);
  body.append(note("Tracked bytes at the highest moment of one step, of the task and seed where that is highest. ",
    left.length ? `${names(left)}: ${state.phase === "refresh" ? "no refresh step, or memory not measured" : "memory not measured"}.` : ""));
});

section("refresh", "Refresh", "What a refresh costs", (body) => {
  const rows = group() ? group().refresh[state.task].filter((row) => visible(row.method)) : [];
  if (!rows.length) { body.append(note("No run here was timed.")); return; }
  const of = (key, label, text) => ({ key, label, numeric: true, value: (row) => row[key], text: (row) => (row[key] === null ? DASH : text(row[key])) });
  const timed = rows.some((row) => row.step !== null);
  body.append(sortableTable([
    { key: "method", label: "Method", value: (row) => title(row.method), text: (row) => badge(row.method) },
    of("times", "Step ÷ full", (value) => number(value, 2)),
    ...(timed ? [of("step", "Training step", milliseconds), of("plain", "Optimizer, plain", milliseconds), of("refresh", "Optimizer, refresh", milliseconds)] : []),
    of("ratio", "Refresh ÷ plain", (value) => `${significant(value, 3)}×`), of("share", "Share of training time", (value) => `${number(100 * value, 1)} %`),
    of("scratch", "Extra peak", bytes),
  ], rows, { name: "refresh", label: "Cost of a refresh" }));
  body.append(note(`Means over ${rows.reduce((sum, row) => sum + row.runs, 0)} runs. Step ÷ full: run by run, of the same seed, machine and load. Share: seconds in optimizer steps that refreshed ÷ training seconds. Extra peak: refresh step over plain step, at the longest batch. ${DASH}: the method has no refresh, or no run to be divided by. ${timed ? "Seconds of runs that shared a machine compare little." : "No seconds: the runs are of more than one machine or load."}`));
});
