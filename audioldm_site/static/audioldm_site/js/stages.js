/* The stages of a pretraining: which is done, active or waiting, and a curve of each. */
import { chart } from "./charts.js";
import { whole } from "./format.js";
import { lossRange, ofStage, stageState } from "./run_state.js";

/** @typedef {import("./run_state.js").RunState} RunState */

const LOOKS = { done: "status-succeeded", active: "status-running", waiting: "status-queued" };

/** @param {HTMLElement} page @returns {(state: RunState, drawn: RunState | null) => void} */
export function stagesDrawer(page) {
  const range = (/** @type {HTMLElement} */ element) => ({ first: Number(element.dataset.first), last: Number(element.dataset.last) });
  const rows = [.../** @type {NodeListOf<HTMLElement>} */ (page.querySelectorAll("[data-stage]"))];
  const curves = [.../** @type {NodeListOf<HTMLElement>} */ (page.querySelectorAll("[data-stage-chart]"))].map((element) => ({
    ...range(element),
    plot: chart(element, [
      { label: "loss", colour: "--accent", width: 1, alpha: 0.28 },
      { label: "smoothed", colour: "--accent", width: 2 },
    ], { range: ([, raw, smooth]) => lossRange(raw, smooth) }),
  }));

  return (state, drawn) => {
    for (const row of rows) drawRow(row, state, range(row));
    if (drawn?.progress !== state.progress) for (const { plot, first, last } of curves) plot.update(ofStage(state.progress, first, last));
  };
}

/** @param {HTMLElement} row @param {RunState} state @param {{first: number, last: number}} range */
function drawRow(row, state, { first, last }) {
  const name = stageState(state, first, last);
  const done = Math.min(Math.max(state.step - first, 0), last - first);
  row.dataset.state = name;
  const chip = row.querySelector(".status");
  if (chip) chip.className = `status ${LOOKS[name]}`;
  const bar = row.querySelector("progress");
  if (bar) bar.value = done;
  const words = row.querySelector("[data-stage-state]");
  if (words && words.textContent !== name) words.textContent = name;
  const count = row.querySelector("[data-stage-done]");
  if (count) count.textContent = whole(done);
}
