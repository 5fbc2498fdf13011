// The threshold: a histogram to drag it on, and what it would have done to the images reviewed so far.

import { getJSON } from "./api.js";

/** 95 % interval of k of n (Wilson 1927). */
export function wilson(k, n) {
  if (!n) return [NaN, NaN];
  const z = 1.959963984540054, p = k / n, z2 = z * z;
  const centre = (p + z2 / (2 * n)) / (1 + z2 / n), half = (z / (1 + z2 / n)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n * n));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

export const percent = (x) => (!Number.isFinite(x) ? "–" : x === 0 || x >= 0.1 ? `${(100 * x).toFixed(x === 0 || x === 1 ? 0 : 1)} %` : `${(100 * x).toPrecision(2)} %`);
/** A p-value in two digits. */
export const brief = (p) => (!Number.isFinite(p) ? "–" : p >= 0.1 ? p.toFixed(2) : p.toPrecision(2));
export const short = (x) => (!Number.isFinite(x) ? "–" : Math.abs(x) >= 1e5 || (Math.abs(x) < 1e-3 && x !== 0) ? x.toExponential(2) : Number(x.toPrecision(4)).toString());

export class Threshold {
  /** `facts` of the review; `reviewed()`: [score, label] of the decided images, label 0, 1 or null; `during(work)` runs work while
   *  the page says that it is busy; `onChange()`. */
  constructor(canvas, facts, reviewed, during, onChange) {
    const { low, high, median, tail } = facts.scores;
    this.canvas = canvas; this.start = facts.threshold; this.guaranteed = facts.rule === "false_alarms" ? facts.guaranteed : null;
    this.total = facts.count; this.lowest = low; this.highest = high;
    this.reviewed = reviewed; this.during = during; this.onChange = onChange;
    this.low = low; this.high = high;
    const { start } = this;
    if (high - low > 6 * (tail - low) && tail > median) this.cut = Math.max(tail * 1.3 - 0.3 * low, start ?? -Infinity); // a long tail would hide the rest
    this.top = this.cut ?? this.high;
    if (start !== null && start !== undefined) this.top = Math.max(this.top, start);
    if (!(this.top > this.low)) this.top = this.low + 1;
    const margin = 0.03 * (this.top - this.low); // so that marks at the ends are whole
    this.low -= margin; this.top += margin;
    this.high = Math.max(this.high, this.top);
    this.value = start ?? this.high; // without a threshold nothing is flagged
    this.flagged = null; this.bound = null; // of the server, for `value`
    this.bins = []; // images in each bin
    this.#listen();
  }

  at(x) { return this.low + (x / this.canvas.clientWidth) * (this.top - this.low); }
  x(value) { return ((value - this.low) / (this.top - this.low)) * this.canvas.clientWidth; }

  set(value) {
    this.value = Math.max(this.low, Math.min(this.high, value));
    this.draw();
    this.during(() => this.ask()).catch(() => {});
  }

  /** Ask the server what the threshold flags: the last value wins, and one request runs at a time. */
  ask() {
    this.asking ??= this.#asked().finally(() => { this.asking = null; });
    return this.asking;
  }

  async #asked() {
    let value;
    do {
      value = this.value;
      const found = await getJSON(`/api/threshold?value=${value}`);
      this.flagged = found.flagged; this.bound = found.bound;
      this.onChange();
    } while (value !== this.value);
  }

  /** Flagged now, and of the reviewed images false alarms and detections. */
  counts() {
    const c = { flagged: this.flagged, total: this.total, normal: 0, anomalous: 0, false: 0, found: 0 };
    for (const [s, label] of this.reviewed()) {
      const over = s !== null && s > this.value;
      if (label === 0) { c.normal++; if (over) c.false++; }
      if (label === 1) { c.anomalous++; if (over) c.found++; }
    }
    c.rate = this.bound !== null && this.value === this.start && this.guaranteed !== null ? this.guaranteed : this.bound;
    return c;
  }

  async #count(bins) {
    this.counted = bins;
    this.bins = await this.during(() => getJSON(`/api/histogram?low=${this.low}&high=${this.top}&bins=${bins}`));
    this.draw();
  }

  draw() {
    const canvas = this.canvas, ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const c = canvas.getContext("2d"), style = getComputedStyle(canvas);
    c.scale(ratio, ratio);
    const bins = Math.max(20, Math.floor(width / 7));
    if (this.counted !== bins) { this.#count(bins).catch(() => {}); return; }
    if (this.bins.length !== bins) return; // on its way
    const counts = { unknown: Float64Array.from(this.bins), normal: new Float64Array(bins), anomalous: new Float64Array(bins) };
    for (const [s, label] of this.reviewed()) {
      if (s === null || label === null) continue;
      const bin = Math.min(bins - 1, Math.max(0, Math.floor(((s - this.low) / (this.top - this.low)) * bins)));
      counts.unknown[bin] = Math.max(0, counts.unknown[bin] - 1);
      counts[label === 0 ? "normal" : "anomalous"][bin]++;
    }
    const base = height - 18, wide = width / bins;
    let most = 1;
    for (let b = 0; b < bins; b++) most = Math.max(most, counts.unknown[b] + counts.normal[b] + counts.anomalous[b]);
    const tall = (n) => (n ? Math.max(1.5, (Math.log1p(n) / Math.log1p(most)) * (base - 14)) : 0); // rare ones must be seen
    for (let b = 0; b < bins; b++) {
      let upTo = 0, y = base;
      for (const [kind, colour] of [["unknown", "--unknown"], ["normal", "--normal"], ["anomalous", "--anomalous"]]) {
        if (!counts[kind][b]) continue;
        upTo += counts[kind][b];
        const next = base - tall(upTo);
        c.globalAlpha = kind === "unknown" ? 0.45 : 1;
        c.fillStyle = style.getPropertyValue(colour);
        c.fillRect(b * wide + 0.5, Math.min(next, y - 1.5), Math.max(1, wide - 1), Math.max(1.5, y - next));
        y = next;
      }
    }
    c.globalAlpha = 1;
    c.strokeStyle = style.getPropertyValue("--rule");
    c.beginPath(); c.moveTo(0, base + 0.5); c.lineTo(width, base + 0.5); c.stroke();
    c.fillStyle = style.getPropertyValue("--soft");
    c.font = "11px system-ui, sans-serif";
    c.fillText(short(this.lowest), 2, height - 5);
    const end = (this.cut ? "≥ " : "") + short(this.cut ? this.top : this.highest);
    c.fillText(end, width - c.measureText(end).width - 2, height - 5);
    if (this.start !== null && this.start !== undefined) {
      c.setLineDash([3, 3]); c.strokeStyle = style.getPropertyValue("--soft");
      const x = Math.min(width - 1, this.x(this.start));
      c.beginPath(); c.moveTo(x, 4); c.lineTo(x, base); c.stroke(); c.setLineDash([]);
    }
    const x = Math.max(1, Math.min(width - 1, this.x(this.value)));
    c.strokeStyle = c.fillStyle = style.getPropertyValue("--ink"); c.lineWidth = 2;
    c.beginPath(); c.moveTo(x, 8); c.lineTo(x, base); c.stroke();
    c.beginPath(); c.moveTo(x - 6, 0); c.lineTo(x + 6, 0); c.lineTo(x, 9); c.fill();
    if (this.current !== null && this.current !== undefined) {
      const at = Math.max(2, Math.min(width - 2, this.x(this.current)));
      c.fillStyle = style.getPropertyValue("--focus");
      c.beginPath(); c.moveTo(at - 5, base + 8); c.lineTo(at + 5, base + 8); c.lineTo(at, base + 1); c.fill();
    }
    canvas.setAttribute("aria-valuenow", String(this.value));
    canvas.setAttribute("aria-valuemin", String(this.low));
    canvas.setAttribute("aria-valuemax", String(this.high));
    canvas.setAttribute("aria-valuetext", `threshold ${short(this.value)}`);
  }

  #listen() {
    const move = (event) => this.set(this.at(event.clientX - this.canvas.getBoundingClientRect().left));
    this.canvas.onpointerdown = (event) => { this.canvas.setPointerCapture(event.pointerId); this.canvas.focus(); move(event); };
    this.canvas.onpointermove = (event) => { if (event.buttons) move(event); };
    this.canvas.onkeydown = (event) => {
      const step = (this.top - this.low) / (event.shiftKey ? 20 : 200);
      const to = { ArrowLeft: this.value - step, ArrowRight: this.value + step, Home: this.low, End: this.top }[event.key];
      if (to === undefined) return;
      event.preventDefault(); event.stopPropagation();
      this.set(to);
    };
  }
}
