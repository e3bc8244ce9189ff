/* [data-fragment="name"]: a part of the page that the server can draw again. With data-refresh-s="3" it does so by itself. */

/** @type {Map<string, string>} what the server last sent, so that an unchanged part is left alone */
const last = new Map();

/**
 * Fetch the page again and put its fragments in place of the shown ones.
 * @param {string[]} names
 * @param {string} [address] a page that holds the same fragments, cheaper to draw
 * @returns {Promise<boolean>} false when the reader must log in again
 */
export async function refreshFragments(names, address = location.href) {
  const response = await fetch(address, { headers: { "X-Requested-With": "fetch" } });
  if (response.redirected && new URL(response.url).pathname !== new URL(address, location.href).pathname) return false;
  if (!response.ok) throw new Error(`${address} answered ${response.status}`);
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const name of names) {
    const old = document.querySelector(`[data-fragment="${name}"]`);
    const next = fresh.querySelector(`[data-fragment="${name}"]`);
    if (!old || !next || last.get(name) === content(next)) continue;
    if (old.contains(document.activeElement) && document.activeElement?.matches("input, select, textarea")) continue;
    last.set(name, content(next));
    const open = [...old.querySelectorAll("details[open][id]")].map((element) => element.id);
    const focused = document.activeElement?.id;
    old.replaceWith(document.importNode(next, true));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
  }
  document.dispatchEvent(new CustomEvent("fragmentchange"));
  return true;
}

/** Without the CSRF token, which is masked anew in every answer. @param {Element} element */
const content = (element) => element.outerHTML.replace(/name="csrfmiddlewaretoken" value="[^"]*"/g, "");

for (const element of document.querySelectorAll("[data-fragment][data-refresh-s]")) {
  const { fragment, refreshS, refreshUrl } = /** @type {HTMLElement} */ (element).dataset;
  keepFresh(fragment ?? "", Number(refreshS), refreshUrl);
}

/** @param {string} name @param {number} every_s @param {string} [address] */
function keepFresh(name, every_s, address) {
  let wait_s = every_s;
  const again = async () => {
    if (!document.hidden) {
      try {
        if (!(await refreshFragments([name], address))) return;
        wait_s = every_s;
      } catch {
        wait_s = Math.min(wait_s * 2, 60);
      }
    }
    setTimeout(again, wait_s * 1000);
  };
  setTimeout(again, wait_s * 1000);
}
