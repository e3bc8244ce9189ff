/* A run's page: its state at event N from the server, every later event from the socket, drawn at most once a frame. */
import { chart } from "./charts.js";
import { bytesSize, duration, figure, whole } from "./format.js";
import { follow } from "./live.js";
import { refreshFragments } from "./refresh.js";
import { lossRange, reduce } from "./run_state.js";
import { sampleBrowser } from "./samples.js";
import { stagesDrawer } from "./stages.js";

/** @typedef {import("./run_state.js").RunState} RunState */

const page = document.querySelector("[data-run-page]");
if (page instanceof HTMLElement) open(page);

/** @param {HTMLElement} page */
function open(page) {
  const read = (/** @type {string} */ id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const addresses = read("run-addresses");
  /** @type {RunState} */
  let state = read("run-state");
  const draw = drawer(page, addresses);
  let scheduled = false;
  const later = () => {
    if (scheduled) return;
    scheduled = true;
    // Not requestAnimationFrame alone: a hidden page gets none, and should still be up to date when it is shown.
    setTimeout(() => {
      scheduled = false;
      draw(state);
    }, 50);
  };

  follow({
    socket: addresses.socket,
    events: addresses.events,
    seq: () => state.seq,
    onEvents(events) {
      const before = state;
      state = events.reduce(reduce, state);
      redrawByServer(changedFragments(before, state, events.map(({ type }) => type)));
      later();
    },
    onConnection: (connection) => drawConnection(page, connection),
  });
  draw(state);
  setInterval(later, 15_000);
  // Nobody says an event while the run waits, nor while its worker loads the libraries: ask how the line moves.
  setInterval(() => {
    if (state.status === "queued" && !document.hidden) redrawByServer(["status", "notices", "actions"]);
  }, 3_000);
}

/** @type {Set<string>} */
const stale = new Set();
let fetching = false;

/** One request at a time, and at most one a second: a validation says a dozen things in a moment. @param {string[]} names */
async function redrawByServer(names) {
  for (const name of names) stale.add(name);
  if (fetching || !stale.size) return;
  fetching = true;
  await new Promise((resolve) => setTimeout(resolve, 300));
  const now = [...stale];
  stale.clear();
  let wait_ms = 700;
  try {
    await refreshFragments(now);
  } catch {
    for (const name of now) stale.add(name);
    wait_ms = 5_000;
  }
  setTimeout(() => {
    fetching = false;
    redrawByServer([]);
  }, wait_ms);
}

/**
 * What only the server can draw: buttons, words about a fault, rows of checkpoints.
 * @param {RunState} before
 * @param {RunState} after
 * @param {string[]} types
 */
function changedFragments(before, after, types) {
  const names = new Set();
  const noteworthy = types.some((type) => !["progress", "waiting"].includes(type));
  if (noteworthy) names.add("log").add("spent");
  if (before.checkpoints !== after.checkpoints) names.add("checkpoints").add("best");
  if (before.status !== after.status || types.some((type) => ["started", "finished", "stopped", "failed"].includes(type))) {
    for (const name of ["status", "actions", "notices", "checkpoints", "best", "frozen"]) names.add(name);
  }
  return [...names];
}

const CONNECTION_WORDS = { live: "live", reconnecting: "reconnecting …", polling: "live, by polling", gone: "not available any more: reload the page" };

/** @param {HTMLElement} page @param {keyof typeof CONNECTION_WORDS} connection */
function drawConnection(page, connection) {
  const element = page.querySelector("[data-connection]");
  if (!(element instanceof HTMLElement)) return;
  element.dataset.state = connection;
  element.textContent = CONNECTION_WORDS[connection];
}

/** @param {HTMLElement} page @param {Record<string, string>} addresses @returns {(state: RunState) => void} */
function drawer(page, addresses) {
  const place = (/** @type {string} */ name) => /** @type {HTMLElement} */ (page.querySelector(`[data-chart="${name}"]`));
  const stages = page.querySelector("[data-stages]") ? stagesDrawer(page) : null;
  const curves = stages ? null : curvesDrawer(page, place);
  const samples = sampleBrowser(/** @type {HTMLElement} */ (page.querySelector("[data-samples]")), /** @type {any} */ (addresses));
  /** @type {RunState | null} */
  let drawn = null;

  return (state) => {
    drawNumbers(page, state);
    drawWaiting(page, state);
    (stages ?? curves)?.(state, drawn);
    if (drawn?.samples !== state.samples) samples(state.samples);
    drawn = state;
  };
}

/** The curves of a fine-tune. @param {HTMLElement} page @param {(name: string) => HTMLElement} place @returns {(state: RunState, drawn: RunState | null) => void} */
function curvesDrawer(page, place) {
  const loss = chart(place("loss"), [
    { label: "loss", colour: "--accent", width: 1, alpha: 0.28 },
    { label: "smoothed", colour: "--accent", width: 2 },
  ], { range: ([, raw, smooth]) => lossRange(raw, smooth) });
  const hasEma = place("validation").hasAttribute("data-ema");
  const validation = chart(place("validation"), [
    { label: "validation", colour: "--accent", width: 2, points: true },
    ...(hasEma ? [{ label: "EMA", colour: "--warn", width: 1.5, points: true }] : []),
  ]);
  const rate = chart(place("learning_rate"), [{ label: "learning rate", colour: "--accent" }]);
  const norm = chart(place("grad_norm"), [{ label: "gradient norm", colour: "--accent", width: 1 }]);
  page.querySelector("[data-chart-log]")?.addEventListener("change", (event) => loss.setLog(/** @type {HTMLInputElement} */ (event.target).checked));

  return (state, drawn) => {
    if (drawn?.progress !== state.progress) {
      const { step, loss: raw, loss_smooth, learning_rate, grad_norm } = state.progress;
      loss.update([step, raw, loss_smooth]);
      rate.update([step, learning_rate]);
      norm.update([step, grad_norm]);
    }
    if (drawn?.validations !== state.validations) {
      const { validations } = state;
      const ema = hasEma ? [validations.map(({ loss_ema }) => loss_ema ?? null)] : [];
      validation.update([validations.map(({ step }) => step), validations.map(({ loss }) => loss), ...ema]);
      const empty = page.querySelector('[data-chart-empty="validation"]');
      if (empty instanceof HTMLElement) empty.hidden = validations.length > 0;
    }
  };
}

/** @param {HTMLElement} page @param {RunState} state */
function drawNumbers(page, state) {
  const latest = state.latest ?? {};
  const running = state.status === "running";
  const share = state.max_steps ? Math.min(100, Math.floor((100 * state.step) / state.max_steps)) : 0;
  const left_s = running ? leftNow(latest) : null;
  const validations = state.validations.map(({ loss }) => loss).filter((value) => value !== null && value !== undefined);
  /** @type {Record<string, string>} */
  const words = {
    step: whole(state.step),
    max_steps: whole(state.max_steps),
    percent: String(share),
    epoch: String(state.epoch),
    loss_smooth: figure(latest.loss_smooth),
    learning_rate: figure(latest.learning_rate, 3),
    grad_norm: figure(latest.grad_norm, 3),
    clips_per_second: figure(latest.clips_per_second, 3),
    memory: bytesSize(latest.memory_bytes),
    gpu_memory: bytesSize(latest.gpu_memory_bytes),
    gpu: [latest.gpu_utilization === undefined || latest.gpu_utilization === null ? "" : `${latest.gpu_utilization} %`, latest.temperature_c ? `${latest.temperature_c} °C` : ""].join(" ").trim(),
    seconds_left: duration(left_s),
  };
  if (validations.length) words.validation = figure(Math.min(...validations));
  if (state.started?.device) words.device = [state.started.device, state.started.precision].filter(Boolean).join(" · ");
  if (running) words.done_at = left_s === null ? "–" : clockTime(left_s);
  for (const [name, text] of Object.entries(words)) {
    const element = page.querySelector(`[data-live="${name}"]`);
    if (element && element.textContent !== text) element.textContent = text;
  }
  const gpu = page.querySelector("[data-gpu]");
  if (gpu instanceof HTMLElement) gpu.hidden = !latest.gpu_memory_bytes;
  const bar = page.querySelector("[data-live-progress]");
  if (bar instanceof HTMLProgressElement) {
    bar.max = state.max_steps || 1;
    bar.value = state.step;
  }
  document.title = document.title.replace(/^(\d+ % · )?/, running ? `${share} % · ` : "");
}

/** Seconds left by now: the trainer's estimate, less what has passed since. @param {Record<string, any>} latest */
function leftNow(latest) {
  if (latest.seconds_left === null || latest.seconds_left === undefined) return null;
  const passed_s = (Date.now() - new Date(latest.at).getTime()) / 1000;
  return Math.max(0, latest.seconds_left - (Number.isFinite(passed_s) && passed_s > 0 && passed_s < 60 ? passed_s : 0));
}

/** @param {number} left_s */
function clockTime(left_s) {
  const end = new Date(Date.now() + left_s * 1000);
  const today = end.toDateString() === new Date().toDateString();
  return end.toLocaleString(undefined, today ? { hour: "2-digit", minute: "2-digit" } : { weekday: "short", hour: "2-digit", minute: "2-digit" });
}

/** @param {HTMLElement} page @param {RunState} state */
function drawWaiting(page, { waiting, status }) {
  const element = page.querySelector("[data-waiting]");
  const text = page.querySelector("[data-waiting-text]");
  const bar = page.querySelector("[data-waiting-progress]");
  if (!(element instanceof HTMLElement) || !text || !(bar instanceof HTMLProgressElement)) return;
  element.hidden = !waiting || status !== "running";
  if (!waiting) return;
  text.textContent = [`${waiting.stage}${waiting.total ? `: ${waiting.done ?? 0} of ${waiting.total}` : ""}`, waiting.message].filter(Boolean).join(" · ");
  if (waiting.total) {
    bar.max = waiting.total;
    bar.value = waiting.done ?? 0;
  } else {
    bar.removeAttribute("value");
  }
}
