// Values to colours: the map's scale, grey with window and level.

// Ends and middle points of Matplotlib's inferno (CC0), from black to light yellow.
const INFERNO = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84], [221, 81, 58],
  [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];

export const HEAT = new Uint8ClampedArray(256 * 3);
for (let k = 0; k < 256; k++) {
  const at = (k / 255) * (INFERNO.length - 1), low = Math.min(Math.floor(at), INFERNO.length - 2);
  for (let c = 0; c < 3; c++) HEAT[3 * k + c] = INFERNO[low][c] + (at - low) * (INFERNO[low + 1][c] - INFERNO[low][c]);
}

/** The values shown as black and white: all of 8 bits, else the 0.5 and 99.5 percentiles. */
export function defaultWindow(array) {
  if (array.data instanceof Uint8Array) return [0, 255];
  return percentiles(array.data, [0.005, 0.995]);
}

export function percentiles(data, fractions) {
  const step = Math.max(1, Math.floor(data.length / 40000)), sample = [];
  for (let k = 0; k < data.length; k += step) if (Number.isFinite(data[k])) sample.push(data[k]);
  sample.sort((a, b) => a - b);
  if (!sample.length) return fractions.map((f) => f);
  const found = fractions.map((f) => sample[Math.min(sample.length - 1, Math.round(f * (sample.length - 1)))]);
  if (found.at(-1) <= found[0]) found[found.length - 1] = found[0] + 1;
  return found;
}

/** Image with window and level into a canvas of its size. */
export function drawGrey(array, [low, high], canvas = document.createElement("canvas")) {
  const { data, width, height, channels } = array;
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), out = image.data;
  const scale = 255 / Math.max(high - low, 1e-12), plain = low === 0 && high === 255 && data instanceof Uint8Array;
  for (let k = 0, j = 0; k < width * height; k++, j += 4) {
    if (channels === 3) {
      for (let c = 0; c < 3; c++) out[j + c] = plain ? data[3 * k + c] : (data[3 * k + c] - low) * scale;
    } else {
      out[j] = out[j + 1] = out[j + 2] = plain ? data[k] : (data[k] - low) * scale;
    }
    out[j + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A map in colours; with `fade`, what is low is transparent. */
export function drawHeat(array, [low, high], fade, canvas = document.createElement("canvas")) {
  const { data, width, height } = array;
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), out = image.data;
  const scale = 255 / Math.max(high - low, 1e-12);
  for (let k = 0, j = 0; k < width * height; k++, j += 4) {
    const level = Math.max(0, Math.min(255, Math.round((data[k] - low) * scale)));
    out[j] = HEAT[3 * level]; out[j + 1] = HEAT[3 * level + 1]; out[j + 2] = HEAT[3 * level + 2];
    out[j + 3] = fade ? Math.min(255, level * 1.6) : 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** |a - b|, the mean over channels. */
export function difference(a, b) {
  if (a.width !== b.width || a.height !== b.height) return null;
  const count = a.width * a.height, data = new Float32Array(count);
  for (let k = 0; k < count; k++) {
    let sum = 0;
    for (let c = 0; c < a.channels; c++) {
      sum += Math.abs(a.data[k * a.channels + c] - b.data[k * b.channels + Math.min(c, b.channels - 1)]);
    }
    data[k] = sum / a.channels;
  }
  return { data, width: a.width, height: a.height, channels: 1, step: a.step, shape: [a.height, a.width] };
}
