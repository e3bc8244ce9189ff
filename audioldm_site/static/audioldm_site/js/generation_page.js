/* A generation's page: the sampler's steps as they come; sounds and words are drawn by the server when there is news. */
import { duration } from "./format.js";
import { reduce } from "./generation_state.js";
import { follow } from "./live.js";
import { refreshFragments } from "./refresh.js";

/** @typedef {import("./generation_state.js").GenerationState} GenerationState */

const page = document.querySelector("[data-generation-page]");
if (page instanceof HTMLElement) open(page);

/** @param {HTMLElement} page */
function open(page) {
  const read = (/** @type {string} */ id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const addresses = read("generation-addresses");
  /** @type {GenerationState} */
  let state = read("generation-state");
  const connection = page.querySelector("[data-connection]");

  follow({
    socket: addresses.socket,
    events: addresses.events,
    seq: () => state.seq,
    onEvents(events) {
      const before = state;
      state = events.reduce(reduce, state);
      if (before.status !== state.status || before.waveforms !== state.waveforms) refreshFragments(["status", "actions", "notices", "sounds", "delete"]).catch(() => {});
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

/** @param {HTMLElement} page @param {GenerationState} state */
function draw(page, { status, latest, waiting }) {
  const element = page.querySelector("[data-progress]");
  const text = page.querySelector("[data-progress-text]");
  const bar = page.querySelector("[data-progress-bar]");
  if (!(element instanceof HTMLElement) || !text || !(bar instanceof HTMLProgressElement)) return;
  element.hidden = status !== "running";
  if (waiting) {
    text.textContent = `${waiting.stage}${waiting.total ? `: ${waiting.done ?? 0} of ${waiting.total}` : ""}`;
    bar.removeAttribute("value");
  } else if (latest) {
    text.textContent = `step ${latest.step} of ${latest.max_steps}${latest.seconds_left ? `, ${duration(latest.seconds_left)} left` : ""}`;
    bar.max = latest.max_steps || 1;
    bar.value = latest.step;
  } else {
    text.textContent = "the worker begins";
    bar.removeAttribute("value");
  }
}
