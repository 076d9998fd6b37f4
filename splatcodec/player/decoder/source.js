// Where the bytes of a file come from: memory, a Blob, a stream that grows, or a server asked for ranges.
//
// A source opens *readers* for a range; a reader gives bytes of ever later places, so that it can let go of what lies
// before.

import { SplcError } from "./container.js";

/**
 * @typedef {object} Reader
 * @property {(offset: number, length: number) => Promise<Uint8Array>} read offsets never go back
 * @property {() => void} close
 */

/**
 * @typedef {object} Source
 * @property {boolean} random whether reading here and there costs no more than reading in order
 * @property {number | null} size bytes of the whole file, where known
 * @property {(start: number, end: number) => Reader} open for the bytes from start to end
 * @property {(length: number) => void} expect told the length that the header gives
 * @property {() => Promise<void>} finish check that nothing follows what was read
 * @property {() => void} close
 */

/**
 * @typedef {object} SourceOptions
 * @property {AbortSignal} [signal] stops requests
 * @property {(message: string) => void} [onNotice] told of what goes another way than asked
 * @property {typeof fetch} [fetch] in place of the global one
 * @property {HeadersInit} [headers] of requests
 */

/** Bytes asked for first, in the hope that header and table of contents are among them. */
const FIRST_BYTES = 65536;

/** @param {number} offset where bytes are missing */
const cutOff = (offset) => new SplcError("truncated", "the file ends too early", offset);

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));

/**
 * Bytes in memory or in a Blob.
 * @implements {Source}
 */
class MemorySource {
  random = true;

  /**
   * @param {number} size
   * @param {(start: number, end: number) => Uint8Array | Promise<ArrayBuffer>} slice
   */
  constructor(size, slice) {
    this.size = size;
    this.slice = slice;
  }

  open() {
    const read = async (/** @type {number} */ offset, /** @type {number} */ length) => {
      if (length > this.size - offset) throw cutOff(this.size);
      try {
        const bytes = await this.slice(offset, offset + length);
        return bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
      } catch (error) {
        throw new SplcError("network", `cannot read: ${messageOf(error)}`, offset);
      }
    };
    return { read, close() {} };
  }

  expect() {}
  async finish() {}
  close() {}
}

/**
 * Pieces as they arrive.
 * @implements {Reader}
 */
class PieceReader {
  /**
   * @param {AsyncIterator<Uint8Array>} pieces
   * @param {number} offset of the first piece
   * @param {number} end where the pieces should end, if that is known
   * @param {boolean} [keep] keep all pieces, so that reading may go back
   */
  constructor(pieces, offset, end, keep = false) {
    this.pieces = pieces;
    /** @type {Uint8Array[]} */
    this.held = [];
    /** Where the first held piece begins, and where the last one ends. */
    this.from = this.to = offset;
    this.end = end;
    this.keep = keep;
    this.ended = false;
  }

  /** Wait for one more piece. */
  async more() {
    const step = await this.pieces.next();
    if (step.done) {
      this.ended = true;
      return;
    }
    if (!(step.value instanceof Uint8Array)) throw new SplcError("parameter", "a stream of other things than bytes");
    if (!step.value.length) return;
    this.held.push(step.value);
    this.to += step.value.length;
    if (this.to > this.end) throw new SplcError("format", "more bytes than there should be", this.end);
  }

  /**
   * @param {number} offset
   * @param {number} length
   */
  async read(offset, length) {
    if (offset < this.from) throw new SplcError("parameter", "the stream has passed these bytes", offset);
    // Memory grows with what arrives, never with what a length claims.
    while (this.to < offset + length) {
      this.drop(offset);
      if (this.ended) throw cutOff(this.to);
      await this.more();
    }
    this.drop(offset);
    let from = this.from;
    /** @type {Uint8Array | null} */
    let bytes = null;
    for (const piece of this.held) {
      const to = from + piece.length;
      if (to > offset) {
        if (from <= offset && to >= offset + length) return piece.subarray(offset - from, offset - from + length);
        bytes ??= new Uint8Array(length);
        if (from >= offset + length) break;
        const part = piece.subarray(Math.max(0, offset - from), offset + length - from);
        bytes.set(part, Math.max(0, from - offset));
      }
      from = to;
    }
    return bytes ?? new Uint8Array(0);
  }

  /**
   * Let go of pieces that lie before.
   * @param {number} offset
   */
  drop(offset) {
    while (!this.keep && this.held.length && this.from + this.held[0].length <= offset) {
      this.from += this.held[0].length;
      this.held.shift();
    }
  }

  /** Everything to the end, which must be where it should be. */
  async finish() {
    while (!this.ended) {
      this.drop(this.to);
      await this.more();
    }
    if (this.to < this.end && this.end < Infinity) throw cutOff(this.to);
  }

  close() {
    this.held = [];
    this.ended = true;
    this.pieces.return?.().catch(() => {});
  }
}

/**
 * A stream. What is passed is let go unless it is to be kept; then reading may go back.
 * @implements {Source}
 */
class StreamSource {
  random = false;
  /** @type {number | null} */
  size = null;

  /**
   * @param {AsyncIterator<Uint8Array>} pieces
   * @param {boolean} [keep]
   */
  constructor(pieces, keep) {
    this.reader = new PieceReader(pieces, 0, Infinity, keep);
  }

  open() {
    const reader = this.reader;
    return {
      read: (/** @type {number} */ offset, /** @type {number} */ length) => reader.read(offset, length),
      close() {},
    };
  }

  /** @param {number} length */
  expect(length) {
    this.reader.end = length;
    if (this.reader.to > length) throw new SplcError("format", "bytes after the end of the file", length);
  }

  finish() {
    return this.reader.finish();
  }

  close() {
    this.reader.close();
  }
}

/**
 * A server, asked for ranges. Where it sends the whole file instead, that is taken and kept.
 * @implements {Source}
 */
class UrlSource {
  random = false;
  /** @type {number | null} */
  size = null;
  /** The first bytes of the file, kept. @type {Uint8Array} */
  first = new Uint8Array(0);
  /** @type {StreamSource | null} */
  whole = null;
  length = Infinity;

  /**
   * @param {string} url
   * @param {SourceOptions} options
   */
  constructor(url, options) {
    this.url = url;
    this.options = options;
  }

  /** Ask for the first bytes, and learn whether the server knows ranges. */
  async start() {
    const reader = await this.request(0, FIRST_BYTES);
    if (!reader) return;
    await this.guarded(async () => {
      while (!reader.ended) await reader.more();
      this.first = await reader.read(0, reader.to);
    });
    if (this.first.length < FIRST_BYTES) this.size ??= this.first.length;
  }

  /**
   * A reader of the bytes from start to end, or none if the whole file comes instead.
   * @param {number} start
   * @param {number} end
   */
  async request(start, end) {
    const { signal, headers } = this.options;
    const asked = new Headers(headers);
    asked.set("Range", `bytes=${start}-${end - 1}`);
    const response = await this.guarded(() => (this.options.fetch ?? fetch)(this.url, { signal, headers: asked }));
    const pieces = response.body ? iteratorOf(response.body) : nothing();
    if (response.status === 206) {
      // Across origins the header may be hidden; then checksums will tell.
      const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get("Content-Range") ?? "");
      if (range && Number(range[1]) !== start) throw new SplcError("network", "the server sent another range", start);
      if (range && range[2] !== "*") this.size = Number(range[2]);
      return new PieceReader(pieces, start, end);
    }
    if (response.status === 200) {
      this.options.onNotice?.("the server ignores ranges: downloading the whole file");
      this.whole = new StreamSource(pieces, true);
      this.whole.expect(this.length);
      return null;
    }
    pieces.return?.().catch(() => {});
    if (response.status === 416 && start === 0) throw new SplcError("truncated", "the file is empty", 0);
    throw new SplcError("network", `the server answered ${response.status} ${response.statusText}`.trim());
  }

  /**
   * What fails in the network as our error; an abort stays what it is.
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async guarded(work) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof SplcError || this.options.signal?.aborted) throw error;
      throw new SplcError("network", `cannot download: ${messageOf(error)}`);
    }
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  open(start, end) {
    /** @type {PieceReader | null} */
    let reader = null;
    const read = async (/** @type {number} */ offset, /** @type {number} */ length) => {
      if (offset + length <= this.first.length) return this.first.subarray(offset, offset + length);
      if (!this.whole && !reader) {
        if (this.size !== null && offset + length > this.size) throw cutOff(this.size);
        const from = Math.max(offset, this.first.length);
        reader = await this.request(from, Math.max(end, offset + length));
        if (reader && offset < from) {
          reader.held.push(this.first.subarray(offset));
          reader.from = offset;
        }
      }
      const open = this.whole?.reader ?? /** @type {PieceReader} */ (reader);
      return this.guarded(() => open.read(offset, length));
    };
    return { read, close: () => reader?.close() };
  }

  /** @param {number} length */
  expect(length) {
    this.length = length;
    this.whole?.expect(length);
  }

  async finish() {
    const whole = this.whole;
    if (whole) await this.guarded(() => whole.finish());
  }

  close() {
    this.whole?.close();
  }
}

/** @returns {AsyncGenerator<Uint8Array>} */
async function* nothing() {}

/**
 * Not every browser iterates over a ReadableStream yet.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncIterator<Uint8Array>}
 */
function iteratorOf(stream) {
  const reader = stream.getReader();
  return {
    async next() {
      const { done, value } = await reader.read();
      return done ? { done, value: undefined } : { done, value };
    },
    async return() {
      await reader.cancel();
      return { done: true, value: undefined };
    },
  };
}

/**
 * A stream of bytes.
 * @typedef {ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} ByteStream
 */

/**
 * Bytes, a URL, or a stream.
 * @typedef {ArrayBuffer | ArrayBufferView | Blob | string | URL | ByteStream} Input
 */

/**
 * @param {Input} input
 * @param {SourceOptions} options
 * @returns {Promise<Source>}
 */
export async function sourceOf(input, options) {
  if (input instanceof ArrayBuffer) input = new Uint8Array(input);
  if (ArrayBuffer.isView(input)) {
    const bytes = new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
    return new MemorySource(bytes.length, (start, end) => bytes.subarray(start, end));
  }
  if (typeof Blob !== "undefined" && input instanceof Blob) {
    const blob = input;
    return new MemorySource(blob.size, (start, end) => blob.slice(start, end).arrayBuffer());
  }
  if (typeof input === "string" || input instanceof URL) {
    const source = new UrlSource(String(input), options);
    await source.start();
    return source;
  }
  if (typeof ReadableStream !== "undefined" && input instanceof ReadableStream) {
    return new StreamSource(iteratorOf(input));
  }
  if (input && Symbol.asyncIterator in input) return new StreamSource(input[Symbol.asyncIterator]());
  throw new SplcError("parameter", "neither bytes nor a Blob, URL or stream");
}
