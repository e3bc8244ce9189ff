/* What a run's page knows, as a pure function of events: (state, event) → state. The first state comes from the server at event `seq`. */

/**
 * @typedef {object} JobEvent
 * @property {number} seq
 * @property {number} attempt
 * @property {string} type
 * @property {string} at
 * @property {Record<string, any>} data
 */

/**
 * @typedef {object} RunState
 * @property {number} seq number of the newest event in it
 * @property {number} attempt
 * @property {string} status
 * @property {number} step
 * @property {number} max_steps
 * @property {number} epoch
 * @property {Record<string, any> | null} started
 * @property {Record<string, any> | null} latest newest progress
 * @property {Record<string, any> | null} waiting what it does between two steps
 * @property {Record<string, (number | null)[]>} progress columns of equal length
 * @property {Record<string, any>[]} validations
 * @property {Record<string, any>[]} samples one per step and prompt
 * @property {number[]} checkpoints steps
 * @property {{code: string, detail: string} | null} error
 */

export const MAX_POINTS = 4_000;
const SERIES = ["step", "loss", "loss_smooth", "learning_rate", "grad_norm", "clips_per_second"];
const ENDINGS = { finished: "succeeded", stopped: "cancelled", failed: "failed" };

/**
 * Whether an event is the next one, was seen already, or comes after one that was missed.
 * @param {{seq: number}} state
 * @param {{seq: number}} event
 * @returns {"next" | "seen" | "gap"}
 */
export function place(state, event) {
  if (event.seq <= state.seq) return "seen";
  return event.seq === state.seq + 1 ? "next" : "gap";
}

/**
 * The state after an event. One that was seen already, or that leaves a gap, changes nothing: replaying is harmless.
 * @param {RunState} state
 * @param {JobEvent} event
 * @returns {RunState}
 */
export function reduce(state, event) {
  if (place(state, event) !== "next") return state;
  const next = { ...state, seq: event.seq, attempt: event.attempt };
  const { type, data } = event;
  if (type === "started") return begin(next, data);
  if (type === "waiting") return { ...next, status: "running", waiting: data };
  if (type === "progress") return advance(next, event);
  if (type === "validated") return { ...next, validations: [...state.validations.filter(({ step }) => step !== data.step), data] };
  if (type === "sample") return { ...next, samples: [...state.samples.filter((other) => other.step !== data.step || other.index !== data.index), data] };
  if (type === "checkpoint") return { ...next, checkpoints: [...state.checkpoints.filter((step) => step !== data.step), data.step] };
  if (type in ENDINGS) {
    const error = type === "failed" ? { code: data.code, detail: data.detail } : null;
    return { ...next, status: ENDINGS[/** @type {keyof typeof ENDINGS} */ (type)], waiting: null, error, step: data.step ?? state.step };
  }
  return next;
}

/** A new attempt: what earlier ones said about later steps is history. @param {RunState} state @param {Record<string, any>} data @returns {RunState} */
function begin(state, data) {
  const from = data.step ?? 0;
  const kept = state.progress.step.map((step) => step !== null && step <= from);
  const progress = Object.fromEntries(SERIES.map((name) => [name, state.progress[name].filter((_, index) => kept[index])]));
  return {
    ...state,
    status: "running",
    step: from,
    max_steps: data.max_steps ?? state.max_steps,
    started: data,
    waiting: null,
    error: null,
    progress,
    validations: state.validations.filter(({ step }) => step <= from),
    samples: state.samples.filter(({ step }) => step <= from),
  };
}

/** @param {RunState} state @param {JobEvent} event @returns {RunState} */
function advance(state, { at, data }) {
  let { progress } = state;
  if (progress.step.length >= MAX_POINTS) progress = thin(progress);
  return {
    ...state,
    status: "running",
    step: data.step,
    max_steps: data.max_steps ?? state.max_steps,
    epoch: data.epoch ?? state.epoch,
    latest: { ...data, at },
    waiting: null,
    progress: Object.fromEntries(SERIES.map((name) => [name, [...progress[name], data[name] ?? null]])),
  };
}

/** Every other point, so that a page that stays open for days does not grow. @param {RunState["progress"]} progress */
function thin(progress) {
  return Object.fromEntries(SERIES.map((name) => [name, progress[name].filter((_, index) => index % 2 === 1)]));
}

/**
 * What a stage of a pretraining is at, whose steps are those after `first` up to `last`.
 * @param {{step: number, status: string}} state
 * @param {number} first
 * @param {number} last
 * @returns {"done" | "active" | "waiting"}
 */
export function stageState({ step, status }, first, last) {
  if (step >= last) return "done";
  return step >= first && status === "running" ? "active" : "waiting";
}

/**
 * A stage's part of the curves, on its own count of steps: [steps, losses, smoothed losses].
 * @param {RunState["progress"]} progress
 * @param {number} first
 * @param {number} last
 */
export function ofStage(progress, first, last) {
  const kept = progress.step.map((step, index) => ({ step: step ?? 0, index })).filter(({ step }) => step > first && step <= last);
  return [kept.map(({ step }) => step - first), kept.map(({ index }) => progress.loss[index]), kept.map(({ index }) => progress.loss_smooth[index])];
}

/**
 * The sounds as a table: prompts down, steps across; `null` where a prompt has no sound at a step.
 * @param {Record<string, any>[]} samples
 */
export function sampleMatrix(samples) {
  const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => a - b);
  const indices = [...new Set(samples.map(({ index }) => index))].sort((a, b) => a - b);
  const rows = indices.map((index) => {
    const own = samples.filter((sample) => sample.index === index);
    return { index, prompt: own[own.length - 1].prompt, takes: steps.map((step) => own.find((sample) => sample.step === step) ?? null) };
  });
  return { steps, rows };
}

/**
 * Where a chart of losses ends: outliers above the 99th percentile are cut off, the smoothed curve never is.
 * @param {(number | null)[]} raw
 * @param {(number | null)[]} smooth
 * @returns {[number, number]}
 */
export function lossRange(raw, smooth) {
  const known = (/** @type {(number | null)[]} */ values) => /** @type {number[]} */ (values.filter((value) => value !== null && Number.isFinite(value)));
  const sorted = known(raw).sort((a, b) => a - b);
  const curve = known(smooth);
  if (!sorted.length && !curve.length) return [0, 1];
  const all = sorted.length ? sorted : curve;
  const high = Math.max(sorted.length ? sorted[Math.ceil((sorted.length - 1) * 0.99)] : 0, ...(curve.length ? [max(curve)] : []));
  const low = Math.min(all[0], curve.length ? min(curve) : all[0]);
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [Math.max(low - pad, low > 0 ? 0 : -Infinity), high + pad];
}

// Not Math.max(...values): thousands of arguments overflow the stack.
const max = (/** @type {number[]} */ values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const min = (/** @type {number[]} */ values) => values.reduce((a, b) => Math.min(a, b), Infinity);
