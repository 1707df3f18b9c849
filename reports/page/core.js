// Data, elements, and numbers as text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const POOLS = DATA.pools;
const LOOKS = new Map(DATA.looks.map((look) => [look.method, look]));
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

/** How a method is drawn: as in the figures of the group that is shown, where it stands there. */
const lookOf = (method) => (group() && group().looks[method]) || LOOKS.get(method) || { colour: "#6F6F6F", marker: "o", dashed: false };

/** The yardstick is drawn in ink, black on white and white on black; every other colour is the same in both themes. */
const colour = (method) => {
  const found = lookOf(method).colour;
  return found === "#000000" ? "var(--ink)" : found;
};

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

/** Mean ± sd as text. */
function spread(mean, sd, digits = 1) {
  return number(mean, digits) + (sd === null || sd === undefined ? "" : ` ± ${number(sd, digits)}`);
}

/** A share in percent; only what is wholly so is 0 or 100. */
function percent(value) {
  if (value > 0 && value < 0.5) return "<1 %";
  return value >= 99.5 && value < 100 ? ">99 %" : `${value.toFixed(0)} %`;
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
