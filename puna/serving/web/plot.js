/** A line plot of the last minutes, with its numbers beside it. */

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 80;
/** A longer pause between two points is a gap in the line. */
const GAP_S = 4;

/** Seconds that a plot shows: few at first, so that something is to be seen. */
const LEAST_SPAN_S = 60;
const SPAN_S = 300;

/**
 * @typedef {{at: number, values: (number | null)[]}} Point at in seconds; one value for each line
 */

/** Drawn anew with each point; lines differ in their dashes, not by colour alone. */
export class Plot {
  /**
   * @param {string} title
   * @param {string[]} names of the lines, at most three
   * @param {(value: number) => string} format
   */
  constructor(title, names, format) {
    this.format = format;
    this.title = title;
    this.names = names;
    this.outputs = names.map(() => element("dd", {}, "–"));
    this.top = element("span", { class: "top-value", "aria-hidden": "true" });
    this.since = element("span");
    this.drawing = document.createElementNS(SVG, "svg");
    this.drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.drawing.setAttribute("preserveAspectRatio", "none");
    this.drawing.setAttribute("role", "img");
    this.lines = names.map((_, index) => this.#path(`line line-${index}`));
    /** @type {Point[]} */
    this.points = [];
    this.root = this.#figure();
  }

  #path(className) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", className);
    path.setAttribute("vector-effect", "non-scaling-stroke");
    this.drawing.append(path);
    return path;
  }

  #figure() {
    const legend = this.names.map((name, index) =>
      element("div", {}, element("dt", { class: `key key-${index}` }, name), this.outputs[index]),
    );
    return element(
      "figure",
      { class: "plot" },
      element("figcaption", {}, this.title),
      element("dl", { class: "now" }, ...legend),
      element("div", { class: "canvas" }, this.top, this.drawing),
      element("p", { class: "times" }, this.since, element("span", {}, "now")),
    );
  }

  /**
   * Add a point, and show it.
   * @param {Point} point
   */
  add(point) {
    this.points.push(point);
    while (this.points[0].at < point.at - SPAN_S) this.points.shift();
    const span = Math.max(LEAST_SPAN_S, point.at - this.points[0].at);
    this.since.textContent = `${Math.round(span)} s ago`;
    const known = this.points.flatMap(({ values }) => values).filter((value) => value !== null);
    const most = roundUp(Math.max(0, ...known));
    this.top.textContent = known.length ? this.format(most) : "";
    const scale = { now: point.at, span, most };
    this.lines.forEach((line, index) => line.setAttribute("d", this.#trace(index, scale)));
    const now = point.values.map((value) => (value === null ? "–" : this.format(value)));
    now.forEach((text, index) => (this.outputs[index].textContent = text));
    const words = this.names.map((name, index) => `${name} ${now[index]}`).join(", ");
    this.drawing.setAttribute("aria-label", `${this.title}, now: ${words}`);
  }

  /** The path of one line; it is broken where nothing is known. */
  #trace(index, { now, span, most }) {
    let path = "";
    let before = -Infinity;
    for (const { at, values } of this.points) {
      if (values[index] === null) {
        before = -Infinity;
        continue;
      }
      const x = WIDTH - ((now - at) / span) * WIDTH;
      const y = HEIGHT - (values[index] / most) * (HEIGHT - 6) - 2;
      const joins = at - before <= GAP_S;
      // A lone point is a line of no length, which round caps make visible.
      path += `${joins ? "L" : `M${x.toFixed(2)} ${y.toFixed(2)}L`}${x.toFixed(2)} ${y.toFixed(2)}`;
      before = at;
    }
    return path;
  }
}

/** The next of 1, 2, 5, 10, 20 and so on; 1 at least. */
function roundUp(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => step * power);
  return steps.find((step) => step >= value) ?? value;
}
