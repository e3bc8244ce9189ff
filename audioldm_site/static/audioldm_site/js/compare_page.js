/* The page that puts runs side by side: their curves in one chart each, fetched again while a run still goes. */
import { chart } from "./charts.js";
import { joined } from "./curves.js";

const REFRESH_MS = 5_000;

/** @typedef {{id: string, name: string, loss: [number[], (number | null)[]], validation: [number[], (number | null)[]]}} RunCurves */

const state = document.getElementById("compare-state");
if (state) open(JSON.parse(state.textContent ?? "null"), JSON.parse(document.getElementById("compare-addresses")?.textContent ?? "null"));

/** @param {{runs: RunCurves[], active: boolean}} state @param {{curves: string}} addresses */
function open({ runs, active }, addresses) {
  const draw = ["validation", "loss"].map((name) => drawer(/** @type {"validation" | "loss"} */ (name), runs));
  for (const drawOne of draw) drawOne(runs);
  if (active) keepFresh((fresh) => draw.forEach((drawOne) => drawOne(fresh)), addresses);
}

/** @param {"validation" | "loss"} name @param {RunCurves[]} runs @returns {(runs: RunCurves[]) => void} */
function drawer(name, runs) {
  const place = document.querySelector(`[data-chart="${name}"]`);
  if (!(place instanceof HTMLElement)) return () => {};
  const drawn = chart(place, runs.map((run, index) => ({ label: run.name, colour: `--curve-${index + 1}`, width: 2, points: name === "validation" })), { sync: "compare" });
  document.querySelector(`[data-chart-log="${name}"]`)?.addEventListener("change", (event) => drawn.setLog(/** @type {HTMLInputElement} */ (event.target).checked));
  return (fresh) => drawn.update(joined(fresh.map((run) => run[name])));
}

/** @param {(runs: RunCurves[]) => void} draw @param {{curves: string}} addresses */
function keepFresh(draw, addresses) {
  let wait_ms = REFRESH_MS;
  const again = async () => {
    let going = true;
    if (!document.hidden) {
      try {
        const response = await fetch(addresses.curves, { headers: { "X-Requested-With": "fetch" } });
        if (response.redirected) return;
        if (!response.ok) throw new Error(`${response.status}`);
        const fresh = await response.json();
        draw(fresh.runs);
        going = fresh.active;
        wait_ms = REFRESH_MS;
      } catch {
        wait_ms = Math.min(wait_ms * 2, 60_000);
      }
    }
    if (going) setTimeout(again, wait_ms);
  };
  setTimeout(again, wait_ms);
}
