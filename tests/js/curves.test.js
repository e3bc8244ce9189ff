import assert from "node:assert/strict";
import test from "node:test";

import { joined } from "../../audioldm_site/static/audioldm_site/js/curves.js";

test("curves with other steps share one axis, with gaps where one says nothing", () => {
  const data = joined([
    [[10, 30], [1, 3]],
    [[20, 30], [2, 4]],
  ]);
  assert.deepEqual(data, [[10, 20, 30], [1, null, 3], [null, 2, 4]]);
});

test("a curve without points is a column of gaps", () => {
  assert.deepEqual(joined([[[1], [5]], [[], []]]), [[1], [5], [null]]);
  assert.deepEqual(joined([]), [[]]);
});
