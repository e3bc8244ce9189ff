import assert from "node:assert/strict";
import test from "node:test";

globalThis.document = /** @type {any} */ ({ querySelector: () => null });
const { meaning } = await import("../../audioldm_site/static/audioldm_site/js/blind.js");

test("keys play a side or answer", () => {
  assert.deepEqual(meaning({ key: "1" }, false), { play: "a" });
  assert.deepEqual(meaning({ key: "ArrowRight" }, false), { choose: "b" });
  assert.deepEqual(meaning({ key: "ArrowDown" }, false), { choose: "neither" });
});

test("a key that is held down answers once", () => {
  assert.equal(meaning({ key: "ArrowLeft", repeat: true }, false), null);
});

test("keys in a field and shortcuts of the browser are left alone", () => {
  assert.equal(meaning({ key: "1" }, true), null);
  assert.equal(meaning({ key: "ArrowLeft", altKey: true }, false), null);
  assert.equal(meaning({ key: "x" }, false), null);
});
