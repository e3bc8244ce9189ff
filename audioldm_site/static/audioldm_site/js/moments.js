/* time[data-moment]: rewritten in the reader's own time zone; data-moment="ago" keeps saying how long ago. */
import { ago } from "./format.js";

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {ParentNode} root */
export function localize(root) {
  for (const element of root.querySelectorAll("time[data-moment]")) {
    const moment = new Date(element.getAttribute("datetime") ?? "");
    if (Number.isNaN(moment.getTime())) continue;
    const text = element.getAttribute("data-moment") === "ago" ? ago(moment, new Date()) : full.format(moment);
    if (element.textContent !== text) element.textContent = text;
    element.setAttribute("title", full.format(moment));
  }
}

localize(document);
setInterval(() => localize(document), 10_000);
document.addEventListener("fragmentchange", () => localize(document));
