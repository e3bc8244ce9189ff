/* [data-dock]: the bar that shows what plays, wherever on the page it was started. */
import { player } from "./sound_player.js";

const dock = document.querySelector("[data-dock]");
if (dock instanceof HTMLElement) attach(dock);

/** @param {HTMLElement} dock */
function attach(dock) {
  const toggle = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-toggle]"));
  const title = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-title]"));
  const progress = /** @type {HTMLProgressElement} */ (dock.querySelector("[data-dock-progress]"));
  const loop = /** @type {HTMLElement} */ (dock.querySelector("[data-dock-loop]"));
  toggle.addEventListener("click", () => player.toggle());
  loop.addEventListener("click", () => player.setLoop(!player.state.loop));
  dock.querySelector("[data-dock-close]")?.addEventListener("click", () => player.close());
  player.subscribe(() => {
    const { sound, playing, position_s, duration_s, failed } = player.state;
    dock.hidden = sound === null;
    toggle.classList.toggle("is-playing", playing);
    const text = failed ? `${sound?.title ?? ""}: cannot be played` : (sound?.title ?? "");
    if (title.textContent !== text) title.textContent = text;
    progress.value = duration_s ? position_s / duration_s : 0;
    loop.setAttribute("aria-pressed", String(player.state.loop));
    loop.classList.toggle("star-on", player.state.loop);
  });
}
