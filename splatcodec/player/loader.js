// The Worker that fetches and decodes: it opens a file, then brings chunks in the order that the page asks for.
//
//     page: open, plan, ack ...  ->  runs of chunks: cache, or one request for neighbours  ->  decoder  ->  page: parts
//
// What is decoded is handed over in slices, at most a few before the page has taken them, so that memory grows neither
// with the speed of the network nor with the size of parts. Nothing here knows about drawing.

import { labelOf, located, SplcError } from "./decoder/container.js";
import { OpenFile, openAs } from "./decoder/file.js";
import { newRecords, SH_WORDS } from "./decoder/reconstruct.js";
import { BLOCK } from "./decoder/tile.js";

/** @typedef {import("./decoder/container.js").ChunkEntry} ChunkEntry */
/** @typedef {import("./decoder/container.js").TilePart} TilePart */

/**
 * What a page sends.
 * @typedef {object} LoaderQuestion
 * @property {"open" | "plan" | "ack" | "pause" | "begin"} ask `begin`: the page is ready for a moving scene
 * @property {string} [url]
 * @property {Blob | Uint8Array | string} [content] instead of a URL; text is base64
 * @property {{ bytes: ArrayBuffer, range: string } | null} [first] the answer to the first request, if the page has it already
 * @property {boolean} [sameOrigin] refuse what is redirected to another origin
 * @property {boolean} [cache] keep chunks in Cache storage
 * @property {number[][]} [groups] numbers of parts, groups in the order wanted
 * @property {number} [shLayers]
 * @property {number} [id] of the plan
 * @property {number[]} [lost] parts that are to be decoded again
 * @property {boolean} [paused]
 * @property {number} [bytes] of a part that was taken
 * @property {number} [budget] Gaussians that a moving scene may have
 * @property {number} [ahead] seconds of it to be fetched ahead
 */

/** A table of contents of a scene of ten million Gaussians has 30 KB; one of more than this is an attack. */
const MAX_TOC_BYTES = 2 ** 23;
/** Bytes asked for at once: what waits behind them cannot be overtaken when the camera turns. */
const RUN_BYTES = 2 ** 19;
/** The next request begins when the last ones still owe so much: about what is under way on a fast long link. */
const AHEAD_BYTES = 2 ** 17;
const GAP_BYTES = 2 ** 13;
/** Gaussians that are decoded and handed over at once. */
const SLICE = 8 * BLOCK;
/** Bytes handed over and not yet taken, beyond which nothing is decoded: so many a Gaussian of the file, within limits. */
const WAITING_BYTES = 2;
const WAITING_LIMITS = [3 * 2 ** 16, 2 ** 21];
/** Layers of SH components longer than this come tile by tile, shorter ones as they lie in the file, in fewer requests. */
const LARGE_BYTES = 2 ** 15;
const NEUTRAL = Object.freeze({ grow: 0, gain: 1024 });
const CACHE_NAME = "splatcodec-chunks-1";
const MAX_CACHED_BYTES = 2 ** 28;
const RETRIES = 5;

/** @param {unknown} error */
function plainError(error) {
  const { message, code = "internal", chunk = null, offset = null } = /** @type {any} */ (error);
  return { message: String(message ?? error), code, chunk, offset };
}

/** @param {number} ms */
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** @param {string} text base64, without blanks */
function fromBase64(text) {
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4) - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  for (let at = 0, to = 0; at < text.length; at += 65536) {
    const piece = atob(text.slice(at, at + 65536));
    for (let k = 0; k < piece.length; k++) bytes[to++] = piece.charCodeAt(k);
  }
  return bytes;
}

/** Chunks of files in Cache storage, named by what the table of contents says of them, so that none can be stale. */
class ChunkCache {
  /**
   * @param {Cache} cache
   * @param {string} prefix
   */
  constructor(cache, prefix) {
    this.cache = cache;
    this.prefix = prefix;
    /** @type {Set<string>} */
    this.known = new Set();
    this.bytes = 0;
  }

  /**
   * Null where there is no Cache storage (not a secure context), or it is full or forbidden.
   * @param {string} url
   * @param {OpenFile} file
   */
  static async open(url, file) {
    try {
      const cache = await caches.open(CACHE_NAME);
      const place = new URL(url);
      const prefix = `${place.origin}/.splatcodec-cache${place.pathname}?${place.search.slice(1)}&${file.size}&`;
      const own = new ChunkCache(cache, prefix);
      // Oldest first; what is too much goes.
      const keys = await cache.keys();
      const sizes = keys.map(({ url }) => Number(url.slice(url.lastIndexOf("-") + 1)) || 0);
      own.bytes = sizes.reduce((sum, size) => sum + size, 0);
      for (let k = 0; k < keys.length; k++) {
        if (own.bytes > MAX_CACHED_BYTES / 2) {
          own.bytes -= sizes[k];
          await cache.delete(keys[k]);
        } else {
          own.known.add(keys[k].url);
        }
      }
      return own;
    } catch {
      return null;
    }
  }

  /** @param {ChunkEntry} entry */
  key({ offset, crc, length }) {
    return `${this.prefix}${offset}-${crc}-${length}`;
  }

  /** @param {ChunkEntry} entry */
  has(entry) {
    return this.known.has(this.key(entry));
  }

  /** @param {ChunkEntry} entry */
  async get(entry) {
    try {
      const response = await this.cache.match(this.key(entry));
      const bytes = response && new Uint8Array(await response.arrayBuffer());
      if (bytes && bytes.length === entry.length) return bytes;
    } catch {
      // As if it were not there.
    }
    this.known.delete(this.key(entry));
    return null;
  }

  /**
   * @param {ChunkEntry} entry
   * @param {Uint8Array} bytes
   */
  put(entry, bytes) {
    if (this.has(entry) || this.bytes + bytes.length > MAX_CACHED_BYTES) return;
    this.bytes += bytes.length;
    this.known.add(this.key(entry));
    const key = this.key(entry);
    this.cache.put(key, new Response(/** @type {BlobPart} */ (bytes.slice()))).catch(() => this.known.delete(key));
  }

  /** @param {ChunkEntry} entry */
  forget(entry) {
    const key = this.key(entry);
    this.known.delete(key);
    this.cache.delete(key).catch(() => {});
  }
}

/**
 * A part that has begun to come.
 * @typedef {object} Open
 * @property {number} index
 * @property {Set<ChunkEntry>} missing chunks
 * @property {(Uint8Array | null)[]} layers those that have come
 * @property {[Uint16Array, Uint8Array] | null} links of its Gaussians, low and high bits, if there are layers
 * @property {boolean} closed what else comes of it is of no use
 */

/** One open file. */
class Loader {
  /** @param {(message: any, transfer?: Transferable[]) => void} post */
  constructor(post) {
    this.post = post;
    /** @type {OpenFile | null} */
    this.file = null;
    /** @type {ChunkCache | null} */
    this.cache = null;
    this.remote = false;
    /** Whether it is being found out what the cache has. */
    this.looking = false;
    /** @type {{ bytes: ArrayBuffer, range: string } | null} */
    this.first = null;
    this.shLayers = 3;
    /** Chunks that are wanted and not asked for yet, the next one first. @type {ChunkEntry[]} */
    this.queue = [];
    /** Chunks that were asked for. @type {Set<ChunkEntry>} */
    this.asked = new Set();
    /** @type {Map<ChunkEntry, { unit: TilePart, index: number }>} */
    this.owners = new Map();
    /** @type {Map<TilePart, Open>} */
    this.open = new Map();
    /** Links of the part that is being decoded. @type {Int32Array | null} */
    this.links = null;
    this.waiting = 0;
    this.mostWaiting = WAITING_LIMITS[0];
    /** Somebody waits for the page to take something. @type {(() => void) | null} */
    this.wake = null;
    /** The engine decodes one chunk after the other. @type {Promise<void>} */
    this.turn = Promise.resolve();
    this.paused = false;
    /** Bytes that were asked for and have not come. */
    this.owed = 0;
    this.received = 0;
    this.running = 0;
    /** Number of the page's last plan, and of the last one that it was told to be complete. */
    this.plan = 0;
    this.told = 0;
    this.failed = false;
  }

  /** @param {LoaderQuestion} question */
  async start({ url, content, first, sameOrigin, cache }) {
    this.first = first ?? null;
    const input = url ?? (typeof content === "string" ? fromBase64(content) : content);
    this.remote = url !== undefined;
    const options = {
      onNotice: (/** @type {string} */ message) => this.post({ say: "notice", message }),
      fetch: (/** @type {RequestInfo | URL} */ asked, /** @type {RequestInit | undefined} */ init) =>
        this.fetch(asked, { ...init, credentials: "same-origin", ...(sameOrigin ? { mode: "same-origin" } : {}) }),
      maxTocBytes: MAX_TOC_BYTES,
    };
    for (let tries = 1; !this.file; tries++) {
      try {
        this.file = await openAs(OpenFile, /** @type {any} */ (input), options);
      } catch (error) {
        if (!this.remote || !(error instanceof SplcError) || error.code !== "network") throw error;
        if (tries >= RETRIES || /answered 4\d\d/.test(error.message)) throw error;
        await sleep(200 * 2 ** tries);
      }
    }
    const { file } = this;
    if (url && cache) {
      this.looking = true;
      ChunkCache.open(url, file).then((found) => {
        this.cache = found;
        this.looking = false;
        this.pump();
      });
    }
    file.units.forEach((unit, index) => {
      for (const chunk of [unit.entry, ...unit.layers]) if (chunk) this.owners.set(chunk, { unit, index });
    });
    this.mostWaiting = Math.max(WAITING_LIMITS[0], Math.min(WAITING_BYTES * file.numGaussians, WAITING_LIMITS[1]));
    const { version, size, numGaussians, shDegree, levels } = file;
    const parts = file.units.map(({ entry, layers, last }) => {
      const bytes = layers.reduce((sum, layer) => sum + (layer?.length ?? 0), entry.length);
      return { level: entry.level, tile: entry.tile, count: entry.count, bytes, last };
    });
    const whole = file.source && /** @type {any} */ (file.source).whole;
    const [meta, boxes] = [await file.meta(), await file.boxes()];
    this.post({ say: "opened", version, size, numGaussians, shDegree, levels, parts, meta, boxes, growing: !!whole });
  }

  /**
   * Counts what arrives.
   * @param {RequestInfo | URL} asked
   * @param {RequestInit} init
   */
  async fetch(asked, init) {
    if (this.first) {
      const { bytes, range } = this.first;
      this.first = null;
      this.received += bytes.byteLength;
      return new Response(bytes, { status: 206, headers: { "Content-Range": range } });
    }
    const response = await fetch(asked, init);
    if (!response.body || (response.status !== 200 && response.status !== 206)) return response;
    const count = new TransformStream({
      transform: (piece, controller) => {
        this.received += piece.length;
        this.owed = Math.max(0, this.owed - piece.length);
        controller.enqueue(piece);
        this.pump();
      },
    });
    const { status, statusText, headers } = response;
    return new Response(response.body.pipeThrough(count), { status, statusText, headers });
  }

  /** @param {LoaderQuestion} question */
  replan({ groups = [], shLayers = 3, id = 0, lost = [] }) {
    const file = /** @type {OpenFile} */ (this.file);
    this.plan = id;
    this.shLayers = shLayers;
    for (const index of lost) {
      this.close(file.units[index]);
      for (const chunk of this.chunksOf(file.units[index])) this.asked.delete(chunk);
    }
    this.queue = groups.flatMap((group) => {
      const chunks = group.flatMap((index) => this.chunksOf(file.units[index]));
      return chunks.filter((chunk) => !this.asked.has(chunk)).sort((a, b) => this.rank(a) - this.rank(b) || a.offset - b.offset);
    });
    // Where the whole file comes there is one order.
    if (this.growing) this.queue.sort((a, b) => a.offset - b.offset);
    this.pump();
  }

  /**
   * Where a chunk comes in the order. Layers wait for each other: long ones follow the first of their part.
   * @param {ChunkEntry} entry
   */
  rank(entry) {
    const { layers } = /** @type {{ unit: TilePart }} */ (this.owners.get(entry)).unit;
    const first = layers.find((layer) => layer)?.offset ?? 0;
    return entry.layer && layers.some((layer) => layer && layer.length > LARGE_BYTES) ? first : entry.offset;
  }

  get growing() {
    const source = /** @type {any} */ (this.file?.source);
    return this.remote && !!source?.whole;
  }

  /** @param {TilePart} unit */
  chunksOf({ entry, layers }) {
    const degree = /** @type {OpenFile} */ (this.file).shDegree;
    const wanted = layers.slice(0, Math.min(this.shLayers, degree)).filter((layer) => layer);
    return [entry, .../** @type {ChunkEntry[]} */ (wanted)];
  }

  /** Begin what can be begun. */
  pump() {
    if (!this.file || this.failed) return;
    const most = this.remote && !this.growing ? 3 : 1;
    while (this.queue.length && !this.paused && this.waiting < this.mostWaiting && this.running < most) {
      if (this.running && this.owed > AHEAD_BYTES) return;
      if (this.mayBeCached(this.queue[0])) return;
      const run = this.nextRun();
      this.running++;
      this.bring(run)
        .catch((error) => this.fail(error))
        .finally(() => {
          this.running--;
          this.pump();
        });
    }
    if (!this.queue.length && !this.running && this.told !== this.plan) {
      this.told = this.plan;
      this.post({ say: "complete", plan: this.plan, received: this.received });
    }
  }

  /**
   * Whether it is not known yet if the cache has a chunk, which is not among the first bytes either.
   * @param {ChunkEntry} entry
   */
  mayBeCached({ offset, length }) {
    const first = /** @type {any} */ (this.file?.source).first?.length ?? 0;
    return this.looking && offset + length > first;
  }

  /** Chunks for one request: the most wanted one and those behind it in the queue that lie behind it in the file. */
  nextRun() {
    const cached = (/** @type {ChunkEntry} */ entry) => !!this.cache?.has(entry);
    const run = [/** @type {ChunkEntry} */ (this.queue.shift())];
    const end = () => run[run.length - 1].offset + run[run.length - 1].length;
    const most = this.remote ? RUN_BYTES : 1;
    while (this.queue.length && end() - run[0].offset < most && cached(run[0]) === cached(this.queue[0])) {
      const gap = this.queue[0].offset - end();
      if (this.mayBeCached(this.queue[0]) || gap < 0 || (gap > GAP_BYTES && !cached(run[0]))) break;
      run.push(/** @type {ChunkEntry} */ (this.queue.shift()));
    }
    for (const entry of run) this.asked.add(entry);
    return run;
  }

  /** @param {ChunkEntry[]} run */
  async bring(run) {
    const file = /** @type {OpenFile} */ (this.file);
    let next = 0;
    for (; next < run.length && this.cache?.has(run[next]); next++) {
      const bytes = await this.cache.get(run[next]);
      if (!bytes) break;
      await this.take(run[next], bytes, true);
    }
    for (let tries = 0; next < run.length; ) {
      const end = run[run.length - 1].offset + run[run.length - 1].length;
      const owes = this.remote && !this.growing ? end - run[next].offset : 0;
      this.owed += owes;
      const before = this.received;
      const reader = file.source.open(run[next].offset, end);
      try {
        for (; next < run.length; next++) {
          await this.take(run[next], await reader.read(run[next].offset, run[next].length), false);
          tries = 0;
        }
      } catch (error) {
        if (!(error instanceof SplcError) || error.code !== "network" || ++tries > RETRIES) throw error;
        this.owed = Math.max(0, this.owed - Math.max(0, owes - (this.received - before)));
        this.post({ say: "notice", message: `${error.message}; trying again` });
        await sleep(200 * 2 ** tries);
      } finally {
        reader.close();
      }
    }
  }

  /**
   * A chunk has come.
   * @param {ChunkEntry} entry
   * @param {Uint8Array} bytes
   * @param {boolean} fromCache
   */
  take(entry, bytes, fromCache) {
    return (this.turn = this.turn.then(() => this.use(entry, bytes, fromCache)));
  }

  /**
   * Decode a chunk, or keep it until all layers of its part are there: the Gaussians come as soon as they can.
   * @param {ChunkEntry} entry
   * @param {Uint8Array} bytes
   * @param {boolean} fromCache
   */
  async use(entry, bytes, fromCache) {
    const { unit, index } = /** @type {{ unit: TilePart, index: number }} */ (this.owners.get(entry));
    let open = this.open.get(unit);
    if (!open) {
      open = { index, missing: new Set(this.chunksOf(unit)), layers: [null, null, null], links: null, closed: false };
      this.open.set(unit, open);
    }
    if (open.closed || !open.missing.delete(entry)) return;
    let at = entry;
    try {
      await /** @type {OpenFile} */ (this.file).readChunk(/** @type {any} */ ({ read: () => bytes }), entry);
      if (entry.layer) open.layers[entry.layer - 1] = bytes;
      else await this.decodeTile(open, unit, bytes);
      if (open.missing.size === 0 && open.links) {
        await this.decodeLayers(open, (layer) => (at = /** @type {ChunkEntry} */ (unit.layers[layer - 1])));
      }
      if (open.closed) return;
      if (open.missing.size === 0) this.close(unit);
      if (!fromCache) this.cache?.put(entry, bytes);
    } catch (error) {
      // One damaged chunk costs what it holds; what else is in the file can still be shown.
      this.close(unit);
      this.open.set(unit, open);
      if (fromCache) this.cache?.forget(entry);
      this.post({ say: "damage", error: plainError(located(error, labelOf(at), at.offset)), part: index });
    } finally {
      this.links = null;
    }
  }

  /** @param {TilePart} unit */
  close(unit) {
    const open = this.open.get(unit);
    if (open) Object.assign(open, { closed: true, links: null, layers: [] });
    this.open.delete(unit);
  }

  /**
   * @param {Open} open
   * @param {TilePart} unit
   * @param {Uint8Array} bytes
   */
  async decodeTile(open, { entry: { count, level }, last }, bytes) {
    const engine = /** @type {import("./decoder/fast.js").FastEngine} */ (this.file?.engine);
    const { own, under } = engine.start(bytes, count);
    const look = level && !last ? own : NEUTRAL;
    const links = (this.links = open.missing.size || open.layers.some((layer) => layer) ? new Int32Array(count) : null);
    for (let first = 0; first < count && !open.closed; first += SLICE) {
      const size = Math.min(SLICE, count - first);
      await this.room(17 * size);
      const records = newRecords(size);
      for (let at = 0; at < size; at += BLOCK) engine.writeRecords(records, at, engine.next(links));
      // Whether the chunk ends where it should.
      if (first + size === count) {
        engine.next(null);
        // They may have to wait for layers: three bytes of each.
        if (links) open.links = [Uint16Array.from(links), Uint8Array.from(links, (link) => link >> 16)];
        this.links = null;
      }
      this.hand(open, { first, records, look, under: level ? (last ? null : under) : NEUTRAL }, [records.records, records.boxes]);
    }
  }

  /**
   * @param {Open} open all layers of which are there
   * @param {(layer: number) => void} at is told what is being decoded
   */
  async decodeLayers(open, at) {
    const [low, high] = /** @type {[Uint16Array, Uint8Array]} */ (open.links);
    const links = (this.links = Int32Array.from(low, (bits, i) => bits | (high[i] << 16)));
    open.links = null;
    const { engine, shDegree } = /** @type {{ engine: import("./decoder/fast.js").FastEngine, shDegree: number }} */ (this.file);
    const count = links.length;
    const words = SH_WORDS[shDegree];
    const packed = new Uint32Array(words * Math.min(SLICE, count));
    const layers = [1, 2, 3].filter((layer) => open.layers[layer - 1]);
    const mask = layers.reduce((sum, layer) => sum | (1 << (layer - 1)), 0);
    const next = (/** @type {number} */ size, /** @type {number} */ done) => {
      for (const layer of layers) at(layer), engine.nextLayer(layer, size, links, done);
    };
    engine.startLayers(open.layers, (layer, work) => (at(layer), work()));
    // The engine has them now.
    open.layers = [];
    for (let first = 0; first < count && !open.closed; first += SLICE) {
      const size = Math.min(SLICE, count - first);
      await this.room(4 * words * size);
      for (let done = 0; done < size; done += BLOCK) {
        const block = Math.min(BLOCK, size - done);
        next(block, first + done);
        engine.writeShRecords(mask, packed, done, block);
      }
      if (first + size === count) next(0, count);
      const sh = paddedSh(packed, words, size);
      this.hand(open, { first, sh }, [sh]);
    }
  }

  /**
   * Resolves when the page has taken enough for so many bytes more.
   * @param {number} bytes
   */
  async room(bytes) {
    while (this.waiting && this.waiting + bytes > this.mostWaiting) {
      await new Promise((/** @type {(value?: unknown) => void} */ done) => (this.wake = done));
    }
  }

  /** @param {number} bytes that the page has taken */
  taken(bytes) {
    this.waiting -= bytes;
    this.wake?.();
    this.pump();
  }

  /**
   * Hand a slice over.
   * @param {Open} open
   * @param {object} slice
   * @param {ArrayBufferView[]} arrays of it
   */
  hand({ index, closed }, slice, arrays) {
    if (closed) return;
    const transfer = arrays.map(({ buffer }) => /** @type {ArrayBuffer} */ (buffer));
    const bytes = transfer.reduce((sum, { byteLength }) => sum + byteLength, 0);
    this.waiting += bytes;
    const decoder = /** @type {any} */ (this.file?.engine).memory?.buffer.byteLength ?? 0;
    this.post({ say: "part", index, ...slice, bytes, received: this.received, held: this.held, decoder }, transfer);
  }

  /** Bytes on this side: chunks that wait for others of their part, and what they need of it; what the page has not taken. */
  get held() {
    let sum = this.waiting + (this.links?.byteLength ?? 0);
    for (const { layers, links } of this.open.values()) {
      sum += links ? 3 * links[0].length : 0;
      for (const layer of layers) sum += layer?.length ?? 0;
    }
    return sum;
  }

  /** @param {unknown} error */
  fail(error) {
    this.failed = true;
    this.post({ say: "error", error: plainError(error) });
  }
}

/**
 * SH words of each Gaussian filled up to whole texels of four.
 * @param {Uint32Array} sh
 * @param {number} words of a Gaussian
 * @param {number} count
 */
function paddedSh(sh, words, count) {
  const wide = (words + 3) & ~3;
  // Texel by texel: the first of all Gaussians, the second of all ...
  const out = new Uint32Array(wide * count);
  for (let texel = 0; texel < wide / 4; texel++) {
    for (let i = 0, at = 4 * texel * count; i < count; i++) {
      for (let k = 4 * texel; k < 4 * texel + 4; k++) out[at++] = k < words ? sh[words * i + k] : 0;
    }
  }
  return out;
}

const scope = /** @type {any} */ (globalThis);
const post = (/** @type {any} */ message, /** @type {Transferable[]} */ transfer = []) => scope.postMessage(message, transfer);
const loader = new Loader(post);

/**
 * Open a scene; if it moves, what plays it is loaded, here and in the page.
 * @param {LoaderQuestion} question
 */
async function start(question) {
  try {
    if (!/\.json$/i.test(question.url?.replace(/[?#].*/, "") ?? "")) return await loader.start(question);
  } catch (error) {
    if (!(error instanceof SplcError) || !error.message.includes("sequence-1")) return loader.fail(error);
  }
  const begun = new Promise((resolve) => (scope.onmessage = (/** @type {MessageEvent} */ { data }) => data.ask === "begin" && resolve(data)));
  post({ say: "moving" });
  try {
    const { ClipLoader } = await import("./clip_loader.js");
    const { budget, ahead } = await begun;
    const { content } = question;
    const clip = new ClipLoader(post);
    scope.onmessage = (/** @type {MessageEvent} */ { data }) => clip.hear(data);
    await clip.start({ ...question, budget, ahead, content: typeof content === "string" ? fromBase64(content) : content }).catch((error) => clip.fail(error));
  } catch (error) {
    loader.fail(error);
  }
}

scope.onmessage = (/** @type {MessageEvent<LoaderQuestion>} */ { data }) => {
  if (data.ask === "open") start(data);
  else if (data.ask === "plan") loader.replan(data);
  else if (data.ask === "pause") {
    loader.paused = data.paused ?? false;
    loader.pump();
  } else if (data.ask === "ack") {
    loader.taken(data.bytes ?? 0);
  }
};
