// Figures as inline SVG, drawn at the width they get.

const FONT = 12;

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

/** A frame with axes: {root, x, y, box} where x and y map data to pixels. */
function frame(width, height, xs, ys, { xLabel, yLabel, left = 52, bottom = 42, top = 12, right = 14, xTicks = 6, yTicks = 5, label }) {
  const box = { left, right: width - right, top, bottom: height - bottom };
  const x = (value) => box.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - ys[0]) / (ys[1] - ys[0] || 1)) * (box.bottom - box.top);
  const root = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  for (const value of ticks(ys[0], ys[1], yTicks)) {
    root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, significant(value, 4)));
  }
  for (const value of ticks(xs[0], xs[1], xTicks)) {
    root.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
      svg("text", { class: "tick", x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, significant(value, 4)));
  }
  root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  if (xLabel) root.append(svg("text", { class: "axis-label", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  if (yLabel) root.append(svg("text", { class: "axis-label", x: -(box.top + box.bottom) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)" }, yLabel));
  return { root, x, y, box };
}

const padded = (low, high, share) => {
  const room = (high - low) * share || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
};

/** Score against peak memory with error bars, the front of the means, and a line at the budget. */
function frontChart(width, list, { scoreLabel, budget, chance, press }) {
  const [unit, size] = unitOf(Math.max(...list.map((point) => point.peak)));
  const costs = list.map((point) => point.peak / size);
  const lows = list.map((point) => point.summary.mean - (point.summary.sd || 0));
  const highs = list.map((point) => point.summary.mean + (point.summary.sd || 0));
  const xs = padded(Math.min(...costs), Math.max(...costs), 0.16);
  const height = Math.min(430, Math.max(300, width * 0.55));
  const chart = frame(width, height, [Math.max(0, xs[0]), xs[1]], padded(Math.min(...lows), Math.max(...highs), 0.16),
    { xLabel: `Peak memory of a training step, tracked (${unit})`, yLabel: scoreLabel, label: "Score against peak memory", left: 58, xTicks: width < 500 ? 4 : 7 });
  const on = front(list.map((point) => ({ cost: point.peak, worth: point.way * point.summary.mean })));
  const { root, x, y, box } = chart;
  const limit = Math.min(box.right, Math.max(box.left, x(budget / size)));
  root.append(svg("rect", { class: "beyond", x: limit, y: box.top, width: Math.max(0, box.right - limit), height: box.bottom - box.top }),
    svg("line", { class: "budget", x1: limit, x2: limit, y1: box.top, y2: box.bottom }));
  const steps = list.map((point, index) => [x(costs[index]), y(point.summary.mean), on[index]]).filter((p) => p[2]).sort((a, b) => a[0] - b[0]);
  const path = steps.map(([px, py], index) => (index ? `H${px}V${py}` : `M${px},${py}`)).join("") + `H${box.right}`;
  root.append(svg("path", { class: "front", d: path }));
  const taken = list.map((point, index) => ({ left: x(costs[index]) - 9, right: x(costs[index]) + 9,
    top: y(highs[index]) - 4, bottom: y(lows[index]) + 4 }));
  steps.forEach(([px, py], index) => {
    const [nextX, nextY] = steps[index + 1] || [box.right, py];
    taken.push({ left: px + 9, right: nextX, top: py - 1, bottom: py + 1 },
      { left: nextX - 1, right: nextX + 1, top: Math.min(py, nextY), bottom: Math.max(py, nextY) });
  });
  list.forEach((point, index) => {
    const px = x(costs[index]);
    const look = LOOKS.get(point.method);
    const paint = colour(point.method);
    const group = svg("g", { class: `point${point.peak > budget ? " dim" : ""}`, "data-method": point.method });
    if (point.summary.sd !== null) {
      const [high, low] = [y(highs[index]), y(lows[index])];
      group.append(svg("path", { class: "error", d: `M${px},${high}V${low}M${px - 5},${high}h10M${px - 5},${low}h10`, style: `stroke:${paint}` }));
    }
    group.append(marker(look.marker, px, y(point.summary.mean), 7, { style: `stroke:${paint};fill:${on[index] ? paint : "var(--card)"}`, "stroke-width": 2 }),
      svg("circle", { cx: px, cy: y(point.summary.mean), r: 18, fill: "transparent" }),
      pointLabel(title(point.method), px, y(point.summary.mean), box, taken));
    const text = [title(point.method), `score ${spread(point.summary, 2)} (n = ${point.summary.n})`, `peak ${bytes(point.peak)}`,
      on[index] ? "on the front of the means" : "not on the front of the means",
      chance ? `chance of being on it: ${number(100 * chance.get(point.method), 0)} %` : "chance unknown: fewer than two shared seeds"];
    root.append(pressable(hint(group, () => text), () => press(point.method), text.join(", ")));
  });
  return root;
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

/** Mean and band of the thinned training loss by method, over the seeds that finished; broken runs dotted. */
function curveChart(width, task, runs) {
  const series = order(new Set(runs.map((run) => run.method))).map((method) => {
    const mine = runs.filter((run) => run.method === method && run.curve[1].length);
    const done = mine.filter((run) => run.status === "ok");
    const grids = new Map();
    for (const run of done) bucket(grids, run.curve[0]).push(run.curve[1]);
    const [grid, lines] = [...grids].sort((a, b) => b[1].length - a[1].length)[0] || [null, []];
    const steps = grid === null ? [] : POOLS.steps[grid];
    const stats = steps.map((_, index) => summarise(lines.map((line) => line[index]).filter((value) => value !== null)));
    const broken = mine.filter((run) => run.status !== "ok").map((run) => ({ steps: POOLS.steps[run.curve[0]], losses: run.curve[1] }));
    return { method, steps, stats, broken, n: lines.length };
  }).filter((one) => one.steps.length || one.broken.length);
  const all = series.flatMap((one) => one.stats.flatMap(({ mean, sd }) => (mean === null ? [] : [mean - (sd || 0), mean + (sd || 0)]))
    .concat(one.broken.flatMap((run) => run.losses.filter((value) => value !== null))));
  const last = Math.max(...series.map((one) => Math.max(0, ...one.steps, ...one.broken.flatMap((run) => run.steps))));
  if (!all.length) return null;
  const { root, x, y, box } = frame(width, 190, [0, last], padded(Math.min(...all), Math.max(...all), 0.04),
    { left: 42, bottom: 26, top: 8, right: 8, xTicks: 4, yTicks: 4, label: `Training loss, ${taskTitle(task)}` });
  for (const one of series) {
    const known = one.steps.map((step, index) => [x(step), one.stats[index]]).filter(([, stat]) => stat.mean !== null);
    const upper = known.map(([px, stat]) => `${px.toFixed(1)},${y(stat.mean + (stat.sd || 0)).toFixed(1)}`);
    const lower = known.map(([px, stat]) => `${px.toFixed(1)},${y(stat.mean - (stat.sd || 0)).toFixed(1)}`).reverse();
    if (one.n > 1) root.append(svg("polygon", { class: "band", points: [...upper, ...lower].join(" "), style: `fill:${colour(one.method)}` }));
    root.append(svg("polyline", { class: "line", "data-method": one.method, points: known.map(([px, stat]) => `${px.toFixed(1)},${y(stat.mean).toFixed(1)}`).join(" "), style: `stroke:${colour(one.method)}` }));
    for (const run of one.broken) {
      const points = run.steps.map((step, index) => [step, run.losses[index]]).filter(([, loss]) => loss !== null);
      root.append(svg("polyline", { class: "line broken", points: points.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" "), style: `stroke:${colour(one.method)}` }));
    }
  }
  root.append(crosshair(series, x, box, last));
  return root;
}

/** A strip over the whole panel that tells the losses at the step under the pointer. */
function crosshair(series, x, box, last) {
  const line = svg("line", { class: "cross", y1: box.top, y2: box.bottom, visibility: "hidden" });
  let step = 0;
  const strip = svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: "transparent" });
  strip.addEventListener("pointermove", (event) => {
    const place = strip.getBoundingClientRect();
    step = Math.round(((event.clientX - place.left) / place.width) * last);
    line.setAttribute("x1", x(step));
    line.setAttribute("x2", x(step));
    line.setAttribute("visibility", "visible");
  });
  strip.addEventListener("pointerleave", () => line.setAttribute("visibility", "hidden"));
  hint(strip, () => [`step ${step}`, ...series.filter((one) => one.steps.length).map((one) => {
    const near = one.steps.reduce((best, value, index) => (Math.abs(value - step) < Math.abs(one.steps[best] - step) ? index : best), 0);
    return `${title(one.method)}: ${spread(one.stats[near], 3)}`;
  })]);
  return svg("g", {}, line, strip);
}

/** One horizontal bar of parts; widths in shares of `largest`. */
function stackedBar(parts, largest, label) {
  let at = 0;
  const root = svg("svg", { class: "stack", viewBox: "0 0 1000 26", preserveAspectRatio: "none", height: 26, role: "img", "aria-label": label });
  for (const [name, amount] of parts) {
    const wide = (amount / largest) * 1000;
    if (wide > 0) root.append(svg("rect", { x: at, y: 0, width: Math.max(wide, 0.8), height: 26, style: `fill:${DATA.parts[name]}` }));
    at += wide;
  }
  return root;
}
