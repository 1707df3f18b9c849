// Filters, the list of all runs, the theme, and drawing it all.

section("runs", "Runs", "Every run", (body) => {
  const search = el("input", { type: "search", id: "search", placeholder: "Search method, task, path, error…", "aria-label": "Search runs", value: state.search,
    oninput: () => { state.search = search.value; list(); remember(); } });
  const choice = (id, label, values) => el("label", {}, label, el("select", { id, onchange: (event) => { state[id] = event.target.value; list(); remember(); } },
    values.map((value) => el("option", { value, selected: state[id] === value }, value.replaceAll("_", " ")))));
  const place = el("div");
  const list = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const runs = DATA.runs.filter((run) => visible(run.method) && (state.purpose === "all" || run.purpose === state.purpose)
      && (state.status === "all" || run.status === state.status) && (state.task === "all" || run.task === state.task)
      && (state.everywhere || (run.suite === state.suite && run.profile === state.profile && (run.rank === null || state.rank === null || run.rank === state.rank)
        && (run.purpose !== "result" || run.variant === state.variant)))
      && words.every((word) => haystack(run).includes(word)));
    const more = runs.length > state.shown;
    place.replaceChildren(el("p", { class: "lead", id: "run-count" }, `${runs.length} of ${DATA.runs.length} runs`, more ? `, the first ${state.shown} shown: sort, search or ` : "",
      more ? el("button", { type: "button", class: "plain", onclick: () => { state.shown *= 4; list(); } }, "show more") : ""), runTable(runs, state.shown));
  };
  body.append(el("div", { class: "controls" }, search, choice("purpose", "Purpose", ["result", "tuning", "gate", "all"]),
    choice("status", "Status", ["all", ...new Set(DATA.runs.map((run) => run.status))]),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "everywhere", checked: state.everywhere, onchange: (event) => { state.everywhere = event.target.checked; list(); remember(); } }), "all suites and profiles")), place);
  list();
});

function haystack(run) {
  run.text = run.text || [title(run.method), run.method, taskTitle(run.task, run.suite), run.suite, run.profile, run.path, run.error || "", run.status, run.id].join(" ").toLowerCase();
  return run.text;
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
    select("suite", "Suite", found.suites, (suite) => suiteOf(suite).title), select("profile", "Profile", found.profiles),
    found.ranks.length ? select("rank", "Rank", found.ranks) : null,
    found.variants.length > 1 ? select("variant", "Equal", found.variants, (variant) => variant.replace("equal ", "") || "tokens") : null, select("task", "Task", tasks, (task) => (task === "all" ? "all tasks" : taskTitle(task))),
    el("div", { class: "methods", role: "group", "aria-label": "Methods" }, found.methods.map((method) => el("button", { type: "button", class: "toggle", "data-method": method,
      "aria-pressed": String(!state.off.has(method)), onclick: () => {
        if (state.off.has(method)) state.off.delete(method); else state.off.add(method);
        redraw();
        $(`.toggle[data-method="${CSS.escape(method)}"]`).focus();
      } }, badge(method))))));
}

function redraw(names) {
  tip.hidden = true;
  if (!names) drawFilters(); else settle();
  const focused = document.activeElement && document.activeElement.id;
  for (const one of sections) {
    if (names && !names.includes(one.id)) continue;
    const body = $(`#${one.id} .body`);
    body.replaceChildren();
    one.draw(body);
  }
  if (focused && document.activeElement === document.body && document.getElementById(focused)) document.getElementById(focused).focus();
  remember();
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

function goTo(id) {
  state.at = id;
  document.getElementById(id).scrollIntoView();
  remember();
}

/** Go where the address says: to a section, and into a run's record. */
function arrive() {
  if (sections.some((one) => one.id === state.at)) document.getElementById(state.at).scrollIntoView();
  const run = DATA.runs.find((one) => one.id === state.run);
  if (run) openRun(run);
}

function start() {
  let saved = null;
  try { saved = localStorage.getItem("gnlorp-theme"); } catch { saved = null; }
  setTheme(THEMES.includes(saved) ? saved : "auto");
  $("#theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf($("#theme").dataset.now) + 1) % THEMES.length]));
  const methods = new Set(DATA.runs.map((run) => run.method.split(":")[0])).size;
  $("#summary").textContent = DATA.runs.length ? `${DATA.runs.length.toLocaleString("en-US")} runs, ${methods} methods` : "no records";
  $("#nav").append(...sections.map((one) => el("a", { href: `#${one.id}`, onclick: (event) => { event.preventDefault(); goTo(one.id); } }, one.name)));
  $("#main").append(...sections.map((one) => el("section", { id: one.id, "aria-labelledby": `${one.id}-title` }, el("h2", { id: `${one.id}-title` }, one.heading), el("div", { class: "body" }))));
  if (!DATA.runs.length) $("#main").prepend(warn("No records: the published numbers stand below, and every cell says that it was not run here. Run the suite first, then build this page again."));
  $("#footer").textContent = "Everything on this page comes from records and quoted tables that stand inside it; it loads nothing.";
  recall();
  redraw();
  arrive();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    redraw(["front", "tuning", "curves", "parts"]);
  });
  // Someone typed another address, or followed the link to the results, which has no choice in it.
  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) { recall(); redraw(); arrive(); } else remember();
  });
  document.documentElement.dataset.ready = "yes";
}

start();
