/* time[data-moment]: rewritten in the reader's own time zone; data-moment="ago" keeps saying how long ago, "time" leaves out the day. */
import { ago } from "./format.js";

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** @param {Date} moment @param {string | null} style */
function words(moment, style) {
  if (style === "ago") return ago(moment, new Date());
  return style === "time" ? time.format(moment) : full.format(moment);
}

/** @param {ParentNode} root */
export function localize(root) {
  for (const element of root.querySelectorAll("time[data-moment]")) {
    const moment = new Date(element.getAttribute("datetime") ?? "");
    if (Number.isNaN(moment.getTime())) continue;
    const text = words(moment, element.getAttribute("data-moment"));
    if (element.textContent !== text) element.textContent = text;
    element.setAttribute("title", full.format(moment));
  }
}

localize(document);
setInterval(() => localize(document), 10_000);
document.addEventListener("fragmentchange", () => localize(document));
