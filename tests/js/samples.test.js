import assert from "node:assert/strict";
import test from "node:test";

globalThis.Audio = class extends EventTarget {};
globalThis.document = /** @type {any} */ ({ querySelector: () => null });
const { moved } = await import("../../audioldm_site/static/audioldm_site/js/samples.js");
const { sampleMatrix } = await import("../../audioldm_site/static/audioldm_site/js/run_state.js");

const matrix = sampleMatrix([
  { step: 0, index: 0, prompt: "bell" },
  { step: 1000, index: 0, prompt: "bell" },
  { step: 500, index: 1, prompt: "rain" },
  { step: 1000, index: 1, prompt: "rain" },
]);

test("arrows skip steps without a sound", () => {
  assert.deepEqual(moved(matrix, { row: 0, column: 0 }, [0, 1]), { row: 0, column: 2 });
});

test("arrows never leave the table", () => {
  const corner = { row: 1, column: 2 };
  assert.equal(moved(matrix, corner, [0, 1]), corner);
  assert.equal(moved(matrix, corner, [1, 0]), corner);
  assert.equal(moved(matrix, { row: 1, column: 1 }, [-1, 0]).row, 1);
});
