import assert from "node:assert/strict";
import test from "node:test";

import { loudness, matchedGains, waveformPath } from "../../audioldm_site/static/audioldm_site/js/waveform.js";

test("one upright bar per peak, centred", () => {
  assert.equal(waveformPath([10, 20, 100]), "M0.5 45V55M1.5 40V60M2.5 0V100");
});

test("more peaks than bars are folded by their maximum", () => {
  assert.equal(waveformPath([10, 90, 20, 30], 2), "M0.5 5V95M1.5 35V65");
});

test("silence is a thin line, and no peaks are nothing", () => {
  assert.equal(waveformPath([0]), "M0.5 49.5V50.5");
  assert.equal(waveformPath([]), "");
});

test("loudness is the root mean square", () => {
  assert.equal(loudness([100, 100]), 1);
  assert.ok(Math.abs(loudness([60, 80]) - Math.sqrt(0.5)) < 1e-9);
});

test("matching levels brings every take down to the quietest", () => {
  assert.deepEqual(matchedGains([[100], [50], [50]]), [0.5, 1, 1]);
});

test("a nearly silent take does not pull the others below hearing", () => {
  assert.deepEqual(matchedGains([[100], [5]]), [0.25, 1]);
  assert.deepEqual(matchedGains([[0], [0]]), [1, 1]);
});
