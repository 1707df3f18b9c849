// What tuning did: every trial over both learning rates, and the expected best score by number of trials.

const rateText = (value) => (value === null ? DASH : significant(value, 3));
const trialScore = (tuning, trial) => (trial.score === null ? trial.status : number(trial.score, tuning.digits));

function trialLines(tuning, one, trial) {
  const long = trial.atLength === null ? null : `at the runs' own length: ${number(trial.atLength, tuning.digits)}${trial.fallen}`;
  return [title(one.method), `${tuning.metric}: ${trialScore(tuning, trial)}`, long, trial.rate === null ? "no matrix is trained" : `learning rate of the matrices ${rateText(trial.rate)}`,
    `of the rest ${rateText(trial.rest)}`, trial.others || null, one.trials[one.best] === trial ? "chosen for the method" : null, one.trials[one.usual] === trial ? "nearest to its usual rates" : null];
}

/** One method: its trials over both rates on logarithmic axes; those without a score are crosses, the best has a ring. */
function trialsChart(width, tuning, one, ends) {
  const power = (value) => `${Number((10 ** value).toPrecision(2))}`;
  const trained = one.trials.some((trial) => trial.rate !== null);
  const { root, x, y } = frame(width, 250, ends.rate, ends.rest, { left: 74, top: 8, right: 10, xTicks: 3, yTicks: 4, xText: trained ? power : () => "", yText: power,
    xLabel: trained ? "Learning rate of the matrices" : "no matrix is trained", yLabel: "Of the rest", label: `Trials of ${title(one.method)}` });
  one.trials.forEach((trial, index) => {
    const [px, py] = [x(trial.rate === null ? (ends.rate[0] + ends.rate[1]) / 2 : Math.log10(trial.rate)), y(Math.log10(trial.rest))];
    const node = svg("g", { class: "trial" }, trial.colour === null ? svg("path", { class: "error", d: `M${px - 5},${py - 5}l10,10M${px + 5},${py - 5}l-10,10`, style: "stroke:var(--faint)" })
      : svg("circle", { cx: px, cy: py, r: 6.5, style: `fill:${trial.colour}` }),
    index === one.best ? svg("circle", { cx: px, cy: py, r: 10, style: "fill:none;stroke:var(--ink)", "stroke-width": 1.8 }) : null);
    const lines = () => trialLines(tuning, one, trial).filter(Boolean);
    const opens = trial.runs.length ? pressable(hint(node, lines), () => openRun(DATA.runs[trial.runs[0]]), `${lines().join(", ")}: show the run`) : hint(node, lines);
    root.append(opens);
  });
  return root;
}

/** The shared scale of colours, from its bad to its good end. */
function colourScale(tuning) {
  const [bad, good] = tuning.ends.map((value) => number(value, tuning.digits));
  return el("div", { class: "legend" }, el("span", {}, `${tuning.metric}: ${bad} or worse `, el("i", { class: "scale", style: `background:linear-gradient(90deg,${tuning.colours.join(",")})` }), ` ${good}`),
    el("span", {}, "ring: chosen for the method"), el("span", {}, "cross: no score"));
}

section("tuning", "Tuning", "What tuning did", (body) => {
  const tuning = group() && group().tuning;
  if (!tuning) { body.append(note("No trials of these methods are among the records.")); return; }
  const shown = tuning.methods.filter((one) => visible(one.method));
  const logs = (pick) => tuning.methods.flatMap((one) => one.trials.map(pick)).filter((value) => value !== null).map(Math.log10);
  const trained = logs((trial) => trial.rate);
  const across = trained.length ? trained : logs((trial) => trial.rest); // a control alone has no rate of matrices
  const ends = { rate: padded(Math.min(...across), Math.max(...across), 0.1),
    rest: padded(Math.min(...logs((trial) => trial.rest)), Math.max(...logs((trial) => trial.rest)), 0.1) };
  const grid = el("div", { class: "panels" });
  body.append(note(tuning.caption), colourScale(tuning), grid);
  const room = widthOf(grid);
  const columns = Math.max(1, Math.min(3, Math.floor(room / 300), shown.length));
  for (const one of shown) {
    const chart = trialsChart(Math.floor((room - (columns - 1) * 16) / columns), tuning, one, ends);
    grid.append(el("figure", {}, el("figcaption", {}, title(one.method), figureTools(`trials-${one.method}`, `Trials of ${title(one.method)}`, () => chart)), chart));
  }
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  body.append(tunedTable(tuning, shown), ...expectedBest(tuning, shown, room));
});

function tunedTable(tuning, shown) {
  const at = (row, name) => (row[name] === null ? null : row.trials[row[name]]);
  const rates = (trial) => (trial === null ? DASH : [trial.rate === null ? null : rateText(trial.rate), rateText(trial.rest), trial.others || null].filter(Boolean).join(" / "));
  const score = (name, label) => ({ key: name, label, numeric: true, value: (row) => at(row, name) && at(row, name).score, text: (row) => (at(row, name) ? trialScore(tuning, at(row, name)) : DASH) });
  const link = (row) => row.rows.map(([name, place]) => (place === null ? `${row.rows.length > 1 ? `${name}: ` : ""}no trial`
    : el("button", { type: "button", class: "plain", onclick: () => openRun(DATA.runs[row.trials[place].runs[0]]) }, row.rows.length > 1 ? name : "show")));
  return sortableTable([
    { key: "method", label: "Method", value: (row) => title(row.method), text: (row) => badge(row.method) },
    { key: "trials", label: "Trials", numeric: true, value: (row) => row.trials.length, text: (row) => String(row.trials.length) },
    { key: "usual-rates", label: "Usual rates", value: (row) => rates(at(row, "usual")), text: (row) => rates(at(row, "usual")) }, score("usual", "Score there"),
    { key: "best-rates", label: "Chosen rates", value: (row) => rates(at(row, "best")), text: (row) => rates(at(row, "best")) }, score("best", tuning.metric),
    { key: "gained", label: "Gained", numeric: true, value: (row) => row.gained, text: (row) => number(row.gained, tuning.digits) },
    { key: "edges", label: "At an edge", value: (row) => row.edges.join(", "), text: (row) => row.edges.join(", ") || "no" },
    { key: "rows", label: "Trial of the scores' row", value: (row) => row.rows.filter(([, place]) => place !== null).length, text: (row) => el("span", {}, link(row)) },
  ], shown, { name: "tuned", label: "Default and tuned", dense: true });
}

function expectedBest(tuning, shown, room) {
  const lines = shown.filter((one) => one.expected.length > 1).map((one) => ({ method: one.method, n: 2, steps: one.expected.map(([n]) => n), mean: one.expected.map(([, mean]) => mean), sd: one.expected.map(([, , sd]) => sd) }));
  const chart = lines.length ? curveChart(room, "expected best score", lines, [], { xLabel: "Trials", yLabel: tuning.metric, label: "Expected best score by number of trials", unit: "trial", first: 1 }) : null;
  if (!chart) return [];
  return [el("h3", {}, "Expected best score by number of trials", figureTools("budget", "Expected best score by number of trials", () => chart)), el("div", { class: "legend" }, lines.map((one) => badge(one.method))), chart,
    note("Expectation of the best of n draws, with replacement, from the trials that were made (Dodge et al. 2019, arXiv 1909.03004); band: ± its standard deviation. A trial without a score counts as the worst of any trial.")];
}
