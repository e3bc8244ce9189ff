/* form[data-upload]: says how much of a large file has been sent. Without JavaScript the browser sends it in silence. */
import { bytesSize, duration } from "./format.js";

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || !(form instanceof HTMLFormElement) || !form.hasAttribute("data-upload")) return;
  event.preventDefault();
  const box = form.querySelector("[data-upload-progress]");
  const text = form.querySelector("[data-upload-text]");
  const bar = form.querySelector("progress");
  const buttons = form.querySelectorAll("button");
  const request = new XMLHttpRequest();
  const began = Date.now();

  /** @param {string} words */
  const say = (words) => {
    if (text) text.textContent = words;
  };
  /** @param {boolean} busy */
  const show = (busy) => {
    if (box instanceof HTMLElement) box.hidden = false;
    for (const button of buttons) button.disabled = busy;
  };
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    const passed = (Date.now() - began) / 1000;
    if (bar) {
      bar.max = total || 1;
      bar.value = loaded;
    }
    const left = passed > 1 && loaded ? `, ${duration(((total - loaded) * passed) / loaded)} left` : "";
    say(loaded < total ? `${bytesSize(loaded)} of ${bytesSize(total)} sent${left}` : "looking at it …");
  });
  request.addEventListener("load", () => {
    // The answer is a page: that of the file, or this one with what is wrong.
    if (request.responseURL && new URL(request.responseURL).pathname !== new URL(form.action).pathname) {
      location.assign(request.responseURL);
      return;
    }
    const fresh = new DOMParser().parseFromString(request.responseText, "text/html").querySelector("form[data-upload]");
    if (fresh) form.replaceWith(document.importNode(fresh, true));
    else {
      show(false);
      say(request.status === 413 ? "The file is larger than this studio takes by upload: put it into the incoming folder." : `The studio answered ${request.status}.`);
    }
  });
  request.addEventListener("error", () => {
    show(false);
    say("The upload broke off. Try again, or put the file into the incoming folder.");
  });
  request.open("POST", form.action);
  show(true);
  request.send(new FormData(form));
});
