// The loader's part for moving scenes: it fetches groups ahead of what is played, in a quality that the network and the
// device can take, decodes frames, and hands over what changes of the records from one to the next.
//
//     page: begin, seek, taken ... -> groups (segments.js) -> decoder -> page: opened, frame, state, notice
//
// Loaded by loader.js, in its Worker, when a scene turns out to move.

import { SplcError } from "./decoder/container.js";
import { GroupDecoder } from "./decoder/moving.js";
import { decodes, openPictures, whyNoVideo } from "./decoder/pictures.js";
import { FileGroups, PackageGroups } from "./segments.js";

/** @typedef {import("./decoder/moving.js").Group} Group */
/** @typedef {import("./segments.js").Piece} Piece */

/** Seconds of groups kept fetched ahead, and most bytes of all that are kept. */
const AHEAD_S = 20;
const MAX_KEPT_BYTES = 2 ** 26;
/** Frames and bytes handed over and not yet taken. */
const MAX_FRAMES = 12;
const MAX_FRAME_BYTES = 2 ** 25;
/** Share of the measured throughput that a quality may take: to stay, to go up. */
const [STAY, CLIMB] = [0.9, 0.65];
/** Seconds ahead below which quality may fall, above which it may rise. */
const [LOW_S, HIGH_S] = [8, 3];
/** Transfers below this say little of the link. */
const TELLING_BYTES = 1500;
/** So long the network may be away before that is an error. */
const GIVE_UP_MS = 60_000;
const POLL_MS = 3000;

/** @param {number} ms */
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** @param {unknown} error */
function plainError(error) {
  const { message, code = "internal", chunk = null, offset = null } = /** @type {any} */ (error);
  return { message: String(message ?? error), code, chunk, offset };
}

export class ClipLoader {
  /** @param {(message: any, transfer?: Transferable[]) => void} post */
  constructor(post) {
    this.post = post;
    /** @type {FileGroups | PackageGroups | null} */
    this.groups = null;
    this.sameOrigin = false;
    /** Seconds to be fetched ahead. */
    this.ahead = AHEAD_S;
    /** Bytes of groups by rendition and number; `null`: damaged, or not to be had. @type {Map<string, Piece | null>} */
    this.pieces = new Map();
    this.keptBytes = 0;
    this.received = 0;
    /** Bits a second, 0 while not known. */
    this.rate = 0;
    this.quality = 0;
    this.switchedAt = -10;
    /** Rendition that the page insists on, -1 for none. */
    this.forced = -1;
    this.looping = true;
    this.paused = false;
    /** Number of the seek that frames belong to, and the frame to be made next. */
    this.epoch = 0;
    this.next = 0;
    /** Where the page is. */
    this.shown = 0;
    this.outstanding = 0;
    this.outstandingBytes = 0;
    /** @type {GroupDecoder[]} */
    this.decoders = [];
    /** @type {{ index: number, rendition: number, group: Group, frame: number | null } | null} */
    this.current = null;
    this.failed = false;
    /** @type {AbortController | null} */
    this.fetching = null;
    /** Wakes whoever waits for something to change. */
    this.wakers = new Set();
    this.told = "";
  }

  changed() {
    for (const wake of [...this.wakers]) wake();
  }

  /** @param {number} [ms] most */
  async change(ms = 1000) {
    await new Promise((done) => {
      const wake = () => {
        this.wakers.delete(wake);
        clearTimeout(timer);
        done(null);
      };
      const timer = setTimeout(wake, ms);
      this.wakers.add(wake);
    });
  }

  /** @param {import("./loader.js").LoaderQuestion} question */
  async start({ url, content, first, sameOrigin, budget = Infinity, ahead = AHEAD_S }) {
    this.sameOrigin = sameOrigin ?? false;
    this.ahead = ahead;
    let hasFirst = first ?? null;
    const fetchHere = async (/** @type {any} */ asked, /** @type {RequestInit} */ init = {}) => {
      if (hasFirst && new Headers(init.headers).get("Range")?.startsWith("bytes=0-")) {
        const { bytes, range } = hasFirst;
        hasFirst = null;
        this.received += bytes.byteLength;
        return new Response(bytes, { status: 206, headers: { "Content-Range": range } });
      }
      const response = await fetch(asked, { ...init, ...this.manners });
      if (!response.body) return response;
      const count = new TransformStream({
        transform: (piece, controller) => {
          this.received += piece.length;
          controller.enqueue(piece);
        },
      });
      const { status, statusText, headers } = response;
      return new Response(response.body.pipeThrough(count), { status, statusText, headers });
    };
    const options = { fetch: fetchHere, onNotice: (/** @type {string} */ message) => this.post({ say: "notice", message }) };
    const isPackage = url !== undefined && /\.json$/i.test(new URL(url).pathname);
    const open = /** @returns {Promise<FileGroups | PackageGroups>} */ () =>
      isPackage
        ? PackageGroups.open(/** @type {string} */ (url), (...asked) => this.bytes(...asked))
        : FileGroups.open(/** @type {any} */ (url ?? content), options);
    const groups = (this.groups = await this.patiently(open, "the scene"));
    if (!groups.groups.length) await this.patiently(() => groups.more(), "the scene");
    if (!groups.groups.length) {
      const [notice = "it has no frames"] = groups.notices;
      throw new SplcError("truncated", `the moving scene has no whole group: ${notice}`, 0);
    }
    await this.chooseRenditions(budget);
    this.decoders = groups.renditions.map(() => new GroupDecoder({ openPictures }));
    const { fps, meta, renditions, audio, size } = groups;
    this.post({ say: "opened", ...this.span, fps, meta, audio, size, renditions: renditions.map(({ id, bitrate, refused }) => ({ id, bitrate, refused })) });
    this.say();
    this.fetchAll().catch((error) => this.fail(error));
    this.makeFrames().catch((error) => this.fail(error));
  }

  get manners() {
    return /** @type {RequestInit} */ ({ credentials: "same-origin", ...(this.sameOrigin ? { mode: "same-origin" } : {}) });
  }

  /** Frames that are known, and whether more may come. */
  get span() {
    const { groups, complete } = /** @type {FileGroups} */ (this.groups);
    const last = groups[groups.length - 1];
    return { numFrames: last ? last.firstFrame + last.numFrames : 0, ended: complete };
  }

  /**
   * Which renditions can be played here; an error that says why if none can.
   * @param {number} budget Gaussians
   */
  async chooseRenditions(budget) {
    const { renditions } = /** @type {FileGroups | PackageGroups} */ (this.groups);
    const why = whyNoVideo();
    for (const rendition of renditions) {
      if (rendition.maxGaussians > budget) rendition.refused = `more Gaussians (${rendition.maxGaussians}) than this device may hold (${budget})`;
      if (!rendition.usesVideo) continue;
      if (why) rendition.refused = why;
      else {
        for (const { codec, width, height } of rendition.video) {
          if (!(await decodes(codec, width, height))) rendition.refused = `this browser does not decode ${codec}`;
        }
      }
    }
    const usable = this.usable;
    if (!usable.length) throw new SplcError("unsupported", `the scene cannot be played here: ${renditions[0].refused}`);
    // The cheapest at first, so that there is a picture soon.
    this.quality = usable[usable.length - 1];
    if (renditions.some(({ refused }) => refused) && why) {
      this.post({ say: "notice", message: `Only qualities without video can be played: ${why}.` });
    }
  }

  /** Numbers of renditions that can be played, the best first. */
  get usable() {
    const { renditions } = /** @type {FileGroups | PackageGroups} */ (this.groups);
    return renditions.map((_, k) => k).filter((k) => !renditions[k].refused);
  }

  // --- the network -------------------------------------------------------------------------------------------------

  /** @type {import("./segments.js").Fetcher} */
  async bytes(url, range, most, onBytes, signal) {
    const headers = range ? { Range: `bytes=${range[0]}-${range[1] - 1}` } : undefined;
    let response;
    try {
      response = await fetch(url, { headers, signal, ...this.manners });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new SplcError("network", `cannot download: ${/** @type {any} */ (error).message}`);
    }
    if (!response.ok) {
      response.body?.cancel().catch(() => {});
      throw new SplcError("network", `the server answered ${response.status} ${response.statusText}`.trim());
    }
    const whole = range && response.status === 200;
    const wanted = range ? range[1] - range[0] : most;
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    /** @type {Uint8Array[]} */
    const parts = [];
    let size = 0;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        size += value.length;
        this.received += value.length;
        onBytes?.(value.length);
        if (size > most && !whole) throw new SplcError("format", `more than ${most} bytes`, most, "segment");
        if (whole && size >= range[0] + wanted) break;
      }
    } catch (error) {
      if (error instanceof SplcError || signal?.aborted) throw error;
      throw new SplcError("network", `cannot download: ${/** @type {any} */ (error).message}`);
    } finally {
      reader.cancel().catch(() => {});
    }
    const out = new Uint8Array(size);
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return whole ? out.subarray(range[0], range[0] + wanted) : out;
  }

  /**
   * Do something that the network may spoil, again and again for a while.
   * @template T
   * @param {() => Promise<T>} work
   * @param {string} what
   * @returns {Promise<T>}
   */
  async patiently(work, what) {
    const began = performance.now();
    for (let tries = 0; ; tries++) {
      try {
        return await work();
      } catch (error) {
        const network = error instanceof SplcError && error.code === "network";
        const refused = network && /answered 4\d\d/.test(/** @type {SplcError} */ (error).message);
        if (!network || (refused && tries >= 1) || performance.now() - began > GIVE_UP_MS) throw error;
        if (tries === 1) this.post({ say: "notice", message: `${what}: ${/** @type {SplcError} */ (error).message}; trying again` });
        await sleep(Math.min(200 * 2 ** tries, 3000));
      }
    }
  }

  /** @param {number} index @param {number} rendition */
  key(index, rendition) {
    return `${rendition}/${index}`;
  }

  /**
   * Rendition that a group is there in, -1 if in none; the best of several.
   * @param {number} index
   */
  thereIn(index) {
    for (const rendition of this.usable) {
      if (this.pieces.get(this.key(index, rendition))) return rendition;
    }
    return -1;
  }

  /** @param {number} index whether it is known that no rendition of it can be had */
  isLost(index) {
    return this.usable.every((rendition) => this.pieces.get(this.key(index, rendition)) === null);
  }

  /** @param {number} frame */
  indexOf(frame) {
    const { groups } = /** @type {FileGroups} */ (this.groups);
    let [low, high] = [0, groups.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (groups[middle].firstFrame + groups[middle].numFrames <= frame) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Seconds from the shown frame on that are there without a gap. */
  get aheadSeconds() {
    const { groups, fps } = /** @type {FileGroups} */ (this.groups);
    let frames = 0;
    for (let index = this.indexOf(this.shown); index < groups.length; index++) {
      if (this.thereIn(index) < 0 && !this.isLost(index)) break;
      frames = groups[index].firstFrame + groups[index].numFrames - this.shown;
    }
    return frames / fps;
  }

  /** Fetch what is wanted next, for ever. */
  async fetchAll() {
    while (!this.failed) {
      const index = this.paused ? -1 : this.wantedNext();
      if (index < 0) {
        if (!this.paused && !(await this.lookForMore())) await this.change();
        continue;
      }
      this.chooseQuality();
      await this.fetchGroup(index, this.quality);
      this.changed();
    }
  }

  /** Look for groups that are not known yet. */
  async lookForMore() {
    const groups = /** @type {FileGroups | PackageGroups} */ (this.groups);
    if (groups.complete) return false;
    const before = groups.groups.length;
    const more = await this.patiently(() => groups.more(), "the scene").catch(() => false);
    if (groups.complete || groups.groups.length > before) {
      this.post({ say: "span", ...this.span });
      for (const message of groups.notices) this.post({ say: "notice", message });
    }
    this.changed();
    if (!more && !groups.complete) await this.change(POLL_MS);
    return true;
  }

  /** The group to fetch next; -1 if there is enough. */
  wantedNext() {
    const { groups, fps } = /** @type {FileGroups} */ (this.groups);
    const from = this.indexOf(this.shown);
    let [frames, bytes] = [0, 0];
    const ahead = Math.ceil(this.ahead * fps);
    for (let k = 0; k < groups.length && (k < 2 || (frames < ahead && bytes < MAX_KEPT_BYTES / 2)); k++) {
      // After the last group comes the first one again.
      if (from + k >= groups.length && !this.looping) break;
      const index = (from + k) % groups.length;
      const there = this.thereIn(index);
      if (there < 0 && !this.isLost(index)) return index;
      frames += groups[index].numFrames;
      bytes += there < 0 ? 0 : /** @type {Piece} */ (this.pieces.get(this.key(index, there))).bytes.length;
    }
    // All is there: what came in a lower quality comes again in a better one.
    const best = this.best();
    if (best < this.quality || this.forced >= 0) {
      for (let k = 2; k < groups.length && k < 30; k++) {
        const index = (from + k) % groups.length;
        if (from + k >= groups.length && !this.looping) break;
        const there = this.thereIn(index);
        if (there > best && this.pieces.get(this.key(index, best)) === undefined) {
          this.setQuality(best);
          return index;
        }
      }
    }
    return -1;
  }

  /** The best quality that the link can take. */
  best() {
    const { renditions } = /** @type {FileGroups} */ (this.groups);
    const { usable } = this;
    if (this.forced >= 0) return this.forced;
    return usable.find((k) => renditions[k].bitrate <= CLIMB * this.rate) ?? usable[usable.length - 1];
  }

  /** Change the quality if the link asks for that, but not back and forth. */
  chooseQuality() {
    const { renditions } = /** @type {FileGroups} */ (this.groups);
    const { usable } = this;
    if (this.forced >= 0) return this.setQuality(this.forced);
    if (!this.rate || usable.length < 2) return;
    const ahead = this.aheadSeconds;
    if (renditions[this.quality].bitrate > STAY * this.rate && ahead < Math.min(LOW_S, this.ahead)) {
      this.setQuality(usable.find((k) => renditions[k].bitrate <= CLIMB * this.rate) ?? usable[usable.length - 1]);
    } else if (ahead >= Math.min(HIGH_S, this.ahead / 2) && this.switchedAt++ >= 2) {
      const best = this.best();
      if (best < this.quality) this.setQuality(best);
    }
  }

  /** @param {number} quality */
  setQuality(quality) {
    if (quality === this.quality) return;
    this.quality = quality;
    this.switchedAt = 0;
    this.say();
  }

  /**
   * Fetch a group, and the scene that it uses.
   * @param {number} index
   * @param {number} rendition
   */
  async fetchGroup(index, rendition) {
    const groups = /** @type {any} */ (this.groups);
    const scene = (() => {
      try {
        return groups.sceneOf(index, rendition);
      } catch (error) {
        this.lose(index, rendition, error);
        return -1;
      }
    })();
    if (scene < 0) return;
    const aborter = (this.fetching = new AbortController());
    const { epoch } = this;
    const began = performance.now();
    const before = this.received;
    let late = false;
    const expected = groups.bytesOf(index, rendition);
    let got = 0;
    const onBytes = (/** @type {number} */ count) => {
      got += count;
      // A link that has become slow must not keep a group of high quality for long.
      const spent = performance.now() - began;
      const { usable } = this;
      if (this.forced >= 0 || rendition === usable[usable.length - 1] || spent < 500) return;
      const left = ((expected - got) * spent) / got / 1000;
      if (left > Math.max(this.aheadSeconds, 0.5) * 1.2 + 0.5) {
        late = true;
        aborter.abort();
      }
    };
    try {
      const sceneKey = this.key(scene, rendition);
      const needsScene = scene !== index && !this.pieces.get(sceneKey) && !this.decoders[rendition].bases.has(scene) && !this.pieces.get(`scene ${sceneKey}`);
      if (needsScene) {
        const piece = await this.patiently(() => groups.bringScene(scene, rendition, onBytes, aborter.signal), `group ${scene}`);
        this.keep(`scene ${sceneKey}`, piece);
      }
      const piece = await this.patiently(() => groups.bring(index, rendition, onBytes, aborter.signal), `group ${index}`);
      this.keep(this.key(index, rendition), piece);
    } catch (error) {
      if (!aborter.signal.aborted) {
        if (error instanceof SplcError && error.code === "network" && !/answered 4/.test(error.message)) throw error;
        this.lose(index, rendition, error);
      }
    } finally {
      this.fetching = null;
    }
    const [bytes, ms] = [this.received - before, performance.now() - began];
    if (bytes >= TELLING_BYTES && ms > 1 && (!aborter.signal.aborted || late)) {
      const measured = (8000 * bytes) / ms;
      this.rate = this.rate ? 0.5 * this.rate + 0.5 * measured : measured;
      if (late) this.rate = Math.min(this.rate, measured);
    }
    if (late && epoch === this.epoch) this.chooseQuality();
    this.say();
  }

  /**
   * A group that cannot be had in a rendition: others may have it.
   * @param {number} index
   * @param {number} rendition
   * @param {unknown} error
   */
  lose(index, rendition, error) {
    const { groups } = /** @type {FileGroups} */ (this.groups);
    const { firstFrame, numFrames } = groups[index];
    if (error instanceof SplcError && error.code === "unsupported") {
      // No group of it can be shown here.
      /** @type {FileGroups} */ (this.groups).renditions[rendition].refused = error.message;
      if (!this.usable.length) throw error;
      this.setQuality(this.usable[this.usable.length - 1]);
      this.post({ say: "notice", message: error.message });
      return this.changed();
    }
    this.pieces.set(this.key(index, rendition), null);
    const name = `group ${index} (frames ${firstFrame} to ${firstFrame + numFrames - 1})`;
    this.post({ say: "damage", error: { ...plainError(error), message: `${name}: ${plainError(error).message}` } });
    const other = this.usable.find((k) => this.pieces.get(this.key(index, k)) !== null);
    if (other !== undefined && this.forced < 0) this.setQuality(other);
    this.changed();
  }

  /**
   * @param {string} key
   * @param {Piece} piece
   */
  keep(key, piece) {
    this.pieces.set(key, piece);
    this.keptBytes += piece.bytes.length;
    if (this.keptBytes <= MAX_KEPT_BYTES) return;
    // What is furthest ahead of the shown group, counted round the end, goes first.
    const { groups } = /** @type {FileGroups} */ (this.groups);
    const from = this.indexOf(this.shown);
    const distance = (/** @type {string} */ name) => (Number(name.split("/")[1]) - from + groups.length) % groups.length;
    const names = [...this.pieces].filter(([name, held]) => held && name !== key).map(([name]) => name);
    names.sort((a, b) => distance(b) - distance(a));
    for (const name of names) {
      if (this.keptBytes <= MAX_KEPT_BYTES) break;
      this.keptBytes -= /** @type {Piece} */ (this.pieces.get(name)).bytes.length;
      this.pieces.delete(name);
    }
  }

  // --- frames ------------------------------------------------------------------------------------------------------

  /** Make frame after frame, as the page takes them. */
  async makeFrames() {
    while (!this.failed) {
      const { numFrames, ended } = this.span;
      if (this.outstanding >= MAX_FRAMES || (this.outstanding && this.outstandingBytes > MAX_FRAME_BYTES) || this.paused) {
        await this.change();
      } else if (this.next >= numFrames) {
        if (ended && this.looping) this.next = 0;
        else {
          if (ended && this.toldEnd !== this.epoch) this.post({ say: "end", epoch: (this.toldEnd = this.epoch) });
          await this.change();
        }
      } else {
        await this.makeFrame(this.epoch);
      }
    }
  }

  /** @param {number} epoch */
  async makeFrame(epoch) {
    const { groups } = /** @type {FileGroups} */ (this.groups);
    const index = this.indexOf(this.next);
    const { firstFrame, numFrames } = groups[index];
    let group;
    try {
      // Behind a gap goes on what follows it.
      if (firstFrame > this.next) this.next = firstFrame;
      group = await this.groupAt(index);
    } catch (error) {
      if (this.current?.index === index) this.current = null;
      this.lose(index, this.decoding, error);
      return;
    }
    if (epoch !== this.epoch) return;
    if (!group) {
      if (this.isLost(index)) this.skip(index);
      else await this.change();
      return;
    }
    const current = /** @type {NonNullable<ClipLoader["current"]>} */ (this.current);
    const frame = this.next - firstFrame;
    const since = current.frame;
    let update;
    try {
      update = await group.update(frame, since);
    } catch (error) {
      const damaged = !(error instanceof SplcError) || error.code !== "parameter";
      this.current = null;
      if (damaged) this.lose(index, current.rendition, error);
      return;
    }
    if (epoch !== this.epoch || current !== this.current) {
      // What was made for nothing is not what the page has.
      current.frame = null;
      return;
    }
    current.frame = frame;
    const { layout } = group;
    const first = since === null ? { blocks: layout.blocks, counts: layout.counts.slice(), nodes: layout.nodes.slice(), shDegree: group.shDegree } : null;
    const transfer = [update.blocks, update.records, update.boxes, update.shBlocks, ...update.sh].map(({ buffer }) => buffer);
    const bytes = transfer.reduce((sum, { byteLength }) => sum + byteLength, 0);
    this.outstanding++;
    this.outstandingBytes += bytes;
    this.post(
      { say: "frame", epoch, number: this.next, group: index, rendition: current.rendition, first, update, nodes: group.nodes(frame), count: group.count, bytes, last: frame === numFrames - 1 },
      /** @type {ArrayBuffer[]} */ (transfer),
    );
    this.next++;
  }

  /** Epoch whose end the page was told of. */
  toldEnd = -1;

  /** Rendition that is being decoded. */
  decoding = 0;

  /**
   * A group, decoded; null while its bytes are not there.
   * @param {number} index
   * @returns {Promise<Group | null>}
   */
  async groupAt(index) {
    if (this.current?.index === index) return this.current.group;
    const rendition = this.thereIn(index);
    if (rendition < 0) return null;
    const groups = /** @type {any} */ (this.groups);
    const { bytes, offset } = /** @type {Piece} */ (this.pieces.get(this.key(index, rendition)));
    const { epoch } = this;
    this.current?.group.close();
    this.current = null;
    this.decoding = rendition;
    const group = await this.decoders[rendition].decode(bytes, { offset }, async () => {
      const scene = groups.sceneOf(index, rendition);
      const key = this.key(scene, rendition);
      const held = this.pieces.get(key) ?? this.pieces.get(`scene ${key}`);
      if (held) return held;
      /** @type {Piece} */
      const piece = await this.patiently(() => groups.bringScene(scene, rendition), `group ${scene}`);
      this.keep(`scene ${key}`, piece);
      return piece;
    });
    if (epoch !== this.epoch && this.indexOf(this.next) !== index) {
      group.close();
      return null;
    }
    this.current = { index, rendition, group, frame: null };
    return group;
  }

  /**
   * Leave out a group that is lost; if all are, that is the end.
   * @param {number} index
   */
  skip(index) {
    const { groups, complete } = /** @type {FileGroups} */ (this.groups);
    if (complete && groups.every((_, k) => this.isLost(k))) {
      throw new SplcError("format", "no part of the scene can be shown: it is damaged", 0);
    }
    this.next = groups[index].firstFrame + groups[index].numFrames;
  }

  // --- the page ----------------------------------------------------------------------------------------------------

  /** @param {any} question */
  hear({ ask, epoch, frame, bytes, looping, paused, quality }) {
    if (ask === "seek") {
      this.epoch = epoch;
      this.next = this.shown = frame;
      this.outstanding = this.outstandingBytes = 0;
      if (this.current) this.current.frame = null;
      // What is on its way may be far from what is wanted now.
      if (this.aheadSeconds <= 0) this.fetching?.abort();
    } else if (ask === "taken") {
      if (epoch !== this.epoch) return;
      this.outstanding--;
      this.outstandingBytes -= bytes;
      if (frame !== this.shown) {
        const index = this.indexOf(this.shown);
        this.shown = frame;
        if (index !== this.indexOf(frame)) this.say();
      }
    } else if (ask === "pause") {
      this.paused = paused;
    } else if (ask === "loop") {
      this.looping = looping;
      this.toldEnd = -1;
    } else if (ask === "quality") {
      this.forced = this.usable.includes(quality) ? quality : -1;
    }
    this.changed();
  }

  /** Tell the page what is there. */
  say() {
    const { groups } = /** @type {FileGroups} */ (this.groups);
    /** @type {number[][]} */
    const buffered = [];
    groups.forEach(({ firstFrame, numFrames }, index) => {
      if (this.thereIn(index) < 0) return;
      const last = buffered[buffered.length - 1];
      if (last && last[1] === firstFrame) last[1] = firstFrame + numFrames;
      else buffered.push([firstFrame, firstFrame + numFrames]);
    });
    const state = { say: "state", buffered, quality: this.quality, rate: Math.round(this.rate), received: this.received };
    const text = JSON.stringify(state);
    if (text !== this.told) this.post(state);
    this.told = text;
  }

  /** @param {unknown} error */
  fail(error) {
    if (this.failed) return;
    this.failed = true;
    this.post({ say: "error", error: plainError(error) });
  }
}
