// Requests to the server, and arrays out of its answers.

async function answer(response) {
  if (response.ok) return response;
  let text = `The server answered ${response.status}.`;
  try { text = (await response.json()).error || text; } catch { /* no JSON: keep the number */ }
  throw new Error(text);
}

export async function getJSON(address) {
  return (await answer(await fetch(address))).json();
}

/** The array of a .npy answer: {data, shape, channels, width, height, step}. */
export async function getArray(address, signal) {
  const response = await answer(await fetch(address, { signal }));
  const array = parseNpy(await response.arrayBuffer());
  const [height] = (response.headers.get("x-size") || "0").split(",").map(Number);
  array.step = Math.max(1, Math.round(height / array.height));
  return array;
}

const TYPES = { "|u1": Uint8Array, "<u2": Uint16Array, "<i2": Int16Array, "<f4": Float32Array };

export function parseNpy(buffer) {
  const view = new DataView(buffer);
  const start = 10 + view.getUint16(8, true);
  const head = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, start - 10));
  const descr = /'descr': '([^']+)'/.exec(head)[1];
  const shape = /'shape': \(([^)]*)\)/.exec(head)[1].split(",").map((n) => n.trim()).filter(Boolean).map(Number);
  const Type = TYPES[descr];
  if (!Type) throw new Error(`The server sent values of type ${descr}.`);
  const aligned = start % Type.BYTES_PER_ELEMENT ? buffer.slice(start) : buffer;
  const data = new Type(aligned, aligned === buffer ? start : 0);
  return { data, shape, height: shape[0], width: shape[1], channels: shape.length > 2 ? shape[2] : 1 };
}

/** Bytes of a mask, one for each pixel, of a reviewer; null where nothing is marked. */
export async function getMask(image, reviewer) {
  const response = await fetch(`/mask/${image}?reviewer=${encodeURIComponent(reviewer)}`);
  if (response.status === 404) return null;
  return gunzip(await (await answer(response)).arrayBuffer());
}

/** Write a decision; resolves when it is on disk. `mask`: Uint8Array, or null to leave it as it was. */
export async function decide(image, words, mask) {
  const head = new TextEncoder().encode(JSON.stringify({ ...words, mask: mask !== null }) + "\n");
  const parts = mask === null ? [head] : [head, await gzip(mask)];
  const response = await fetch(`/api/decide/${image}`, {
    method: "POST", headers: { "X-Normalcy": "1", "Content-Type": "application/octet-stream" }, body: new Blob(parts),
  });
  return (await answer(response)).json();
}

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}
export const gzip = (bytes) => through(bytes, new CompressionStream("gzip"));
export const gunzip = (bytes) => through(bytes, new DecompressionStream("gzip"));

/** A small cache of promises, the last used kept. */
export class Cache {
  constructor(most) { this.most = most; this.kept = new Map(); }
  get(key, make) {
    let found = this.kept.get(key);
    if (found) this.kept.delete(key);
    else { found = make(); found.catch(() => this.kept.delete(key)); }
    this.kept.set(key, found);
    while (this.kept.size > this.most) this.kept.delete(this.kept.keys().next().value);
    return found;
  }
}
