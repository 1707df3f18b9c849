// Figures as inline SVG, drawn at the width they get. All numbers come with the data; only pixels are computed here.

/** Round ticks inside [low, high], about `count` of them. */
function ticks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const first = Math.ceil(low / step - 1e-9) * step;
  const found = [];
  for (let value = first; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** A frame with axes: {root, x, y, box} where x and y map data to pixels; without `ys` there is no vertical axis. */
function frame(width, height, xs, ys, { xLabel, yLabel, left = 58, bottom = 42, top = 12, right = 14, xTicks = 6, yTicks = 5, xText = (value) => significant(value, 4), yText = (value) => significant(value, 4), label }) {
  const box = { left, right: width - right, top, bottom: height - bottom };
  const x = (value) => box.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (box.right - box.left);
  const y = ys && ((value) => box.bottom - ((value - ys[0]) / (ys[1] - ys[0] || 1)) * (box.bottom - box.top));
  const root = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  for (const value of ys ? ticks(ys[0], ys[1], yTicks) : []) {
    root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, yText(value)));
  }
  for (const value of ticks(xs[0], xs[1], xTicks)) {
    root.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
      svg("text", { class: "tick", x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, xText(value)));
  }
  root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    svg("text", { class: "axis-label", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  if (yLabel) root.append(svg("text", { class: "axis-label", x: -(box.top + box.bottom) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)" }, yLabel));
  return { root, x, y, box };
}

const padded = (low, high, share) => {
  const room = (high - low) * share || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
};

/** Score against peak memory with error bars, the front of the means, and a line at the budget. */
function frontChart(width, list, { scoreLabel, digits, budget, hollow, press }) {
  const [unit, size] = unitOf(Math.max(...list.map((point) => point.peak)));
  const costs = list.map((point) => point.peak / size);
  const lows = list.map((point) => point.mean - (point.sd || 0));
  const highs = list.map((point) => point.mean + (point.sd || 0));
  const xs = padded(Math.min(...costs), Math.max(...costs), 0.16);
  const height = Math.min(430, Math.max(300, width * 0.55));
  const { root, x, y, box } = frame(width, height, [Math.max(0, xs[0]), xs[1]], padded(Math.min(...lows), Math.max(...highs), 0.16),
    { xLabel: `Peak memory of a training step, tracked (${unit})`, yLabel: scoreLabel, label: "Score against peak memory", xTicks: width < 500 ? 4 : 7 });
  const limit = Math.min(box.right, Math.max(box.left, x(budget / size)));
  root.append(svg("rect", { class: "beyond", x: limit, y: box.top, width: Math.max(0, box.right - limit), height: box.bottom - box.top }),
    svg("line", { class: "budget", x1: limit, x2: limit, y1: box.top, y2: box.bottom }));
  const steps = list.map((point, index) => [x(costs[index]), y(point.mean), onFront(point)]).filter((p) => p[2]).sort((a, b) => a[0] - b[0]);
  const path = steps.map(([px, py], index) => (index ? `H${px}V${py}` : `M${px},${py}`)).join("") + `H${box.right}`;
  root.append(svg("path", { class: "front", d: path }));
  const taken = list.map((point, index) => ({ left: x(costs[index]) - 9, right: x(costs[index]) + 9,
    top: y(highs[index]) - 4, bottom: y(lows[index]) + 4 }));
  steps.forEach(([px, py], index) => {
    const [nextX, nextY] = steps[index + 1] || [box.right, py];
    taken.push({ left: px + 9, right: nextX, top: py - 1, bottom: py + 1 },
      { left: nextX - 1, right: nextX + 1, top: Math.min(py, nextY), bottom: Math.max(py, nextY) });
  });
  list.forEach((point, index) => root.append(frontPoint(point, { px: x(costs[index]), py: y(point.mean), high: y(highs[index]), low: y(lows[index]), box, taken, digits, budget, hollow, press })));
  return root;
}

const onFront = (point) => point.over.length === 0;

function frontPoint(point, { px, py, high, low, box, taken, digits, budget, hollow, press }) {
  const paint = colour(point.method);
  const filled = onFront(point) && !hollow;
  const node = svg("g", { class: `point${point.peak > budget ? " dim" : ""}`, "data-method": point.method });
  if (point.sd !== null) node.append(svg("path", { class: "error", d: `M${px},${high}V${low}M${px - 5},${high}h10M${px - 5},${low}h10`, style: `stroke:${paint}` }));
  node.append(marker(lookOf(point.method).marker, px, py, 7, { style: `stroke:${paint};fill:${filled ? paint : "var(--card)"}`, "stroke-width": 2 }),
    svg("circle", { cx: px, cy: py, r: 18, fill: "transparent" }), pointLabel(title(point.method), px, py, box, taken));
  const text = [title(point.method), `score ${spread(point.mean, point.sd, digits + 1)} (n = ${point.n})`, `peak ${bytes(point.peak)}`,
    onFront(point) ? `on the front of ${hollow ? "these single seeds" : "the means"}` : `not on the front: ${names(point.over)} needs no more memory and scores as well`,
    point.chance === null ? "chance unknown: fewer than two shared seeds" : `chance of being on it: ${percent(point.chance)}`];
  return pressable(hint(node, () => text), () => press(point.method), text.join(", "));
}

/** A label where it covers no other label or mark. */
function pointLabel(text, px, py, box, taken) {
  const wide = text.length * 7.7;
  const places = [[13, 4], [-13 - wide, 4], [-wide / 2, -16], [-wide / 2, 26], [13, -16], [13, 24], [-13 - wide, -16], [-13 - wide, 24], [-wide / 2, -34], [-wide / 2, 44]];
  const boxOf = ([dx, dy]) => ({ left: px + dx, right: px + dx + wide, top: py + dy - 12, bottom: py + dy + 3 });
  const crosses = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const cost = (place) => {
    const here = boxOf(place);
    const outside = here.left < box.left || here.right > box.right + 10 || here.top < box.top - 6 || here.bottom > box.bottom;
    return (outside ? 10 : 0) + taken.filter((other) => crosses(here, other)).length;
  };
  const best = places.reduce((a, b) => (cost(b) < cost(a) ? b : a));
  taken.push(boxOf(best));
  return svg("text", { class: "label", x: px + best[0], y: py + best[1] }, text);
}

const MARKS = 4;

/** Lines of loss by step: {method, steps, mean, sd}; `broken` are runs that did not finish, dotted. */
function curveChart(width, name, lines, broken = [], { xLabel = "Optimizer step", yLabel = "Loss", label = `Training loss, ${name}`, unit = "step", first = 0 } = {}) {
  const known = (values) => values.filter((value) => value !== null);
  const ends = lines.flatMap((line) => line.mean.flatMap((mean, index) => (mean === null ? [] : [mean - (line.sd[index] || 0), mean + (line.sd[index] || 0)])))
    .concat(broken.flatMap((run) => known(run.losses)));
  if (!ends.length) return null;
  const last = Math.max(...lines.map((line) => Math.max(0, ...line.steps)), ...broken.map((run) => Math.max(0, ...run.steps)));
  const { root, x, y, box } = frame(width, 210, [first, last], padded(Math.min(...ends), Math.max(...ends), 0.04),
    { left: 52, top: 8, right: 8, xTicks: 4, yTicks: 4, xLabel, yLabel, label });
  lines.forEach((line, place) => {
    const at = line.steps.map((step, index) => [step, line.mean[index], line.sd[index] || 0]).filter((point) => point[1] !== null);
    const trace = (sign) => at.map(([step, mean, sd]) => `${x(step).toFixed(1)},${y(mean + sign * sd).toFixed(1)}`);
    if (line.n > 1) root.append(svg("polygon", { class: "band", points: [...trace(1), ...trace(-1).reverse()].join(" "), style: `fill:${colour(line.method)}` }));
    root.append(svg("polyline", { class: "line", "data-method": line.method, points: trace(0).join(" "), style: `stroke:${colour(line.method)}`, "stroke-dasharray": dashes(line.method) }));
    // A few marks a line, away from those of the others: as in the figures.
    for (let mark = 0; mark < Math.min(MARKS, at.length); mark += 1) {
      const [step, mean] = at[Math.floor(((mark + place / lines.length) * at.length) / Math.min(MARKS, at.length))];
      root.append(marker(lookOf(line.method).marker, x(step), y(mean), 3.2, { class: "spot", style: `fill:${colour(line.method)}` }));
    }
  });
  for (const run of broken) {
    const at = run.steps.map((step, index) => [step, run.losses[index]]).filter(([, loss]) => loss !== null);
    root.append(svg("polyline", { class: "line broken", points: at.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" "), style: `stroke:${colour(run.method)}` }));
  }
  root.append(crosshair(lines, x, box, first, last, unit));
  return root;
}

/** A dashed line leaves a solid one below it in sight: methods that agree do not hide each other. */
const dashes = (method) => (lookOf(method).dashed ? "7 3" : null);

/** A strip over the whole panel that tells the values at the step under the pointer. */
function crosshair(lines, x, box, first, last, unit) {
  const line = svg("line", { class: "cross", y1: box.top, y2: box.bottom, visibility: "hidden" });
  let step = first;
  const strip = svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: "transparent" });
  strip.addEventListener("pointermove", (event) => {
    const place = strip.getBoundingClientRect();
    step = Math.round(first + ((event.clientX - place.left) / place.width) * (last - first));
    line.setAttribute("x1", x(step));
    line.setAttribute("x2", x(step));
    line.setAttribute("visibility", "visible");
  });
  strip.addEventListener("pointerleave", () => line.setAttribute("visibility", "hidden"));
  hint(strip, () => [`${unit} ${step}`, ...lines.filter((one) => one.steps.length).map((one) => {
    const near = one.steps.reduce((best, value, index) => (Math.abs(value - step) < Math.abs(one.steps[best] - step) ? index : best), 0);
    return `${title(one.method)}: ${spread(one.mean[near], one.sd[near], 3)}`;
  })]);
  return svg("g", {}, line, strip);
}

/** Stacked bars of bytes, a row a method: {method, run, amounts}; the totals stand at their ends. */
function partsChart(width, rows, { press }) {
  // Long names stand above their bars.
  const narrow = width < 560 || rows.some((row) => title(row.method).length > 20);
  const total = (row) => row.amounts.reduce((sum, amount) => sum + amount, 0);
  const [unit, size] = unitOf(Math.max(...rows.map(total)));
  const [high, left] = [narrow ? 46 : 34, narrow ? 8 : 150];
  const { root, x, box } = frame(width, 12 + rows.length * high + 46, [0, Math.max(...rows.map(total)) / size], null,
    { xLabel: `Bytes at the peak of a step (${unit})`, left, right: 82, top: 8, bottom: 46, label: "Parts of the peak", xTicks: narrow ? 4 : 7 });
  rows.forEach((row, index) => {
    const top = box.top + index * high + (narrow ? 18 : 4);
    const node = svg("g", { class: "bar", "data-method": row.method },
      svg("text", { class: "label", x: narrow ? left : left - 10, y: narrow ? top - 5 : top + 17, "text-anchor": narrow ? "start" : "end" }, title(row.method)));
    let at = 0;
    Object.values(DATA.parts).forEach((paint, part) => {
      const amount = row.amounts[part] / size;
      if (amount > 0) node.append(svg("rect", { x: x(at), y: top, width: Math.max(0.5, x(at + amount) - x(at)), height: 24, style: `fill:${paint}` }));
      at += amount;
    });
    node.append(svg("text", { class: "label", x: x(at) + 6, y: top + 17 }, bytes(total(row))), svg("rect", { x: 0, y: top, width, height: 24, fill: "transparent" }));
    const lines = [`${title(row.method)}, ${taskTitle(row.run.task, row.run.suite)}, seed ${row.run.seed}`,
      ...Object.keys(DATA.parts).map((name, part) => `${name}: ${bytes(row.amounts[part])}`), `total: ${bytes(total(row))}`];
    root.append(pressable(hint(node, () => lines), () => press(row.run), `${lines[0]}: ${lines.slice(1).join(", ")}: show the run`));
  });
  const card = x((24 * 2 ** 30) / size);
  if (card < box.right) root.append(svg("line", { class: "budget", x1: card, x2: card, y1: box.top, y2: box.bottom }),
    svg("text", { class: "tick", x: card + 4, y: box.bottom - 4 }, "24 GiB"));
  return root;
}
