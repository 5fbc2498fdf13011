// Volumes: linked orthogonal slices with the map over them, and marking on each slice. By NiiVue.
//
// The server sends volumes along the patient's axes (x to the right, y to the front, z to the head), so that a voxel of the drawing
// is the voxel of the array with the same index; the server writes the mask in the volume's own file space.

import { getMask } from "./api.js";
import { percentiles } from "./colour.js";
import { short } from "./stats.js";

const PLANES = [["multi", "Slices", "4"], ["axial", "Axial", ""], ["coronal", "Coronal", ""], ["sagittal", "Sagittal", ""], ["render", "3D", ""]];

export class VolumeView {
  kind = "volume";
  tools = ["move", "brush", "polygon", "box", "fill"];
  hasContours = false;

  constructor(canvas, app) {
    this.canvas = canvas; this.app = app;
    this.view = "overlay"; this.plane = "multi"; this.tool = "move"; this.radius = 3; this.erase = false;
    this.done = []; this.undone = []; this.markChanged = false;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    addEventListener("mouseup", () => { if (this.loaded && !canvas.hidden) this.app.windowChanged(); });
  }

  prefetch() {}

  async #start() {
    if (this.nv) return;
    this.module = await import("./vendor/niivue.js");
    const { Niivue } = this.module;
    this.nv = new Niivue({
      backColor: [0.047, 0.055, 0.063, 1], crosshairColor: [0.21, 0.82, 0.73, 0.75], crosshairWidth: 0.4, show3Dcrosshair: true,
      isRadiologicalConvention: true, isColorbar: false, multiplanarForceRender: false, dragAndDropEnabled: false, isHighResolutionCapable: true,
      penValue: 1, maxDrawUndoBitmaps: 1, isSimpleCrosshair: false, logLevel: "error", textHeight: 0.05, fontMinPx: 14, isOrientationTextVisible: true, multiplanarPadPixels: 6,
    });
    await this.nv.attachToCanvas(this.canvas, false);
    const { nv } = this;
    nv.opts.multiplanarShowRender = this.module.SHOW_RENDER?.AUTO ?? 2; // in the empty quarter
    const { DRAG_MODE } = this.module;
    if (DRAG_MODE?.windowing) nv.opts.dragMode = DRAG_MODE.windowing; // the right button: window and level
    nv.onLocationChange = (data) => this.app.readout(this.#where(data));
    nv.onDrawingChanged = () => this.#stroke();
    nv.onIntensityChange = () => { this.app.windowChanged(); };
    nv.setDrawOpacity(0.55);
    nv.setDrawColormap?.({ R: [0, 90], G: [0, 165], B: [0, 255], A: [0, 255], labels: ["", "marked"] });
  }

  async open(image, about, hasMask) {
    const { kinds, peak, size, window, affine } = await about;
    await this.#start();
    const saved = hasMask ? await getMask(image, this.app.reviewer) : null;
    const wanted = ["input", "restored", "map", "uncertainty"].filter((kind) => kinds.includes(kind));
    const loaded = {};
    const { NVImage } = this.module;
    await Promise.all(wanted.map(async (kind) => {
      try { loaded[kind] = await NVImage.loadFromUrl({ url: `/volume/${image}/${kind}.nii.gz`, name: `${kind}.nii.gz`, colormap: kind === "input" || kind === "restored" ? "gray" : "inferno" }); } catch { /* not there */ }
    }));
    if (!loaded.input && !loaded.map) throw new Error("Neither the volume nor its map is there.");
    return () => {
      const { nv } = this;
      this.image = image; this.kinds = kinds; this.size = size; this.peak = peak; this.affine = affine; this.loaded = loaded;
      for (const old of [...nv.volumes]) nv.removeVolume(old);
      const base = loaded.input || loaded.map;
      if (window && loaded.input) [loaded.input.cal_min, loaded.input.cal_max] = window;
      this.fullWindow = window || [base.cal_min, base.cal_max];
      nv.addVolume(base);
      if (loaded.input && loaded.map) nv.addVolume(loaded.map);
      nv.createEmptyDrawing();
      nv.setDrawingEnabled(false);
      if (saved && saved.length === nv.drawBitmap.length) { nv.drawBitmap.set(saved); nv.refreshDrawing(true); }
      this.before = new Uint8Array(nv.drawBitmap);
      this.done = []; this.undone = []; this.markChanged = false; this.swapped = false;
      this.#range(); this.#apply(); this.goPeak();
      this.setTool(this.tool);
      this.canvas.dataset.open = String(image);
    };
  }

  views() {
    if (this.app.blind && this.loaded?.input) return [["input", "Input", "I"]];
    const has = (kind) => this.loaded?.[kind];
    const there = [["input", "Input", "I"], ["restored", "Restored", "R"], ["map", "Map", "M"], ["overlay", "Overlay", "O"], ["uncertainty", "Uncertainty", "Y"]];
    return there.filter(([id]) => (id === "overlay" ? has("map") && has("input") : has(id)));
  }
  planes() { return PLANES; }
  shown() { return this.views().some(([id]) => id === this.view) ? this.view : this.loaded?.input ? "input" : "map"; }
  setView(id) { this.view = id; this.swapped = false; this.#range(); this.#apply(); }
  setPlane(id) { this.plane = id; this.#apply(); }
  blink() { this.swapped = !this.swapped; this.#apply(); }

  #range() {
    const map = this.loaded?.[this.shown() === "uncertainty" ? "uncertainty" : "map"];
    this.bounds = null; this.own = null;
    if (!map) return;
    const own = percentiles(map.img, [0, 0.5, 1]), all = this.app.facts.map_range;
    this.own = all && this.shown() !== "uncertainty" ? [...all] : [own[1], own[2]];
    this.bounds = [Math.min(own[0], this.own[0]), Math.max(own[2], this.own[1])];
    this.bounds[1] += 0.02 * (this.bounds[1] - this.bounds[0]);
  }
  range() { return (this.shown() !== "uncertainty" && this.app.range) || this.own; }

  /** The volumes on show and their looks. */
  #apply() {
    const { nv, loaded } = this;
    if (!nv || !loaded) return;
    const view = this.shown();
    let base = view === "restored" ? "restored" : loaded.input ? "input" : "map";
    if (this.swapped) base = base === "input" && loaded.restored ? "restored" : "input";
    let over = this.swapped && !loaded.restored ? (view === "input" ? "map" : null) : { overlay: "map", map: "map", uncertainty: "uncertainty" }[view];
    if (over === base || !loaded[over]) over = null;
    const wanted = [loaded[base], ...(over ? [loaded[over]] : [])].filter(Boolean);
    if (nv.volumes.length !== wanted.length || nv.volumes.some((v, n) => v !== wanted[n])) {
      const at = nv.scene.crosshairPos.slice();
      nv.volumes.length = 0; nv.volumes.push(...wanted); nv.back = wanted[0];
      if (base === "restored" && loaded.input) [loaded.restored.cal_min, loaded.restored.cal_max] = [loaded.input.cal_min, loaded.input.cal_max];
      nv.scene.crosshairPos = at;
    }
    const heat = over ? loaded[over] : base === "map" ? loaded.map : null, range = this.range();
    if (heat && range) {
      [heat.cal_min, heat.cal_max] = range;
      heat.colormapType = 1; // below the range: transparent
      heat.opacity = over ? (view === "map" || view === "uncertainty" ? 1 : this.app.heat ? this.app.opacity : 0) : 1;
    }
    const { SLICE_TYPE } = this.module;
    nv.setSliceType({ multi: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, render: SLICE_TYPE.RENDER }[this.plane]);
    nv.setDrawOpacity(this.app.marks ? 0.55 : 0);
    nv.updateGLVolume();
  }

  draw() { this.#apply(); }
  reset() { this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1]; this.nv.drawScene(); }
  zoomBy(factor) { const pan = this.nv.scene.pan2Dxyzmm; pan[3] = Math.max(0.5, Math.min(12, pan[3] * factor)); this.nv.scene.pan2Dxyzmm = pan; this.nv.drawScene(); }
  step(by) { this.nv?.moveCrosshairInVox(...({ sagittal: [by, 0, 0], coronal: [0, by, 0] }[this.plane] || [0, 0, by])); this.nv?.drawScene(); }

  /** Where the map is largest. */
  goPeak() {
    const at = this.peak || (this.size && this.size.map((n) => Math.floor(n / 2)));
    if (at) this.goVoxel(at);
  }

  goVoxel([z, y, x]) {
    this.nv.scene.crosshairPos = this.nv.vox2frac([x, y, z]);
    this.nv.drawScene();
    this.nv.createOnLocationChange?.();
  }

  #where(data) {
    const [x, y, z] = data.vox, k = this.#index(x, y, z), parts = [];
    for (const [kind, name] of [["input", ""], ["map", "map "]]) if (this.loaded?.[kind]) parts.push(name + short(this.loaded[kind].img[k]));
    const mm = this.affine.map(([a, b, c, d]) => (a * x + b * y + c * z + d).toFixed(1)); // of the voxel's centre
    return `x ${x}  y ${y}  z ${z}   ${mm.join(" ")} mm   ${parts.join("   ")}`;
  }

  #index(x, y, z) { const [, ny, nx] = this.size; return x + nx * (y + ny * z); }

  currentWindow() { const base = this.loaded?.input; return base ? [base.cal_min, base.cal_max] : null; }
  resetWindow() { const base = this.loaded?.input; if (base) { [base.cal_min, base.cal_max] = this.fullWindow; this.#apply(); this.app.windowChanged(); } }

  regions() { return null; }
  goTo() {}

  // -- marking

  setTool(name) {
    this.tool = name;
    const { nv } = this;
    if (!nv || !this.loaded) return;
    const { PEN_TYPE } = this.module, draws = ["brush", "polygon", "box"].includes(name) && !this.app.readOnly;
    nv.setDrawingEnabled(draws);
    if (draws) {
      nv.opts.penType = name === "box" && PEN_TYPE ? PEN_TYPE.RECTANGLE : PEN_TYPE ? PEN_TYPE.PEN : 0;
      nv.opts.penSize = name === "brush" ? Math.max(1, Math.round(2 * this.radius - 1)) : 1;
      nv.opts.isFilledPen = name !== "brush";
      nv.opts.floodFillNeighbors = 6;
      nv.setPenValue(this.erase ? 0 : 1, name !== "brush");
    }
    nv.onMouseUp = name === "fill" && !this.app.readOnly ? () => this.fillHere() : () => {};
  }

  brushSize(factor) { this.radius = Math.max(1, Math.min(30, factor > 1 ? this.radius + 1 : this.radius - 1)); this.setTool(this.tool); this.app.say(`Brush of ${Math.round(2 * this.radius - 1)} voxels`); }

  /** After each stroke: what changed is one step of undo. */
  #stroke() {
    const now = this.nv.drawBitmap;
    if (!now || !this.before || now.length !== this.before.length) return;
    const places = [];
    for (let k = 0; k < now.length; k++) {
      if (now[k] > 1) now[k] = 1;
      if (now[k] !== this.before[k]) places.push(k);
    }
    if (!places.length) return;
    this.done.push({ places: Uint32Array.from(places), before: Uint8Array.from(places, (k) => this.before[k]), after: Uint8Array.from(places, (k) => now[k]) });
    this.undone = [];
    this.before = new Uint8Array(now);
    this.markChanged = true;
    this.app.marksChanged();
  }

  #move(from, to, which) {
    const one = from.pop();
    if (!one) return false;
    one.places.forEach((k, n) => { this.nv.drawBitmap[k] = one[which][n]; });
    to.push(one);
    this.before = new Uint8Array(this.nv.drawBitmap);
    this.markChanged = true;
    this.nv.refreshDrawing(true);
    this.app.marksChanged();
    return true;
  }
  undo() { return this.#move(this.done, this.undone, "before"); }
  redo() { return this.#move(this.undone, this.done, "after"); }
  canUndo() { return this.done.length > 0; }
  canRedo() { return this.undone.length > 0; }
  clear() { this.change((bitmap) => bitmap.fill(0)); }

  /** A change of the drawing that one undo takes back. */
  change(work) {
    if (!this.nv?.drawBitmap) return;
    work(this.nv.drawBitmap);
    this.nv.refreshDrawing(true);
    this.#stroke();
  }

  /** The region of the map above the pixel threshold at the cross-hair. */
  fillHere() {
    const { map } = this.loaded, level = this.app.pixelThreshold, [nz, ny, nx] = this.size;
    const [x0, y0, z0] = this.nv.frac2vox(this.nv.scene.crosshairPos), start = this.#index(x0, y0, z0);
    if (!map || level === null || !(map.img[start] > level)) { this.app.say("Click into a region above the pixel threshold to fill it."); return; }
    const value = this.erase ? 0 : 1;
    this.change((bitmap) => {
      const seen = new Uint8Array(bitmap.length), stack = [start];
      seen[start] = 1;
      while (stack.length) {
        const k = stack.pop(), x = k % nx, y = Math.floor(k / nx) % ny, z = Math.floor(k / (nx * ny));
        bitmap[k] = value;
        for (let dz = -1; dz <= 1; dz++) for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) {
          const a = x + dx, b = y + dy, c = z + dz;
          if (a < 0 || b < 0 || c < 0 || a >= nx || b >= ny || c >= nz) continue;
          const n = this.#index(a, b, c);
          if (!seen[n] && map.img[n] > level) { seen[n] = 1; stack.push(n); }
        }
      }
    });
  }

  markBytes() { return new Uint8Array(this.nv.drawBitmap); }
  markSaved() { this.markChanged = false; }
  hasMarks() { return Boolean(this.nv?.drawBitmap?.some(Boolean)); }
  cancel() { return false; }
  closePolygon() {}
}
