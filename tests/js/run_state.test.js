import assert from "node:assert/strict";
import test from "node:test";

import { lossRange, MAX_POINTS, ofStage, place, reduce, sampleMatrix, stageState } from "../../audioldm_site/static/audioldm_site/js/run_state.js";

const EMPTY = {
  seq: 0, attempt: 0, status: "queued", step: 0, max_steps: 100, epoch: 0, started: null, latest: null, waiting: null,
  progress: { step: [], loss: [], loss_smooth: [], learning_rate: [], grad_norm: [], clips_per_second: [] },
  validations: [], samples: [], checkpoints: [], error: null,
};
const event = (seq, type, data = {}, attempt = 1) => ({ seq, attempt, type, at: "2026-11-22T13:00:00.000+00:00", data });
const progress = (seq, step, attempt = 1) => event(seq, "progress", { step, max_steps: 100, epoch: 1, loss: 1 / step, loss_smooth: 1 / step }, attempt);

const STORY = [
  event(1, "started", { step: 0, max_steps: 100, device: "cpu" }),
  event(2, "waiting", { stage: "sampling", done: 1, total: 4 }),
  event(3, "sample", { step: 0, index: 0, prompt: "a bell", audio: "samples/a.wav" }),
  progress(4, 1),
  progress(5, 2),
  event(6, "validated", { step: 2, loss: 0.5 }),
  event(7, "checkpoint", { step: 2 }),
  progress(8, 3),
  event(9, "finished", { step: 3, elapsed_s: 10 }),
];

test("a run is told by its events", () => {
  const state = STORY.reduce(reduce, EMPTY);
  assert.equal(state.status, "succeeded");
  assert.equal(state.step, 3);
  assert.equal(state.seq, 9);
  assert.deepEqual(state.progress.step, [1, 2, 3]);
  assert.deepEqual(state.progress.grad_norm, [null, null, null]);
  assert.deepEqual(state.checkpoints, [2]);
  assert.equal(state.waiting, null);
});

test("replaying events after a reconnect changes nothing", () => {
  const once = STORY.reduce(reduce, EMPTY);
  assert.equal(STORY.reduce(reduce, once), once);
  const overlapping = [...STORY.slice(0, 6), ...STORY.slice(2)].reduce(reduce, EMPTY);
  assert.deepEqual(overlapping, once);
});

test("an event after a gap is not taken", () => {
  const state = STORY.slice(0, 3).reduce(reduce, EMPTY);
  assert.equal(reduce(state, STORY[4]), state);
  assert.equal(place(state, STORY[4]), "gap");
  assert.equal(place(state, STORY[3]), "next");
  assert.equal(place(state, STORY[2]), "seen");
});

test("a resume drops what the earlier attempt said about later steps", () => {
  const first = [STORY[0], progress(2, 10), progress(3, 20), event(4, "validated", { step: 20, loss: 1 }), progress(5, 30)].reduce(reduce, EMPTY);
  const resumed = reduce(first, event(6, "started", { step: 10, max_steps: 100 }, 2));
  assert.deepEqual(resumed.progress.step, [10]);
  assert.deepEqual(resumed.validations, []);
  assert.equal(resumed.step, 10);
  assert.deepEqual(reduce(resumed, progress(7, 11, 2)).progress.step, [10, 11]);
});

test("a failure keeps its code and words, a new attempt forgets them", () => {
  const failed = reduce(EMPTY, event(1, "failed", { code: "gpu.out_of_memory", detail: "no room" }));
  assert.deepEqual(failed.error, { code: "gpu.out_of_memory", detail: "no room" });
  assert.equal(reduce(failed, event(2, "started", { step: 0 }, 2)).error, null);
});

test("a sound that is made again replaces the first", () => {
  const again = [STORY[0], event(2, "sample", { step: 0, index: 0, sha256: "a" }), event(3, "sample", { step: 0, index: 0, sha256: "b" })].reduce(reduce, EMPTY);
  assert.deepEqual(again.samples.map(({ sha256 }) => sha256), ["b"]);
});

test("a page that stays open does not grow without bound", () => {
  let state = reduce(EMPTY, STORY[0]);
  for (let step = 1; step <= MAX_POINTS + 10; step += 1) state = reduce(state, progress(step + 1, step));
  assert.ok(state.progress.step.length <= MAX_POINTS);
  assert.equal(state.progress.step.at(-1), MAX_POINTS + 10);
  assert.equal(state.progress.loss.length, state.progress.step.length);
});

test("the table of sounds has prompts down and steps across, with holes", () => {
  const matrix = sampleMatrix([
    { step: 500, index: 0, prompt: "bell" },
    { step: 0, index: 0, prompt: "bell" },
    { step: 500, index: 1, prompt: "rain" },
  ]);
  assert.deepEqual(matrix.steps, [0, 500]);
  assert.deepEqual(matrix.rows.map(({ prompt, takes }) => [prompt, takes.map((take) => take?.step ?? null)]), [["bell", [0, 500]], ["rain", [null, 500]]]);
});

test("outliers do not flatten the loss chart, and the smoothed curve is never cut", () => {
  const raw = [...Array(199).fill(1), 50];
  const [low, high] = lossRange(raw, [1, 3]);
  assert.ok(high > 3 && high < 4, `${high}`);
  assert.ok(low >= 0 && low <= 1);
  assert.deepEqual(lossRange([], []), [0, 1]);
  assert.ok(lossRange([1, 5], [1, 2])[1] > 5, "few points are all shown");
});

test("a stage is done, active or waiting by the steps of the whole run", () => {
  const running = { step: 5, status: "running" };
  assert.deepEqual([[0, 4], [4, 34], [34, 124]].map(([first, last]) => stageState(running, first, last)), ["done", "active", "waiting"]);
  assert.equal(stageState({ step: 5, status: "cancelled" }, 4, 34), "waiting");
});

test("a stage's curve counts its own steps", () => {
  const progress = { step: [3, 4, 5, 34, 35], loss: [9, 8, 7, 6, 5], loss_smooth: [9, 8, 7, 6, 5] };
  assert.deepEqual(ofStage(progress, 4, 34), [[1, 30], [7, 6], [7, 6]]);
});
