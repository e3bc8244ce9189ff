/* What the page of an import or export knows: (state, event) → state, from the state that the server drew. */
import { place } from "./run_state.js";

/**
 * @typedef {object} Stage
 * @property {string} stage
 * @property {number | null} [done] bytes
 * @property {number | null} [total] bytes
 * @property {string} [message]
 * @property {string} at when this was said
 * @property {string} first_at when the stage began
 * @property {number} first_done what was done by then
 *
 * @typedef {object} ConversionState
 * @property {number} seq
 * @property {number} attempt
 * @property {string} status
 * @property {Stage | null} stage
 */

const ENDINGS = { finished: "succeeded", stopped: "cancelled", failed: "failed" };

/**
 * One that was seen already, or that leaves a gap, changes nothing.
 * @param {ConversionState} state
 * @param {import("./run_state.js").JobEvent} event
 * @returns {ConversionState}
 */
export function reduce(state, event) {
  if (place(state, event) !== "next") return state;
  const next = { ...state, seq: event.seq, attempt: event.attempt };
  const { type, data, at } = event;
  if (type === "started") return { ...next, status: "running", stage: null };
  if (type === "waiting") {
    const goesOn = state.stage?.stage === data.stage && state.attempt === event.attempt;
    const first = goesOn && state.stage ? { first_at: state.stage.first_at, first_done: state.stage.first_done } : { first_at: at, first_done: data.done ?? 0 };
    return { ...next, status: "running", stage: { .../** @type {Stage} */ (data), at, ...first } };
  }
  if (type in ENDINGS) return { ...next, status: ENDINGS[/** @type {keyof typeof ENDINGS} */ (type)], stage: null };
  return next;
}

/**
 * How long the stage will still take at the pace that it has had; null while nobody can tell. selectors.seconds_left says the same.
 * @param {Stage | null} stage
 * @returns {number | null}
 */
export function secondsLeft(stage) {
  if (!stage?.total) return null;
  const passed = (Date.parse(stage.at) - Date.parse(stage.first_at)) / 1000;
  const gone = (stage.done ?? 0) - stage.first_done;
  if (passed < 1 || gone <= 0) return null;
  return ((stage.total - (stage.done ?? 0)) * passed) / gone;
}
