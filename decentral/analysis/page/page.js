"use strict";
// What all parts of a report need: numbers in words, colours of the theme, packed columns, tables that sort.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a string is text, so nothing a name holds becomes markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A number in four digits, as people write it. */
function words(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(3).replace("e+", "e");
  return Number(value.toPrecision(size >= 1e4 ? 7 : 4)).toLocaleString("en", { maximumSignificantDigits: 7 });
}
function seconds(value) {
  for (const [unit, size] of [["s", 1], ["ms", 1e-3], ["µs", 1e-6], ["ns", 1e-9]]) {
    if (Math.abs(value) >= size) return `${words(value / size)} ${unit}`;
  }
  return "0 s";
}
/** Mean and half width with the digits that the half width allows. */
function interval(mean, half) {
  if (half === null || half === undefined || !(half > 0) || mean === null) return words(mean);
  const size = Math.max(Math.abs(mean), half);
  if (size < 1e-3 || size >= 1e7) return `${mean.toExponential(2)} ± ${half.toExponential(1)}`;
  const digits = Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(half))));
  return `${mean.toFixed(digits)} ± ${half.toFixed(digits)}`;
}

/** Steps of 1, 2 or 5 times a power of ten between two numbers: about so many. */
function ticks(low, high, about) {
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k === 0 ? 0 : k * step);
  return found;
}
const SUPER = "⁰¹²³⁴⁵⁶⁷⁸⁹";
function powerOfTen(exponent) {
  return (exponent < 0 ? "10⁻" : "10") + String(Math.abs(exponent)).replace(/\d/g, (digit) => SUPER[digit]);
}
function short(value) {
  const size = Math.abs(value);
  for (const [unit, factor] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= 10 * factor || (size >= factor && factor > 1e3)) return `${Number((value / factor).toPrecision(4))}${unit}`;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(6)));
}

// -- theme: the system's, or the one asked for --------------------------------------------------------------------------

const night = window.matchMedia("(prefers-color-scheme: dark)");
const printing = window.matchMedia("print");
let asked = null;
const repaint = [];
function dark() {
  return !printing.matches && (asked === null ? night.matches : asked === "dark");
}
function repaintAll() {
  for (const paint of repaint) paint();
}
/** A colour of a figure on this background: strong ones are lightened on a dark page. */
function ink(colour) {
  if (!dark()) return colour;
  const part = (at) => parseInt(colour.slice(at, at + 2), 16);
  const [red, green, blue] = [1, 3, 5].map((at) => Math.round(part(at) + 0.32 * (255 - part(at))));
  return `rgb(${red} ${green} ${blue})`;
}
/** What a variable of the style sheet is now. */
function ofStyle(name) {
  const probe = make("span", { hidden: "" });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
night.addEventListener("change", repaintAll);
printing.addEventListener("change", repaintAll);
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  asked = dark() ? "light" : "dark";
  document.documentElement.style.colorScheme = asked;
  repaintAll();
});
window.addEventListener("beforeprint", () => {
  document.documentElement.style.colorScheme = "";
  for (const node of document.querySelectorAll("details[data-print]")) node.open = true;
  repaintAll();
});
window.addEventListener("afterprint", () => {
  document.documentElement.style.colorScheme = asked ?? "";
  repaintAll();
});

// -- packed columns -----------------------------------------------------------------------------------------------------

/** What packed() of decentral.analysis.page wrote: base64 of zlib of little-endian numbers. */
async function unpacked(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// -- tables that sort ---------------------------------------------------------------------------------------------------

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = make("button", { type: "button", title: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const key = (row) => row.cells[place].dataset.sort ?? row.cells[place].textContent;
      const order = (first, second) => {
        const [a, b] = [key(first), key(second)];
        const [x, y] = [Number(a), Number(b)];
        if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
        return a.localeCompare(b, "en", { numeric: true });
      };
      const rows = [...body.rows].sort(order);
      body.append(...(up ? rows : rows.reverse()));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
}
