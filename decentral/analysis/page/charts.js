// Lines with bands of their intervals, as SVG: metrics of a run against time or cost, and of a sweep against what varies.

/** One set of axes in a figure. `content()` says what to draw: lines {name, colour, dash, x, y, half} and how. */
class Plot {
  constructor(figure, content) {
    this.figure = figure;
    this.content = content;
    this.height = 270;
    this.cursor = null;
    this.svg = draw("svg", { class: "plot", tabindex: 0, role: "img" });
    this.bubble = make("div", { class: "bubble", hidden: "", role: "status" });
    figure.append(this.svg, this.bubble);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    this.svg.addEventListener("blur", () => this.show(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      if (Math.round(figure.clientWidth) !== this.width) this.paint();
    }).observe(figure);
    repaint.push(() => this.paint());
  }

  paint() {
    this.width = Math.round(this.figure.clientWidth) || 480;
    const { width, height } = this;
    this.shown = this.content();
    const { lines, logX, logY, percent, categories, xLabel, yLabel, title } = this.shown;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", `${title}: ${lines.map((line) => line.name).join(", ")}. Left and right arrows read values.`);
    this.svg.replaceChildren();
    const usable = (value, log) => value !== null && Number.isFinite(value) && (!log || value > 0);
    const good = (line, k) => usable(line.x[k], logX) && usable(line.y[k], logY);
    const xs = [], ys = [];
    for (const line of lines) {
      line.x.forEach((x, k) => {
        if (!good(line, k)) return;
        xs.push(x);
        const half = line.half[k] ?? 0;
        ys.push(line.y[k], line.y[k] + half);
        if (!logY || line.y[k] - half > 0) ys.push(line.y[k] - half);
      });
    }
    if (!xs.length) {
      const why = lines.length ? "no value that these axes can show" : "no algorithm is chosen";
      this.svg.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, why));
      this.places = [];
      this.show(null);
      return;
    }
    const floor = logY ? this.shown.floor ?? 0 : null;
    // A band may reach below 0 where no value can: it is cut there.
    const lowest = least(lines.flatMap((line) => line.y.filter((value) => value !== null)));
    const low = logY ? Math.max(least(ys), floor) : lowest >= 0 ? Math.max(least(ys), 0) : least(ys);
    const y = this.scale(low, most(ys), logY, percent);
    const x = this.scale(least(xs), most(xs), logX, false, !categories && !logX);
    if (categories) [x.low, x.high] = [-0.5, categories.length - 0.5];
    const left = 16 + 6.6 * Math.max(...y.marks.map((mark) => mark.label.length)) + 16;
    const box = { left, right: width - 14, top: 10, bottom: height - 40 };
    this.box = box;
    const along = (scale, from, to) => (value) =>
      from + ((scale.log ? Math.log10(value) : value) - scale.low) / (scale.high - scale.low || 1) * (to - from);
    const px = (this.px = along(x, box.left, box.right));
    const py = (this.py = along(y, box.bottom, box.top));
    const frame = draw("g", {});
    for (const mark of y.marks) {
      const at = py(mark.value);
      frame.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }));
      if (mark.label) frame.append(draw("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, mark.label));
    }
    const given = this.shown.values?.filter((value) => !logX || value > 0);
    const marks = categories?.map((label, value) => ({ value, label })) ?? given?.map((value) => ({ value, label: short(value) })) ?? x.marks;
    let until = -Infinity;
    for (const mark of marks) {
      const at = px(mark.value);
      const text = mark.label.length > 18 ? `${mark.label.slice(0, 17)}…` : mark.label;
      frame.append(draw("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
      const half = 3.3 * text.length;
      if (!text || at - half < until) continue;
      until = at + half + 6;
      frame.append(draw("text", { x: at, y: box.bottom + 16, "text-anchor": "middle" }, text));
    }
    frame.append(
      draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      draw("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: box.bottom }),
      draw("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
      draw("text", { transform: `translate(12 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
    );
    this.svg.append(frame);
    const bottom = logY ? 10 ** y.low : -Infinity;
    // A picture in the picture: what reaches beyond the axes is cut there.
    const inner = [box.left - 3, box.top - 3, box.right - box.left + 6, box.bottom - box.top + 4];
    this.layer = draw("svg", { x: inner[0], y: inner[1], width: inner[2], height: inner[3], viewBox: inner.join(" ") });
    this.svg.append(this.layer);
    for (const line of lines) this.line(line, good, px, py, bottom);
    this.guide = draw("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.dots = draw("g", {});
    this.svg.append(this.guide, this.dots);
    this.good = good;
    this.places = [...new Set(xs)].sort((a, b) => a - b);
    this.show(null);
  }

  scale(low, high, log, percent, tight) {
    if (log) {
      let [from, to] = [Math.log10(low), Math.log10(high)];
      if (to - from < 0.02) [from, to] = [from - 0.3, to + 0.3];
      const margin = 0.04 * (to - from);
      [from, to] = [from - margin, to + margin];
      const marks = [];
      const every = Math.max(1, Math.ceil((to - from) / 7));
      for (let power = Math.floor(from); power <= to; power++) {
        if (power >= from && power % every === 0) marks.push({ value: 10 ** power, label: powerOfTen(power) });
        if (to - from > 2.5) continue;
        for (const digit of to - from < 0.9 ? [2, 3, 4, 5, 6, 7, 8, 9] : [2, 5]) {
          const at = power + Math.log10(digit);
          if (at >= from && at <= to) marks.push({ value: digit * 10 ** power, label: short(digit * 10 ** power) });
        }
      }
      return { low: from, high: to, log, marks };
    }
    if (high === low) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const margin = tight ? 0.01 * (high - low) : 0.05 * (high - low);
    let [from, to] = [low - margin, high + margin];
    if (percent) [from, to] = [Math.max(from, 0), Math.min(to, 1.005)];
    const label = (value) => (percent ? `${short(100 * value)} %` : short(value));
    return { low: from, high: to, log, marks: ticks(from, to, 6).map((value) => ({ value, label: label(value) })) };
  }

  line(line, good, px, py, bottom) {
    const colour = ink(line.colour);
    const pieces = [[]];
    line.x.forEach((_, k) => {
      if (good(line, k)) pieces.at(-1).push(k);
      else if (pieces.at(-1).length) pieces.push([]);
    });
    const place = (x, y) => `${px(x).toFixed(1)},${py(Math.max(y, bottom)).toFixed(1)}`;
    for (const piece of pieces.filter((one) => one.length)) {
      const banded = piece.filter((k) => line.half[k] !== null && line.half[k] !== undefined);
      if (this.shown.bars) {
        for (const k of banded) {
          const at = px(line.x[k]);
          const ends = [py(Math.max(line.y[k] - line.half[k], bottom)), py(line.y[k] + line.half[k])];
          this.layer.append(draw("line", { x1: at, x2: at, y1: ends[0], y2: ends[1], stroke: colour, "stroke-width": 1.4 }));
        }
      } else if (banded.length > 1) {
        const upper = banded.map((k) => place(line.x[k], line.y[k] + line.half[k]));
        const lower = banded.map((k) => place(line.x[k], line.y[k] - line.half[k])).reverse();
        this.layer.append(draw("polygon", { points: [...upper, ...lower].join(" "), fill: colour, opacity: 0.18 }));
      }
      const points = piece.map((k) => place(line.x[k], line.y[k])).join(" ");
      if (piece.length > 1) {
        this.layer.append(draw("polyline", {
          points, fill: "none", stroke: colour, "stroke-width": 1.9, "stroke-dasharray": line.dash, "stroke-linejoin": "round",
        }));
      }
      if (piece.length === 1 || this.shown.bars) {
        for (const k of piece) this.layer.append(draw("circle", { cx: px(line.x[k]), cy: py(line.y[k]), r: 3, fill: colour }));
      }
    }
  }

  point(event) {
    if (!this.places?.length) return;
    const bounds = this.svg.getBoundingClientRect();
    const at = (event.clientX - bounds.left) * this.width / bounds.width;
    this.show(nearest(this.places, (value) => Math.abs(this.px(value) - at)));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !this.places?.length) {
      if (event.key === "Escape") this.show(null);
      return;
    }
    event.preventDefault();
    const last = this.places.length - 1;
    const here = this.cursor === null ? (step > 0 ? -1 : last + 1) : this.places.indexOf(this.cursor);
    this.show(this.places[Math.min(last, Math.max(0, here + step))]);
  }

  /** What every line says where the cursor is: at its own record that is nearest. */
  show(place) {
    this.cursor = place;
    this.bubble.hidden = place === null;
    this.guide?.setAttribute("visibility", place === null ? "hidden" : "visible");
    this.dots?.replaceChildren();
    if (place === null) return;
    const { lines, categories, percent, xLabel } = this.shown;
    const at = this.px(place);
    this.guide.setAttribute("x1", at);
    this.guide.setAttribute("x2", at);
    const rows = [];
    for (const line of lines) {
      const indices = line.x.map((_, k) => k).filter((k) => this.good(line, k));
      const k = nearest(indices, (one) => Math.abs(this.px(line.x[one]) - at));
      if (k === null || (categories && line.x[k] !== place)) continue;
      const said = percent
        ? `${interval(100 * line.y[k], line.half[k] === null ? null : 100 * line.half[k])} %`
        : interval(line.y[k], line.half[k]);
      const beside = line.x[k] === place ? "" : `at ${words(line.x[k])}`;
      rows.push([line.y[k], make("tr", {}, make("th", {}, stroke(line), ` ${line.name}`), make("td", {}, said), make("td", {}, beside))]);
      this.dots.append(draw("circle", { cx: this.px(line.x[k]), cy: this.py(line.y[k]), r: 3.2, fill: ink(line.colour) }));
    }
    rows.sort((first, second) => second[0] - first[0]);
    const said = categories ? categories[place] : words(place);
    this.bubble.replaceChildren(make("div", {}, `${xLabel}: ${said}`), make("table", {}, ...rows.map((row) => row[1])));
    // Beside the cursor where there is room, else below the plot.
    const [outer, inner] = [this.figure.getBoundingClientRect(), this.svg.getBoundingClientRect()];
    const here = inner.left - outer.left + (at * inner.width) / this.width;
    const wide = this.bubble.offsetWidth;
    const right = here + 14 + wide <= outer.width;
    const beside = right || here - 14 - wide >= 0;
    this.bubble.style.left = `${right ? here + 14 : Math.max(0, beside ? here - 14 - wide : 0)}px`;
    this.bubble.style.top = `${(beside ? inner.top + 8 : inner.bottom) - outer.top}px`;
  }
}

function least(values) {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}
function most(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}
function nearest(values, distance) {
  let found = null, best = Infinity;
  for (const value of values) {
    const here = distance(value);
    if (here < best) [found, best] = [value, here];
  }
  return found;
}
/** A piece of a line, for legends. */
function stroke(line) {
  const svg = draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
  svg.append(draw("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: ink(line.colour), "stroke-width": 3, "stroke-dasharray": line.dash }));
  return svg;
}
let identities = 0;
/** A labelled choice of one among several: entries are [value, words]. */
function chooser(label, entries, chosen, changed) {
  const id = `choice-${++identities}`;
  const list = make("select", { id }, ...entries.map(([value, text]) => make("option", { value }, text)));
  list.value = chosen;
  list.addEventListener("change", () => changed(list.value));
  return make("label", { for: id }, label, " ", list);
}
function tick(label, checked, changed) {
  const box = make("input", { type: "checkbox" });
  box.checked = checked;
  box.addEventListener("change", () => changed(box.checked));
  return [make("label", {}, box, " ", label), box];
}
/** Names to switch on and off. */
function legend(lines, hidden, changed) {
  const set = make("fieldset", { class: "legend", "aria-label": "shown" });
  const fill = () => set.replaceChildren(...lines.map((line) => {
    const [label] = tick("", !hidden.has(line.name), (on) => {
      if (on) hidden.delete(line.name);
      else hidden.add(line.name);
      changed();
    });
    label.append(stroke(line), ` ${line.name}`);
    return label;
  }));
  fill();
  repaint.push(fill);
  return set;
}

// -- a run: metrics against an axis -------------------------------------------------------------------------------------

function drawCurves(place, curves) {
  const hidden = new Set();
  const plots = [];
  let axis = curves.axis;
  let logX = false;
  const again = () => plots.forEach((plot) => plot.paint());
  const controls = make("div", { class: "controls" });
  controls.append(
    chooser("against", Object.entries(curves.axes), axis, (value) => { axis = value; again(); }),
    tick("log axis below", false, (on) => { logX = on; again(); })[0],
  );
  const panels = make("div", { class: "panels" });
  place.append(controls, legend(curves.lines, hidden, again), panels);
  curves.panels.forEach((first) => {
    let metric = first;
    let logY = curves.metrics[metric].log;
    const figure = make("figure", { class: "panel" });
    panels.append(figure);
    const [logLabel, logBox] = tick("log", logY, (on) => { logY = on; plot.paint(); });
    const entries = Object.entries(curves.metrics).map(([name, entry]) => [name, entry.title]);
    const bar = make("div", { class: "controls" }, chooser("", entries, metric, (value) => {
      metric = value;
      logBox.checked = logY = curves.metrics[metric].log;
      plot.paint();
    }), logLabel);
    bar.querySelector("select").setAttribute("aria-label", "metric");
    figure.append(bar);
    const plot = new Plot(figure, () => {
      const about = curves.metrics[metric];
      const lines = curves.lines.filter((line) => !hidden.has(line.name) && metric in line.metrics && axis in line.axes);
      return {
        title: about.title, yLabel: about.label, xLabel: curves.axes[axis], logX, logY, percent: about.percent && !logY,
        floor: about.floor,
        lines: lines.map((line) => ({ ...line, x: line.axes[axis], y: line.metrics[metric].mean, half: line.metrics[metric].half })),
      };
    });
    plots.push(plot);
  });
  again();
}

// -- a sweep: what every run came to, against what varies ---------------------------------------------------------------

function drawSweep(place, sweep) {
  const names = Object.keys(sweep.axes);
  let axis = sweep.axis;
  let metric = sweep.metric;
  let [logX, logY] = [sweep.axes[axis].log, sweep.metrics[metric].log];
  const only = {};
  const hidden = new Set();
  const figure = make("figure", { class: "panel" });
  const key = make("div", { class: "legend" });
  const filters = make("div", { class: "controls" });
  const [logXLabel, logXBox] = tick("log axis below", logX, (on) => { logX = on; plot.paint(); });
  const [logYLabel, logYBox] = tick("log", logY, (on) => { logY = on; plot.paint(); });
  const controls = make("div", { class: "controls" },
    chooser("metric", Object.entries(sweep.metrics).map(([name, entry]) => [name, entry.title]), metric, (value) => {
      metric = value;
      logYBox.checked = logY = sweep.metrics[metric].log;
      plot.paint();
    }),
    logYLabel,
    chooser("against", names.map((name) => [name, name]), axis, (value) => {
      axis = value;
      logXBox.checked = logX = sweep.axes[axis].log;
      refill();
      plot.paint();
    }),
    logXLabel,
  );
  const refill = () => filters.replaceChildren(...names.filter((name) => name !== axis).map((name) => {
    const entries = [["", "each, a line"], ...sweep.axes[name].values.map((value, k) => [String(k), String(value)])];
    return chooser(name, entries, only[name] ?? "", (value) => { only[name] = value; plot.paint(); });
  }));
  refill();
  place.append(controls, filters, legend(sweep.algorithms, hidden, () => plot.paint()), figure, key);
  const dashes = [null, "6 3", "2 2", "8 3 2 3", "1 3", "12 4"];
  const plot = new Plot(figure, () => {
    const groups = new Map();
    const numeric = sweep.axes[axis].numeric;
    for (const run of sweep.points) {
      if (hidden.has(run.algorithm) || !(metric in run.metrics)) continue;
      const others = names.filter((name) => name !== axis);
      if (others.some((name) => (only[name] ?? "") !== "" && run.at[name] !== Number(only[name]))) continue;
      const open = others.filter((name) => (only[name] ?? "") === "" && sweep.axes[name].values.length > 1);
      const named = [run.algorithm, ...open.map((name) => `${name} ${sweep.axes[name].values[run.at[name]]}`)].join(", ");
      if (!groups.has(named)) groups.set(named, { name: named, algorithm: run.algorithm, points: [] });
      const at = run.at[axis];
      const [mean, half] = run.metrics[metric];
      groups.get(named).points.push([numeric ? sweep.axes[axis].values[at] : at, mean, half]);
    }
    const count = {};
    const lines = [...groups.values()].map((group) => {
      group.points.sort((a, b) => a[0] - b[0]);
      const look = sweep.algorithms.find((one) => one.name === group.algorithm);
      const turn = (count[group.algorithm] = (count[group.algorithm] ?? -1) + 1);
      const [x, y, half] = [0, 1, 2].map((column) => group.points.map((point) => point[column]));
      return { name: group.name, colour: look.colour, dash: dashes[turn % dashes.length], x, y, half };
    });
    const several = lines.length > sweep.algorithms.length - hidden.size;
    key.replaceChildren(...(several ? lines.slice(0, 40).map((line) => make("span", {}, stroke(line), ` ${line.name}`)) : []));
    const about = sweep.metrics[metric];
    return {
      title: about.title, yLabel: about.label, xLabel: axis, logX: logX && numeric, logY, percent: about.percent && !logY, lines,
      bars: true, categories: numeric ? null : sweep.axes[axis].values.map(String),
      values: numeric && sweep.axes[axis].values.length <= 12 ? sweep.axes[axis].values : null,
    };
  });
  plot.height = 340;
  plot.paint();
}

// -- a meta-training: the loss of every task ----------------------------------------------------------------------------

function drawSeries(place, series) {
  const hidden = new Set();
  let logY = series.log;
  const figure = make("figure", { class: "panel" });
  place.append(
    make("div", { class: "controls" }, tick("log", logY, (on) => { logY = on; plot.paint(); })[0]),
    legend(series.lines, hidden, () => plot.paint()),
    figure,
  );
  const plot = new Plot(figure, () => ({
    title: series.title, xLabel: series.xLabel, yLabel: series.yLabel, logX: false, logY, percent: false,
    lines: series.lines.filter((line) => !hidden.has(line.name)),
  }));
  plot.height = 340;
  plot.paint();
}

for (const [name, drawer] of [["curves", drawCurves], ["sweep", drawSweep], ["series", drawSeries]]) {
  if (data[name]) drawer(document.getElementById(`${name}-plot`), data[name]);
}
