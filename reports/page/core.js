// Data, elements, numbers as text, and the state that all sections share.

const DATA = JSON.parse(document.getElementById("data").textContent);
const POOLS = DATA.pools;
const TASKS = DATA.tasks;
const LOOKS = new Map(DATA.looks.map((look) => [look.method, look]));
const LOWER = new Set(DATA.lower);
const DASH = "—";

const $ = (selector, root = document) => root.querySelector(selector);

/** Make an element: attributes by name, `on*` as listeners, children as nodes or text. */
function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const title = (method) => (LOOKS.has(method) ? LOOKS.get(method).title : method);
const taskTitle = (task) => TASKS[task] || task;
/** The yardstick is drawn in ink, black on white and white on black; every other colour is the same in both themes. */
const colour = (method) => {
  const found = LOOKS.has(method) ? LOOKS.get(method).colour : "#6F6F6F";
  return found === "#000000" ? "var(--ink)" : found;
};
const order = (methods) => [...LOOKS.keys()].filter((method) => methods.has(method));

/** Read one attribute of a `Map` of arrays, made on first use. */
function bucket(map, key) {
  if (!map.has(key)) map.set(key, []);
  return map.get(key);
}

function number(value, digits = 1) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  return value.toFixed(digits).replace("-", "−");
}

function significant(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(digits - 1).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

const UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["bytes", 1]];
const unitOf = (largest) => UNITS.find(([, size]) => largest >= size) || UNITS[3];

function bytes(value) {
  if (value === null || value === undefined) return DASH;
  const [name, size] = unitOf(value);
  return `${size === 1 ? value : (value / size).toFixed(2)} ${name}`;
}

function milliseconds(value) {
  return value === null || value === undefined ? DASH : `${significant(value * 1000)} ms`;
}

/** Mean ± sd as text; `digits` decimals. */
function spread(summary, digits = 1) {
  if (summary.mean === null) return DASH;
  return number(summary.mean, digits) + (summary.sd === null ? "" : ` ± ${number(summary.sd, digits)}`);
}

const state = {
  suite: null, profile: null, rank: null, task: "all", wanted: "all", off: new Set(),
  convention: { epoch: "last", tasks: "9", mnli: "matched", mrpc: "f1", qqp: "accuracy", stsb: "pearson" },
  budget: null, phase: "step", paper: null, search: "", purpose: "result", status: "all", shown: 25,
};

/** Runs of the chosen suite, profile and rank; methods without a rank belong to every rank. */
function groupRuns() {
  return DATA.runs.filter((run) => run.suite === state.suite && run.profile === state.profile
    && run.purpose === "result" && (run.rank === null || state.rank === null || run.rank === state.rank));
}

const visible = (runs) => runs.filter((run) => !state.off.has(run.method));
const inTask = (runs) => (state.task === "all" ? runs : runs.filter((run) => run.task === state.task));
const isMicro = () => groupRuns().some((run) => run.profile === "micro"
  || POOLS.data[run.data].source === "micro" || POOLS.model[run.model].source === "micro");

function groupTitle() {
  const rank = state.rank === null ? "" : `, rank ${state.rank}`;
  return `${state.suite === null ? "no runs" : (DATA.suites[state.suite] || state.suite)}, profile ${state.profile}${rank}`;
}

/** The larger of plain and refresh step's tracked peak; null where neither was measured. */
function peak(run) {
  if (!run.memory) return null;
  const totals = ["step_peak", "refresh_peak"].map((name) => run.memory[name]).filter(Boolean);
  return totals.length ? Math.max(...totals.map((part) => part.total_bytes)) : null;
}

const sections = [];
/** Register a section: `draw(body)` fills its empty body whenever the state changes. */
function section(id, name, heading, draw) {
  sections.push({ id, name, heading, draw });
}

const tip = $("#tip");
/** Show lines beside a node on hover and focus; the first line stands out. */
function hint(node, lines) {
  node.setAttribute("data-tip", "");
  const show = (event) => {
    tip.replaceChildren(...lines().filter((line) => line !== null && line !== undefined)
      .map((line, index) => el("div", index ? {} : { class: "strong" }, line)));
    tip.hidden = false;
    const box = node.getBoundingClientRect();
    const x = event.type === "pointermove" ? event.clientX : box.left + box.width / 2;
    const y = event.type === "pointermove" ? event.clientY : box.top + box.height / 2;
    const left = Math.min(Math.max(8, x + 14), innerWidth - tip.offsetWidth - 8);
    const above = y + 18 + tip.offsetHeight > innerHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(8, above ? y - tip.offsetHeight - 12 : y + 18)}px`;
  };
  const hide = () => { tip.hidden = true; };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerleave", hide);
  node.addEventListener("focus", (event) => { if (node.matches(":focus-visible")) show(event); });
  node.addEventListener("blur", hide);
  return node;
}

/** Make a node act like a button for the pointer and for Enter and Space. */
function pressable(node, action, label) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("role", "button");
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", action);
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); action(event); }
  });
  return node;
}
