// The decoder's loops in plain JavaScript (tile.js, reconstruct.js), called as those in WebAssembly are (fast.js).

import { writeArrays, writeRecords, writeShArrays, writeShRecords } from "./reconstruct.js";
import { LayerDecoder, TileDecoder, WINDOW } from "./tile.js";

/** @typedef {import("./parameters.js").Parameters} Parameters */
/** @typedef {import("./reconstruct.js").Arrays} Arrays */
/** @typedef {import("./reconstruct.js").Records} Records */

export class PlainEngine {
  /** @param {Parameters} parameters */
  constructor(parameters) {
    this.parameters = parameters;
    this.tile = new TileDecoder(parameters);
    this.layers = [1, 2, 3].slice(0, parameters.shDegree).map((layer) => new LayerDecoder(parameters, layer));
    this.blur = 0;
  }

  /**
   * Begin a TILE chunk: header and octree.
   * @param {Uint8Array} bytes
   * @param {number} count
   */
  start(bytes, count) {
    const head = this.tile.start(bytes, count);
    this.blur = head.blur;
    return head;
  }

  /**
   * Decode the next block of Gaussians.
   * @param {Int32Array | null} links out, see tile.js
   * @returns {number} how many, 0 at the end of the chunk, which is checked then
   */
  next(links) {
    return this.tile.next(links);
  }

  /**
   * Begin SHC chunks of one tile.
   * @param {(Uint8Array | null)[]} chunks of layers 1 to 3
   * @param {(layer: number, work: () => void) => void} guard names the layer where something fails
   */
  startLayers(chunks, guard) {
    for (const decoder of this.layers) {
      const bytes = chunks[decoder.layer - 1];
      if (bytes) guard(decoder.layer, () => decoder.start(bytes));
    }
  }

  /**
   * Decode the next block of a layer.
   * @param {number} layer
   * @param {number} size 0 at the end
   * @param {Int32Array} links
   * @param {number} _done Gaussians before
   */
  nextLayer(layer, size, links, _done) {
    this.layers[layer - 1].advance(size, links);
  }

  /**
   * The block just decoded as integers.
   * @param {number} which 0 for streams 0 to 11, else the layer
   */
  rows(which) {
    const { values } = which ? this.layers[which - 1] : this.tile;
    const stride = which ? this.layers[which - 1].width : 12;
    return { values: values.subarray(WINDOW * stride), stride, means: this.tile.means };
  }

  /**
   * @param {Arrays} out
   * @param {number} first
   * @param {number} size
   */
  writeArrays(out, first, size) {
    writeArrays(this.parameters, this.tile, size, this.blur, out, first);
  }

  /**
   * @param {Records} out
   * @param {number} first
   * @param {number} size
   */
  writeRecords(out, first, size) {
    writeRecords(this.parameters, this.tile, size, this.blur, out, first);
  }

  /** @param {number} layers bit k - 1 for layer k */
  chosen(layers) {
    return this.layers.filter(({ layer }) => (layers >> (layer - 1)) & 1);
  }

  /**
   * @param {number} layers bit k - 1 for layer k
   * @param {Float32Array} shN
   * @param {number} first
   * @param {number} size
   */
  writeShArrays(layers, shN, first, size) {
    writeShArrays(this.parameters, this.chosen(layers), size, shN, first);
  }

  /**
   * @param {number} layers bit k - 1 for layer k
   * @param {Uint32Array} sh
   * @param {number} first
   * @param {number} size
   */
  writeShRecords(layers, sh, first, size) {
    writeShRecords(this.parameters, this.chosen(layers), size, sh, first);
  }
}
