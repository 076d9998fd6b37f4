// The base of a group with motion: its lossy scene as integers, for tracks to add to (bitstreams/SPEC.md, 7.4).

import { assemble, labelOf, located, SplcError } from "./container.js";
import { makeFastEngine } from "./fast.js";
import { parseParameters } from "./parameters.js";
import { PlainEngine } from "./plain.js";
import { BLOCK } from "./tile.js";

/** @typedef {import("./parameters.js").Parameters} Parameters */
/** @typedef {import("./sequence.js").Container} Container */

/**
 * @typedef {object} BaseTile
 * @property {number} number
 * @property {number} start first Gaussian in the base
 * @property {number} count
 * @property {number} blur
 * @property {Parameters} parameters of its own scene
 */

/**
 * Gaussians of a base, tile by tile.
 * @typedef {object} Base
 * @property {BaseTile[]} tiles
 * @property {number} count
 * @property {number} shDegree
 * @property {Int32Array} values 12 streams a Gaussian
 * @property {Float32Array} means 3 a Gaussian
 * @property {Int32Array} links as of tile.js, counted inside the tile
 * @property {Int32Array} sh streams from 12 on
 * @property {{ axes: Float32Array, scales: Float32Array, known: Uint8Array } | null} shapes axes and sizes, as far as they
 *     were needed
 * @property {Uint32Array | null} packedSh SH coefficients packed, if they were needed
 */

/** Bytes of a base a Gaussian. @param {number} shDegree */
export const baseBytes = (shDegree) => 12 * 4 + 12 + 4 + 12 * ((shDegree + 1) ** 2 - 1);

/**
 * The scene in a group's container.
 * @param {Container} container
 * @param {{ plain: boolean, maxBytes: number }} options
 * @returns {Promise<Base>}
 */
export async function decodeBase(container, { plain, maxBytes }) {
  const { base: at, header, features, chunks } = container;
  let assembled;
  try {
    assembled = assemble(header, features, chunks);
  } catch (error) {
    if (error instanceof SplcError && error.chunk && error.offset !== null) {
      error.offset += at;
      error.describe();
    }
    throw located(error, "container", at);
  }
  const parameters = container.use(assembled.parameters, parseParameters);
  const { shDegree } = parameters;
  const width = 3 * ((shDegree + 1) ** 2 - 1);
  let count = 0;
  /** @type {BaseTile[]} */
  const tiles = [];
  for (const { entry, layers } of assembled.parts) {
    const extra = layers.slice(shDegree).find((layer) => layer) ?? (entry.level === 1 ? null : entry);
    if (extra) {
      const message = "the base of a group has one level and its own SH layers only";
      throw new SplcError("format", message, at + extra.offset, labelOf(extra));
    }
    tiles.push({ number: entry.tile, start: count, count: entry.count, blur: 0, parameters });
    count += entry.count;
  }
  const bytes = count * baseBytes(shDegree);
  if (bytes > maxBytes) throw new SplcError("limit", `the scene of a group would need ${bytes} bytes`, at, "container");
  const base = { tiles, count, shDegree, shapes: null, packedSh: null, ...newArrays(count, width) };
  const engine = (!plain && (await makeFastEngine(parameters))) || new PlainEngine(parameters);
  assembled.parts.forEach(({ entry, layers }, k) => {
    const tile = tiles[k];
    const links = base.links.subarray(tile.start, tile.start + tile.count);
    container.use(entry, (bytes) => {
      engine.start(bytes, entry.count);
      tile.blur = engine.blur;
      for (let done = 0, size = 0; (size = engine.next(links)) > 0; done += size) {
        const { values, means } = engine.rows(0);
        base.values.set(values.subarray(0, 12 * size), 12 * (tile.start + done));
        base.means.set(means.subarray(0, 3 * size), 3 * (tile.start + done));
      }
    });
    /** @type {(layer: number, work: () => void) => void} */
    const guard = (layer, work) => {
      const chunk = /** @type {import("./container.js").ChunkEntry} */ (layers[layer - 1]);
      try {
        work();
      } catch (error) {
        throw located(error, labelOf(chunk), at + chunk.offset);
      }
    };
    engine.startLayers(layers.map((layer) => layer && container.read(layer)), guard);
    let first = 0;
    for (let layer = 1; layer <= shDegree; layer++) {
      const wide = [9, 15, 21][layer - 1];
      if (layers[layer - 1]) guard(layer, () => {
        for (let done = 0; done < tile.count; done += BLOCK) {
          const size = Math.min(BLOCK, tile.count - done);
          engine.nextLayer(layer, size, links, done);
          const { values, stride } = engine.rows(layer);
          for (let i = 0; i < size; i++) {
            const to = (tile.start + done + i) * width + first;
            for (let w = 0; w < wide; w++) base.sh[to + w] = values[i * stride + w];
          }
        }
        engine.nextLayer(layer, 0, links, tile.count);
      });
      first += wide;
    }
  });
  return base;
}

/**
 * @param {number} count
 * @param {number} width
 */
function newArrays(count, width) {
  return {
    values: new Int32Array(12 * count), means: new Float32Array(3 * count), links: new Int32Array(count),
    sh: new Int32Array(width * count),
  };
}

/**
 * The base of a group that adds Gaussians to the scene of an earlier one.
 * @param {Base} earlier
 * @param {Base} own
 * @param {Container} container
 * @returns {Base}
 */
export function joinedBase(earlier, own, container) {
  const { shDegree } = own;
  if (shDegree !== earlier.shDegree) {
    const message = "the group's scene and the one it uses differ in SH degree";
    throw new SplcError("format", message, container.base, "container");
  }
  const count = earlier.count + own.count;
  const arrays = newArrays(count, 3 * ((shDegree + 1) ** 2 - 1));
  for (const name of /** @type {const} */ (["values", "means", "links", "sh"])) {
    arrays[name].set(earlier[name]);
    arrays[name].set(own[name], earlier[name].length);
  }
  const moved = own.tiles.map((tile) => ({ ...tile, start: tile.start + earlier.count }));
  return { tiles: [...earlier.tiles, ...moved], count, shDegree, shapes: null, packedSh: null, ...arrays };
}
