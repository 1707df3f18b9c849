// Scores under a convention, and what seeds say: the same rules as the Python tables.

function summarise(values) {
  const n = values.length;
  if (!n) return { n: 0, mean: null, sd: null };
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  const sd = n < 2 ? null : Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1));
  return { n, mean, sd };
}

const keyNumber = new Map(POOLS.keys.map((key, index) => [key, index]));
const isGlue = (run) => run.task in TASKS && run.suite === DATA.average.suite;

/** The "split/metric" keys whose mean is the score of a task. */
function keysOf(run, convention) {
  if (!isGlue(run)) return run.main === null ? [] : [run.main];
  const rules = DATA.average;
  const name = Object.keys(rules.of_task).find((choice) => rules.of_task[choice] === run.task);
  return name ? rules.choices[name][convention[name]] : rules.fixed[run.task];
}

const lowerIsBetter = (key) => LOWER.has((key || "").split("/").pop());
const sign = (run) => (lowerIsBetter(run.main) ? -1 : 1);

/** Score of one evaluation: number, null where undefined, undefined where it was not recorded. */
function scoreAt(evaluation, keys) {
  const values = keys.map((key) => evaluation[2][keyNumber.get(key)]);
  if (!keys.length || values.some((value) => value === undefined)) return undefined;
  if (values.some((value) => value === null)) return null;
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** {score, outcome}: the score of a run under a convention, or what became of it. */
function scoreOf(run, convention = state.convention) {
  if (run.status !== "ok") return { score: null, outcome: run.status.replaceAll("_", " ") };
  const points = run.evaluations.map((evaluation) => [evaluation[0], scoreAt(evaluation, keysOf(run, convention))])
    .filter(([, value]) => value !== undefined).sort((a, b) => a[0] - b[0]);
  if (!points.length) return { score: null, outcome: "not recorded" };
  let chosen = points[points.length - 1][1];
  if (convention.epoch === "best") {
    const known = points.map((point) => point[1]).filter((value) => value !== null);
    chosen = known.length ? sign(run) * Math.max(...known.map((value) => sign(run) * value)) : null;
  }
  return chosen === null ? { score: null, outcome: "undefined" } : { score: chosen, outcome: "ok" };
}

/** Map "method task" -> {scores: Map seed -> score, outcomes: Map seed -> outcome, runs}. */
function cellsOf(runs, convention = state.convention) {
  const cells = new Map();
  for (const run of runs) {
    const key = `${run.method} ${run.task}`;
    if (!cells.has(key)) cells.set(key, { scores: new Map(), outcomes: new Map(), runs: [] });
    const cell = cells.get(key);
    cell.runs.push(run);
    if (cell.outcomes.has(run.seed)) continue;
    const { score, outcome } = scoreOf(run, convention);
    cell.outcomes.set(run.seed, outcome);
    if (score !== null) cell.scores.set(run.seed, score);
  }
  return cells;
}

/** Tasks of an average: GLUE's, with or without WNLI, else those that were run. */
function averageTasks(runs, convention = state.convention) {
  if (runs.some(isGlue)) return Object.keys(TASKS).filter((task) => convention.tasks === "9" || task !== "wnli");
  return [...new Set(runs.map((run) => run.task))].sort();
}

/** Map seed -> mean over tasks, over the seeds that all tasks have; empty if a run of any task brought no score. */
function averageOf(method, cells, tasks) {
  const found = tasks.map((task) => cells.get(`${method} ${task}`));
  const result = new Map();
  if (!tasks.length || found.some((cell) => !cell || cell.scores.size < cell.outcomes.size)) return result;
  for (const seed of [...found[0].scores.keys()].sort((a, b) => a - b)) {
    if (found.every((cell) => cell.scores.has(seed))) {
      result.set(seed, found.reduce((sum, cell) => sum + cell.scores.get(seed), 0) / tasks.length);
    }
  }
  return result;
}

/** What is plotted for each method: score by seed (as printed), highest peak, direction. */
function points(runs, convention = state.convention) {
  const cells = cellsOf(runs, convention);
  const tasks = state.task === "all" ? averageTasks(runs, convention) : [state.task];
  const methods = order(new Set(runs.map((run) => run.method)));
  const way = runs.length ? sign(runs[0]) : 1;
  return methods.map((method) => {
    const mine = runs.filter((run) => run.method === method && run.status === "ok" && tasks.includes(run.task));
    const peaks = mine.map(peak).filter((value) => value !== null);
    const scale = mine.some(isGlue) ? 100 : 1;
    const scores = new Map([...averageOf(method, cells, tasks)].map(([seed, value]) => [seed, value * scale]));
    return { method, scores, summary: summarise([...scores.values()]), peak: peaks.length ? Math.max(...peaks) : null, way };
  });
}

/** Which points nothing dominates: no other costs at most as much, is worth at least as much, and differs. */
function front(list) {
  return list.map((point) => !list.some((other) => other.cost <= point.cost && other.worth >= point.worth
    && (other.cost !== point.cost || other.worth !== point.worth)));
}

/** A small seeded generator, so that a bootstrap says the same on every load. */
function generator(seed) {
  let value = seed >>> 0;
  return () => {
    value = (value + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(value ^ (value >>> 15), 1 | value);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Map method -> share of bootstrap draws over the shared seeds in which it is on the front; null without two seeds. */
function frontChance(list, draws = 2000) {
  const usable = list.filter((point) => point.peak !== null && point.summary.n);
  const seeds = usable.length ? [...usable[0].scores.keys()].filter((seed) => usable.every((p) => p.scores.has(seed))) : [];
  if (seeds.length < 2) return null;
  const random = generator(1);
  const counts = usable.map(() => 0);
  for (let draw = 0; draw < draws; draw += 1) {
    const picks = seeds.map(() => seeds[Math.floor(random() * seeds.length)]);
    const drawn = usable.map((point) => ({
      cost: point.peak,
      worth: point.way * picks.reduce((sum, seed) => sum + point.scores.get(seed), 0),
    }));
    front(drawn).forEach((on, index) => { counts[index] += on ? 1 : 0; });
  }
  return new Map(usable.map((point, index) => [point.method, counts[index] / draws]));
}

/** Every combination of a convention's choices. */
function allConventions() {
  let all = [{}];
  const choices = { epoch: ["last", "best"], tasks: ["9", "8"], ...Object.fromEntries(
    Object.entries(DATA.average.choices).map(([name, values]) => [name, Object.keys(values)])) };
  for (const [name, values] of Object.entries(choices)) {
    all = all.flatMap((one) => values.map((value) => ({ ...one, [name]: value })));
  }
  return all;
}

/** Map method -> {low, high} of the mean average over all conventions; each task scored once a rule. */
function conventionRange(runs) {
  const memo = new Map();
  const cellAt = (convention, task) => {
    const name = Object.keys(DATA.average.of_task).find((choice) => DATA.average.of_task[choice] === task);
    const key = `${task} ${convention.epoch} ${name ? convention[name] : ""}`;
    if (!memo.has(key)) memo.set(key, cellsOf(runs.filter((run) => run.task === task), convention));
    return memo.get(key);
  };
  const range = new Map();
  for (const convention of allConventions()) {
    const tasks = averageTasks(runs, convention);
    const cells = new Map(tasks.flatMap((task) => [...cellAt(convention, task)]));
    for (const method of order(new Set(runs.map((run) => run.method)))) {
      const { mean } = summarise([...averageOf(method, cells, tasks).values()]);
      if (mean === null) continue;
      const old = range.get(method) || { low: Infinity, high: -Infinity };
      range.set(method, { low: Math.min(old.low, mean * 100), high: Math.max(old.high, mean * 100) });
    }
  }
  return range;
}
