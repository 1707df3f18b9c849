// What is chosen, where it stands in the address, and the numbers that belong to the choice.

const RUN_FILTERS = { search: "", purpose: "result", status: "all" };
const state = {
  suite: null, profile: null, rank: null, variant: "", task: "all", wanted: "all", off: new Set(), convention: {}, budget: null,
  phase: "step", paper: null, ...RUN_FILTERS, everywhere: false, shown: 25, sorts: {}, run: null, at: null,
};

const group = () => DATA.groups.find((one) => one.suite === state.suite && one.profile === state.profile && one.rank === state.rank && one.variant === state.variant) || null;
const suiteOf = (name) => DATA.suites[name] || { title: name, tasks: {}, choices: {}, words: {} };
const title = (method) => (group() && group().names[method]) || (LOOKS.has(method) ? LOOKS.get(method).title : method);
const taskTitle = (task, suite = state.suite) => suiteOf(suite).tasks[task] || task;
const groupTitle = () => (group() ? group().title : "no runs");
const groupRuns = () => (group() ? group().runs.map((index) => DATA.runs[index]) : []);
const visible = (method) => !state.off.has(method);
const shownMethods = () => (group() ? group().methods.filter(visible) : []);
const names = (methods) => listed(methods.map((method) => title(method)));
/** Names as a list; between names that hold commas themselves stand semicolons. */
const listed = (texts) => texts.join(texts.some((text) => text.includes(",")) ? "; " : ", ");

/** The key of the way in which the convention reads a task. */
function way(suite, task) {
  const { choices } = suiteOf(suite);
  if (!choices.epoch) return "last";
  return choices[task] ? `${state.convention.epoch}/${state.convention[task]}` : state.convention.epoch;
}

/** Where the chosen convention stands among all of them. */
function conventionIndex() {
  return Object.entries(suiteOf(state.suite).choices).reduce((index, [name, values]) => index * values.length + values.indexOf(state.convention[name]), 0);
}

/** Score of a run as printed, or what became of it. */
function scoreOf(run) {
  const found = run.scores[way(run.suite, run.task)];
  return found === undefined ? run.scores.main ?? null : found;
}

/** The scores, peaks and front of the chosen task, or of the average; null where there is neither. */
function standing() {
  const found = group();
  if (!found) return null;
  if (state.task !== "all") {
    const column = found.columns.find((one) => one.task === state.task && one.front);
    return column ? { ...column, rows: column.front[way(found.suite, column.task)], label: scoreLabel(column, taskTitle(column.task)) } : null;
  }
  const average = found.average;
  if (!average) return null;
  return { ...average, rows: average.rows[conventionIndex()], peaks: average.peaks[state.convention.tasks] || average.peaks.last, label: scoreLabel(average, "Average score") };
}

function scoreLabel(column, what) {
  const named = what === "Average score" ? what : `${what}, ${column.metric}`;
  return named + (column.unit ? ` (${column.unit})` : "") + (column.lower ? ", lower is better" : "");
}

/** What is plotted for each visible method. `over` and `alike` name methods by their places. */
function points(found) {
  const { methods } = group();
  const among = (places) => places.map((index) => methods[index]).filter(visible);
  return methods.map((method, index) => {
    const [mean, sd, n, chance, over, alike] = found.rows[index] || [null, null, 0, null, [], []];
    return { method, mean, sd, n, chance, peak: found.peaks[index], over: among(over), alike: among(alike) };
  }).filter((point) => visible(point.method));
}

const unique = (values) => [...new Set(values)];

/** Keep the choice if it still exists, else take the first. */
function settle() {
  const pick = (key, options) => { if (!options.includes(state[key])) state[key] = options.length ? options[0] : null; return options; };
  const suites = pick("suite", unique(DATA.groups.map((one) => one.suite)));
  const inSuite = DATA.groups.filter((one) => one.suite === state.suite);
  const profiles = pick("profile", unique(inSuite.map((one) => one.profile)));
  const inProfile = inSuite.filter((one) => one.profile === state.profile);
  const ranks = pick("rank", unique(inProfile.map((one) => one.rank)));
  const variants = pick("variant", unique(inProfile.filter((one) => one.rank === state.rank).map((one) => one.variant)));
  const found = group();
  const tasks = found ? found.tasks : [];
  // What was asked for is kept, so that a profile with one task does not narrow the next one.
  state.task = tasks.length === 1 ? tasks[0] : (tasks.includes(state.wanted) ? state.wanted : "all");
  for (const [name, values] of Object.entries(suiteOf(state.suite).choices)) {
    if (!values.includes(state.convention[name])) state.convention[name] = found.convention[name];
  }
  return { suites, profiles, ranks: ranks.filter((rank) => rank !== null), variants, tasks, methods: found ? found.methods : [] };
}

/** Write into the address what differs from the page as it opens. */
function remember() {
  const first = DATA.groups[0];
  const query = new URLSearchParams();
  const put = (name, value, usual) => { if (value !== null && value !== "" && value !== usual) query.set(name, String(value)); };
  if (first && group() !== first) for (const key of ["suite", "profile", "rank", "variant"]) put(key, state[key]);
  put("task", state.wanted, "all");
  for (const method of state.off) query.append("off", method);
  if (group()) for (const name of Object.keys(suiteOf(state.suite).choices)) put(name, state.convention[name], group().convention[name]);
  put("budget", state.budget === null ? null : Math.round(state.budget));
  put("phase", state.phase, "step");
  put("paper", state.paper, DATA.papers.length ? DATA.papers[0].name : null);
  for (const [name, usual] of Object.entries(RUN_FILTERS)) put(name, state[name], usual);
  put("everywhere", state.everywhere, false);
  put("run", state.run);
  put("at", state.at);
  for (const [name, { key, down }] of Object.entries(state.sorts)) if (key !== null) query.set(`sort.${name}`, `${down ? "-" : ""}${key}`);
  // An address may not be changed everywhere, nor as often as a slider moves: the page works without.
  try { history.replaceState(null, "", `#${query}`); } catch { /* as said */ }
}

/** Take the choice from the address; what it does not name is as the page opens, what is unknown settles. */
function recall() {
  const query = new URLSearchParams(location.hash.slice(1));
  const get = (name, usual = null) => query.get(name) ?? usual;
  const first = DATA.groups[0] || { suite: null, profile: null, rank: null, variant: "" };
  const rank = get("rank");
  Object.assign(state, {
    suite: get("suite", first.suite), profile: get("profile", first.profile), rank: rank === null ? first.rank : Number(rank), variant: get("variant", ""),
    wanted: get("task", "all"), off: new Set(query.getAll("off").filter((method) => LOOKS.has(method))),
    budget: Number(get("budget")) || null, phase: get("phase") === "refresh" ? "refresh" : "step",
    paper: DATA.papers.some((table) => table.name === get("paper")) ? get("paper") : null,
    everywhere: get("everywhere") === "true", run: get("run"), at: get("at"), convention: {}, sorts: {},
  });
  for (const [name, usual] of Object.entries(RUN_FILTERS)) state[name] = get(name, usual);
  for (const [name, value] of query) {
    if (name.startsWith("sort.")) state.sorts[name.slice(5)] = { key: value.replace(/^-/, ""), down: value.startsWith("-") };
  }
  for (const name of Object.keys(suiteOf(state.suite).choices)) state.convention[name] = get(name);
}
