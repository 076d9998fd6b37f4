// The `.splc` container: header, table of contents, checksums (bitstreams/SPEC.md, section 1), and the one error type.

/**
 * What went wrong, by who must act: the file is bad (`format`, `truncated`, `checksum`), the file needs what this
 * decoder does not do (`unsupported`), it is too large (`limit`), the caller is wrong (`parameter`), the bytes could
 * not be fetched (`network`).
 * @typedef {"format" | "truncated" | "checksum" | "unsupported" | "limit" | "parameter" | "network"} ErrorCode
 */

/** The only error that decoding throws. */
export class SplcError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   * @param {number | null} [offset] byte in the file; while `chunk` is null, in the part that was being read
   * @param {string | null} [chunk] label such as `TILE[1/3]` (level, tile)
   */
  constructor(code, message, offset = null, chunk = null) {
    super(message);
    this.name = "SplcError";
    this.code = code;
    this.offset = offset;
    this.chunk = chunk;
    this.detail = message;
    this.describe();
  }

  /** Put place and detail into the message. */
  describe() {
    const place = [this.chunk, this.offset === null ? null : `byte ${this.offset}`].filter((part) => part !== null);
    this.message = this.detail + (place.length ? ` (${place.join(", ")})` : "");
  }

  /**
   * Name the chunk, if none is named yet.
   * @param {string} chunk
   * @param {number} offset of what the error's offset counts from: 0 if that is the file
   */
  locate(chunk, offset) {
    if (this.chunk === null && this.code !== "parameter" && this.code !== "network") {
      this.offset = offset + (this.offset ?? 0);
      this.chunk = chunk;
      this.describe();
    }
    return this;
  }
}

/**
 * @param {unknown} error
 * @param {string} chunk
 * @param {number} offset
 * @returns {unknown} the error with its place, whatever it is
 */
export function located(error, chunk, offset) {
  if (error instanceof SplcError) return error.locate(chunk, offset);
  // What an allocation that cannot be had throws.
  if (error instanceof RangeError) return new SplcError("limit", "not enough memory", offset, chunk);
  return error;
}

/** @type {Int32Array | null} */
let crcTables = null;

/** Eight tables of 256: table k moves a byte on over k more bytes. */
function makeCrcTables() {
  const tables = new Int32Array(8 * 256);
  for (let i = 0; i < 256; i++) {
    let c = i;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    tables[i] = c;
  }
  for (let i = 256; i < 2048; i++) tables[i] = (tables[i - 256] >>> 8) ^ tables[tables[i - 256] & 255];
  return tables;
}

/**
 * CRC-32 of zlib and PNG.
 * @param {Uint8Array} bytes
 */
export function crc32(bytes) {
  const t = crcTables ?? (crcTables = makeCrcTables());
  const n = bytes.length;
  let crc = -1;
  let i = 0;
  for (const end = n - 7; i < end; i += 8) {
    const a = crc ^ (bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24));
    crc =
      t[1792 + (a & 255)] ^ t[1536 + ((a >>> 8) & 255)] ^ t[1280 + ((a >>> 16) & 255)] ^ t[1024 + (a >>> 24)] ^
      t[768 + bytes[i + 4]] ^ t[512 + bytes[i + 5]] ^ t[256 + bytes[i + 6]] ^ t[bytes[i + 7]];
  }
  for (; i < n; i++) crc = (crc >>> 8) ^ t[(crc ^ bytes[i]) & 255];
  return ~crc >>> 0;
}

export const HEADER_BYTES = 40;
const MAX_TOC_BYTES = 2 ** 26;
const MAX_FEATURES = 256;
const MIN_ENTRY_BYTES = 13;
export const MAX_TILE = 65536;
const LAYERS = /** @type {Record<string, number>} */ ({ SHC1: 1, SHC2: 2, SHC3: 3 });
/** What a still scene may need; moving ones know more (sequence.js). */
export const STILL = {
  chunks: new Set(["META", "PARM", "TBOX", "TILE", "SHC1", "SHC2", "SHC3", "PLYH", "NATV", "FILE", "COLD", "COLS"]),
  features: new Set(["lossy-1", "extras-1"]),
};
/** Features of the archive profile, which only the Python package decodes. */
const ARCHIVE_FEATURES = new Set(["lossless-1", "native-1", "stored-1", "mixing-1", "vector-1", "neural-1"]);

/**
 * @typedef {object} Header
 * @property {string} version such as "0.3"
 * @property {number} length bytes of the whole file
 * @property {number} tocLength bytes of the table of contents, which follows the header
 * @property {number} numGaussians
 * @property {number} tocCrc
 */

/**
 * @typedef {object} ChunkEntry
 * @property {string} type
 * @property {number} level
 * @property {number} tile
 * @property {number} count
 * @property {number} offset from the start of the file
 * @property {number} length
 * @property {number} crc
 * @property {number} layer 1 to 3 for SHC1 to SHC3, else 0
 */

/** @param {ChunkEntry} entry */
export function labelOf(entry) {
  return /^TILE|^TRAJ|^SHC/.test(entry.type) ? `${entry.type}[${entry.level}/${entry.tile}]` : entry.type;
}

/**
 * @param {DataView} view
 * @param {number} offset of a u64
 */
export function readU64(view, offset) {
  const value = view.getUint32(offset + 4, true) * 2 ** 32 + view.getUint32(offset, true);
  if (value > Number.MAX_SAFE_INTEGER) throw new SplcError("limit", "a number in the header is too large", offset);
  return value;
}

/**
 * @param {Uint8Array} head the first bytes of the file, 40 or all there are
 * @returns {Header}
 */
export function parseHeader(head) {
  if (head.length === 0) throw new SplcError("truncated", "the file is empty", 0);
  for (let k = 0; k < Math.min(4, head.length); k++) {
    if (head[k] !== "SPLC".charCodeAt(k)) throw new SplcError("format", "not a .splc file", 0);
  }
  if (head.length < HEADER_BYTES) throw new SplcError("truncated", "the file ends inside the header", head.length);
  const view = new DataView(head.buffer, head.byteOffset, HEADER_BYTES);
  if (view.getUint32(36, true) !== crc32(head.subarray(0, 36))) {
    throw new SplcError("checksum", "the header's checksum does not match", 36);
  }
  const version = `${head[4]}.${head[5]}`;
  if (version !== "0.3") throw new SplcError("unsupported", `format version ${version}, this decoder reads 0.3`, 4);
  const length = readU64(view, 8);
  const tocLength = readU64(view, 16);
  if (tocLength > Math.min(MAX_TOC_BYTES, length - HEADER_BYTES)) {
    throw new SplcError("format", `a table of contents of ${tocLength} bytes`, 16);
  }
  return { version, length, tocLength, numGaussians: readU64(view, 24), tocCrc: view.getUint32(32, true) };
}

/** Reads the table of contents; positions in errors are those in the file. */
export class TocReader {
  /** @param {Uint8Array} toc */
  constructor(toc) {
    this.toc = toc;
    this.at = 0;
  }

  /**
   * @param {ErrorCode} code
   * @param {string} message
   */
  error(code, message) {
    return new SplcError(code, message, HEADER_BYTES + this.at);
  }

  /** @param {number} count */
  bytes(count) {
    if (count > this.toc.length - this.at) throw this.error("truncated", "it ends inside an entry");
    this.at += count;
    return this.toc.subarray(this.at - count, this.at);
  }

  varint() {
    let value = 0;
    for (let k = 0; k < 10; k++) {
      const byte = this.bytes(1)[0];
      value += (byte & 127) * 2 ** (7 * k);
      if (byte < 128) {
        if (k && byte === 0) throw this.error("format", "a number is not in its shortest form");
        if (value > Number.MAX_SAFE_INTEGER) throw this.error("limit", "a number is too large");
        return value;
      }
    }
    throw this.error("format", "a number is longer than 10 bytes");
  }
}

/**
 * @param {Uint8Array} toc
 * @param {Header} header
 * @param {{ chunks: Set<string>, features: Set<string> }} [known]
 * @returns {{ features: string[], chunks: ChunkEntry[] }}
 */
export function parseToc(toc, header, known = STILL) {
  if (crc32(toc) !== header.tocCrc) {
    throw new SplcError("checksum", "the checksum does not match", 32);
  }
  const reader = new TocReader(toc);
  const features = [];
  const missing = [];
  const numFeatures = reader.varint();
  if (numFeatures > MAX_FEATURES) throw reader.error("format", `${numFeatures} features`);
  for (let k = 0; k < numFeatures; k++) {
    const required = reader.bytes(1)[0] & 1;
    const size = reader.varint();
    if (size < 1 || size > 64) throw reader.error("format", "a feature name is damaged");
    const name = String.fromCharCode(...reader.bytes(size));
    if (!/^[ -~]+$/.test(name)) throw reader.error("format", "a feature name is damaged");
    if (required && !known.features.has(name)) missing.push(name);
    features.push(name);
  }
  if (missing.length) {
    const archive = missing.every((name) => ARCHIVE_FEATURES.has(name));
    const moving = missing.includes("sequence-1");
    const why = moving
      ? "a moving scene: moving.js decodes it"
      : archive ? "of the archive profile, which only Python decodes" : "which this decoder does not know";
    throw reader.error("unsupported", `the file needs ${missing.join(", ")}, ${why}`);
  }
  const numChunks = reader.varint();
  if (numChunks > (toc.length - reader.at) / MIN_ENTRY_BYTES) throw reader.error("format", `${numChunks} chunks`);
  const chunks = [];
  let offset = HEADER_BYTES + toc.length;
  for (let k = 0; k < numChunks; k++) {
    const type = String.fromCharCode(...reader.bytes(4));
    if (!/^[0-9A-Za-z]{4}$/.test(type)) throw reader.error("format", "a chunk type is damaged");
    const critical = reader.bytes(1)[0] & 1;
    if (critical && !known.chunks.has(type)) throw reader.error("unsupported", `unknown critical chunk ${type}`);
    const level = reader.varint();
    const tile = reader.varint();
    const count = reader.varint();
    const length = reader.varint();
    const b = reader.bytes(4);
    const crc = (b[0] | (b[1] << 8) | (b[2] << 16) | (b[3] << 24)) >>> 0;
    if (length > header.length - offset) throw reader.error("format", `chunk ${type} ends after the end of the file`);
    chunks.push({ type, level, tile, count, offset, length, crc, layer: LAYERS[type] ?? 0 });
    offset += length;
  }
  if (reader.at !== toc.length) throw reader.error("format", "bytes are left over");
  if (offset !== header.length) throw reader.error("format", "the chunks end before the file does");
  return { features, chunks };
}

/**
 * One level of one tile.
 * @typedef {object} TilePart
 * @property {ChunkEntry} entry the TILE chunk
 * @property {(ChunkEntry | null)[]} layers SHC1 to SHC3, null where the file has none
 * @property {boolean} last whether no higher level of the tile is in the file
 */

/**
 * Check what the table of contents says about a lossy scene and put its chunks together.
 * @param {Header} header
 * @param {string[]} features
 * @param {ChunkEntry[]} chunks
 * @returns {{ parameters: ChunkEntry, parts: TilePart[] }} parts in file order
 */
export function assemble(header, features, chunks) {
  if (!features.includes("lossy-1")) throw new SplcError("format", "the file holds no lossy scene", HEADER_BYTES);
  /** @type {Map<string, TilePart>} */
  const parts = new Map();
  /** @type {Map<number, TilePart>} */
  const highest = new Map();
  let parameters = null;
  let total = 0;
  for (const entry of chunks) {
    if (entry.type === "PARM") {
      if (parameters) throw new SplcError("format", "a second PARM chunk", entry.offset, "PARM");
      parameters = entry;
    } else if (entry.type === "TILE") {
      if (entry.count < 1 || entry.count > MAX_TILE || entry.count > 8 * entry.length) {
        const message = `${entry.count} Gaussians in ${entry.length} bytes`;
        throw new SplcError("format", message, entry.offset, labelOf(entry));
      }
      const key = `${entry.level}/${entry.tile}`;
      if (parts.has(key)) throw new SplcError("format", "a second chunk of this tile", entry.offset, labelOf(entry));
      if (entry.level > 0) total += entry.count;
      const part = { entry, layers: [null, null, null], last: true };
      const other = highest.get(entry.tile);
      if (other && other.entry.level > entry.level) {
        part.last = false;
      } else {
        if (other) other.last = false;
        highest.set(entry.tile, part);
      }
      parts.set(key, part);
    }
  }
  if (!parameters) throw new SplcError("format", "no PARM chunk", HEADER_BYTES);
  for (const entry of chunks) {
    if (!entry.layer) continue;
    const part = parts.get(`${entry.level}/${entry.tile}`);
    if (!part || part.layers[entry.layer - 1] || part.entry.count !== entry.count) {
      throw new SplcError("format", "no TILE of its own, or not of its size", entry.offset, labelOf(entry));
    }
    part.layers[entry.layer - 1] = entry;
  }
  if (total !== header.numGaussians) {
    throw new SplcError("format", `chunks hold ${total} Gaussians, the header says ${header.numGaussians}`, 24);
  }
  return { parameters, parts: [...parts.values()] };
}
