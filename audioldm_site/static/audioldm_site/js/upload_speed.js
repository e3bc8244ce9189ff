/* How fast an upload is: over the last seconds, so that a pause or a resume does not spoil it. */

const OVER_MS = 10_000;

export class Speed {
  constructor() {
    /** @type {{ at: number, sent: number }[]} */
    this.points = [];
  }

  /** @param {number} sent bytes so far @param {number} [at] milliseconds */
  add(sent, at = Date.now()) {
    // A piece that is sent again counts from where it begins.
    if (this.points.length && sent < this.points[this.points.length - 1].sent) this.points = [];
    this.points.push({ at, sent });
    while (this.points.length > 2 && at - this.points[0].at > OVER_MS) this.points.shift();
  }

  /** After a pause nothing that came before counts. */
  forget() {
    this.points = [];
  }

  /** Bytes a second; 0 while nobody knows. */
  get rate() {
    if (this.points.length < 2) return 0;
    const [first, last] = [this.points[0], this.points[this.points.length - 1]];
    const passed_ms = last.at - first.at;
    return passed_ms < 500 ? 0 : ((last.sent - first.sent) * 1000) / passed_ms;
  }

  /** Seconds until `total` bytes are sent; null while nobody knows. @param {number} total */
  secondsLeft(total) {
    const sent = this.points.length ? this.points[this.points.length - 1].sent : 0;
    return this.rate > 0 ? (total - sent) / this.rate : null;
  }
}
