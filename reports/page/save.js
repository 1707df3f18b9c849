// Tables as CSV, figures as SVG and PNG: made here, handed to the browser as a download.

const PAINT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "visibility",
  "font-family", "font-size", "font-weight", "paint-order"];

function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: `gnlorp-${name}`.replace(/[^\w.-]+/g, "-") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function csvText(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const heads = rows.length ? Object.keys(rows[0]) : [];
  return [heads, ...rows.map((row) => heads.map((head) => row[head]))].map((line) => `${line.map(cell).join(",")}\n`).join("");
}

/** The figure as a file of its own: every style written out, on the page's background, with its words inside. */
function standalone(chart, words) {
  const copy = chart.cloneNode(true);
  const copies = [copy, ...copy.querySelectorAll("*")];
  [chart, ...chart.querySelectorAll("*")].forEach((node, index) => {
    const style = getComputedStyle(node);
    copies[index].removeAttribute("style");
    for (const name of PAINT) copies[index].setAttribute(name, style.getPropertyValue(name));
    for (const name of ["class", "tabindex", "role", "data-tip"]) copies[index].removeAttribute(name);
  });
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--card").trim();
  copy.prepend(svg("desc", {}, words), svg("rect", { width: "100%", height: "100%", fill: ground }));
  return new XMLSerializer().serializeToString(copy);
}

function savePng(name, chart, words) {
  const scale = 2;
  const picture = new Image();
  picture.onload = () => {
    const canvas = el("canvas", { width: picture.width * scale, height: picture.height * scale });
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.drawImage(picture, 0, 0);
    canvas.toBlob((blob) => download(`${name}.png`, blob), "image/png");
  };
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(chart, words))}`;
}

const saveButton = (what, label, action) => el("button", { type: "button", class: "save", "aria-label": `${label} as ${what}`, onclick: action }, what);

/** A caption with the buttons that save the figure; `chart` is asked for when pressed, since it is drawn anew. */
function figureTools(name, caption, chart) {
  const words = () => `${caption}. ${groupTitle()}. From the records behind the page of gnlorp.`;
  const file = () => `${group() ? `${state.suite}-${state.profile}-` : ""}${name}`;
  return el("span", { class: "saves" },
    saveButton("SVG", caption, () => download(`${file()}.svg`, new Blob([standalone(chart(), words())], { type: "image/svg+xml" }))),
    saveButton("PNG", caption, () => savePng(file(), chart(), words())));
}
