import assert from "node:assert/strict";
import test from "node:test";

import { reduce, secondsLeft } from "../../audioldm_site/static/audioldm_site/js/conversion_state.js";

const empty = { seq: 0, attempt: 0, status: "queued", stage: null };
const event = (seq, type, data = {}, second = seq, attempt = 1) => ({ seq, attempt, type, at: `2026-01-01T00:00:${String(second).padStart(2, "0")}.000+00:00`, data });

test("an import is told by its events, and replays change nothing", () => {
  const story = [event(1, "started"), event(2, "waiting", { stage: "checking", done: 0, total: 8 }), event(3, "waiting", { stage: "unet", done: 1, total: 9 }), event(4, "finished")];
  const state = story.reduce(reduce, empty);
  assert.equal(state.status, "succeeded");
  assert.equal(state.stage, null);
  assert.equal(story.reduce(reduce, state), state);
});

test("what is left is told from the pace of the stage, not of what came before it", () => {
  // 200 bytes in 4 s; 300 are left.
  const story = [event(1, "waiting", { stage: "checking", done: 900, total: 900 }), event(2, "waiting", { stage: "writing", done: 100, total: 600 }, 10), event(3, "waiting", { stage: "writing", done: 300, total: 600 }, 14)];
  const state = story.reduce(reduce, empty);
  assert.equal(secondsLeft(state.stage), 6);
});

test("nobody can tell what is left of a stage that has just begun, or has no size", () => {
  const [begun] = [event(1, "waiting", { stage: "writing", done: 0, total: 600 })].map((first) => reduce(empty, first));
  assert.equal(secondsLeft(begun.stage), null);
  assert.equal(secondsLeft(reduce(empty, event(1, "waiting", { stage: "loading" })).stage), null);
  assert.equal(secondsLeft(null), null);
});

test("a new attempt begins its stage anew", () => {
  const story = [event(1, "waiting", { stage: "writing", done: 500, total: 600 }), event(2, "waiting", { stage: "writing", done: 10, total: 600 }, 20, 2)];
  assert.equal(story.reduce(reduce, empty).stage.first_done, 10);
});
