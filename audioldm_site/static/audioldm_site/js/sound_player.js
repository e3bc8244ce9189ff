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
      position_s: audio.currentTime,
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
      audio.src = sound.src;
      if (at_s) seekWhenLoaded(sound.src, at_s);
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
    audio.src = sound.src;
    current = sound;
    audio.volume = sound.gain ?? 1;
    if (position_s) seekWhenLoaded(sound.src, position_s);
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
    tell();
  },
};

/** @param {string} src @param {number} at_s */
function seekWhenLoaded(src, at_s) {
  audio.addEventListener(
    "loadedmetadata",
    () => {
      if (current?.src === src) audio.currentTime = Math.min(at_s, Math.max(0, audio.duration - 0.01));
    },
    { once: true },
  );
}
