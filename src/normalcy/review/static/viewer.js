// Images on a canvas: what is shown, zoom and pan, window and level, outlines, marking.

import { Cache, getArray, getMask } from "./api.js";
import { defaultWindow, difference, drawGrey, drawHeat, percentiles } from "./colour.js";
import { Mask } from "./mask.js";
import { findRegions, outline } from "./regions.js";
import { short } from "./stats.js";

const VIEWS = [["input", "Input", "I"], ["restored", "Restored", "R"], ["map", "Map", "M"], ["overlay", "Overlay", "O"],
  ["difference", "Difference", "D"], ["uncertainty", "Uncertainty", "Y"]];

export class Viewer {
  kind = "image";
  tools = ["move", "brush", "polygon", "box", "fill"];
  hasContours = true;

  constructor(canvas, app) {
    this.canvas = canvas; this.app = app; this.context = canvas.getContext("2d");
    this.zoom = 1; this.centre = [0.5, 0.5]; // kept when going on
    this.window = null; // of 16 bits and the like, where it was changed; kept too
    this.view = "overlay"; this.blinking = false;
    this.tool = "move"; this.radius = 8; this.erase = false;
    this.arrays = {}; this.mask = null; this.path = []; this.pointer = null;
    this.bundles = new Cache(8);
    this.pointers = new Map();
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.#listen();
  }

  // -- opening

  #bundle(image, about, reviewer) {
    return this.bundles.get(`${image}/${reviewer}`, async () => {
      const { kinds } = await about;
      const wanted = kinds.filter((kind) => ["input", "restored", "map", "truth"].includes(kind));
      const found = {}, faults = {};
      await Promise.all(wanted.map(async (kind) => {
        try { found[kind] = await getArray(`/image/${image}/${kind}`); } catch (fault) { faults[kind] = fault.message; }
      }));
      return { kinds, arrays: found, faults };
    });
  }

  prefetch(image, about) { this.#bundle(image, about, ""); }

  async open(image, about, hasMask) {
    const bundle = await this.#bundle(image, about, "");
    const first = bundle.arrays.input || bundle.arrays.map || bundle.arrays.restored;
    if (!first) throw new Error(bundle.faults.input || "Neither the image nor its map is there.");
    const saved = hasMask ? await getMask(image, this.app.reviewer) : null;
    return () => { // applied at once, unless another image was asked for meanwhile
      this.image = image; this.kinds = bundle.kinds; this.arrays = { ...bundle.arrays }; this.faults = bundle.faults;
      this.width = first.width; this.height = first.height;
      this.mask = new Mask(this.width, this.height, saved && saved.length === this.width * this.height ? saved : null);
      this.maskCanvas = null; this.path = []; this.blinking = false; this.drawn = {};
      this.found = null; this.#range();
      this.draw();
    };
  }

  views() {
    if (this.app.blind) return VIEWS.slice(0, 1);
    const has = (kind) => this.kinds?.includes(kind);
    const there = VIEWS.filter(([id]) => (id === "overlay" ? has("map") && this.arrays.input
      : id === "difference" ? this.arrays.input && this.arrays.restored : id === "input" ? true : has(id)));
    const extra = (this.kinds || []).filter((kind) => !["input", "restored", "map", "truth", "uncertainty"].includes(kind));
    return [...there, ...extra.map((kind) => [kind, kind, ""])];
  }

  /** The view in use, or one that this image has. */
  shown() {
    const there = this.views().map(([id]) => id);
    if (this.view === "input" && !this.arrays.input && there.includes("map")) return "map";
    return there.includes(this.view) ? this.view : this.arrays.input ? "input" : "map";
  }

  setView(id) { this.view = id; this.blinking = false; this.#range(); this.draw(); }

  blink() {
    this.blinking = !this.blinking;
    this.draw();
  }

  reset() { this.zoom = 1; this.centre = [0.5, 0.5]; this.draw(); }
  zoomBy(factor) { this.#zoomAt(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, factor); }

  goTo(region) {
    this.centre = [(region.x + 0.5) / this.width, (region.y + 0.5) / this.height];
    const [left, top, right, bottom] = region.box;
    this.zoom = Math.max(1, Math.min(12, 0.35 * Math.min(this.width / (right - left + 1), this.height / (bottom - top + 1))));
    this.draw();
  }

  // -- colours

  /** The range of the map that is shown, of this image where none is common. */
  #range() {
    const values = this.#heat();
    this.bounds = null;
    if (!values) return;
    const all = this.app.facts.map_range;
    const own = percentiles(values.data, [0, 0.5, 1]);
    if (values === this.arrays.map) this.own = all ? [all[0], Math.max(all[1], all[0] + 1e-9)] : [own[1], own[2]];
    else this.own = [Math.min(0, own[0]), own[2]];
    this.bounds = [Math.min(own[0], this.own[0]), Math.max(own[2], this.own[1])];
    this.bounds[1] += 0.02 * (this.bounds[1] - this.bounds[0]);
  }

  range() { return (this.#heat() === this.arrays.map && this.app.range) || this.own; }

  #heat() {
    const view = this.shown();
    if (view === "difference") return this.#difference();
    if (view === "map" || view === "overlay" || view === "input" || view === "restored") return this.arrays.map;
    return this.arrays[view];
  }

  #difference() {
    if (!this.arrays.input || !this.arrays.restored) return null;
    this.drawn.difference ??= difference(this.arrays.input, this.arrays.restored);
    return this.drawn.difference;
  }

  /** Regions of the map above the pixel threshold; computed once for each. */
  regions() {
    const { map } = this.arrays, level = this.app.pixelThreshold;
    if (!map || level === null) return null;
    if (!this.found || this.found.level !== level) {
      this.found = { level, ...findRegions(map, level) };
      this.found.path = outline((k) => this.found.labels[k], map.width, map.height);
    }
    return this.found;
  }

  // -- drawing

  transform() {
    const ratio = devicePixelRatio || 1, w = this.canvas.clientWidth, h = this.canvas.clientHeight;
    const left = w > 600 ? 52 : 0; // the tools
    const fit = Math.min((w - left - 16) / this.width, (h - 16) / this.height), scale = fit * this.zoom;
    return { ratio, scale, x: left + (w - left) / 2 - this.centre[0] * this.width * scale, y: h / 2 - this.centre[1] * this.height * scale };
  }

  toImage(event) {
    const box = this.canvas.getBoundingClientRect(), t = this.transform();
    return [(event.clientX - box.left - t.x) / t.scale, (event.clientY - box.top - t.y) / t.scale];
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => { this.pending = 0; this.#draw(); });
  }

  #layer(key, make) {
    const full = JSON.stringify(key);
    this.layers ??= new Map();
    if (this.layersOf !== this.image) { this.layers.clear(); this.layersOf = this.image; }
    if (!this.layers.has(full)) {
      if (this.layers.size > 12) this.layers.delete(this.layers.keys().next().value);
      this.layers.set(full, make());
    }
    return this.layers.get(full);
  }

  #grey(kind) {
    const array = this.arrays[kind], reference = this.arrays.input || array;
    if (!array) return null;
    const window = this.currentWindow(reference);
    return this.#layer([kind, window], () => drawGrey(array, window));
  }

  currentWindow(array = this.arrays.input || this.arrays.restored) {
    if (!array) return [0, 255];
    if (this.window) return this.window;
    this.drawn.window ??= defaultWindow(array);
    return this.drawn.window;
  }

  #draw() {
    const { canvas, context } = this;
    if (canvas.hidden || !canvas.clientWidth) return;
    const t = this.width ? this.transform() : null, ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
    if (!t || !this.kinds) return;
    context.setTransform(ratio * t.scale, 0, 0, ratio * t.scale, ratio * t.x, ratio * t.y);
    context.imageSmoothingEnabled = t.scale * ratio < 2.5;
    context.imageSmoothingQuality = "high";
    let view = this.shown();
    const put = (layer, alpha = 1) => {
      if (!layer) return;
      context.globalAlpha = alpha;
      context.drawImage(layer, 0, 0, this.width, this.height);
      context.globalAlpha = 1;
    };
    const swap = this.blinking;
    const base = swap && this.arrays.restored ? "restored" : "input";
    if (swap && !this.arrays.restored) view = view === "input" ? "overlay" : "input";
    const range = this.range();
    if (view === "input") put(this.#grey(base));
    else if (view === "restored") put(this.#grey(swap ? "input" : "restored"));
    else if (view === "overlay") {
      put(this.#grey(base));
      if (this.app.heat && this.arrays.map) put(this.#layer(["fade", range], () => drawHeat(this.arrays.map, range, true)), this.app.opacity);
    } else if (view === "map" && this.arrays.map) put(this.#layer(["map", range], () => drawHeat(this.arrays.map, range, false)));
    else {
      const array = view === "difference" ? this.#difference() : this.arrays[view];
      if (array?.channels === 3) put(this.#layer([view], () => drawGrey(array, percentiles(array.data, [0.005, 0.995]))));
      else if (array) put(this.#layer([view, this.own], () => drawHeat(array, this.own, false)));
      else this.#fetch(view);
    }
    context.lineJoin = "round";
    const line = (path, colour, wide, dash = []) => {
      context.setLineDash(dash.map((n) => n / t.scale));
      context.strokeStyle = "rgb(0 0 0 / .55)"; context.lineWidth = (wide + 1.4) / t.scale; context.stroke(path);
      context.strokeStyle = colour; context.lineWidth = wide / t.scale; context.stroke(path);
      context.setLineDash([]);
    };
    if (this.app.contours && !this.app.blind) {
      const found = this.regions();
      if (found) {
        line(found.path, "#35d0ba", 1.3);
        this.#numbers(found.regions.slice(0, 40), t);
      }
    }
    if (this.app.truth && this.arrays.truth) {
      const { data, width, height } = this.arrays.truth;
      line(this.#layer(["truth"], () => outline((k) => data[k], width, height)), "#ffd84d", 1.3, [5, 4]);
    }
    this.#drawMask(context, t, line);
    this.#drawTool(context, t, line);
    canvas.setAttribute("aria-label", `${this.app.nameOf(this.image)}, ${view}`);
  }

  #numbers(regions, t) {
    const { context } = this, size = 12 / t.scale;
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = "left";
    regions.forEach((region, n) => {
      const text = String(n + 1), wide = context.measureText(text).width;
      const x = Math.min(region.box[2] + 1 + 2 / t.scale, this.width - wide - 3 / t.scale), y = region.box[1] + size;
      context.lineWidth = 3 / t.scale; context.strokeStyle = "rgb(0 0 0 / .75)";
      context.strokeText(text, x, y);
      context.fillStyle = "#35d0ba"; context.fillText(text, x, y);
    });
  }

  async #fetch(kind) {
    const image = this.image;
    if (this.fetching === `${image}/${kind}`) return;
    this.fetching = `${image}/${kind}`;
    try {
      const array = await getArray(`/image/${image}/${encodeURIComponent(kind)}`);
      if (this.image !== image) return;
      this.arrays[kind] = array;
      this.#range(); this.app.rangesChanged(); this.draw();
    } catch (fault) { this.app.say(fault.message, true); }
    this.fetching = "";
  }

  #drawMask(context, t, line) {
    const { mask } = this;
    if (!mask || !this.app.marks) return;
    if (!this.maskCanvas) {
      this.maskCanvas = document.createElement("canvas");
      this.maskCanvas.width = mask.width; this.maskCanvas.height = mask.height;
      this.maskVersion = -1;
    }
    if (this.maskVersion !== mask.version) {
      const c = this.maskCanvas.getContext("2d"), image = c.createImageData(mask.width, mask.height), out = new Uint32Array(image.data.buffer);
      for (let k = 0; k < out.length; k++) out[k] = mask.data[k] ? 0x8cff7a3c : 0; // a b g r: blue, half transparent
      c.putImageData(image, 0, 0);
      this.maskVersion = mask.version;
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(this.maskCanvas, 0, 0, this.width, this.height);
    if (!mask.stroke && !mask.empty) {
      if (this.outlineOf !== mask || this.outlineVersion !== mask.version) {
        this.outlinePath = outline((k) => mask.data[k], mask.width, mask.height);
        this.outlineOf = mask; this.outlineVersion = mask.version;
      }
      line(this.outlinePath, "#8ec1ff", 1.3);
    }
  }

  #drawTool(context, t, line) {
    const colour = this.erase ? "#ff8a8a" : "#ffffff";
    if (this.path.length && this.tool === "polygon") {
      const path = new Path2D();
      this.path.forEach(([x, y], n) => (n ? path.lineTo(x, y) : path.moveTo(x, y)));
      if (this.pointer) path.lineTo(...this.pointer);
      line(path, colour, 1.4);
      context.fillStyle = colour;
      for (const [x, y] of this.path) { context.beginPath(); context.arc(x, y, 3 / t.scale, 0, 7); context.fill(); }
    }
    if (this.boxFrom && this.pointer) {
      const path = new Path2D();
      path.rect(...this.boxFrom, this.pointer[0] - this.boxFrom[0], this.pointer[1] - this.boxFrom[1]);
      line(path, colour, 1.4, [4, 3]);
    }
    if (this.tool === "brush" && this.pointer && !this.app.readOnly) { // the size is seen before it marks
      const path = new Path2D();
      path.arc(...this.pointer, this.radius, 0, 7);
      line(path, colour, 1.2);
    }
  }

  // -- marking

  setTool(name) {
    this.tool = name; this.path = []; this.boxFrom = null;
    this.canvas.style.cursor = name === "move" ? "grab" : name === "brush" ? "none" : "crosshair";
    this.draw();
  }

  brushSize(factor) { this.radius = Math.max(0.5, Math.min(300, factor > 1 ? Math.max(this.radius + 0.5, this.radius * factor) : this.radius * factor)); this.draw(); }
  undo() { if (this.path.length) { this.path.pop(); this.draw(); return true; } return this.#marked(this.mask?.undo()); }
  redo() { return this.#marked(this.mask?.redo()); }
  clear() { return this.#marked(this.mask?.clear()); }
  get markChanged() { return Boolean(this.mask?.changed); }
  markBytes() { return this.mask.data; }
  markSaved() { if (this.mask) this.mask.changed = false; }
  hasMarks() { return Boolean(this.mask && !this.mask.empty); }
  canUndo() { return Boolean(this.path.length || this.mask?.done.length); }
  canRedo() { return Boolean(this.mask?.undone.length); }

  #marked(changed) {
    if (changed) { this.app.marksChanged(); this.draw(); }
    return changed;
  }

  closePolygon() {
    if (this.path.length > 2) this.#marked(this.mask.polygon(this.path, this.erase ? 0 : 1));
    this.path = [];
    this.draw();
  }

  cancel() {
    const had = this.path.length || this.boxFrom;
    this.path = []; this.boxFrom = null;
    this.draw();
    return Boolean(had);
  }

  fillRegion(label) {
    const found = this.regions();
    if (found && label) this.#marked(this.mask.fill(found.labels, label, this.erase ? 0 : 1));
  }

  #fill([x, y]) {
    const found = this.regions(), column = Math.floor(x), row = Math.floor(y);
    if (!found) { this.app.say("There is no map to fill from."); return; }
    const label = found.labels[row * this.width + column];
    if (column < 0 || row < 0 || column >= this.width || row >= this.height || !label) {
      this.app.say("Click into a region above the pixel threshold to fill it.");
      return;
    }
    this.fillRegion(label);
  }

  // -- pointer

  #zoomAt(x, y, factor) {
    const before = this.transform(), to = Math.max(0.5, Math.min(60, this.zoom * factor));
    const at = [(x - before.x) / before.scale, (y - before.y) / before.scale];
    this.zoom = to;
    const after = this.transform();
    this.centre[0] += (after.x + at[0] * after.scale - x) / (after.scale * this.width);
    this.centre[1] += (after.y + at[1] * after.scale - y) / (after.scale * this.height);
    this.draw();
  }

  #pan(dx, dy) {
    const { scale } = this.transform();
    this.centre[0] = Math.max(0, Math.min(1, this.centre[0] - dx / (scale * this.width)));
    this.centre[1] = Math.max(0, Math.min(1, this.centre[1] - dy / (scale * this.height)));
    this.draw();
  }

  #listen() {
    const c = this.canvas;
    c.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (!this.width) return;
      const box = c.getBoundingClientRect();
      this.#zoomAt(event.clientX - box.left, event.clientY - box.top, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
    }, { passive: false });
    c.addEventListener("contextmenu", (event) => event.preventDefault());
    c.addEventListener("pointerdown", (event) => this.#down(event));
    c.addEventListener("pointermove", (event) => this.#moved(event));
    c.addEventListener("pointerup", (event) => this.#up(event));
    c.addEventListener("pointercancel", (event) => this.#up(event));
    c.addEventListener("pointerleave", () => { if (!this.drag) { this.pointer = null; this.app.readout(""); this.draw(); } });
    c.addEventListener("dblclick", () => { if (this.tool === "polygon") this.closePolygon(); else if (this.tool === "move") this.reset(); });
  }

  #down(event) {
    if (!this.width) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size === 2) { // two fingers: zoom and pan, whatever the tool
      if (this.mask?.stroke) { this.mask.end(); this.mask.undo(); this.mask.undone.pop(); }
      this.drag = "pinch"; this.boxFrom = null;
      return;
    }
    const at = this.toImage(event);
    const level = event.button === 2 || (event.button === 0 && event.shiftKey && this.tool === "move");
    if (level) this.drag = "window";
    else if (event.button === 1 || this.tool === "move" || this.app.readOnly || event.ctrlKey) this.drag = "pan";
    else if (this.tool === "brush") {
      this.drag = "brush"; this.mask.begin();
      this.mask.brush(...at, ...at, this.radius, this.erase ? 0 : 1);
    } else if (this.tool === "polygon") {
      const { scale } = this.transform(), first = this.path[0];
      if (first && this.path.length > 2 && Math.hypot(first[0] - at[0], first[1] - at[1]) * scale < 9) this.closePolygon();
      else this.path.push(at);
    } else if (this.tool === "box") { this.drag = "box"; this.boxFrom = at; } else if (this.tool === "fill") this.#fill(at);
    this.last = at; this.lastScreen = [event.clientX, event.clientY];
    this.pointer = at;
    this.draw();
  }

  #moved(event) {
    if (!this.width) return;
    const before = this.pointers.get(event.pointerId), screen = [event.clientX, event.clientY];
    if (this.drag === "pinch" && before) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      this.pointers.set(event.pointerId, screen);
      if (!other) return;
      const box = this.canvas.getBoundingClientRect(), middle = [(screen[0] + other[0]) / 2 - box.left, (screen[1] + other[1]) / 2 - box.top];
      const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      this.#zoomAt(...middle, apart(screen) / Math.max(1, apart(before)));
      this.#pan((screen[0] - before[0]) / 2, (screen[1] - before[1]) / 2);
      return;
    }
    if (before) this.pointers.set(event.pointerId, screen);
    const at = this.toImage(event);
    this.pointer = at;
    if (this.drag === "pan") this.#pan(screen[0] - this.lastScreen[0], screen[1] - this.lastScreen[1]);
    else if (this.drag === "window") this.#level(screen[0] - this.lastScreen[0], screen[1] - this.lastScreen[1]);
    else if (this.drag === "brush") this.mask.brush(...this.last, ...at, this.radius, this.erase ? 0 : 1);
    this.last = at; this.lastScreen = screen;
    this.#read(at);
    if (this.drag || this.tool !== "move") this.draw();
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.drag === "brush") this.#marked(this.mask.end());
    if (this.drag === "box" && this.boxFrom) {
      const at = this.toImage(event);
      if (Math.abs(at[0] - this.boxFrom[0]) > 0.5 && Math.abs(at[1] - this.boxFrom[1]) > 0.5) this.#marked(this.mask.box(...this.boxFrom, ...at, this.erase ? 0 : 1));
      this.boxFrom = null;
    }
    if (this.drag !== "pinch" || !this.pointers.size) this.drag = null;
    this.draw();
  }

  /** To the right: less contrast; down: brighter. */
  #level(dx, dy) {
    const [low, high] = this.currentWindow(), width = high - low;
    const full = this.arrays.input ? this.drawn.window ?? defaultWindow(this.arrays.input) : [0, 255], unit = (full[1] - full[0]) / 300;
    const wide = Math.max(unit, width + dx * unit), middle = (low + high) / 2 - dy * unit;
    this.window = [middle - wide / 2, middle + wide / 2];
    this.app.windowChanged();
    this.draw();
  }

  resetWindow() { this.window = null; this.app.windowChanged(); this.draw(); }

  #read([x, y]) {
    const column = Math.floor(x), row = Math.floor(y);
    if (column < 0 || row < 0 || column >= this.width || row >= this.height) { this.app.readout(""); return; }
    const parts = [], k = row * this.width + column, { input, map } = this.arrays;
    if (input) parts.push(input.channels === 3 ? [...input.data.slice(3 * k, 3 * k + 3)].join(" ") : short(input.data[k]));
    if (map) parts.push(`map ${short(map.data[k])}`);
    const step = input?.step || map?.step || 1;
    this.app.readout(`x ${column * step}  y ${row * step}   ${parts.join("   ")}`);
  }
}
