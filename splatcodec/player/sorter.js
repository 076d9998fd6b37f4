// The Worker that sorts Gaussians by depth, and leaves out blocks that the camera does not see.
//
// It keeps 6 bytes a Gaussian: the record's quantized position. Numbers of Gaussians are their places in the textures:
// 256 * block + place in the block.

/**
 * What a page sends.
 * @typedef {object} SorterQuestion
 * @property {"size" | "put" | "show" | "sort"} ask
 * @property {number} [capacity] blocks
 * @property {Int32Array} [blocks]
 * @property {Uint32Array} [records] of `put`, 4 words a Gaussian
 * @property {Float32Array} [boxes] of `put`, 16 numbers a block
 * @property {Uint16Array} [sizes] of `put`: Gaussians of each block, where blocks are not full but for the last
 * @property {Uint8Array} [nodes] of `put`: node of each block, 0 if not given
 * @property {boolean} [shown]
 * @property {SorterView} [view]
 * @property {number} [id] of a `sort`, given back
 * @property {ArrayBuffer} [spare] an order that is not used any more
 */

/**
 * @typedef {object} SorterView
 * @property {number[]} position of the camera
 * @property {number[]} rows 9 numbers: right, down, forward
 * @property {number} near
 * @property {number[]} tangents of the edges of the picture: left, right, top, bottom, outwards
 * @property {ArrayLike<number>} [cameras] position and rows, 12 numbers, as each node sees them; the first is the camera
 */

const BLOCK = 256;
const KEYS = 65536;
/** Gaussians reach further than their centres: standard deviations until alpha falls under 1/255. */
const REACH = 3.33;

let positions = new Uint16Array(0);
let boxes = new Float32Array(0);
let counts = new Uint16Array(0);
let shown = new Uint8Array(0);
let nodeOf = new Uint8Array(0);
/** Depths of a block, and their bits. */
const depths = new Float32Array(BLOCK);
const words = new Uint32Array(depths.buffer);
const histogram = new Uint32Array(KEYS + 1);
/** Position and rows of the camera, as each node sees them. */
let cameras = new Float64Array(12);
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** @param {number} value positive */
function bitsOf(value) {
  float[0] = value;
  return bits[0];
}

/** @param {Required<Pick<SorterQuestion, "blocks" | "records" | "boxes">> & SorterQuestion} question */
function put({ blocks, records, boxes: own, sizes, nodes }) {
  const count = records.length / 4;
  blocks.forEach((block, k) => {
    boxes.set(own.subarray(16 * k, 16 * k + 16), 16 * block);
    const size = sizes ? sizes[k] : Math.min(BLOCK, count - BLOCK * k);
    counts[block] = size;
    // A block of a moving scene comes again and stays shown.
    if (!sizes) shown[block] = 0;
    if (nodes) nodeOf[block] = nodes[k];
    let to = 3 * BLOCK * block;
    for (let from = 4 * BLOCK * k, end = from + 4 * size; from < end; from += 4) {
      positions[to++] = records[from];
      positions[to++] = records[from] >>> 16;
      positions[to++] = records[from + 1];
    }
  });
}

/**
 * A ball around all that the Gaussians of a block may paint: squared radius unknown means never left out.
 * @param {number} block
 * @param {SorterView} view
 */
function isSeen(block, { near, tangents }) {
  const at = 16 * block;
  const position = cameras.subarray(12 * nodeOf[block]);
  const rows = position.subarray(3);
  let radius = 0;
  const offset = [0, 0, 0];
  for (let k = 0; k < 3; k++) {
    const half = 32767.5 * boxes[at + 3 + k];
    offset[k] = boxes[at + k] - position[k] + half;
    radius += half * half;
  }
  const sigma = 2 ** (boxes[at + 6] + 255 * boxes[at + 7]);
  bits[0] = 0x3f800000 + 127 * boxes[at + 8];
  const slant = float[0] - 1;
  // Rows of A are at most sigma * (1, slant, slant): its norm bounds every standard deviation.
  const reach = Math.sqrt(radius) + 1.3 * REACH * sigma * Math.sqrt(3 + 3 * slant * slant);
  if (!(reach < 1e30)) return true;
  const x = rows[0] * offset[0] + rows[1] * offset[1] + rows[2] * offset[2];
  const y = rows[3] * offset[0] + rows[4] * offset[1] + rows[5] * offset[2];
  const z = rows[6] * offset[0] + rows[7] * offset[1] + rows[8] * offset[2];
  if (z + Math.sqrt(radius) <= near) return false;
  // Signed distances from the four sides of the view, which widens a little for the turn until the next sort.
  const [left, right, top, bottom] = tangents;
  const outside = (/** @type {number} */ along, /** @type {number} */ tangent) =>
    along - tangent * z > (reach + 0.3 * tangent * Math.abs(z)) * Math.sqrt(1 + tangent * tangent);
  return !(outside(-x, left) || outside(x, right) || outside(-y, top) || outside(y, bottom));
}

/**
 * Depths of the Gaussians of a block, into `depths`.
 * @param {number} block
 * @returns {number} how many
 */
function measure(block) {
  const box = 16 * block;
  const camera = 12 * nodeOf[block];
  const [x, y, z] = [cameras[camera], cameras[camera + 1], cameras[camera + 2]];
  const [fx, fy, fz] = [cameras[camera + 9], cameras[camera + 10], cameras[camera + 11]];
  const dx = fx * boxes[box + 3];
  const dy = fy * boxes[box + 4];
  const dz = fz * boxes[box + 5];
  const start = fx * (boxes[box] - x) + fy * (boxes[box + 1] - y) + fz * (boxes[box + 2] - z);
  const count = counts[block];
  for (let i = 0, k = 3 * BLOCK * block; i < count; i++, k += 3) {
    depths[i] = start + dx * positions[k] + dy * positions[k + 1] + dz * positions[k + 2];
  }
  return count;
}

/**
 * Places of what is seen, furthest first: one pass of counting sort over the bits of the depth, which are as fine near
 * as far.
 * @param {SorterView} view
 * @param {ArrayBuffer | undefined} spare
 */
function sorted(view, spare) {
  const { near } = view;
  cameras = Float64Array.from(view.cameras ?? [...view.position, ...view.rows]);
  let most = 0;
  const seen = [];
  for (let block = 0; block < shown.length; block++) {
    if (shown[block] && isSeen(block, view)) {
      seen.push(block);
      most += counts[block];
    }
  }
  const order = spare && spare.byteLength >= 4 * most ? new Uint32Array(spare) : new Uint32Array(most);
  let lowest = Infinity;
  let highest = 0;
  let drawn = 0;
  // Depths of a block are worked out three times: to keep those of all takes memory.
  for (const block of seen) {
    for (let i = 0, count = measure(block); i < count; i++) {
      const depth = depths[i];
      if (depth > near) {
        drawn++;
        if (depth < lowest) lowest = depth;
        if (depth > highest) highest = depth;
      }
    }
  }
  if (!drawn) return { order, count: 0, blocks: seen.length };
  const first = bitsOf(lowest);
  const scale = (KEYS - 1) / Math.max(1, bitsOf(highest) - first);
  histogram.fill(0);
  for (const block of seen) {
    for (let i = 0, count = measure(block); i < count; i++) {
      if (depths[i] > near) histogram[KEYS - 1 - (((words[i] - first) * scale) | 0)]++;
    }
  }
  for (let k = 0, sum = 0; k < KEYS; k++) {
    const own = histogram[k];
    histogram[k] = sum;
    sum += own;
  }
  for (const block of seen) {
    for (let i = 0, count = measure(block); i < count; i++) {
      if (depths[i] > near) order[histogram[KEYS - 1 - (((words[i] - first) * scale) | 0)]++] = BLOCK * block + i;
    }
  }
  return { order, count: drawn, blocks: seen.length };
}

const scope = /** @type {any} */ (globalThis);
scope.onmessage = (/** @type {MessageEvent<SorterQuestion>} */ { data }) => {
  const { ask, capacity = 0, blocks = new Int32Array(0), records, boxes: own, sizes, nodes, view, spare } = data;
  if (ask === "size") {
    positions = new Uint16Array(3 * BLOCK * capacity);
    boxes = new Float32Array(16 * capacity);
    counts = new Uint16Array(capacity);
    shown = new Uint8Array(capacity);
    nodeOf = new Uint8Array(capacity);
  } else if (ask === "put" && records && own) {
    put({ ask, blocks, records, boxes: own, sizes, nodes });
  } else if (ask === "show") {
    for (const block of blocks) shown[block] = data.shown ? 1 : 0;
  } else if (ask === "sort" && view) {
    const began = performance.now();
    const { order, count, blocks } = sorted(view, spare);
    scope.postMessage({ id: data.id, order, count, blocks, ms: performance.now() - began }, [order.buffer]);
  }
};
