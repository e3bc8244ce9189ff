/* The terminal command that does what a form does; the same words as `command_line` in forms.py. */

/** @typedef {string | number | boolean | string[]} Value */

/** As Python's shlex.quote. @param {string} word */
export function quote(word) {
  if (word === "") return "''";
  return /[^\w@%+=:,./-]/u.test(word) || /[^\x00-\x7f]/.test(word) ? `'${word.replaceAll("'", `'"'"'`)}'` : word;
}

/**
 * @param {string} command
 * @param {[string, string][]} parts flag and value; a flag that does not begin with -- is given by position
 * @param {Record<string, Value>} values as the form shows them
 * @param {Record<string, Value>} defaults in the order of the configuration
 * @param {string[]} [leaveOut]
 */
export function commandLine(command, parts, values, defaults, leaveOut = []) {
  const words = ["./manage.py", command];
  for (const [flag, value] of parts) words.push(...(flag.startsWith("--") ? [flag, value] : [value]));
  for (const [name, fallback] of Object.entries(defaults)) {
    const value = values[name] ?? fallback;
    if (leaveOut.includes(name) || same(value, fallback)) continue;
    if (Array.isArray(fallback)) {
      for (const line of lines(value)) words.push(`--${name}`, line);
    } else {
      words.push(`--${name}`, String(value));
    }
  }
  return words.map(quote).join(" ");
}

/** @param {Value} value */
const lines = (value) => (Array.isArray(value) ? value : String(value).split(/\r?\n/)).map((line) => line.trim()).filter(Boolean);

/** @param {Value} value @param {Value} fallback */
function same(value, fallback) {
  if (Array.isArray(fallback)) return lines(value).join("\n") === fallback.join("\n");
  if (typeof fallback === "number") return String(value).trim() !== "" && Number(value) === fallback;
  return String(value) === String(fallback);
}
