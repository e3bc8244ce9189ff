/* The one audio element of the page: only one sound plays at a time, and another can take over at the same moment. */

/**
 * @typedef {object} Sound
 * @property {string} src
 * @property {string} title
 * @property {number} [gain] 0..1, for level-matched comparison
 */

const audio = new Audio();
audio.preload = "auto";

/** @type {Sound | null} */
let current = null;
/** Where a sound that is still loading will start. @type {number | null} */
let pending_s = null;
/** @type {Set<() => void>} */
const listeners = new Set();
let frame = 0;

const tell = () => listeners.forEach((listener) => listener());

function follow() {
  cancelAnimationFrame(frame);
  tell();
  if (!audio.paused) frame = requestAnimationFrame(follow);
}
for (const type of ["play", "pause", "ended", "loadedmetadata", "seeked", "error", "emptied"]) audio.addEventListener(type, follow);

export const player = {
  /** @returns {{sound: Sound | null, playing: boolean, position_s: number, duration_s: number, failed: boolean, loop: boolean}} */
  get state() {
    return {
      sound: current,
      playing: !audio.paused && !audio.ended,
      position_s: pending_s ?? audio.currentTime,
      duration_s: Number.isFinite(audio.duration) ? audio.duration : 0,
      failed: audio.error !== null && current !== null,
      loop: audio.loop,
    };
  },

  /** @param {() => void} listener called at every change and at every frame while a sound plays */
  subscribe(listener) {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },

  /**
   * Play `sound` from `at_s`; a sound that is already loaded goes on from where it is when `at_s` is left out.
   * @param {Sound} sound
   * @param {{at_s?: number}} [options]
   */
  play(sound, { at_s } = {}) {
    if (current?.src !== sound.src) {
      load(sound.src, at_s ?? 0);
    } else if (at_s !== undefined) {
      audio.currentTime = at_s;
    }
    current = sound;
    audio.volume = sound.gain ?? 1;
    // An interrupted play() (the next sound came first) rejects; that is no fault.
    audio.play().catch(() => tell());
    tell();
  },

  /** Let another sound take over at the same position; it stays silent if nothing was playing. @param {Sound} sound */
  swap(sound) {
    const { playing, position_s } = player.state;
    if (playing) {
      player.play(sound, { at_s: position_s });
      return;
    }
    load(sound.src, position_s);
    current = sound;
    audio.volume = sound.gain ?? 1;
    tell();
  },

  /** @param {Sound} [sound] */
  toggle(sound) {
    if (sound && sound.src !== current?.src) player.play(sound);
    else if (!current) return;
    else if (audio.paused) player.play(current);
    else audio.pause();
  },

  /** @param {number} position_s */
  seek(position_s) {
    if (current) audio.currentTime = Math.max(0, position_s);
  },

  /** @param {boolean} on */
  setLoop(on) {
    audio.loop = on;
    tell();
  },

  close() {
    audio.pause();
    audio.removeAttribute("src");
    audio.load();
    current = null;
    pending_s = null;
    tell();
  },
};

/** @param {string} src @param {number} at_s */
function load(src, at_s) {
  pending_s = at_s;
  audio.src = src;
}

audio.addEventListener("loadedmetadata", () => {
  if (pending_s) audio.currentTime = Math.min(pending_s, Math.max(0, audio.duration - 0.01));
  pending_s = null;
});
