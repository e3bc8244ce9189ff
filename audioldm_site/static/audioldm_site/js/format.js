/* Numbers as the pages write them; the same words as templatetags/studio.py. */

const DASH = "–";

/** @param {number | null | undefined} value */
const absent = (value) => value === null || value === undefined || !Number.isFinite(value);

/** Position in a sound: 0:07.4 @param {number} value seconds */
export function clock(value) {
  const tenths = Math.floor(value * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

/** How long something takes: 42 s, 2 h 05 min @param {number | null | undefined} value seconds */
export function duration(value) {
  if (absent(value)) return DASH;
  if (/** @type {number} */ (value) > 0 && /** @type {number} */ (value) < 1) return "less than 1 s";
  const total = Math.max(Math.round(/** @type {number} */ (value)), 0);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  if (total < 60) return `${total} s`;
  if (total < 600) return `${Math.floor(total / 60)} min ${two(total % 60)} s`;
  if (total < 3600) return `${Math.round(total / 60)} min`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${two(Math.floor((total % 3600) / 60))} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

/** A measured number with so many significant digits. @param {number | null | undefined} value @param {number} [digits] */
export function figure(value, digits = 4) {
  if (absent(value)) return DASH;
  const number = /** @type {number} */ (value);
  if (number === 0) return "0";
  if (Math.abs(number) < 0.001) {
    const [mantissa, exponent] = number.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  return String(Number(number.toPrecision(digits)));
}

/** A count with thin spaces between thousands. @param {number | null | undefined} value */
export function whole(value) {
  return absent(value) ? DASH : String(Math.trunc(/** @type {number} */ (value))).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** A size in powers of 1000. @param {number | null | undefined} value */
export function bytesSize(value) {
  if (absent(value)) return DASH;
  let size = /** @type {number} */ (value);
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (Math.abs(size) >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return unit === 0 || size >= 100 ? `${Math.round(size)} ${units[unit]}` : `${size.toFixed(1)} ${units[unit]}`;
}

/** @param {Date} moment @param {Date} now */
export function ago(moment, now) {
  const passed = Math.max(0, Math.round((now.getTime() - moment.getTime()) / 1000));
  if (passed < 5) return "just now";
  if (passed < 60) return `${passed} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  const days = Math.floor(passed / 86400);
  return days === 1 ? "yesterday" : `${days} days ago`;
}
