import assert from "node:assert/strict";
import test from "node:test";

import { isPassing } from "../../audioldm_site/static/audioldm_site/js/resumable.js";
import { Speed } from "../../audioldm_site/static/audioldm_site/js/upload_speed.js";

test("the speed is that of the last ten seconds", () => {
  const speed = new Speed();
  speed.add(0, 0);
  assert.equal(speed.rate, 0);
  speed.add(1000, 1000);
  assert.equal(speed.rate, 1000);
  assert.equal(speed.secondsLeft(3000), 2);
  speed.add(1000, 15_000);
  assert.equal(speed.rate, 0);
  assert.equal(speed.secondsLeft(3000), null);
});

test("a piece that is sent again, and a pause, begin the measuring anew", () => {
  const speed = new Speed();
  speed.add(5000, 0);
  speed.add(9000, 1000);
  speed.add(5000, 2000);
  speed.add(6000, 3000);
  assert.equal(speed.rate, 1000);
  speed.forget();
  assert.equal(speed.rate, 0);
});

test("what a later try may mend is tried again, a refusal is not", () => {
  assert.deepEqual([0, 409, 423, 460, 500, 503].map(isPassing), [true, true, true, true, true, true]);
  assert.deepEqual([401, 404, 410, 413, 415, 507].map(isPassing), [false, false, false, false, false, false]);
});
