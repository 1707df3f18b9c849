// The sections about our own runs.

const note = (...lines) => el("p", { class: "note" }, ...lines);
const warn = (...lines) => el("p", { class: "note warn", role: "note" }, ...lines);
const widthOf = (body) => Math.max(280, Math.floor(body.clientWidth || 640));

function groupWarnings() {
  const lines = [];
  if (isMicro()) lines.push(warn("Profile micro: checks the pipeline and the ordering of methods. Never the paper's numbers."));
  const trouble = DATA.troubles.find((one) => one.suite === state.suite && one.profile === state.profile && one.rank === state.rank);
  if (trouble) lines.push(warn(`Several runs share one place here; the first of them is shown. ${trouble.text}`));
  return lines;
}

const scoreWords = () => {
  const run = groupRuns()[0];
  if (!run) return "Score";
  const plain = `${run.main}${lowerIsBetter(run.main) ? ", lower is better" : ""}`;
  if (state.task !== "all") return isGlue(run) ? `${taskTitle(state.task)} (%)` : `${taskTitle(state.task)}, ${plain}`;
  return isGlue(run) ? "Average score (%)" : plain;
};

section("front", "Memory", "Score against memory", (body) => {
  const list = points(visible(groupRuns()));
  const shown = list.filter((point) => point.peak !== null && point.summary.n);
  body.append(...groupWarnings());
  if (!shown.length) {
    body.append(note("Nothing to plot here: no method has both a score and a measured peak. ", missingWords(list, shown)));
    return;
  }
  const low = Math.min(...shown.map((point) => point.peak));
  const high = Math.max(...shown.map((point) => point.peak));
  if (state.budget === null || state.budget < low * 0.95 || state.budget > high) state.budget = high;
  const chance = frontChance(shown);
  const place = el("div", { class: "plot" });
  const answer = el("div", { class: "answer", "aria-live": "polite" });
  const [unit, size] = unitOf(high);
  // In four hundred steps, so that both ends are reached exactly.
  const from = low * 0.95;
  const slider = el("input", { type: "range", id: "budget", min: 0, max: 400, step: 1, value: Math.round((400 * (state.budget - from)) / (high - from)),
    oninput: () => { state.budget = from + (slider.value / 400) * (high - from); draw(); } });
  const shownBudget = el("output", { for: "budget" });
  const draw = () => {
    shownBudget.textContent = `${(state.budget / size).toFixed(2)} ${unit}`;
    slider.setAttribute("aria-valuetext", shownBudget.textContent);
    place.replaceChildren(frontChart(widthOf(place), shown, { scoreLabel: scoreWords(), budget: state.budget, chance, press: (method) => openRuns(method, state.task) }));
    answer.replaceChildren(budgetAnswer(shown, chance));
  };
  body.append(el("div", { class: "split" }, place, el("div", { class: "side" },
    el("label", { for: "budget", class: "big" }, "Best score within ", shownBudget), slider, answer)));
  draw();
  body.append(note("Filled: on the front of the means (nothing that needs no more memory scores as well). Bars: ± standard deviation over seeds. ",
    "Peak: bytes tracked in one step at the longest batch, the highest over tasks. ", missingWords(list, shown)));
});

function missingWords(list, shown) {
  const left = list.filter((point) => !shown.includes(point));
  return left.length ? `Not shown: ${left.map((point) => `${title(point.method)} (${point.peak === null ? "memory not measured" : "no score for every task and seed"})`).join(", ")}.` : "";
}

function budgetAnswer(shown, chance) {
  const fitting = shown.filter((point) => point.peak <= state.budget)
    .sort((a, b) => b.way * b.summary.mean - a.way * a.summary.mean);
  if (!fitting.length) return el("p", { class: "best" }, "Nothing fits.");
  const best = fitting[0];
  const alike = fitting.slice(1).filter((point) => best.summary.sd !== null && point.summary.sd !== null
    && Math.abs(best.summary.mean - point.summary.mean) <= best.summary.sd + point.summary.sd);
  return el("div", {}, el("p", { class: "best" }, badge(best.method), el("b", {}, spread(best.summary, 1))),
    el("ol", { class: "fits" }, fitting.map((point) => el("li", {}, badge(point.method), el("span", {}, spread(point.summary, 1)),
      el("span", { class: "faint" }, bytes(point.peak)), chance ? el("span", { class: "faint", title: "chance of being on the front" }, `${number(100 * chance.get(point.method), 0)} %`) : null))),
    alike.length ? el("p", { class: "faint" }, `Within the sum of the standard deviations: ${alike.map((point) => title(point.method)).join(", ")}.`) : null,
    chance ? el("p", { class: "faint" }, "Percent: chance of being on the front, 2,000 bootstrap draws over shared seeds.")
      : el("p", { class: "faint" }, "Fewer than two shared seeds: no chance of being on the front can be told."));
}

section("scores", "Scores", "Scores by task", (body) => {
  const runs = visible(groupRuns());
  if (!runs.length) { body.append(note("No runs here.")); return; }
  const glue = runs.some(isGlue);
  if (glue) body.append(conventionControls());
  const cells = cellsOf(runs);
  const present = new Set(runs.map((run) => run.task));
  const all = glue ? Object.keys(TASKS).filter((task) => present.has(task)) : [...present].sort();
  const tasks = state.task === "all" ? all : all.filter((task) => task === state.task);
  const scale = glue ? 100 : 1;
  const digits = glue ? 1 : 3;
  const averages = new Map(order(new Set(runs.map((run) => run.method))).map((method) =>
    [method, summarise([...averageOf(method, cells, averageTasks(runs)).values()].map((value) => value * scale))]));
  const cellOf = (method, task) => cells.get(`${method} ${task}`);
  const mean = (method, task) => { const cell = cellOf(method, task); return cell && cell.scores.size ? summarise([...cell.scores.values()]).mean : null; };
  const columns = [{ key: "method", label: "Method", value: (row) => title(row.method), text: (row) => badge(row.method) },
    ...tasks.map((task) => ({ key: task, label: taskTitle(task), numeric: true, value: (row) => mean(row.method, task),
      text: (row) => cellText(cellOf(row.method, task), scale, digits), cell: (node, row) => scoreHint(node, row.method, task, cellOf(row.method, task), scale, digits) })),
    ...(state.task === "all" && tasks.length > 1 ? [{ key: "average", label: "Average", numeric: true, value: (row) => averages.get(row.method).mean,
      text: (row) => el("b", {}, spread(averages.get(row.method), digits) + (averages.get(row.method).n === 1 ? " (n=1)" : "")) }] : [])];
  const wide = sortableTable(columns, [...averages.keys()].map((method) => ({ method })), { label: `Scores, ${groupTitle()}` });
  if (glue) $("table", wide).append(constantRow(runs, tasks, columns.length));
  body.append(wide);
  body.append(note(glue ? "Percent, mean ± standard deviation over seeds, validation split. " : `Main metric, mean ± standard deviation over seeds${lowerIsBetter(runs[0].main) ? ", lower is better" : ""}. `,
    "The average takes the seeds that all tasks have; a run that brought no score leaves none. Press a cell for its runs."));
  if (glue && state.task === "all") body.append(conventionStrip(runs, averages));
});

/** What the best constant prediction would score, as a foot that does not sort; a dash where that is undefined. */
function constantRow(runs, tasks, width) {
  const cells = tasks.map((task) => {
    const run = runs.find((one) => one.task === task && one.facts !== null);
    const values = run ? keysOf(run, state.convention).map((key) => POOLS.facts[run.facts].constant_scores[key] ?? null) : [null];
    return el("td", { class: "num" }, values.includes(null) ? DASH : number((100 * values.reduce((sum, value) => sum + value, 0)) / values.length));
  });
  const rest = Array.from({ length: width - 1 - cells.length }, () => el("td", { class: "num" }, DASH));
  return el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "Constant prediction"), cells, rest));
}

function cellText(cell, scale, digits) {
  if (!cell) return el("span", { class: "faint" }, "not run");
  const bad = [...cell.outcomes.values()].filter((outcome) => outcome !== "ok");
  if (bad.length) return el("span", { class: "bad" }, `${[...new Set(bad)].join(", ")} ${bad.length}/${cell.outcomes.size}`);
  const summary = summarise([...cell.scores.values()].map((value) => value * scale));
  return spread(summary, digits) + (summary.n === 1 ? " (n=1)" : "");
}

function scoreHint(node, method, task, cell, scale, digits) {
  if (!cell) return;
  const lines = () => [`${title(method)}, ${taskTitle(task)}`, ...[...cell.outcomes].map(([seed, outcome]) =>
    `seed ${seed}: ${cell.scores.has(seed) ? number(cell.scores.get(seed) * scale, digits + 1) : outcome}`)];
  pressable(hint(node, lines), () => openRuns(method, task), `${title(method)}, ${taskTitle(task)}: show runs`);
  node.classList.add("press");
  node.removeAttribute("role");
}

const CHOICE_WORDS = { epoch: "Evaluation", tasks: "Tasks", mnli: "MNLI", mrpc: "MRPC", qqp: "QQP", stsb: "STS-B" };

/** The protocol switchboard: the same runs under another convention. */
function conventionControls() {
  const values = { epoch: ["last", "best"], tasks: ["9", "8"], ...Object.fromEntries(Object.entries(DATA.average.choices).map(([name, all]) => [name, Object.keys(all)])) };
  return el("fieldset", { class: "switchboard" }, el("legend", {}, "Convention"), Object.entries(values).map(([name, options]) =>
    el("label", {}, CHOICE_WORDS[name], el("select", { id: `choice-${name}`, onchange: (event) => { state.convention[name] = event.target.value; redraw(["front", "scores"]); } },
      options.map((option) => el("option", { value: option, selected: state.convention[name] === option }, name === "tasks" ? (option === "9" ? "nine" : "eight, no WNLI") : option))))));
}

/** How far the average moves over all conventions: a line from lowest to highest, a mark at the chosen one. */
function conventionStrip(runs, averages) {
  const range = conventionRange(runs);
  const ends = [...range.values()];
  if (!ends.length) return note("No average under any convention: a task is missing or a run brought no score.");
  const [low, high] = padded(Math.min(...ends.map((one) => one.low)), Math.max(...ends.map((one) => one.high)), 0.06);
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  return el("div", { class: "strips" }, el("h3", {}, `The same runs under all ${allConventions().length} conventions`), [...range].map(([method, one]) => {
    const mean = averages.get(method).mean;
    const node = el("div", { class: "strip", tabindex: "0" }, badge(method), el("div", { class: "track" },
      el("i", { class: "span", style: `left:${at(one.low)};right:calc(100% - ${at(one.high)});background:${colour(method)}` }),
      mean === null ? null : el("i", { class: "dot", style: `left:${at(mean)};background:${colour(method)}` })),
      el("span", { class: "range" }, `${number(one.low)} to ${number(one.high)}`));
    return hint(node, () => [title(method), `lowest ${number(one.low, 2)}, highest ${number(one.high, 2)}`, `as chosen ${number(mean, 2)}`]);
  }));
}

section("curves", "Curves", "Training loss", (body) => {
  const runs = inTask(visible(groupRuns()));
  const tasks = [...new Set(runs.map((run) => run.task))];
  const sorted = [...Object.keys(TASKS).filter((task) => tasks.includes(task)), ...tasks.filter((task) => !(task in TASKS)).sort()];
  const grid = el("div", { class: "panels" });
  body.append(legend(runs), grid);
  const room = widthOf(grid);
  const columns = sorted.length === 1 ? 1 : Math.max(1, Math.min(3, Math.floor(room / 300)));
  for (const task of sorted) {
    const chart = curveChart(Math.floor((room - (columns - 1) * 16) / columns), task, runs.filter((run) => run.task === task));
    if (chart) grid.append(el("figure", {}, el("figcaption", {}, taskTitle(task)), chart));
  }
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  if (!grid.children.length) body.append(note("No run here recorded its loss."));
  else body.append(note("Line: mean over the seeds that finished, of losses averaged in up to 48 bins a run; band: ± standard deviation; dotted: a run that did not finish."));
});

function legend(runs) {
  return el("div", { class: "legend" }, order(new Set(runs.map((run) => run.method))).map((method) => badge(method)));
}

/** [part, bytes] of one peak, in the order of the legend; optimizer state without its bases. */
function peakParts(run, phase) {
  const found = run.memory && run.memory[`${phase}_peak`];
  if (!found) return null;
  const bases = Math.min(run.memory.basis_bytes, found.optimizer_bytes);
  return [["Weights", found.parameter_bytes], ["Gradients", found.gradient_bytes], ["Optimizer state", found.optimizer_bytes - bases],
    ["Bases", bases], ["Activations", found.activation_bytes], ["Temporaries", found.temporary_bytes],
    ["Buffers and other", found.buffer_bytes + found.other_bytes]];
}

section("parts", "Parts", "What the peak is made of", (body) => {
  const runs = inTask(visible(groupRuns())).filter((run) => run.status === "ok");
  const rows = order(new Set(runs.map((run) => run.method))).map((method) => {
    const mine = runs.filter((run) => run.method === method && peakParts(run, state.phase));
    const run = mine.reduce((best, one) => (!best || one.memory[`${state.phase}_peak`].total_bytes > best.memory[`${state.phase}_peak`].total_bytes ? one : best), null);
    return { method, run, parts: run && peakParts(run, state.phase) };
  });
  body.append(el("div", { class: "segments", role: "group", "aria-label": "Kind of step" }, [["step", "plain step"], ["refresh", "refresh step"]].map(([value, label]) =>
    el("button", { type: "button", "aria-pressed": String(state.phase === value), onclick: () => { state.phase = value; redraw(["parts"]); } }, label))));
  const largest = Math.max(0, ...rows.filter((row) => row.parts).map((row) => row.parts.reduce((sum, part) => sum + part[1], 0)));
  for (const { method, run, parts } of rows) {
    if (!parts) {
      body.append(el("div", { class: "bar-row" }, badge(method), el("span", { class: "faint" }, state.phase === "refresh" ? "has no refresh step, or it was not measured" : "memory not measured"), el("span")));
      continue;
    }
    const total = parts.reduce((sum, part) => sum + part[1], 0);
    const row = el("div", { class: "bar-row" }, badge(method), stackedBar(parts, largest, `${title(method)}: ${parts.map(([name, amount]) => `${name} ${bytes(amount)}`).join(", ")}`), el("b", { class: "num" }, bytes(total)));
    hint(pressable(row, () => openRun(run), `${title(method)}, peak ${bytes(total)}: show the run`), () => [`${title(method)}, ${taskTitle(run.task)}, seed ${run.seed}`, ...parts.map(([name, amount]) => `${name}: ${bytes(amount)}`), `total: ${bytes(total)}`]);
    body.append(row);
  }
  body.append(el("div", { class: "legend" }, Object.entries(DATA.parts).map(([name, fillColour]) => el("span", {}, el("i", { class: "swatch", style: `background:${fillColour}` }), name))));
  body.append(note("Tracked bytes at the highest moment of one step, of the task and seed where that is highest."));
});

section("refresh", "Refresh", "What a refresh costs", (body) => {
  const runs = inTask(visible(groupRuns())).filter((run) => run.status === "ok" && run.timing && run.timing.timed_steps);
  const rows = order(new Set(runs.map((run) => run.method))).map((method) => refreshRow(method, runs.filter((run) => run.method === method)));
  if (!rows.length) { body.append(note("No run here was timed.")); return; }
  const of = (key, text) => ({ key, numeric: true, value: (row) => row[key], text: (row) => text(row[key]) });
  body.append(sortableTable([
    { key: "method", label: "Method", value: (row) => title(row.method), text: (row) => badge(row.method) },
    { ...of("step", milliseconds), label: "Training step" }, { ...of("plain", milliseconds), label: "Optimizer, plain" },
    { ...of("refresh", milliseconds), label: "Optimizer, refresh" },
    { ...of("ratio", (value) => (value === null ? DASH : `${significant(value, 3)}×`)), label: "Refresh ÷ plain" },
    { ...of("share", (value) => (value === null ? DASH : `${number(100 * value, 1)} %`)), label: "Share of training time" },
    { ...of("scratch", bytes), label: "Extra peak" },
  ], rows, { label: "Cost of a refresh" }));
  body.append(note(`Means over ${runs.length} runs. Share: seconds in optimizer steps that refreshed ÷ training seconds. Extra peak: refresh step over plain step, at the longest batch. ${DASH}: the method has no refresh. Seconds of runs that shared a machine compare little.`));
});

function refreshRow(method, runs) {
  const total = (key) => runs.reduce((sum, run) => sum + (run.timing[key] || 0), 0);
  const [refreshed, timed] = [total("refresh_steps"), total("timed_steps")];
  const has = refreshed > 0 && runs.some((run) => run.timing.refresh_s !== null);
  const plain = timed > refreshed ? (total("optimizer_s") - (has ? total("refresh_s") : 0)) / (timed - (has ? refreshed : 0)) : null;
  const refresh = has ? total("refresh_s") / refreshed : null;
  const extra = runs.filter((run) => run.memory && run.memory.refresh_peak && run.memory.step_peak)
    .map((run) => run.memory.refresh_peak.total_bytes - run.memory.step_peak.total_bytes);
  return { method, plain, refresh, step: timed ? total("train_s") / timed : null, ratio: has && plain ? refresh / plain : null,
    share: has && total("train_s") ? total("refresh_s") / total("train_s") : null, scratch: extra.length ? Math.max(0, ...extra) : null };
}
