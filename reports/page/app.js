// Filters, the list of all runs, the theme, and drawing it all.

section("runs", "Runs", "Every run", (body) => {
  const search = el("input", { type: "search", id: "search", placeholder: "Search method, task, path, error…", "aria-label": "Search runs", value: state.search,
    oninput: () => { state.search = search.value; list(); } });
  const choice = (id, label, values) => el("label", {}, label, el("select", { id, onchange: (event) => { state[id] = event.target.value; list(); } },
    values.map((value) => el("option", { value, selected: state[id] === value }, value.replaceAll("_", " ")))));
  const place = el("div");
  const list = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const runs = visible(DATA.runs).filter((run) => (state.purpose === "all" || run.purpose === state.purpose)
      && (state.status === "all" || run.status === state.status) && (state.task === "all" || run.task === state.task)
      && (state.everywhere || (run.suite === state.suite && run.profile === state.profile && (run.rank === null || state.rank === null || run.rank === state.rank)))
      && words.every((word) => haystack(run).includes(word)));
    const more = runs.length > state.shown;
    place.replaceChildren(el("p", { class: "lead", id: "run-count" }, `${runs.length} of ${DATA.runs.length} runs`, more ? `, the first ${state.shown} shown: sort, search or ` : "",
      more ? el("button", { type: "button", class: "plain", onclick: () => { state.shown *= 4; list(); } }, "show more") : ""), runTable(runs, state.shown));
  };
  body.append(el("div", { class: "controls" }, search, choice("purpose", "Purpose", ["result", "tuning", "gate", "all"]),
    choice("status", "Status", ["all", ...new Set(DATA.runs.map((run) => run.status))]),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "everywhere", checked: state.everywhere, onchange: (event) => { state.everywhere = event.target.checked; list(); } }), "all suites and profiles")), place);
  list();
});

function haystack(run) {
  run.text = run.text || [title(run.method), run.method, taskTitle(run.task), run.suite, run.profile, run.path, run.error || "", run.status, run.id].join(" ").toLowerCase();
  return run.text;
}

const unique = (values) => [...new Set(values)];

/** Keep the choice if it still exists, else take the first. */
function settle() {
  const results = DATA.runs.filter((run) => run.purpose === "result");
  const pick = (key, options) => { if (!options.includes(state[key])) state[key] = options.length ? options[0] : null; return options; };
  const suites = pick("suite", unique(results.map((run) => run.suite)).sort((a, b) => (b === DATA.average.suite) - (a === DATA.average.suite) || a.localeCompare(b)));
  const inSuite = results.filter((run) => run.suite === state.suite);
  const known = ["paper", "small", "micro"];
  const place = (profile) => (known.includes(profile) ? known.indexOf(profile) : known.length);
  const profiles = pick("profile", unique(inSuite.map((run) => run.profile)).sort((a, b) => place(a) - place(b) || a.localeCompare(b)));
  const inProfile = inSuite.filter((run) => run.profile === state.profile);
  const ranks = pick("rank", unique(inProfile.map((run) => run.rank).filter((rank) => rank !== null)).sort((a, b) => b - a));
  const present = new Set(groupRuns().map((run) => run.task));
  const tasks = [...Object.keys(TASKS).filter((task) => present.has(task)), ...[...present].filter((task) => !(task in TASKS)).sort()];
  // What was asked for is kept, so that a profile with one task does not narrow the next one.
  state.task = tasks.length === 1 ? tasks[0] : (present.has(state.wanted) ? state.wanted : "all");
  return { suites, profiles, ranks, tasks, methods: order(new Set(groupRuns().map((run) => run.method))) };
}

function drawFilters() {
  const found = settle();
  const select = (key, label, options, text = String) => el("label", {}, el("span", {}, label), el("select", { id: `filter-${key}`, disabled: options.length < 2, onchange: (event) => {
    state[key] = options.find((option) => String(option) === event.target.value);
    if (key === "task") state.wanted = state.task;
    state.budget = null;
    redraw();
    $(`#filter-${key}`).focus();
  } }, options.map((option) => el("option", { value: String(option), selected: option === state[key] }, text(option)))));
  const tasks = found.tasks.length === 1 ? found.tasks : ["all", ...found.tasks];
  $("#filters").replaceChildren(el("div", { class: "inner" },
    select("suite", "Suite", found.suites, (suite) => suite.toUpperCase()), select("profile", "Profile", found.profiles),
    found.ranks.length ? select("rank", "Rank", found.ranks) : null, select("task", "Task", tasks, (task) => (task === "all" ? "all tasks" : taskTitle(task))),
    el("div", { class: "methods", role: "group", "aria-label": "Methods" }, found.methods.map((method) => el("button", { type: "button", class: "toggle", "data-method": method,
      "aria-pressed": String(!state.off.has(method)), onclick: () => {
        if (state.off.has(method)) state.off.delete(method); else state.off.add(method);
        redraw();
        $(`.toggle[data-method="${method}"]`).focus();
      } }, badge(method))))));
}

function redraw(names) {
  tip.hidden = true;
  if (!names) drawFilters();
  const focused = document.activeElement && document.activeElement.id;
  for (const one of sections) {
    if (names && !names.includes(one.id)) continue;
    const body = $(`#${one.id} .body`);
    body.replaceChildren();
    one.draw(body);
  }
  if (focused && document.activeElement === document.body && document.getElementById(focused)) document.getElementById(focused).focus();
}

const THEMES = ["auto", "light", "dark"];
const THEME_WORDS = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const button = $("#theme");
  button.textContent = THEME_WORDS[name];
  button.setAttribute("aria-label", `Colour theme: ${name}`);
  button.dataset.now = name;
  // Storage is refused where a page is opened from some archives: the choice then lasts as long as the page.
  try { localStorage.setItem("gnlorp-theme", name); } catch { /* as said */ }
}

function start() {
  let saved = null;
  try { saved = localStorage.getItem("gnlorp-theme"); } catch { saved = null; }
  setTheme(THEMES.includes(saved) ? saved : "auto");
  $("#theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf($("#theme").dataset.now) + 1) % THEMES.length]));
  const methods = new Set(DATA.runs.map((run) => run.method)).size;
  $("#summary").textContent = DATA.runs.length ? `${DATA.runs.length.toLocaleString("en-US")} runs, ${methods} methods` : "no records";
  $("#nav").append(...sections.map((one) => el("a", { href: `#${one.id}` }, one.name)));
  $("#main").append(...sections.map((one) => el("section", { id: one.id, "aria-labelledby": `${one.id}-title` }, el("h2", { id: `${one.id}-title` }, one.heading), el("div", { class: "body" }))));
  if (!DATA.runs.length) $("#main").prepend(warn("No records: the published numbers stand below, and every cell says that it was not run here. Run the suite first, then build this page again."));
  $("#footer").textContent = "Everything on this page comes from records and quoted tables that stand inside it; it loads nothing.";
  redraw();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    redraw(["front", "curves"]);
  });
  document.documentElement.dataset.ready = "yes";
}

start();
