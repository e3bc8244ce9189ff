/* [data-dock]: the bar that shows what plays, wherever on the page it was started. */
import { clock } from "./format.js";
import { player } from "./sound_player.js";

const dock = document.querySelector("[data-dock]");
if (dock instanceof HTMLElement) attach(dock);

/** @param {HTMLElement} dock */
function attach(dock) {
  const toggle = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-toggle]"));
  const title = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-title]"));
  const seek = /** @type {HTMLInputElement} */ (dock.querySelector("[data-dock-seek]"));
  const loop = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-loop]"));
  toggle.addEventListener("click", () => player.toggle());
  loop.addEventListener("click", () => player.setLoop(!player.state.loop));
  dock.querySelector("[data-dock-close]")?.addEventListener("click", () => player.close());
  seek.addEventListener("input", () => player.seek((Number(seek.value) / 1000) * player.state.duration_s));
  player.subscribe(() => {
    const { sound, playing, position_s, duration_s, failed } = player.state;
    dock.hidden = sound === null;
    toggle.classList.toggle("is-playing", playing);
    const text = failed ? `${sound?.title ?? ""}: cannot be played` : (sound?.title ?? "");
    if (title.textContent !== text) title.textContent = text;
    seek.value = String(duration_s ? Math.round((1000 * position_s) / duration_s) : 0);
    seek.setAttribute("aria-valuetext", `${clock(position_s)} of ${clock(duration_s)}`);
    loop.setAttribute("aria-pressed", String(player.state.loop));
    loop.classList.toggle("star-on", player.state.loop);
  });
}
