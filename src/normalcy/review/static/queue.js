// The list of the queue: the server has the order, the list loads and draws only what is seen.

export const ITEM = 64;
const PART = 100; // images in a request
const TALLEST = 8e6; // pixels: browsers draw no element that is much taller, so a longer list is scrolled in larger steps

export class List {
  /** `load(queue, from, count)` resolves to images; `fill(element, image)` puts one into an element. */
  constructor(element, load, fill, onChoose) {
    this.element = element; this.space = element.firstElementChild;
    this.load = load; this.fill = fill;
    this.queue = 0; this.count = 0; this.current = -1; this.made = new Map();
    this.#forget();
    element.addEventListener("scroll", () => this.#later(), { passive: true });
    new ResizeObserver(() => this.#later()).observe(element);
    element.addEventListener("click", (event) => {
      const item = event.target.closest(".item");
      if (item) onChoose(Number(item.dataset.image));
    });
  }

  #forget() { this.images = new Map(); this.places = new Map(); this.loading = new Map(); }

  /** Show another queue; resolves when what is seen of it is there. */
  async set(queue, count) {
    this.queue = queue; this.count = count;
    this.#forget();
    this.space.style.height = `${Math.min(count * ITEM, TALLEST)}px`;
    const [first, last] = this.#seen();
    await this.#have(first, last).catch(() => {});
    if (queue === this.queue) this.refresh();
  }

  /** The image at a place of the queue. */
  async at(place) {
    if (place < 0 || place >= this.count) return undefined;
    await this.#have(place, place + 1);
    return this.images.get(place);
  }

  /** Images at some places, as far as they are loaded. */
  known(from, to) {
    const found = [];
    for (let at = from; at < to; at++) if (this.images.has(at)) found.push(this.images.get(at));
    return found;
  }

  /** Where an image is; undefined if it is not loaded. */
  placeOf(image) { return this.places.get(image); }

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

  /** Mark an image, and bring it into sight; `at`: its place, -1 if it is not in the queue. */
  show(image, at) {
    const before = this.current;
    this.current = image;
    for (const one of [before, image]) this.made.get(one)?.setAttribute("aria-selected", String(one === image));
    if (at < 0) return;
    const top = at * ITEM, start = this.#top(), height = this.element.clientHeight;
    if (top < start + ITEM) this.#scrollTo(Math.max(0, top - ITEM));
    else if (top + 2 * ITEM > start + height) this.#scrollTo(top + 2 * ITEM - height);
    this.element.setAttribute("aria-activedescendant", `item-${image}`);
    this.#draw();
  }

  /** Pixels of the whole list for one of what is scrolled. */
  #step() {
    const height = this.element.clientHeight, whole = this.count * ITEM;
    return whole > TALLEST ? (whole - height) / Math.max(1, TALLEST - height) : 1;
  }

  /** The first pixel of the whole list that is seen. What was scrolled to exactly counts, until the user scrolls. */
  #top() {
    const { scrollTop } = this.element;
    return this.exact && this.exact.at === scrollTop ? this.exact.top : scrollTop * this.#step();
  }

  #scrollTo(top) {
    this.element.scrollTop = top / this.#step();
    this.exact = { at: this.element.scrollTop, top };
  }

  #seen() {
    const top = this.#top();
    return [Math.max(0, Math.floor(top / ITEM) - 3), Math.min(this.count, Math.ceil((top + this.element.clientHeight) / ITEM) + 3)];
  }

  /** Resolves when the images at these places are loaded. */
  async #have(first, last) {
    const waiting = [];
    for (let part = Math.floor(first / PART); part * PART < last; part++) {
      if (!this.loading.has(part)) this.loading.set(part, this.#loaded(this.queue, part));
      waiting.push(this.loading.get(part));
    }
    await Promise.all(waiting);
  }

  async #loaded(queue, part) {
    try {
      const images = await this.load(queue, part * PART, PART);
      if (queue !== this.queue) return;
      images.forEach((image, n) => { this.images.set(part * PART + n, image); this.places.set(image, part * PART + n); });
    } catch (fault) {
      if (queue === this.queue) this.loading.delete(part);
      throw fault;
    }
  }

  #later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#draw(); });
  }

  #draw() {
    const [first, last] = this.#seen(), queue = this.queue, offset = this.element.scrollTop - this.#top();
    const wanted = new Map();
    for (let at = first; at < last; at++) if (this.images.has(at)) wanted.set(this.images.get(at), at);
    if (wanted.size < last - first) this.#have(first, last).then(() => { if (queue === this.queue) this.#later(); }, () => {});
    for (const [image, element] of this.made) if (!wanted.has(image)) { element.remove(); this.made.delete(image); }
    for (const [image, at] of wanted) {
      let element = this.made.get(image);
      if (!element) {
        element = document.createElement("div");
        element.className = "item"; element.id = `item-${image}`; element.dataset.image = image;
        element.setAttribute("role", "option");
        this.fill(element, image);
        this.space.append(element);
        this.made.set(image, element);
      }
      element.style.top = `${at * ITEM + offset}px`;
      element.setAttribute("aria-selected", String(image === this.current));
      element.setAttribute("aria-posinset", String(at + 1));
      element.setAttribute("aria-setsize", String(this.count));
    }
  }
}
