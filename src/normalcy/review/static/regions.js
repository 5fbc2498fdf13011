// Connected regions of a map above a threshold: numbers, areas, peaks, outlines. Pixels that touch at a corner belong together,
// as in the metrics of normalcy.

export function findRegions(array, threshold, most = 500) {
  const { data, width, height } = array, count = width * height;
  const labels = new Int32Array(count), regions = [], stack = new Int32Array(count);
  for (let start = 0; start < count; start++) {
    if (labels[start] || !(data[start] > threshold)) continue;
    const label = regions.length + 1;
    let top = 0, area = 0, peak = -Infinity, at = start;
    let left = width, right = 0, upper = height, lower = 0;
    stack[top++] = start; labels[start] = label;
    while (top) {
      const k = stack[--top], x = k % width, y = (k - x) / width;
      area++;
      if (data[k] > peak) { peak = data[k]; at = k; }
      if (x < left) left = x; if (x > right) right = x; if (y < upper) upper = y; if (y > lower) lower = y;
      for (let dy = -1; dy <= 1; dy++) {
        const ny = y + dy;
        if (ny < 0 || ny >= height) continue;
        for (let dx = -1; dx <= 1; dx++) {
          const nx = x + dx, n = ny * width + nx;
          if (nx < 0 || nx >= width || labels[n] || !(data[n] > threshold)) continue;
          labels[n] = label; stack[top++] = n;
        }
      }
    }
    regions.push({ label, area, peak, x: at % width, y: Math.floor(at / width), box: [left, upper, right, lower] });
  }
  regions.sort((a, b) => b.peak - a.peak);
  return { labels, regions: regions.slice(0, most), total: regions.length };
}

/** The sides of marked pixels whose neighbour is not marked, joined to long lines, as a path in pixel coordinates. */
export function outline(inside, width, height) {
  const path = new Path2D();
  for (let y = 0; y <= height; y++) {
    let from = -1;
    for (let x = 0; x <= width; x++) {
      const edge = x < width && Boolean(y < height && inside(y * width + x)) !== Boolean(y > 0 && inside((y - 1) * width + x));
      if (edge && from < 0) from = x;
      if (!edge && from >= 0) { path.moveTo(from, y); path.lineTo(x, y); from = -1; }
    }
  }
  for (let x = 0; x <= width; x++) {
    let from = -1;
    for (let y = 0; y <= height; y++) {
      const edge = y < height && Boolean(x < width && inside(y * width + x)) !== Boolean(x > 0 && inside(y * width + x - 1));
      if (edge && from < 0) from = y;
      if (!edge && from >= 0) { path.moveTo(x, from); path.lineTo(x, y); from = -1; }
    }
  }
  return path;
}
