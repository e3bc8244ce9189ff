import assert from "node:assert/strict";
import test from "node:test";

import { ago, bytesSize, clock, duration, figure, whole } from "../../audioldm_site/static/audioldm_site/js/format.js";

test("numbers read as on the server's pages", () => {
  assert.equal(figure(0.0001), "1e-4");
  assert.equal(figure(0.131234), "0.1312");
  assert.equal(figure(null), "–");
  assert.equal(whole(20000), "20\u202f000");
  assert.equal(bytesSize(12_345_678), "12.3 MB");
  assert.equal(bytesSize(undefined), "–");
});

test("durations", () => {
  assert.deepEqual([0, 0.3, 42, 65, 3599, 7500, 90000].map((value) => duration(value)), ["0 s", "less than 1 s", "42 s", "1 min 05 s", "60 min", "2 h 05 min", "1 d 1 h"]);
});

test("positions in a sound", () => {
  assert.equal(clock(7.4), "0:07.4");
  assert.equal(clock(65), "1:05.0");
});

test("how long ago", () => {
  const now = new Date("2026-11-22T13:00:00Z");
  assert.equal(ago(new Date("2026-11-22T12:59:58Z"), now), "just now");
  assert.equal(ago(new Date("2026-11-22T12:30:00Z"), now), "30 min ago");
  assert.equal(ago(new Date("2026-11-21T12:00:00Z"), now), "yesterday");
});
