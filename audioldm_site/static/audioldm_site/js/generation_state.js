/* What a generation's page knows: (state, event) → state, from the state that the server drew. */
import { place } from "./run_state.js";

/**
 * @typedef {object} GenerationState
 * @property {number} seq
 * @property {number} attempt
 * @property {string} status
 * @property {Record<string, any> | null} latest newest progress
 * @property {Record<string, any> | null} waiting
 * @property {number} waveforms how many sounds are there
 */

const ENDINGS = { finished: "succeeded", stopped: "cancelled", failed: "failed" };

/**
 * One that was seen already, or that leaves a gap, changes nothing.
 * @param {GenerationState} state
 * @param {import("./run_state.js").JobEvent} event
 * @returns {GenerationState}
 */
export function reduce(state, event) {
  if (place(state, event) !== "next") return state;
  const next = { ...state, seq: event.seq, attempt: event.attempt };
  const { type, data } = event;
  if (type === "started") return { ...next, status: "running", latest: null, waiting: null };
  if (type === "waiting") return { ...next, status: "running", waiting: data };
  if (type === "progress") return { ...next, status: "running", latest: data, waiting: null };
  if (type === "waveform") return { ...next, waveforms: Math.max(state.waveforms, data.index + 1) };
  if (type in ENDINGS) return { ...next, status: ENDINGS[/** @type {keyof typeof ENDINGS} */ (type)], waiting: null };
  return next;
}
