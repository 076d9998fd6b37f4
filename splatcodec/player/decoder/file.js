// An open `.splc` file: header, table of contents, parameters and metadata, and its chunks as bytes. What decodes them all
// is index.js; what decodes as it goes, such as the player's loader, does with this.

import { assemble, crc32, HEADER_BYTES, labelOf, located, parseHeader, parseToc, SplcError } from "./container.js";
import "./entropy.js";
import { makeFastEngine } from "./fast.js";
import "./kernel.js";
import { parseParameters } from "./parameters.js";
import { PlainEngine } from "./plain.js";
import "./reconstruct.js";
import { sourceOf } from "./source.js";
import "./tile.js";

/** @typedef {import("./container.js").ChunkEntry} ChunkEntry */
/** @typedef {import("./container.js").TilePart} TilePart */
/** @typedef {import("./source.js").Source} Source */
/** @typedef {import("./source.js").SourceOptions} SourceOptions */
/** @typedef {import("./source.js").Input} Input */

/**
 * One level of one tile as the table of contents lists it.
 * @typedef {object} PartEntry
 * @property {number} level
 * @property {number} tile
 * @property {number} count Gaussians
 * @property {ChunkEntry} chunk where the Gaussians are in the file
 * @property {(ChunkEntry | null)[]} layers where layers of their SH components are
 */

/**
 * @typedef {object} LevelEntry
 * @property {number} level
 * @property {number} count Gaussians of this level alone
 * @property {number} tiles
 * @property {number} bytes of its TILE chunks
 * @property {number[]} layerBytes of its SHC1, SHC2 and SHC3 chunks
 * @property {number} end bytes of the file from its start that hold this level and all before it
 */

const MAX_META_BYTES = 2 ** 24;
/** Chunks with less between them are asked for together. */
const GAP_BYTES = 65536;

/** A file that has been opened: what is in it, and its chunks. */
export class OpenFile {
  /**
   * @param {Source} source
   * @param {import("./container.js").Header} header
   * @param {string[]} features
   * @param {ChunkEntry[]} chunks
   * @param {(notice: string) => void} [onNotice]
   */
  constructor(source, header, features, chunks, onNotice) {
    this.source = source;
    this.onNotice = onNotice;
    this.version = header.version;
    this.size = header.length;
    this.numGaussians = header.numGaussians;
    this.features = features;
    this.chunks = chunks;
    const { parameters, parts } = assemble(header, features, chunks);
    this.parameterChunk = parameters;
    /** @type {TilePart[]} */
    this.units = parts;
    /** @type {import("./parameters.js").Parameters | null} */
    this.parameters = null;
    /** Chunks that were read ahead. @type {Map<ChunkEntry, Uint8Array>} */
    this.ahead = new Map();
    /** @type {PlainEngine | import("./fast.js").FastEngine | null} */
    this.engine = null;
  }

  /**
   * Read the parameters, and what lies before them, which could not be had from a stream later.
   * @param {boolean} plain
   */
  async prepare(plain) {
    const { parameterChunk: wanted, chunks } = this;
    const first = chunks.findIndex(({ type }) => type === "TILE");
    const early = chunks.filter((chunk, k) => chunk === wanted || (k < first && /^(META|TBOX)$/.test(chunk.type)));
    early.sort((a, b) => a.offset - b.offset);
    for await (const [entry, bytes] of this.read(early, false)) this.ahead.set(entry, /** @type {any} */ (bytes));
    try {
      this.parameters = parseParameters(/** @type {Uint8Array} */ (this.ahead.get(wanted)));
    } catch (error) {
      throw located(error, "PARM", wanted.offset);
    }
    this.engine = (!plain && (await makeFastEngine(this.parameters))) || new PlainEngine(this.parameters);
  }

  /** SH degree of the scene, 0 to 3. */
  get shDegree() {
    return this.parameters?.shDegree ?? 0;
  }

  /**
   * All levels of all tiles, in file order.
   * @returns {PartEntry[]}
   */
  get parts() {
    return this.units.map(({ entry: chunk, layers }) => {
      const { level, tile, count } = chunk;
      return { level, tile, count, chunk, layers };
    });
  }

  /**
   * The levels, lowest first.
   * @returns {LevelEntry[]}
   */
  get levels() {
    /** @type {Map<number, LevelEntry>} */
    const levels = new Map();
    for (const { entry, layers } of this.units) {
      const level = entry.level;
      let sum = levels.get(level);
      if (!sum) levels.set(level, (sum = { level, count: 0, tiles: 0, bytes: 0, layerBytes: [0, 0, 0], end: 0 }));
      sum.count += entry.count;
      sum.tiles++;
      sum.bytes += entry.length;
      layers.forEach((layer, k) => (sum.layerBytes[k] += layer?.length ?? 0));
      for (const chunk of [entry, ...layers]) if (chunk) sum.end = Math.max(sum.end, chunk.offset + chunk.length);
    }
    const sorted = [...levels.values()].sort((a, b) => a.level - b.level);
    sorted.forEach((level, k) => k && (level.end = Math.max(level.end, sorted[k - 1].end)));
    return sorted;
  }

  /**
   * The bytes of a chunk, checked.
   * @param {import("./source.js").Reader} reader
   * @param {ChunkEntry} entry
   */
  async readChunk(reader, entry) {
    let bytes;
    try {
      bytes = this.ahead.get(entry) ?? (await reader.read(entry.offset, entry.length));
    } catch (error) {
      throw located(error, labelOf(entry), 0);
    }
    if (crc32(bytes) !== entry.crc) {
      throw new SplcError("checksum", "the checksum does not match", entry.offset, labelOf(entry));
    }
    return bytes;
  }

  /** @param {ChunkEntry} entry */
  async readAlone(entry) {
    const reader = this.source.open(entry.offset, entry.offset + entry.length);
    try {
      return await this.readChunk(reader, entry);
    } finally {
      reader.close();
    }
  }

  /**
   * What the file says about the scene: the META chunk, an empty object if there is none.
   * @returns {Promise<Record<string, unknown>>}
   */
  async meta() {
    const entry = this.chunks.find(({ type }) => type === "META");
    if (!entry) return {};
    if (entry.length > MAX_META_BYTES) throw new SplcError("limit", "too large", entry.offset, "META");
    const bytes = await this.readAlone(entry);
    try {
      const meta = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
      if (meta && typeof meta === "object" && !Array.isArray(meta)) return meta;
    } catch {
      // The same as what is no object.
    }
    throw new SplcError("format", "not a JSON object", entry.offset, "META");
  }

  /**
   * Boxes of the tiles, 6 numbers each: lowest corner, highest corner. None where the file has none.
   * @returns {Promise<Float32Array | null>}
   */
  async boxes() {
    const entry = this.chunks.find(({ type }) => type === "TBOX");
    if (!entry) return null;
    const bytes = await this.readAlone(entry);
    if (entry.length !== 24 * entry.count) throw new SplcError("format", "not 24 bytes a tile", entry.offset, "TBOX");
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return Float32Array.from({ length: 6 * entry.count }, (_, k) => view.getFloat32(4 * k, true));
  }

  /**
   * Chunks and their bytes, in the given order.
   * @param {ChunkEntry[]} entries
   * @param {boolean} toEnd whether to see to it that the file ends where it should
   * @param {boolean} [keepGoing] give what is wrong with a chunk in place of its bytes
   * @returns {AsyncGenerator<[ChunkEntry, Uint8Array | SplcError], void, void>}
   */
  async *read(entries, toEnd, keepGoing) {
    for (let k = 0; k < entries.length; ) {
      // A run of chunks with small gaps is one request.
      let end = k + 1;
      const last = () => entries[end - 1].offset + entries[end - 1].length;
      while (end < entries.length && entries[end].offset >= last() && entries[end].offset - last() <= GAP_BYTES) end++;
      const reader = this.source.open(entries[k].offset, last());
      try {
        for (; k < end; k++) {
          const bytes = await this.readChunk(reader, entries[k]).catch((error) => {
            if (keepGoing && error.code === "checksum") return error;
            throw error;
          });
          yield [entries[k], bytes];
        }
      } finally {
        reader.close();
      }
    }
    if (toEnd) await this.source.finish();
  }

  /** Stop whatever is still coming. */
  close() {
    this.source.close();
  }
}

/**
 * Open a file as `open` of index.js does.
 * @template {OpenFile} T
 * @param {new (...args: ConstructorParameters<typeof OpenFile>) => T} Kind of file
 * @param {Input} input
 * @param {SourceOptions & { plain?: boolean, maxTocBytes?: number }} [options] `plain`: do without WebAssembly, as where
 *     it is not to be had; `maxTocBytes`: refuse a longer table of contents (64 MiB if not given)
 * @returns {Promise<T>}
 */
export async function openAs(Kind, input, options = {}) {
  const source = await sourceOf(input, options);
  let place = "header";
  try {
    const reader = source.open(0, HEADER_BYTES);
    const head = await reader.read(0, HEADER_BYTES).catch((error) => {
      // A shorter file may be no such file at all, or empty.
      if (!(error instanceof SplcError) || error.code !== "truncated") throw error;
      return reader.read(0, error.offset ?? 0);
    });
    const header = parseHeader(head);
    source.expect(header.length);
    if (header.tocLength > (options.maxTocBytes ?? Infinity)) {
      throw new SplcError("limit", `a table of contents of ${header.tocLength} bytes`, 16);
    }
    const size = source.size ?? header.length;
    const lengths = `the file has ${size} bytes, its header says ${header.length}`;
    if (size < header.length) throw new SplcError("truncated", lengths, size);
    place = "table of contents";
    const toc = await reader.read(HEADER_BYTES, header.tocLength);
    reader.close();
    const { features, chunks } = parseToc(toc, header);
    // Only now: what follows may be something that the file's features name, such as the frames of a moving scene.
    if (size > header.length) throw new SplcError("format", lengths, header.length);
    const file = new Kind(source, header, features, chunks, options.onNotice);
    await file.prepare(options.plain ?? false);
    return file;
  } catch (error) {
    source.close();
    throw located(error, place, 0);
  }
}
