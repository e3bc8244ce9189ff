/* The table of sounds, prompt × step: choose with the arrow keys, and the sound goes on at the same moment in another take. */
import { clock, figure, whole } from "./format.js";
import { sampleMatrix } from "./run_state.js";
import { player } from "./sound_player.js";
import { matchedGains, waveformSvg } from "./waveform.js";

const CELL_BARS = 36;
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** @param {string} files @param {Record<string, any>} take */
const address = (files, take) => files + take.audio.split("/").map(encodeURIComponent).join("/");

/**
 * The selection after an arrow key: past empty cells, never out of the table.
 * @param {ReturnType<typeof sampleMatrix>} matrix
 * @param {{row: number, column: number}} from
 * @param {[number, number]} direction rows, columns
 */
export function moved(matrix, from, [down, right]) {
  let { row, column } = from;
  for (;;) {
    row += down;
    column += right;
    if (row < 0 || row >= matrix.rows.length || column < 0 || column >= matrix.steps.length) return from;
    if (matrix.rows[row].takes[column]) return { row, column };
  }
}

/**
 * @param {HTMLElement} section the [data-samples] element
 * @param {{files: string, spectrograms: string}} addresses
 */
export function sampleBrowser(section, addresses) {
  const find = (/** @type {string} */ name) => /** @type {HTMLElement} */ (section.querySelector(`[data-${name}]`));
  const take = find("take");
  const table = find("matrix");
  const spectrogram = /** @type {HTMLImageElement} */ (find("take-spectrogram"));
  const match = /** @type {HTMLInputElement} */ (find("match-levels"));
  let matrix = sampleMatrix([]);
  let drawn = "";
  /** @type {{row: number, column: number}} */
  let selected = { row: 0, column: 0 };
  /** @type {Set<string>} what the reader has not listened to since it appeared */
  const unheard = new Set();
  const key = (/** @type {Record<string, any>} */ sample) => `${sample.step}/${sample.index}`;
  const chosen = () => matrix.rows[selected.row]?.takes[selected.column] ?? null;

  /** @param {Record<string, any>} sample */
  function soundOf(sample) {
    const { takes, prompt } = matrix.rows[selected.row];
    const gains = matchedGains(takes.map((other) => other?.peaks ?? []));
    const gain = match.checked ? gains[takes.indexOf(sample)] : 1;
    return { src: address(addresses.files, sample), title: `${prompt} · step ${whole(sample.step)}`, gain };
  }

  /** The address carries the sound's hash, so that a picture is fetched once. @param {Record<string, any>} sample */
  const picture = (sample) => `${address(addresses.spectrograms, sample)}?v=${(sample.sha256 ?? "").slice(0, 12)}`;

  /** Have the pictures of the neighbours ready before an arrow key asks for them. */
  function prefetch() {
    for (const direction of Object.values(ARROWS)) {
      const { row, column } = moved(matrix, selected, /** @type {[number, number]} */ (direction));
      const neighbour = matrix.rows[row]?.takes[column];
      if (neighbour) new Image().src = picture(neighbour);
    }
  }

  function drawTable() {
    const head = find("matrix-steps");
    head.replaceChildren(document.createElement("td"), ...matrix.steps.map((step, column) => stepHeading(step, column)));
    find("matrix-rows").replaceChildren(...matrix.rows.map(tableRow));
  }

  /** @param {number} step @param {number} column */
  function stepHeading(step, column) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = step === 0 ? "before" : whole(step);
    if (column === selected.column) cell.setAttribute("aria-current", "true");
    return cell;
  }

  /** @param {ReturnType<typeof sampleMatrix>["rows"][number]} row @param {number} rowIndex */
  function tableRow(row, rowIndex) {
    const line = document.createElement("tr");
    const prompt = document.createElement("th");
    prompt.scope = "row";
    prompt.textContent = row.prompt;
    prompt.title = row.prompt;
    line.append(prompt, ...row.takes.map((sample, column) => tableCell(sample, rowIndex, column)));
    return line;
  }

  /** @param {Record<string, any> | null} sample @param {number} row @param {number} column */
  function tableCell(sample, row, column) {
    const cell = document.createElement("td");
    if (!sample) {
      cell.append(Object.assign(document.createElement("div"), { className: "cell-none" }));
      return cell;
    }
    const on = row === selected.row && column === selected.column;
    const button = Object.assign(document.createElement("button"), { type: "button", className: "cell", tabIndex: on ? 0 : -1 });
    button.dataset.cell = `${row}/${column}`;
    button.setAttribute("aria-pressed", String(on));
    const score = sample.clap_score === null || sample.clap_score === undefined ? "" : figure(sample.clap_score, 2);
    button.setAttribute("aria-label", `${sample.prompt}, step ${sample.step}${score ? `, CLAP score ${score}` : ""}`);
    const wave = Object.assign(document.createElement("span"), { className: "wave" });
    wave.append(waveformSvg(sample.peaks ?? [], CELL_BARS));
    const facts = Object.assign(document.createElement("span"), { className: "row" });
    const label = Object.assign(document.createElement("span"), { className: "cell-step", textContent: whole(sample.step) });
    const mark = Object.assign(document.createElement("span"), { textContent: score });
    if (sample.flags?.length) mark.textContent += " !";
    if (unheard.has(key(sample))) facts.classList.add("cell-new");
    facts.append(label, mark);
    button.append(wave, facts);
    cell.append(button);
    return cell;
  }

  function drawTake() {
    const sample = chosen();
    if (!sample) return;
    const sound = soundOf(sample);
    take.dataset.src = sound.src;
    take.dataset.title = sound.title;
    take.dataset.gain = String(sound.gain);
    take.dataset.duration = String(sample.duration_s ?? "");
    find("take-prompt").textContent = sample.prompt;
    const facts = [
      sample.step === 0 ? "before training" : `step ${whole(sample.step)}`,
      sample.clap_score === null || sample.clap_score === undefined ? "" : `CLAP ${figure(sample.clap_score, 3)}`,
      `seed ${sample.seed}`,
      sample.duration_s ? `${figure(sample.duration_s)} s` : "",
      sample.sample_rate_hz ? `${sample.sample_rate_hz / 1000} kHz` : "",
    ];
    find("take-facts").textContent = facts.filter(Boolean).join(" · ");
    find("take-flags").replaceChildren(
      ...(sample.flags ?? []).map((/** @type {string} */ flag) => Object.assign(document.createElement("span"), { className: "tag tag-warn", textContent: flag.replaceAll("_", " ") })),
    );
    const wave = /** @type {HTMLElement} */ (take.querySelector(".wave"));
    wave.replaceChildren(waveformSvg(sample.peaks ?? []));
    wave.classList.toggle("wave-flat", !sample.peaks?.length);
    // The picture of another sound must not stand there while this one's is drawn.
    spectrogram.classList.add("is-loading");
    spectrogram.src = picture(sample);
    spectrogram.alt = `Spectrogram of step ${sample.step}`;
    find("take-download").setAttribute("href", sound.src);
    const time = take.querySelector("[data-sound-time]");
    if (time) time.textContent = player.state.sound?.src === sound.src ? clock(player.state.position_s) : "";
  }

  /** @param {{row: number, column: number}} to @param {{focus?: boolean}} [options] */
  function select(to, { focus = false } = {}) {
    selected = to;
    const sample = chosen();
    if (!sample) return;
    unheard.delete(key(sample));
    drawTable();
    drawTake();
    if (focus) /** @type {HTMLElement | null} */ (table.querySelector('[aria-pressed="true"]'))?.focus({ preventScroll: false });
  }

  table.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? /** @type {HTMLElement | null} */ (event.target.closest("[data-cell]")) : null;
    if (!button) return;
    const [row, column] = (button.dataset.cell ?? "0/0").split("/").map(Number);
    const again = row === selected.row && column === selected.column;
    select({ row, column }, { focus: true });
    const sample = chosen();
    if (!sample) return;
    const sound = soundOf(sample);
    if (again && player.state.sound?.src === sound.src) player.toggle(sound);
    else player.play(sound, { at_s: player.state.playing && ownSound() ? player.state.position_s : 0 });
  });

  section.addEventListener("keydown", (event) => {
    const direction = ARROWS[/** @type {keyof typeof ARROWS} */ (event.key)];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey || (event.target instanceof Element && event.target.matches("input"))) return;
    event.preventDefault();
    const to = moved(matrix, selected, /** @type {[number, number]} */ (direction));
    if (to === selected) return;
    const follow = ownSound();
    select(to, { focus: true });
    const sample = chosen();
    if (sample && follow) player.swap(soundOf(sample));
  });

  spectrogram.addEventListener("load", () => {
    spectrogram.classList.remove("is-loading");
    prefetch();
  });

  match.addEventListener("change", () => {
    drawTake();
    const sample = chosen();
    if (sample && player.state.sound?.src === take.dataset.src && player.state.playing) player.play(soundOf(sample));
  });

  /** Whether the loaded sound is one of this table's. */
  const ownSound = () => Boolean(player.state.sound?.src.startsWith(addresses.files));

  /** @param {Record<string, any>[]} samples */
  return function update(samples) {
    const now = samples.map((sample) => `${key(sample)}:${sample.sha256}`).join();
    if (now === drawn) return;
    const first = drawn === "";
    const before = chosen();
    const wasNewest = !before || selected.column === matrix.steps.length - 1;
    const known = new Set(matrix.rows.flatMap(({ takes }) => takes.filter(Boolean).map((sample) => key(/** @type {any} */ (sample)))));
    drawn = now;
    matrix = sampleMatrix(samples);
    find("samples-empty").hidden = samples.length > 0;
    find("samples-body").hidden = samples.length === 0;
    if (!samples.length) return;
    if (!first) for (const sample of samples) if (!known.has(key(sample))) unheard.add(key(sample));
    if (first || (wasNewest && !ownSound())) selected = newest(matrix);
    else if (before) selected = positionOf(matrix, before);
    drawTable();
    drawTake();
  };
}

/** @param {ReturnType<typeof sampleMatrix>} matrix */
function newest(matrix) {
  const column = matrix.steps.length - 1;
  const row = matrix.rows.findIndex(({ takes }) => takes[column]);
  return { row: Math.max(row, 0), column };
}

/** Where a sample stands now that others arrived. @param {ReturnType<typeof sampleMatrix>} matrix @param {Record<string, any>} sample */
function positionOf(matrix, sample) {
  const row = matrix.rows.findIndex(({ index }) => index === sample.index);
  const column = matrix.steps.indexOf(sample.step);
  return row < 0 || column < 0 || !matrix.rows[row].takes[column] ? newest(matrix) : { row, column };
}
