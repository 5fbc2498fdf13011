// The queue: which images, in which order; a list that draws only what is seen.

export const ITEM = 64;

/** Positions of images, ordered. `kind`: score, p, disagreement, random, informative, name. */
export function ordered(rows, kind, informative) {
  const count = rows.path.length, all = Array.from({ length: count }, (_, i) => i);
  const falling = (values) => all.sort((a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || a - b);
  const rising = (values) => all.sort((a, b) => (values[a] ?? Infinity) - (values[b] ?? Infinity) || a - b);
  switch (kind) {
    case "score": return falling(rows.score);
    case "low": return rising(rows.score);
    case "p": return rising(rows.p);
    case "disagreement": return falling(rows.disagreement);
    case "informative": {
      const first = new Set(informative);
      return [...informative, ...shuffled(all.filter((i) => !first.has(i)))];
    }
    case "random": return shuffled(all);
    default: return all;
  }
}

/** The same order each time, so that going on is possible. */
function shuffled(values) {
  let state = 0x2545f491;
  const random = () => { state ^= state << 13; state ^= state >>> 17; state ^= state << 5; return (state >>> 0) / 2 ** 32; };
  for (let k = values.length - 1; k > 0; k--) {
    const other = Math.floor(random() * (k + 1));
    [values[k], values[other]] = [values[other], values[k]];
  }
  return values;
}

export class List {
  /** `fill(element, image)` puts an image into an element. */
  constructor(element, fill, onChoose) {
    this.element = element; this.space = element.firstElementChild;
    this.fill = fill; this.onChoose = onChoose;
    this.images = []; this.current = -1; this.made = new Map();
    element.addEventListener("scroll", () => this.#later(), { passive: true });
    new ResizeObserver(() => this.#later()).observe(element);
    element.addEventListener("click", (event) => {
      const item = event.target.closest(".item");
      if (item) onChoose(Number(item.dataset.image));
    });
  }

  set(images) {
    this.images = images;
    this.place = new Map(images.map((image, at) => [image, at]));
    this.space.style.height = `${images.length * ITEM}px`;
    this.refresh();
  }

  refresh() {
    for (const element of this.made.values()) element.remove();
    this.made.clear();
    this.#draw();
  }

  /** Draw an image's item again, if it is seen. */
  update(image) {
    const element = this.made.get(image);
    if (element) this.fill(element, image);
  }

  show(image) {
    const before = this.current;
    this.current = image;
    for (const one of [before, image]) this.made.get(one)?.setAttribute("aria-selected", String(one === image));
    const at = this.place?.get(image);
    if (at === undefined) return;
    const { scrollTop, clientHeight } = this.element, top = at * ITEM;
    if (top < scrollTop + ITEM) this.element.scrollTop = Math.max(0, top - ITEM);
    else if (top + 2 * ITEM > scrollTop + clientHeight) this.element.scrollTop = top + 2 * ITEM - clientHeight;
    this.element.setAttribute("aria-activedescendant", `item-${image}`);
    this.#draw();
  }

  #later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#draw(); });
  }

  #draw() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / ITEM) - 3);
    const last = Math.min(this.images.length, Math.ceil((this.element.scrollTop + this.element.clientHeight) / ITEM) + 3);
    const wanted = new Set(this.images.slice(first, last));
    for (const [image, element] of this.made) if (!wanted.has(image)) { element.remove(); this.made.delete(image); }
    for (let at = first; at < last; at++) {
      const image = this.images[at];
      let element = this.made.get(image);
      if (!element) {
        element = document.createElement("div");
        element.className = "item"; element.id = `item-${image}`; element.dataset.image = image;
        element.setAttribute("role", "option");
        this.fill(element, image);
        this.space.append(element);
        this.made.set(image, element);
      }
      element.style.top = `${at * ITEM}px`;
      element.setAttribute("aria-selected", String(image === this.current));
      element.setAttribute("aria-posinset", String(at + 1));
      element.setAttribute("aria-setsize", String(this.images.length));
    }
  }
}
