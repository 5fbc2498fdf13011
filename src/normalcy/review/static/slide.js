// Slides: the pyramid with the heat map over it, and regions to jump to. By OpenSeadragon.

import { getJSON } from "./api.js";

export class SlideView {
  kind = "slide";
  tools = [];
  hasContours = true;

  constructor(element, app) { this.element = element; this.app = app; this.view = "overlay"; }

  prefetch() {}

  async open(image) {
    await library();
    const facts = await getJSON(`/slide/${image}`);
    return () => {
      this.image = image; this.facts = facts;
      this.bounds = null; this.own = null;
      this.osd?.destroy();
      const levels = Math.max(1, Math.ceil(Math.log2(Math.max(facts.width, facts.height) / facts.tile)) + 1);
      this.osd = window.OpenSeadragon({
        element: this.element, showNavigationControl: false, showNavigator: true, navigatorPosition: "BOTTOM_LEFT",
        animationTime: 0.35, maxZoomPixelRatio: 4, crossOriginPolicy: false, keyboardShortcutsEnabled: false, drawer: "canvas",
        gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
        tileSources: {
          width: facts.width, height: facts.height, tileSize: facts.tile, minLevel: 0, maxLevel: levels - 1,
          getTileUrl: (level, x, y) => `/slide/${image}/${levels - 1 - level}/${x}/${y}.jpg`,
        },
      });
      this.osd.innerTracker.keyHandler = null; this.osd.innerTracker.keyDownHandler = null;
      this.osd.addHandler("open", () => {
        if (facts.heat) {
          this.osd.addSimpleImage({
            url: `/slide/${image}/heat.png`, x: 0, y: 0, width: facts.heat.width / facts.width, opacity: this.#opacity(),
            success: ({ item }) => { this.heat = item; this.draw(); },
          });
        }
        this.#outlines();
        this.element.dataset.open = String(image);
      });
    };
  }

  views() {
    return [["input", "Slide", "I"], ...(this.facts?.heat && !this.app.blind ? [["overlay", "Overlay", "O"], ["map", "Map", "M"]] : [])];
  }
  shown() { return this.views().some(([id]) => id === this.view) ? this.view : "input"; }
  setView(id) { this.view = id; this.draw(); }
  blink() { this.view = this.shown() === "input" ? "overlay" : "input"; this.draw(); }
  reset() { this.osd?.viewport.goHome(); }
  zoomBy(factor) { this.osd?.viewport.zoomBy(factor); this.osd?.viewport.applyConstraints(); }

  #opacity() { return this.shown() === "input" || !this.app.heat ? 0 : this.shown() === "map" ? 1 : this.app.opacity; }

  draw() {
    this.heat?.setOpacity(this.#opacity());
    this.osd?.world.getItemAt(0)?.setOpacity(this.shown() === "map" ? 0.12 : 1);
    if (this.svg) this.svg.style.display = this.app.contours ? "" : "none";
  }

  /** The regions as an SVG that moves with the slide. */
  #outlines() {
    const { width, height, regions } = this.facts, space = "http://www.w3.org/2000/svg";
    this.svg = document.createElementNS(space, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    for (const { ring } of regions.slice(0, 200)) {
      const line = document.createElementNS(space, "polygon");
      line.setAttribute("points", ring.map((p) => p.join(",")).join(" "));
      line.setAttribute("fill", "none"); line.setAttribute("stroke", "#35d0ba"); line.setAttribute("stroke-width", "2");
      line.setAttribute("vector-effect", "non-scaling-stroke");
      this.svg.append(line);
    }
    this.osd.addOverlay({ element: this.svg, location: new window.OpenSeadragon.Rect(0, 0, 1, height / width) });
    this.draw();
  }

  regions() {
    if (!this.facts) return null;
    const found = this.facts.regions.map(({ ring, peak }, n) => {
      const xs = ring.map((p) => p[0]), ys = ring.map((p) => p[1]);
      const area = Math.abs(ring.reduce((sum, [x, y], k) => { const [x1, y1] = ring[(k + 1) % ring.length]; return sum + x * y1 - x1 * y; }, 0)) / 2;
      return { label: n + 1, peak, area, box: [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)] };
    });
    return { regions: found, total: found.length, unit: this.facts.mpp ? (a) => `${((a * this.facts.mpp ** 2) / 1e6).toPrecision(3)} mm²` : null };
  }

  goTo({ box: [left, top, right, bottom] }) {
    const margin = 0.8 * Math.max(right - left, bottom - top, 100);
    const wide = right - left + 2 * margin, tall = bottom - top + 2 * margin;
    this.osd.viewport.fitBounds(this.osd.world.getItemAt(0).imageToViewportRectangle(left - margin, top - margin, wide, tall));
  }

  setTool() {} brushSize() {} undo() {} redo() {} clear() {} cancel() { return false; }
  markChanged = false;
  hasMarks() { return false; } canUndo() { return false; } canRedo() { return false; } markSaved() {}
  range() { return null; }
  currentWindow() { return null; }
}

let loading = null;
function library() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "/static/vendor/openseadragon.js";
    // It adds a style of its own, which the content security policy refuses, unless there is an element of this name with this
    // mark; one that is none of HTML's holds no style.
    const style = document.createElementNS("urn:normalcy", "style");
    style.setAttribute("data-openseadragon-mobile-css", "none");
    document.head.append(style);
    script.onload = done; script.onerror = () => failed(new Error("openseadragon.js cannot be loaded."));
    document.head.append(script);
  });
  return loading;
}
