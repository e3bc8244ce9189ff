/* form[data-resumable="dataset"]: a large file goes in pieces, and goes on after a pause, a reload or a restart of the studio.
   Small files, and browsers without JavaScript, send the form itself. Needs vendor/tus/tus.min.js. */
import { bytesSize, duration } from "./format.js";
import { Speed } from "./upload_speed.js";

const CHUNK_BYTES = 16 * 1024 * 1024;
const RETRY_MS = [0, 1000, 3000, 5000, 10_000, 20_000, ...Array(30).fill(30_000)];
const SAY_EVERY_MS = 500;

/** What a later try may mend: nothing that the studio refuses for good. @param {number} status 0 for no answer */
export const isPassing = (status) => status === 0 || [409, 423, 429, 460].includes(status) || (status >= 500 && status !== 507);

globalThis.document?.addEventListener(
  "submit",
  (event) => {
    const form = event.target;
    if (!(form instanceof HTMLFormElement) || !form.dataset.resumable || !window.tus?.isSupported) return;
    const file = form.querySelector("input[type=file]")?.files?.[0];
    if (!file || file.size <= CHUNK_BYTES) return;
    event.preventDefault();
    send(form, file);
  },
  true,
);

/** Adds a SHA-256 to each piece where the browser lets us compute one: over https, and on this machine. */
class HashingStack {
  constructor() {
    this.inner = new window.tus.DefaultHttpStack();
  }

  /** @param {string} method @param {string} url */
  createRequest(method, url) {
    const request = this.inner.createRequest(method, url);
    if (method !== "PATCH" || !globalThis.crypto?.subtle) return request;
    const sendBody = request.send.bind(request);
    request.send = async (/** @type {Blob} */ body) => {
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await body.arrayBuffer()));
      request.setHeader("Upload-Checksum", `sha256 ${btoa(String.fromCharCode(...digest))}`);
      return sendBody(body);
    };
    return request;
  }

  getName() {
    return "hashing";
  }
}

/** @param {HTMLFormElement} form @param {File} file */
async function send(form, file) {
  const part = (/** @type {string} */ name) => /** @type {HTMLElement} */ (form.querySelector(`[data-upload-${name}]`));
  const bar = /** @type {HTMLProgressElement} */ (form.querySelector("progress"));
  const submit = form.querySelectorAll("button:not([type=button])");
  const pause = /** @type {HTMLButtonElement} */ (part("pause"));
  const speed = new Speed();
  let isPaused = false;
  let saidAt = 0;
  let sent = 0;

  const say = (/** @type {string} */ words) => {
    part("text").textContent = words;
  };
  const show = (/** @type {boolean} */ busy) => {
    part("progress").hidden = !busy;
    part("buttons").hidden = !busy;
    for (const button of submit) button.disabled = busy;
  };
  const setPaused = (/** @type {boolean} */ paused) => {
    isPaused = paused;
    pause.textContent = paused ? "Resume" : "Pause";
    speed.forget();
  };
  const refuse = (/** @type {string} */ title, /** @type {string} */ words) => {
    const fault = part("fault");
    fault.hidden = false;
    fault.querySelector("strong").textContent = title;
    fault.querySelector("p").textContent = words;
  };
  const end = () => {
    show(false);
    pause.removeEventListener("click", toggle);
    part("cancel").removeEventListener("click", cancel);
  };

  const progress = (/** @type {number} */ now, /** @type {number} */ total) => {
    sent = now;
    bar.max = total;
    bar.value = now;
    speed.add(now);
    if (Date.now() - saidAt < SAY_EVERY_MS && now < total) return;
    saidAt = Date.now();
    const left = speed.secondsLeft(total);
    const pace = speed.rate ? ` · ${bytesSize(speed.rate)}/s${left === null ? "" : ` · ${duration(left)} left`}` : "";
    say(now < total ? `${bytesSize(now)} of ${bytesSize(total)}${pace}` : "All has arrived; looking at it …");
  };

  const succeeded = async () => {
    pause.disabled = true;
    const answer = await fetch(upload.url, { headers: { Accept: "application/json" } }).catch(() => null);
    const about = answer?.ok ? await answer.json() : null;
    if (about?.location && !about.error) {
      location.assign(about.location);
      return;
    }
    end();
    if (about?.error) refuse(`${about.error.title}: ${about.error.detail}`, about.error.remedy);
    else refuse("The file has arrived, and the studio does not answer.", "Reload the page and look whether it is there.");
  };

  const failed = (/** @type {any} */ error) => {
    const response = error.originalResponse;
    if (!response?.getStatus()) {
      setPaused(true);
      say(`The connection is gone; ${bytesSize(sent)} have arrived. Press Resume when it is back.`);
      return;
    }
    end();
    let problem = {};
    try {
      problem = JSON.parse(response.getBody());
    } catch {
      // a proxy's own page
    }
    refuse(problem.title ? `${problem.title}: ${problem.detail}` : `The studio answered ${response.getStatus()}.`, problem.remedy ?? "Try again.");
  };

  const upload = new window.tus.Upload(file, {
    endpoint: form.dataset.endpoint,
    chunkSize: CHUNK_BYTES,
    retryDelays: RETRY_MS,
    removeFingerprintOnSuccess: true,
    httpStack: new HashingStack(),
    headers: { "X-CSRFToken": form.querySelector("[name=csrfmiddlewaretoken]").value },
    metadata: { kind: form.dataset.resumable, filename: file.name, name: form.querySelector("[name=name]")?.value ?? "" },
    // The same file, chosen again after a reload, is the same upload.
    fingerprint: async () => ["studio", form.dataset.resumable, file.name, file.size, file.lastModified].join("|"),
    onShouldRetry: (/** @type {any} */ error) => isPassing(error.originalResponse?.getStatus() ?? 0),
    onProgress: progress,
    onSuccess: succeeded,
    onError: failed,
  });

  const toggle = async () => {
    if (isPaused) {
      setPaused(false);
      say("Going on …");
      upload.start();
    } else {
      setPaused(true);
      await upload.abort();
      say(`Paused at ${bytesSize(sent)} of ${bytesSize(file.size)}. It also goes on when you choose the same file another time.`);
    }
  };
  const cancel = async () => {
    end();
    await upload.abort(true).catch(() => {});
  };

  pause.addEventListener("click", toggle);
  part("cancel").addEventListener("click", cancel);
  part("fault").hidden = true;
  pause.disabled = false;
  setPaused(false);
  show(true);
  say("Beginning …");
  const earlier = await upload.findPreviousUploads();
  if (earlier.length) upload.resumeFromPreviousUpload(earlier[earlier.length - 1]);
  upload.start();
}
