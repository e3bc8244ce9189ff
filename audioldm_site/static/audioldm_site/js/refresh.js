/* [data-fragment="name"]: a part of the page that the server can draw again. With data-refresh-s="3" it does so by itself. */

/** @type {Map<string, string>} what the server last sent, so that an unchanged part is left alone */
const last = new Map();

/**
 * Fetch this page again and put its fragments in place of the shown ones.
 * @param {string[]} names
 * @returns {Promise<boolean>} false when the reader must log in again
 */
export async function refreshFragments(names) {
  const response = await fetch(location.href, { headers: { "X-Requested-With": "fetch" } });
  if (response.redirected && new URL(response.url).pathname !== location.pathname) return false;
  if (!response.ok) throw new Error(`${location.pathname} answered ${response.status}`);
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  replaceFragments(names, fresh);
  return true;
}

/** Put fragments of a fetched page in place of the shown ones. @param {string[]} names @param {Document} fresh */
export function replaceFragments(names, fresh) {
  for (const name of names) replace(name, fresh);
  document.dispatchEvent(new CustomEvent("fragmentchange"));
}

/** @param {string} name @param {Document} fresh */
function replace(name, fresh) {
  const selector = `[data-fragment="${name}"]`;
  const old = document.querySelector(selector);
  const next = fresh.querySelector(selector);
  if (!old || !next || last.get(name) === content(next)) return;
  if (old.contains(document.activeElement) && document.activeElement?.matches("input, select, textarea")) return;
  last.set(name, content(next));
  const open = [...old.querySelectorAll("details[open][id]")].map((element) => element.id);
  const focused = old.contains(document.activeElement) ? document.activeElement?.id : "";
  old.replaceWith(document.importNode(next, true));
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) document.getElementById(focused)?.focus();
}

/** Without the CSRF token, which is masked anew in every answer. @param {Element} element */
const content = (element) => element.outerHTML.replace(/name="csrfmiddlewaretoken" value="[^"]*"/g, "");

/** @type {Map<number, string[]>} names by interval: one request draws all that is due together */
const due = new Map();
for (const element of document.querySelectorAll("[data-fragment][data-refresh-s]")) {
  const { fragment, refreshS } = /** @type {HTMLElement} */ (element).dataset;
  const every_s = Number(refreshS);
  due.set(every_s, [...(due.get(every_s) ?? []), fragment ?? ""]);
}
for (const [every_s, names] of due) keepFresh(names, every_s);

/** @param {string[]} names @param {number} every_s */
function keepFresh(names, every_s) {
  let wait_s = every_s;
  const again = async () => {
    if (!document.hidden) {
      try {
        if (!(await refreshFragments(names))) return;
        wait_s = every_s;
      } catch {
        wait_s = Math.min(wait_s * 2, 60);
      }
    }
    setTimeout(again, wait_s * 1000);
  };
  setTimeout(again, wait_s * 1000);
}
