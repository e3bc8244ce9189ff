/* [data-sound]: a play button and a waveform to seek in (with the keyboard: in the dock). Works for elements that arrive later, too.
   Within a [data-group] a sound takes over from another at the same moment and at the same level; arrow keys lead from one to the next. */
import { clock } from "./format.js";
import { player } from "./sound_player.js";
import { matchedGains, paintPlayed } from "./waveform.js";

/** @typedef {import("./sound_player.js").Sound} Sound */

/** @param {HTMLElement} element @returns {Sound} */
function soundOf(element) {
  const gain = element.dataset.group ? groupGain(element) : element.dataset.gain ? Number(element.dataset.gain) : 1;
  return { src: element.dataset.src ?? "", title: element.dataset.title ?? "", gain };
}

/** The sounds of an element's group, itself among them. @param {HTMLElement} element */
const groupOf = (element) => /** @type {HTMLElement[]} */ ([...document.querySelectorAll(`[data-sound][data-group="${CSS.escape(element.dataset.group ?? "")}"]`)]);

/** @param {HTMLElement} element */
function groupGain(element) {
  const group = groupOf(element);
  const gains = matchedGains(group.map(({ dataset }) => (dataset.peaks ? dataset.peaks.split(",").map(Number) : [])));
  return gains[group.indexOf(element)];
}

/** Whether another sound of the element's group plays now, so that this one takes over. @param {HTMLElement} element */
function takesOver(element) {
  const { playing, sound } = player.state;
  return Boolean(element.dataset.group && playing && sound?.src !== element.dataset.src && groupOf(element).some(({ dataset }) => dataset.src === sound?.src));
}

/** @param {Element} element @returns {number} */
function durationOf(element) {
  return player.state.duration_s || Number(/** @type {HTMLElement} */ (element).dataset.duration ?? 0);
}

document.addEventListener("click", (event) => {
  if (!(event.target instanceof Element)) return;
  const element = /** @type {HTMLElement | null} */ (event.target.closest("[data-sound]"));
  if (!element) return;
  const wave = event.target.closest("[data-wave]");
  if (event.target.closest(".play")) {
    if (takesOver(element)) player.swap(soundOf(element));
    else player.toggle(soundOf(element));
  } else if (wave) {
    const box = wave.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const same = player.state.sound?.src === element.dataset.src;
    player.play(soundOf(element), { at_s: share * (same ? durationOf(element) : Number(element.dataset.duration ?? 0)) });
  }
});

document.addEventListener("keydown", (event) => {
  const target = event.target instanceof Element ? event.target : document.body;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && !target.closest("input, select, textarea, button, a, summary, audio, [role=button], [contenteditable]")) {
    if (!player.state.sound) return;
    event.preventDefault();
    player.toggle();
    return;
  }
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const here = way && /** @type {HTMLElement | null} */ (target.closest("[data-sound][data-group]"));
  if (!here) return;
  const group = groupOf(here);
  const next = group[group.indexOf(here) + way];
  if (!next) return;
  event.preventDefault();
  /** @type {HTMLElement | null} */ (next.querySelector(".play"))?.focus();
  if (takesOver(next)) player.swap(soundOf(next));
});

/** @type {Set<HTMLElement>} */
let shown = new Set();

player.subscribe(() => {
  const { sound, playing, position_s, failed } = player.state;
  const now = /** @type {Set<HTMLElement>} */ (new Set(sound ? document.querySelectorAll(`[data-sound][data-src="${CSS.escape(sound.src)}"]`) : []));
  for (const element of shown) if (!now.has(element)) draw(element, { playing: false, position_s: 0, failed: false });
  for (const element of now) draw(element, { playing, position_s, failed });
  shown = now;
});

/** @param {HTMLElement} element @param {{playing: boolean, position_s: number, failed: boolean}} state */
function draw(element, { playing, position_s, failed }) {
  const duration_s = position_s ? durationOf(element) : Number(element.dataset.duration ?? 0);
  element.classList.toggle("is-playing", playing);
  const svg = element.querySelector("[data-wave] svg");
  if (svg instanceof SVGSVGElement) paintPlayed(svg, duration_s ? position_s / duration_s : 0);
  const playhead = element.querySelector("[data-playhead]");
  if (playhead instanceof HTMLElement) {
    playhead.style.left = `${duration_s ? (100 * position_s) / duration_s : 0}%`;
    playhead.classList.toggle("is-set", position_s > 0);
  }
  const time = element.querySelector("[data-sound-time]");
  if (time) time.textContent = failed ? "cannot play" : position_s ? clock(position_s) : length(duration_s);
}

/** @param {number} duration_s */
const length = (duration_s) => (duration_s ? `${Number(duration_s.toFixed(2))} s` : "");
