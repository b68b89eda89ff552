// Who computed and communicated when: one by one where that is kept and fits the pixels, else shares of time.

const SPAN = 2 ** 32 - 2; // ticks of a run, as in decentral.analysis.page.timeline
const LOST = 1, UNDER_WAY = 2;
const RED = "#bd1f01";
const MOST_LINES = 1500;

class Timeline {
  constructor(place, views) {
    this.views = views;
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "timeline" });
    this.overview = make("canvas", { class: "overview", "aria-hidden": "true" });
    this.bubble = make("div", { class: "bubble", hidden: "" });
    this.figure = make("figure", {}, this.canvas, this.overview, this.bubble);
    this.caption = make("figcaption", { role: "status" });
    this.figure.append(this.caption);
    this.legend = make("div", { class: "legend" });
    const button = (label, title, act) => {
      const made = make("button", { type: "button", title, "aria-label": title }, label);
      made.addEventListener("click", () => act());
      return made;
    };
    const controls = make("div", { class: "controls" },
      button("+", "zoom in", () => this.zoom(0.5)),
      button("−", "zoom out", () => this.zoom(2)),
      button("◀", "earlier", () => this.pan(-0.3)),
      button("▶", "later", () => this.pan(0.3)),
      button("the beginning", "show the beginning", () => this.window(0, this.view.begin_until_s)),
      button("the whole run", "show the whole run", () => this.window(0, this.view.horizon_s)),
    );
    if (views.length > 1) {
      controls.prepend(chooser("events of", views.map((view, k) => [String(k), view.name]), "0", (k) => this.open(Number(k))));
    }
    const help = make("p", { class: "small noprint" },
      "Drag to pan; Ctrl and the wheel, a double click or + and − zoom; arrows pan, 0 shows the whole run. " +
      "The strip below the chart is the whole run: drag on it to choose a part.");
    place.append(controls, this.legend, this.figure, help);
    this.listen();
    new ResizeObserver(() => {
      if (this.figure.clientWidth !== this.width) this.paint();
    }).observe(this.figure);
    repaint.push(() => {
      this.fillLegend();
      this.paint();
    });
    this.open(0);
  }

  async open(index) {
    const view = this.views[index];
    if (!view.ready) {
      const { slices, messages } = view;
      const columns = await Promise.all([
        unpacked(slices.row, Uint8Array), unpacked(slices.lane, Uint8Array), unpacked(slices.start, Uint32Array),
        unpacked(slices.length, Uint32Array), unpacked(slices.label, Uint8Array), unpacked(slices.outcome, Uint8Array),
        unpacked(messages.sender, Uint8Array), unpacked(messages.receiver, Uint8Array), unpacked(messages.start, Uint32Array),
        unpacked(messages.length, Uint32Array), unpacked(messages.lost, Uint8Array), unpacked(view.shares, Uint8Array),
      ]);
      const s = {}, m = {};
      [s.row, s.lane, s.start, s.length, s.label, s.outcome, m.sender, m.receiver, m.start, m.length, m.lost] = columns;
      const tick = view.horizon_s / SPAN;
      // Starts come as steps from the one before; sums of whole numbers are exact.
      const times = (one) => {
        let sum = 0;
        one.from = Float64Array.from(one.start, (step) => (sum += step) * tick);
        one.to = Float64Array.from(one.length, (length, k) => one.from[k] + length * tick);
      };
      times(s);
      times(m);
      view.s = s;
      view.m = m;
      view.cells = columns[11];
      let total = 0;
      for (let k = 0; k < s.length.length; k++) total += s.length[k];
      view.mean_s = (total / Math.max(1, s.length.length)) * tick;
      view.ready = true;
    }
    this.view = view;
    this.fillLegend();
    this.window(0, view.begin_until_s);
  }

  fillLegend() {
    const { view } = this;
    if (!view) return;
    const swatch = (colour, text) => {
      const square = make("span", { class: "swatch" });
      square.style.background = colour;
      return make("span", {}, square, ` ${text}`);
    };
    const entries = view.lanes.map((lane) => swatch(ink(lane.colour), lane.label));
    if (view.s.outcome.includes(LOST)) entries.push(swatch(ink(RED), "lost, or thrown away"));
    if (view.busy) entries.push(swatch(ofStyle("--idle"), "idle (right: share of the whole run)"));
    this.legend.replaceChildren(...entries);
  }

  window(from, to) {
    const whole = this.view.horizon_s;
    const width = Math.min(whole, Math.max(to - from, whole * 1e-7));
    this.from = Math.min(Math.max(0, from), whole - width);
    this.to = this.from + width;
    this.paint();
  }
  zoom(factor, around = (this.from + this.to) / 2) {
    this.window(around - (around - this.from) * factor, around + (this.to - around) * factor);
  }
  pan(share) {
    const by = share * (this.to - this.from);
    this.window(this.from + by, this.to + by);
  }

  at(event, canvas = this.canvas) {
    const bounds = canvas.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }
  time(x) {
    return this.from + ((x - this.left) / (this.right - this.left)) * (this.to - this.from);
  }

  listen() {
    const { canvas, overview } = this;
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, from: this.from, to: this.to };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return this.hover(event);
      const by = ((held.x - event.clientX) / (this.right - this.left)) * (held.to - held.from);
      this.bubble.hidden = true;
      this.window(held.from + by, held.to + by);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (held = null));
    canvas.addEventListener("pointerleave", () => (this.bubble.hidden = true));
    canvas.addEventListener("dblclick", (event) => this.zoom(event.shiftKey ? 2 : 0.5, this.time(this.at(event)[0])));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) {
        if (Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return; // the page scrolls
        event.preventDefault();
        return this.pan(event.deltaX / (this.right - this.left));
      }
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 240))), this.time(this.at(event)[0]));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const act = {
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2),
        ArrowLeft: () => this.pan(-0.1), ArrowRight: () => this.pan(0.1), PageUp: () => this.pan(-0.9), PageDown: () => this.pan(0.9),
        "0": () => this.window(0, this.view.horizon_s), Home: () => this.window(0, this.to - this.from),
        End: () => this.window(this.view.horizon_s - (this.to - this.from), this.view.horizon_s),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
    let begun = null;
    const drag = (event) => {
      const x = this.at(event, overview)[0];
      const time = ((x - this.left) / (this.right - this.left)) * this.view.horizon_s;
      if (Math.abs(event.clientX - begun.x) < 4) return this.window(time - (begun.to - begun.from) / 2, time + (begun.to - begun.from) / 2);
      this.window(Math.min(begun.time, time), Math.max(begun.time, time));
    };
    overview.addEventListener("pointerdown", (event) => {
      const x = this.at(event, overview)[0];
      const time = ((x - this.left) / (this.right - this.left)) * this.view.horizon_s;
      begun = { x: event.clientX, time, from: this.from, to: this.to };
      overview.setPointerCapture(event.pointerId);
      drag(event);
    });
    overview.addEventListener("pointermove", (event) => begun && drag(event));
    for (const name of ["pointerup", "pointercancel"]) overview.addEventListener(name, () => (begun = null));
  }

  paint() {
    const { view } = this;
    if (!view) return;
    this.width = this.figure.clientWidth || 900;
    const rows = view.rows.length;
    this.row = Math.max(5, Math.min(26, Math.floor(600 / rows)));
    this.top = 6;
    this.left = 10 + 7 * Math.max(...view.rows.map((label) => label.length), 2) + 8;
    this.right = this.width - (view.busy ? 112 : 14);
    this.bottom = this.top + rows * this.row;
    const context = this.prepared(this.canvas, this.width, this.bottom + 38);
    const colours = { ink: ofStyle("--soft"), grid: ofStyle("--grid"), paper: ofStyle("--paper"), idle: ofStyle("--idle") };
    context.font = "11px system-ui, sans-serif";
    this.axis(context, colours);
    context.save();
    context.beginPath();
    context.rect(this.left, this.top, this.right - this.left, this.bottom - this.top);
    context.clip();
    this.drawnLines = 0;
    // One by one where that is kept, if a mean slice is at least a pixel wide; a share of time else, which no pixel overstates.
    const pixel = (this.to - this.from) / (this.right - this.left);
    const crowded = view.timed ? view.mean_s < pixel : this.visible() > 0.25 * view.rows.length * view.lanes.length * (this.right - this.left);
    this.exact = !crowded && this.from < view.exact_until_s;
    this.seam = this.exact ? Math.min(this.to, view.exact_until_s) : this.from;
    if (this.exact) this.slices(context, colours);
    if (this.seam < this.to) this.cells(context, this.seam, this.to);
    if (this.exact && this.seam < this.to) {
      context.strokeStyle = colours.ink;
      context.setLineDash([3, 3]);
      context.beginPath();
      context.moveTo(this.x(this.seam), this.top);
      context.lineTo(this.x(this.seam), this.bottom);
      context.stroke();
      context.setLineDash([]);
    }
    context.restore();
    this.busy(context, colours);
    this.strip(colours);
    this.say();
  }

  prepared(canvas, width, height) {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    return context;
  }
  x(time) {
    return this.left + ((time - this.from) / (this.to - this.from)) * (this.right - this.left);
  }

  axis(context, colours) {
    const { view } = this;
    context.strokeStyle = colours.grid;
    context.fillStyle = colours.ink;
    context.textAlign = "center";
    const marks = ticks(this.from, this.to, (this.right - this.left) / 110);
    const step = marks.length > 1 ? marks[1] - marks[0] : this.to - this.from;
    const digits = Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    for (const mark of marks) {
      const at = this.x(mark);
      context.beginPath();
      context.moveTo(at, this.top);
      context.lineTo(at, this.bottom);
      context.stroke();
      context.fillText(mark.toFixed(digits), at, this.bottom + 14);
    }
    context.fillText("simulated time (s)", (this.left + this.right) / 2, this.bottom + 30);
    context.textAlign = "right";
    const every = Math.ceil(12 / this.row);
    view.rows.forEach((label, k) => {
      if (k % every === 0) context.fillText(label, this.left - 6, this.top + (k + 0.5) * this.row + 4);
    });
  }

  visible() {
    const { s } = this.view;
    let count = 0;
    for (let k = 0; k < s.from.length; k++) if (s.from[k] <= this.to && s.to[k] >= this.from) count++;
    return count;
  }

  slices(context, colours) {
    const { view } = this;
    const { s, m } = view;
    const strong = view.lanes.map((lane) => ink(lane.colour));
    const red = ink(RED);
    const last = new Float64Array(view.lanes.length * view.rows.length).fill(-1);
    for (let k = 0; k < s.from.length; k++) {
      if (s.from[k] > this.seam || s.to[k] < this.from) continue;
      const lane = view.lanes[s.lane[k]];
      const cell = s.lane[k] * view.rows.length + s.row[k];
      const x = Math.max(this.x(s.from[k]), this.left - 2);
      const wide = Math.min(this.x(s.to[k]), this.right + 2) - x;
      if (wide < 1 && x < last[cell] + 0.25 && s.outcome[k] !== LOST) continue; // on the same pixel as the one before
      last[cell] = x;
      context.fillStyle = s.outcome[k] === LOST ? red : strong[s.lane[k]];
      const y = this.top + (s.row[k] + lane.top) * this.row;
      const gap = wide > 4 ? 0.7 : 0; // tells neighbours apart
      context.fillRect(x, y, Math.max(wide - gap, 1), Math.max(1, lane.height * this.row));
    }
    if (this.row < 8) return;
    const shown = [];
    for (let k = 0; k < m.from.length && shown.length <= MOST_LINES; k++) {
      if (m.from[k] <= this.seam && m.to[k] >= this.from) shown.push(k);
    }
    if (shown.length > MOST_LINES) return;
    this.drawnLines = shown.length;
    const bar = view.lanes[1] ?? view.lanes[0];
    const middle = (row) => this.top + (row + bar.top + bar.height / 2) * this.row;
    context.lineWidth = 0.8;
    context.globalAlpha = 0.65;
    for (const k of shown) {
      context.strokeStyle = m.lost[k] ? red : colours.ink;
      context.beginPath();
      context.moveTo(this.x(m.from[k]), middle(m.sender[k]));
      context.lineTo(this.x(m.to[k]), middle(m.receiver[k]));
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** Shares of time between two times, a column per pixel or per bin, whichever is wider. */
  cells(context, from, to) {
    const { view } = this;
    const { bins, cells } = view;
    const rows = view.rows.length;
    const [first, end] = [(from / view.horizon_s) * bins, (to / view.horizon_s) * bins];
    const start = Math.floor(first), stop = Math.min(bins, Math.ceil(end));
    const pixels = this.x(to) - this.x(from);
    const columns = Math.max(1, Math.min(stop - start, Math.round(pixels)));
    const image = new ImageData(columns, rows);
    const buffer = new OffscreenCanvas(columns, rows);
    const per = (stop - start) / columns;
    context.imageSmoothingEnabled = false;
    view.lanes.forEach((lane, number) => {
      const [red, green, blue] = rgb(ink(lane.colour));
      for (let row = 0; row < rows; row++) {
        const base = (number * rows + row) * bins + start;
        for (let column = 0; column < columns; column++) {
          let [low, high] = [Math.floor(column * per), Math.max(Math.floor(column * per) + 1, Math.floor((column + 1) * per))];
          let sum = 0;
          for (let bin = low; bin < high; bin++) sum += cells[base + bin];
          const at = 4 * (row * columns + column);
          image.data[at] = red;
          image.data[at + 1] = green;
          image.data[at + 2] = blue;
          image.data[at + 3] = sum / (high - low);
        }
      }
      buffer.getContext("2d").putImageData(image, 0, 0);
      const x = this.x((start / bins) * view.horizon_s);
      const wide = this.x((stop / bins) * view.horizon_s) - x;
      context.save();
      context.beginPath();
      context.rect(this.x(from), this.top, pixels, this.bottom - this.top);
      context.clip();
      for (let row = 0; row < rows; row++) {
        const y = this.top + (row + lane.top) * this.row;
        context.drawImage(buffer, 0, row, columns, 1, x, y, wide, Math.max(1, lane.height * this.row));
      }
      context.restore();
    });
  }

  /** Beside every row its share of the whole run. */
  busy(context, colours) {
    const { view } = this;
    if (!view.busy) return;
    const [x, wide] = [this.right + 16, 88];
    const shades = [ink(view.lanes[0].colour), ink(view.lanes[1]?.colour ?? view.lanes[0].colour), colours.idle];
    view.busy.compute.forEach((compute, row) => {
      const idle = view.busy.idle[row];
      const y = this.top + (row + 0.12) * this.row;
      let at = x;
      [compute, Math.max(0, 1 - compute - idle), idle].forEach((share, kind) => {
        context.fillStyle = shades[kind];
        context.fillRect(at, y, share * wide, Math.max(1, 0.76 * this.row));
        at += share * wide;
      });
    });
    context.fillStyle = colours.ink;
    context.textAlign = "center";
    context.fillText("whole run", x + wide / 2, this.bottom + 14);
  }

  strip(colours) {
    const { view } = this;
    const height = 34;
    const context = this.prepared(this.overview, this.width, height);
    const rows = view.rows.length;
    const pixels = Math.max(1, Math.round(this.right - this.left));
    const drawn = Math.min(2, view.lanes.length);
    for (let number = 0; number < drawn; number++) {
      context.fillStyle = ink(view.lanes[number].colour);
      context.globalAlpha = 0.75;
      const base = number === 0 ? height / 2 : height;
      const peak = view.timed ? 255 : Math.max(1, view.means?.[number] ?? this.means(number));
      for (let pixel = 0; pixel < pixels; pixel++) {
        const bin = Math.floor((pixel * view.bins) / pixels);
        let sum = 0;
        for (let row = 0; row < rows; row++) sum += view.cells[(number * rows + row) * view.bins + bin];
        const tall = Math.min(1, sum / rows / peak) * (height / 2 - 2);
        context.fillRect(this.left + pixel, base - tall, 1, tall);
      }
    }
    context.globalAlpha = 1;
    const scale = (this.right - this.left) / view.horizon_s;
    context.fillStyle = colours.ink;
    context.globalAlpha = 0.16;
    context.fillRect(this.left, 0, this.from * scale, height);
    context.fillRect(this.left + this.to * scale, 0, this.right - this.left - this.to * scale, height);
    context.globalAlpha = 1;
    context.strokeStyle = colours.ink;
    context.strokeRect(this.left + this.from * scale, 0.5, Math.max(2, (this.to - this.from) * scale), height - 1);
  }
  /** The most that a bin of a lane has, as a mean over the rows. */
  means(number) {
    const { view } = this;
    view.means ??= [];
    let most = 0;
    for (let bin = 0; bin < view.bins; bin++) {
      let sum = 0;
      for (let row = 0; row < view.rows.length; row++) sum += view.cells[(number * view.rows.length + row) * view.bins + bin];
      most = Math.max(most, sum / view.rows.length);
    }
    return (view.means[number] = most);
  }

  say() {
    const { view } = this;
    const parts = [`${words(this.from)} to ${words(this.to)} s of ${words(view.horizon_s)} s`];
    parts[0] += `, ${view.events.toLocaleString("en")} events of ${view.workers.toLocaleString("en")} workers.`;
    if (view.replicas > 1) parts.push(`Seed ${view.seed}, the first of ${view.replicas}.`);
    if (view.note) parts.push(view.note);
    if (!this.exact || this.seam < this.to) {
      const bin = view.horizon_s / view.bins;
      parts.push(
        view.timed
          ? `${this.exact ? "Right of the dashed line" : "Here"} the shade is the share of time (bins of ${seconds(bin)}).`
          : `The shade is the number of events in bins of ${seconds(bin)}, at most ${words(view.peak)}.`,
      );
    }
    if (view.exact_until_s < view.horizon_s) {
      parts.push(`Single events are kept until ${words(view.exact_until_s)} s; decentral trace DIR --perfetto FILE writes all of them.`);
    }
    if (this.drawnLines) parts.push("A thin line joins sender and receiver.");
    this.caption.textContent = parts.join(" ");
    const label = `Timeline, ${parts[0]} Plus and minus zoom, arrows pan, 0 shows the whole run.`;
    this.canvas.setAttribute("aria-label", label);
    this.canvas.dataset.from = this.from;
    this.canvas.dataset.to = this.to;
    this.canvas.dataset.exact = this.exact;
  }

  hover(event) {
    const { view } = this;
    if (!view?.ready) return;
    const [x, y] = this.at(event);
    const row = Math.floor((y - this.top) / this.row);
    if (row < 0 || row >= view.rows.length || x < 0) return void (this.bubble.hidden = true);
    const who = view.rows[row].startsWith("unit") ? view.rows[row] : `worker ${view.rows[row]}`;
    let text = [who];
    if (x > this.right || x < this.left) {
      if (!view.busy || row >= view.busy.compute.length) return void (this.bubble.hidden = true);
      const [compute, idle] = [view.busy.compute[row], view.busy.idle[row]];
      text.push(`computing ${words(100 * compute)} % of the run, idle ${words(100 * idle)} %`);
    } else {
      const time = this.time(x);
      const slack = (1.5 * (this.to - this.from)) / (this.right - this.left);
      const inside = (y - this.top) / this.row - row;
      if (this.exact && time <= this.seam) {
        const { s } = view;
        for (let k = 0; k < s.from.length && s.from[k] <= time + slack; k++) {
          if (s.row[k] !== row || s.to[k] < time - slack) continue;
          const lane = view.lanes[s.lane[k]];
          if (inside < lane.top - 0.05 || inside > lane.top + lane.height + 0.05) continue;
          const fate = s.outcome[k] === LOST ? ", lost" : s.outcome[k] === UNDER_WAY ? ", under way at the end" : "";
          const long = s.to[k] > s.from[k] ? ` to ${s.to[k].toPrecision(7)} s (${seconds(s.to[k] - s.from[k])})` : " s";
          text.push(`${view.labels[s.label[k]]}: ${s.from[k].toPrecision(7)}${long}${fate}`);
        }
      } else {
        const bin = Math.min(view.bins - 1, Math.floor((time / view.horizon_s) * view.bins));
        view.lanes.forEach((lane, number) => {
          const value = view.cells[(number * view.rows.length + row) * view.bins + bin] / 255;
          if (value === 0) return;
          text.push(`${lane.label}: ${view.timed ? `${words(100 * value)} % of the time` : `${words(value * view.peak)} events`}`);
        });
      }
      if (text.length === 1) return void (this.bubble.hidden = true);
    }
    this.bubble.replaceChildren(...text.slice(0, 8).map((line) => make("div", {}, line)));
    this.bubble.hidden = false;
    const wide = this.bubble.offsetWidth;
    this.bubble.style.left = `${x + 14 + wide <= this.width ? x + 14 : Math.max(0, x - wide - 14)}px`;
    this.bubble.style.top = `${y + 14}px`;
  }
}

function rgb(colour) {
  if (colour.startsWith("#")) return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return colour.match(/\d+/g).map(Number);
}

if (data.timelines?.length) {
  new Timeline(document.getElementById("timeline-plot"), data.timelines);
}
