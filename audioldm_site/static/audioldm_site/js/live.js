/* Follows a job's events from the one that the page was drawn at: over a socket, and over plain requests where none gets through. */
import { place } from "./run_state.js";

/** @typedef {import("./run_state.js").JobEvent} JobEvent */
/** @typedef {"live" | "reconnecting" | "polling" | "gone"} Connection */

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const POLL_MS = 2_500;
const ATTEMPTS_BEFORE_POLLING = 3;
/** Not logged in any more, or nothing to see: no use in trying again. */
const CLOSED_FOR_GOOD = [4401, 4404];

/**
 * How long to wait before the n-th attempt (from 1): doubling, with a spread so that many pages do not come back at once.
 * @param {number} attempt
 * @param {() => number} [random]
 */
export function backoff(attempt, random = Math.random) {
  return Math.min(FIRST_WAIT_MS * 2 ** (attempt - 1), LONGEST_WAIT_MS) * (0.75 + 0.5 * random());
}

/**
 * @param {object} options
 * @param {string} options.socket path of the websocket
 * @param {string} options.events address that answers {"events": [...]} for ?after=N
 * @param {() => number} options.seq number of the newest event that the page knows
 * @param {(events: JobEvent[]) => void} options.onEvents called with events that follow without a gap
 * @param {(connection: Connection) => void} options.onConnection
 */
export function follow({ socket, events, seq, onEvents, onConnection }) {
  let attempt = 0;
  let opened = false;
  /** @type {WebSocket | null} */
  let current = null;

  function connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const ws = new WebSocket(`${scheme}://${location.host}${socket}?after=${seq()}`);
    current = ws;
    ws.addEventListener("open", () => {
      attempt = 0;
      opened = true;
      onConnection("live");
    });
    ws.addEventListener("message", ({ data }) => receive(ws, JSON.parse(data)));
    ws.addEventListener("close", ({ code }) => {
      if (ws !== current) return;
      if (CLOSED_FOR_GOOD.includes(code)) {
        onConnection("gone");
        return;
      }
      attempt += 1;
      if (!opened && attempt >= ATTEMPTS_BEFORE_POLLING) {
        poll();
        return;
      }
      onConnection("reconnecting");
      setTimeout(connect, backoff(attempt));
    });
  }

  /** @param {WebSocket} ws @param {JobEvent | JobEvent[] | {events: JobEvent[]}} message */
  function receive(ws, message) {
    const batch = Array.isArray(message) ? message : "events" in message ? message.events : [message];
    const fresh = batch.filter((event) => Number.isInteger(event.seq) && event.seq > seq());
    if (!fresh.length) return;
    // Something was missed: connect again and ask for what follows the newest known event.
    if (place({ seq: seq() }, fresh[0]) === "gap") ws.close();
    else onEvents(fresh);
  }

  async function poll() {
    onConnection("polling");
    try {
      const response = await fetch(`${events}?after=${seq()}`);
      if (response.status === 404 || response.redirected) {
        onConnection("gone");
        return;
      }
      const { events: batch } = await response.json();
      if (batch.length) onEvents(batch);
    } catch {
      onConnection("reconnecting");
    }
    setTimeout(poll, POLL_MS);
  }

  // A laptop that wakes up has a dead socket that does not know it yet.
  window.addEventListener("online", () => current?.close());
  connect();
}
