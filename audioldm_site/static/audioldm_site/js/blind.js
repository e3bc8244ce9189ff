/* [data-blind]: a pair of sounds is heard and judged with the keyboard alone. */

/** What a key does: play a side, or answer. @type {Record<string, {play?: string, choose?: string}>} */
const KEYS = {
  1: { play: "a" },
  2: { play: "b" },
  ArrowLeft: { choose: "a" },
  ArrowRight: { choose: "b" },
  ArrowDown: { choose: "neither" },
};

/**
 * What a key press asks for; null where it belongs to somebody else: a field, a slider, a shortcut of the browser.
 * @param {{key: string, ctrlKey?: boolean, metaKey?: boolean, altKey?: boolean, repeat?: boolean}} event
 * @param {boolean} inField
 */
export function meaning(event, inField) {
  if (inField || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return null;
  return KEYS[event.key] ?? null;
}

const pair = document.querySelector("[data-blind]");
if (pair) {
  document.addEventListener("keydown", (event) => {
    const asked = meaning(event, event.target instanceof Element && event.target.matches("input, select, textarea, audio"));
    if (!asked) return;
    event.preventDefault();
    const button = asked.play ? pair.querySelector(`[data-side="${asked.play}"] .play`) : pair.querySelector(`[name="choice"][value="${asked.choose}"]`);
    if (button instanceof HTMLButtonElement) button.click();
  });
}
