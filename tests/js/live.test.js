import assert from "node:assert/strict";
import test from "node:test";

import { reduce } from "../../audioldm_site/static/audioldm_site/js/generation_state.js";
import { backoff } from "../../audioldm_site/static/audioldm_site/js/live.js";

test("waits double up to a limit, and spread", () => {
  assert.deepEqual([1, 2, 3, 10].map((attempt) => backoff(attempt, () => 0.5)), [500, 1000, 2000, 15000]);
  assert.equal(backoff(1, () => 0), 375);
  assert.equal(backoff(1, () => 1), 625);
});

test("a generation is told by its events, and replays change nothing", () => {
  const empty = { seq: 0, attempt: 0, status: "queued", latest: null, waiting: null, waveforms: 0 };
  const event = (seq, type, data = {}) => ({ seq, attempt: 1, type, at: "", data });
  const story = [event(1, "started"), event(2, "progress", { step: 5, max_steps: 25 }), event(3, "waveform", { index: 0 }), event(4, "waveform", { index: 1 }), event(5, "finished")];
  const state = story.reduce(reduce, empty);
  assert.equal(state.status, "succeeded");
  assert.equal(state.waveforms, 2);
  assert.equal(story.reduce(reduce, state), state);
});
