/* Curves by uPlot, in the page's colours, following its width and its theme. */
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { figure, whole } from "./format.js";

/** @type {any} uPlot ships its types in a file of their own, which is not vendored */
const UPlot = uPlot;

/**
 * @typedef {object} Curve
 * @property {string} label
 * @property {string} colour name of a custom property
 * @property {number} [width]
 * @property {number} [alpha]
 * @property {boolean} [points]
 */

const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);

/** A custom property as a colour that a canvas understands. @param {string} property @param {number} [alpha] */
function colour(property, alpha = 1) {
  probe.style.color = alpha === 1 ? `var(${property})` : `color-mix(in srgb, var(${property}) ${alpha * 100}%, transparent)`;
  return getComputedStyle(probe).color;
}

/** Labels of an axis; uPlot gives null for a tick that a logarithmic axis leaves blank. @param {(tick: number) => string} write */
const labels = (write) => (/** @type {any} */ _, /** @type {(number | null)[]} */ ticks) => ticks.map((tick) => (tick === null ? "" : write(tick)));

/**
 * @param {HTMLElement} element
 * @param {Curve[]} curves
 * @param {{log?: boolean, range?: (data: any) => [number, number], sync?: string}} [options]
 */
export function chart(element, curves, { log = false, range, sync = "run" } = {}) {
  /** @type {any} */
  let data = [[], ...curves.map(() => [])];
  let isLog = log;
  let plot = build();

  function build() {
    element.replaceChildren();
    const axis = {
      stroke: () => colour("--ink-3"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
      font: "11px system-ui, sans-serif",
    };
    return new UPlot(
      {
        width: element.clientWidth || 300,
        height: element.clientHeight || 150,
        legend: { live: true },
        cursor: { sync: { key: sync, setSeries: false }, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: isLog ? { distr: 3 } : range ? { range: () => range(data) } : {} },
        axes: [
          { ...axis, size: 28, gap: 4, values: labels((tick) => (Number.isInteger(tick) ? whole(tick) : "")) },
          { ...axis, size: 52, gap: 4, values: labels((tick) => figure(tick, 3)) },
        ],
        series: [
          { label: "step", value: (/** @type {any} */ _, /** @type {number | null} */ value) => whole(value) },
          ...curves.map((curve) => ({
            label: curve.label,
            stroke: () => colour(curve.colour, curve.alpha),
            width: curve.width ?? 1.5,
            spanGaps: true,
            points: { show: Boolean(curve.points), size: 6, fill: () => colour(curve.colour) },
            value: (/** @type {any} */ _, /** @type {number | null} */ value) => figure(value),
          })),
        ],
      },
      data,
      element,
    );
  }

  new ResizeObserver(() => {
    const width = element.clientWidth;
    if (width && width !== plot.width) plot.setSize({ width, height: plot.height });
  }).observe(element);
  const redraw = () => plot.redraw(false);
  document.addEventListener("themechange", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    /** @param {any[]} columns steps, then one column per curve */
    update(columns) {
      data = columns;
      plot.setData(data);
    },
    /** @param {boolean} on */
    setLog(on) {
      isLog = on;
      plot.destroy();
      plot = build();
    },
  };
}
