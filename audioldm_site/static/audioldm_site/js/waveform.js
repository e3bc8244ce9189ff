/* Waveforms as SVG paths from stored peaks; the same drawing as `waveform_path` in templatetags/studio.py. */

const SVG = "http://www.w3.org/2000/svg";
let clips = 0;

/**
 * One upright bar per peak, centred on 50; more peaks than bars are folded by their maximum.
 * @param {number[]} peaks 0..100
 * @param {number} [most] bars at most
 * @returns {string} an SVG path in a box 1 wide per bar and 100 high
 */
export function waveformPath(peaks, most = 200) {
  const bars = Math.min(most, peaks.length);
  let path = "";
  for (let bar = 0; bar < bars; bar += 1) {
    const from = Math.floor((bar * peaks.length) / bars);
    const to = Math.max(Math.floor(((bar + 1) * peaks.length) / bars), from + 1);
    const height = Math.min(Math.max(...peaks.slice(from, to), 1), 100) / 2;
    path += `M${bar}.5 ${50 - height}V${50 + height}`;
  }
  return path;
}

/**
 * @param {number[]} peaks
 * @param {number} [most]
 * @returns {SVGSVGElement}
 */
export function waveformSvg(peaks, most = 200) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${Math.max(Math.min(most, peaks.length), 1)} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", waveformPath(peaks, most));
  svg.append(path);
  return svg;
}

/**
 * Colour the part that was played; the coloured copy of the path is made at the first call.
 * @param {SVGSVGElement} svg
 * @param {number} share 0..1
 */
export function paintPlayed(svg, share) {
  let rect = svg.querySelector("clipPath rect");
  if (!rect) {
    const path = svg.querySelector("path");
    if (!path) return;
    clips += 1;
    const clip = document.createElementNS(SVG, "clipPath");
    clip.id = `played-${clips}`;
    rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("height", "100");
    clip.append(rect);
    const played = /** @type {SVGPathElement} */ (path.cloneNode());
    played.classList.add("wave-played");
    played.setAttribute("clip-path", `url(#${clip.id})`);
    svg.append(clip, played);
  }
  rect.setAttribute("width", String(share * svg.viewBox.baseVal.width));
}

/**
 * How loud a sound is drawn: the root mean square of its peaks, 0..1. Good enough to match levels between takes of one prompt.
 * @param {number[]} peaks
 */
export function loudness(peaks) {
  if (!peaks.length) return 0;
  return Math.sqrt(peaks.reduce((sum, peak) => sum + (peak / 100) ** 2, 0) / peaks.length);
}

/**
 * Volumes that bring every take down to the quietest audible one; nothing is ever made louder, so nothing clips.
 * @param {number[][]} takes peaks per take
 * @returns {number[]} 0..1 per take
 */
export function matchedGains(takes) {
  const levels = takes.map(loudness);
  const audible = levels.filter((level) => level > 0.01);
  if (!audible.length) return takes.map(() => 1);
  // A nearly silent take must not pull the others below hearing: 12 dB down at most.
  const target = Math.max(Math.min(...audible), Math.max(...audible) / 4);
  return levels.map((level) => (level > target ? target / level : 1));
}
