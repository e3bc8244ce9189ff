/* The page of an import or export: bytes as they go; everything else is drawn by the server when there is news. */
import { reduce, secondsLeft } from "./conversion_state.js";
import { bytesSize, duration } from "./format.js";
import { follow } from "./live.js";
import { refreshFragments } from "./refresh.js";

/** @typedef {import("./conversion_state.js").ConversionState} ConversionState */

const FRAGMENTS = ["status", "actions", "notices", "result", "delete"];
const page = document.querySelector("[data-conversion-page]");
if (page instanceof HTMLElement) open(page);

/** @param {HTMLElement} page */
function open(page) {
  const read = (/** @type {string} */ id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const addresses = read("conversion-addresses");
  /** @type {ConversionState} */
  let state = read("conversion-state");
  const connection = page.querySelector("[data-connection]");

  follow({
    socket: addresses.socket,
    events: addresses.events,
    seq: () => state.seq,
    onEvents(events) {
      const before = state;
      state = events.reduce(reduce, state);
      if (before.status !== state.status) refreshFragments(FRAGMENTS).catch(() => {});
      draw(page, state);
    },
    onConnection(now) {
      if (!(connection instanceof HTMLElement)) return;
      connection.dataset.state = now;
      connection.textContent = { live: "", reconnecting: "reconnecting …", polling: "", gone: "not available any more: reload the page" }[now];
    },
  });
  draw(page, state);
  // Nobody says an event while it waits in line: ask how the line moves.
  setInterval(() => {
    if (state.status === "queued" && !document.hidden) refreshFragments(["status", "actions", "notices"]).catch(() => {});
  }, 3_000);
}

/** @param {HTMLElement} page @param {ConversionState} state */
function draw(page, { status, stage }) {
  const element = page.querySelector("[data-progress]");
  const text = page.querySelector("[data-progress-text]");
  const bar = page.querySelector("[data-progress-bar]");
  if (!(element instanceof HTMLElement) || !text || !(bar instanceof HTMLProgressElement)) return;
  element.hidden = status !== "running";
  text.textContent = words(stage);
  if (stage?.total) {
    bar.max = stage.total;
    bar.value = stage.done ?? 0;
  } else bar.removeAttribute("value");
}

/** @param {import("./conversion_state.js").Stage | null} stage */
function words(stage) {
  if (!stage) return "the worker begins";
  const left = secondsLeft(stage);
  const size = stage.total ? `: ${bytesSize(stage.done ?? 0)} of ${bytesSize(stage.total)}` : "";
  return `${stage.message || stage.stage}${size}${left ? `, ${duration(left)} left` : ""}`;
}
