// A mask that is drawn: brush, polygon, box and fill, with undo and redo without end.

export class Mask {
  constructor(width, height, data = null) {
    this.width = width; this.height = height;
    this.data = data || new Uint8Array(width * height);
    this.done = []; this.undone = [];
    this.changed = false; // since it was saved
    this.version = 0;
    this.stroke = null;
  }

  get empty() { return !this.data.some(Boolean); }

  /** Begin a change that one undo takes back. */
  begin() { this.stroke = new Map(); }

  set(k, value) {
    if (this.data[k] === value) return;
    if (!this.stroke.has(k)) this.stroke.set(k, this.data[k]);
    this.data[k] = value;
    this.version++;
  }

  /** End it; nothing is remembered where nothing changed. */
  end() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke || !stroke.size) return false;
    const places = Uint32Array.from(stroke.keys()).sort();
    const before = Uint8Array.from(places, (k) => stroke.get(k)), after = Uint8Array.from(places, (k) => this.data[k]);
    this.done.push({ places, before, after });
    this.undone = [];
    this.changed = true;
    return true;
  }

  undo() { return this.#move(this.done, this.undone, "before"); }
  redo() { return this.#move(this.undone, this.done, "after"); }

  #move(from, to, which) {
    const step = from.pop();
    if (!step) return false;
    step.places.forEach((k, n) => { this.data[k] = step[which][n]; });
    to.push(step);
    this.changed = true;
    this.version++;
    return true;
  }

  /** A disc along a line, in pixels; called within a change. */
  brush(x0, y0, x1, y1, radius, value) {
    const length = Math.hypot(x1 - x0, y1 - y0), steps = Math.max(1, Math.ceil(length / Math.max(0.5, radius / 3)));
    for (let s = 0; s <= steps; s++) this.disc(x0 + ((x1 - x0) * s) / steps, y0 + ((y1 - y0) * s) / steps, radius, value);
  }

  disc(x, y, radius, value) {
    const r2 = radius * radius;
    const top = Math.max(0, Math.floor(y - radius)), bottom = Math.min(this.height - 1, Math.floor(y + radius));
    let any = false;
    for (let row = top; row <= bottom; row++) {
      const dy = row + 0.5 - y, half = Math.sqrt(Math.max(0, r2 - dy * dy));
      const left = Math.max(0, Math.ceil(x - half - 0.5)), right = Math.min(this.width - 1, Math.floor(x + half - 0.5));
      for (let column = left; column <= right; column++) { this.set(row * this.width + column, value); any = true; }
    }
    const column = Math.floor(x), row = Math.floor(y); // a brush smaller than a pixel marks the pixel
    if (!any && column >= 0 && row >= 0 && column < this.width && row < this.height) this.set(row * this.width + column, value);
  }

  /** What lies inside a closed polygon [[x, y], ...] (even-odd rule, by the pixels' centres). */
  polygon(points, value) {
    this.begin();
    const ys = points.map((p) => p[1]);
    const top = Math.max(0, Math.floor(Math.min(...ys))), bottom = Math.min(this.height - 1, Math.ceil(Math.max(...ys)));
    for (let row = top; row <= bottom; row++) {
      const y = row + 0.5, crossings = [];
      points.forEach(([x0, y0], n) => {
        const [x1, y1] = points[(n + 1) % points.length];
        if ((y0 <= y) !== (y1 <= y)) crossings.push(x0 + ((y - y0) / (y1 - y0)) * (x1 - x0));
      });
      crossings.sort((a, b) => a - b);
      for (let n = 0; n + 1 < crossings.length; n += 2) {
        const left = Math.max(0, Math.ceil(crossings[n] - 0.5)), right = Math.min(this.width - 1, Math.ceil(crossings[n + 1] - 0.5) - 1);
        for (let column = left; column <= right; column++) this.set(row * this.width + column, value);
      }
    }
    return this.end();
  }

  box(x0, y0, x1, y1, value) {
    const [left, right] = [x0, x1].sort((a, b) => a - b), [top, bottom] = [y0, y1].sort((a, b) => a - b);
    return this.polygon([[left, top], [right, top], [right, bottom], [left, bottom]], value);
  }

  /** All pixels of one label. */
  fill(labels, label, value) {
    this.begin();
    for (let k = 0; k < labels.length; k++) if (labels[k] === label) this.set(k, value);
    return this.end();
  }

  clear() {
    this.begin();
    for (let k = 0; k < this.data.length; k++) if (this.data[k]) this.set(k, 0);
    return this.end();
  }
}
