// The file of a moving scene: a head, groups of frames and an index, each a container (bitstreams/SPEC.md, 7 to 7.3).
//
// With an index all groups are known at once. Without one (the file was cut off, or is still coming) they are found by
// going from header to header, one more each time somebody asks.

import { crc32, HEADER_BYTES, labelOf, located, parseHeader, parseToc, SplcError, STILL, TocReader } from "./container.js";

/** @typedef {import("./container.js").ChunkEntry} ChunkEntry */
/** @typedef {import("./source.js").Source} Source */

const KNOWN = {
  chunks: new Set([...STILL.chunks, "SEQH", "GRPH", "SIDX", "MOTN", "TRAJ", "VGRP"]),
  features: new Set([...STILL.features, "sequence-1", "temporal-1", "video-1"]),
};
export const MAX_GROUP_FRAMES = 256;
/** A table of contents of a group; groups of a million Gaussians have some kilobytes. */
const MAX_TOC_BYTES = 2 ** 22;
/** Bytes asked for at the end of a file, in the hope that the whole index is among them. */
const TAIL_BYTES = 2 ** 14;
const SEARCH_BYTES = 2 ** 16;
const MAX_META_BYTES = 2 ** 22;
const FEATURE_OF = ["temporal-1", "video-1"];
export const VIDEO = 1;

/**
 * Where a group is, and what its head says.
 * @typedef {object} GroupEntry
 * @property {number} number from 0
 * @property {number} firstFrame
 * @property {number} numFrames
 * @property {number} scene number of the group whose scene it uses
 * @property {number} offset bytes in the file
 * @property {number} length
 */

/** One container, its bytes at hand; places in errors are those in the file. */
export class Container {
  /**
   * @param {Uint8Array} bytes at least the header and the table of contents
   * @param {number} base where it begins in the file
   */
  constructor(bytes, base) {
    this.bytes = bytes;
    this.base = base;
    try {
      this.header = parseHeader(bytes.subarray(0, HEADER_BYTES));
      const { tocLength } = this.header;
      if (tocLength > MAX_TOC_BYTES) throw new SplcError("limit", `a table of contents of ${tocLength} bytes`, 16);
      if (HEADER_BYTES + tocLength > bytes.length) throw new SplcError("truncated", "the table of contents is cut off", bytes.length);
      const { features, chunks } = parseToc(bytes.subarray(HEADER_BYTES, HEADER_BYTES + tocLength), this.header, KNOWN);
      this.features = features;
      /** @type {ChunkEntry[]} */
      this.chunks = chunks;
    } catch (error) {
      throw located(error, "container", base);
    }
  }

  /** Bytes of all of it. */
  get length() {
    return this.header.length;
  }

  /** @param {string} type */
  all(type) {
    return this.chunks.filter((entry) => entry.type === type);
  }

  /** @param {string} type */
  one(type) {
    const found = this.all(type);
    if (found.length === 1) return found[0];
    throw new SplcError("format", found.length ? `more than one ${type} chunk` : `no ${type} chunk`, this.base, "container");
  }

  /**
   * The bytes of a chunk, checked.
   * @param {ChunkEntry} entry
   */
  read(entry) {
    const { offset, length, crc } = entry;
    const bytes = this.bytes.subarray(offset, offset + length);
    if (bytes.length < length) throw new SplcError("truncated", "the chunk is cut off", this.base + offset, labelOf(entry));
    if (crc32(bytes) !== crc) throw new SplcError("checksum", "the checksum does not match", this.base + offset, labelOf(entry));
    return bytes;
  }

  /**
   * `work` on the bytes of a chunk, with errors that name it.
   * @template T
   * @param {ChunkEntry} entry
   * @param {(bytes: Uint8Array) => T} work
   * @returns {T}
   */
  use(entry, work) {
    const bytes = this.read(entry);
    try {
      return work(bytes);
    } catch (error) {
      throw located(error, labelOf(entry), this.base + entry.offset);
    }
  }
}

/**
 * The GRPH chunk of a group's container.
 * @param {Container} container
 * @returns {{ firstFrame: number, numFrames: number, number: number, scene: number, coding: number }}
 */
export function groupHead(container) {
  return container.use(container.one("GRPH"), (bytes) => {
    if (bytes.length !== 24) throw new SplcError("format", `${bytes.length} bytes`, 0);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const head = {
      firstFrame: view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true),
      numFrames: view.getUint32(8, true),
      number: view.getUint32(12, true),
      scene: view.getUint32(16, true),
      coding: bytes[20],
    };
    const sound = head.numFrames >= 1 && head.numFrames <= MAX_GROUP_FRAMES && head.scene <= head.number;
    const feature = FEATURE_OF[head.coding];
    if (!sound || head.firstFrame > 2 ** 52 || !feature || !container.features.includes(feature)) {
      throw new SplcError("format", "the head of the group is damaged", 0);
    }
    return head;
  });
}

/** @param {GroupEntry} entry */
export const nameOf = ({ number, firstFrame, numFrames }) =>
  `group ${number} (frames ${firstFrame} to ${firstFrame + numFrames - 1})`;

/** The head of a sequence, and where its groups are. */
export class SequenceFile {
  /**
   * @param {Source} source
   * @param {Container} head
   */
  constructor(source, head) {
    this.source = source;
    this.head = head;
    const { numerator, denominator } = head.use(head.one("SEQH"), (bytes) => {
      if (bytes.length !== 12) throw new SplcError("format", `${bytes.length} bytes`, 0);
      const view = new DataView(bytes.buffer, bytes.byteOffset, 12);
      return { numerator: view.getUint32(0, true), denominator: view.getUint32(4, true) };
    });
    const limit = 2 ** 31 - 1;
    if (!numerator || !denominator || numerator > limit || denominator > limit) {
      throw new SplcError("format", `${numerator}/${denominator} frames a second`, head.base, "SEQH");
    }
    this.rate = { numerator, denominator };
    /** Frames a second. */
    this.fps = numerator / denominator;
    /** Whole groups in order, as far as they are known. @type {GroupEntry[]} */
    this.groups = [];
    /** A line for each stretch of bytes that is no group. @type {string[]} */
    this.gaps = [];
    /** Whether the file has its index: it was finished, and is all there. */
    this.complete = false;
    /** Whether no more groups are to be found. */
    this.ended = false;
    /** Where to look for the next group. */
    this.next = head.length;
    /** Bytes of the group found last, of a stream that cannot go back. @type {{ entry: GroupEntry, bytes: Uint8Array } | null} */
    this.held = null;
  }

  /**
   * @param {Source} source
   * @returns {Promise<SequenceFile>}
   */
  static async open(source) {
    const reader = source.open(0, HEADER_BYTES);
    try {
      const head = await reader.read(0, HEADER_BYTES).catch((error) => {
        if (!(error instanceof SplcError) || error.code !== "truncated") throw error;
        return reader.read(0, error.offset ?? 0);
      });
      const { tocLength, length } = parseHeader(head);
      if (length > MAX_TOC_BYTES) throw new SplcError("limit", `a head of ${length} bytes`, 8);
      const first = new Container(await reader.read(0, HEADER_BYTES + tocLength), 0);
      if (!first.all("SEQH").length) throw new SplcError("format", "the file is no moving scene", 0);
      const file = new SequenceFile(source, new Container(await reader.read(0, length), 0));
      await file.readIndex();
      return file;
    } catch (error) {
      throw located(error, "head of the sequence", 0);
    } finally {
      reader.close();
    }
  }

  /** Frames up to the end of the last group that is known, gaps included. */
  get numFrames() {
    const last = this.groups[this.groups.length - 1];
    return last ? last.firstFrame + last.numFrames : 0;
  }

  /** Facts about all frames: the META chunk, an empty object if there is none. @returns {Record<string, unknown>} */
  get meta() {
    const [entry] = this.head.all("META");
    if (!entry) return {};
    if (entry.length > MAX_META_BYTES) throw new SplcError("limit", "too large", entry.offset, "META");
    return this.head.use(entry, (bytes) => {
      try {
        const meta = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
        if (meta && typeof meta === "object" && !Array.isArray(meta)) return meta;
      } catch {
        // The same as what is no object.
      }
      throw new SplcError("format", "not a JSON object", 0);
    });
  }

  /** What the index says, if the size of the file is known and a whole index ends it. */
  async readIndex() {
    const { size } = this.source;
    const from = this.head.length;
    if (size === null || size < from + HEADER_BYTES + 12) return;
    const start = Math.max(from, size - TAIL_BYTES);
    const tail = await this.readBytes(start, size - start);
    const view = new DataView(tail.buffer, tail.byteOffset, tail.length);
    const end = tail.length - 12;
    const length = view.getUint32(end + 4, true) * 2 ** 32 + view.getUint32(end, true);
    const mark = String.fromCharCode(...tail.subarray(end + 8));
    if (mark !== "SEND" || length <= HEADER_BYTES || length > size - from) return;
    const at = size - length;
    try {
      const bytes = at >= start ? tail.subarray(at - start) : await this.readBytes(at, length);
      const container = new Container(bytes, at);
      if (container.length !== length) return;
      const groups = this.parseIndex(container.read(container.one("SIDX")), at);
      if (!groups) return;
      this.groups = groups;
      this.complete = this.ended = true;
    } catch (error) {
      // A damaged index is as none: groups are looked for.
      if (!(error instanceof SplcError) || error.code === "network") throw error;
    }
  }

  /**
   * @param {Uint8Array} payload of SIDX
   * @param {number} end where the index begins: groups must fill the file up to there
   */
  parseIndex(payload, end) {
    const reader = new TocReader(payload);
    const count = reader.varint();
    if (count > payload.length / 3) return null;
    /** @type {GroupEntry[]} */
    const groups = [];
    let offset = this.head.length;
    let firstFrame = 0;
    for (let number = 0; number < count; number++) {
      const [length, numFrames, back] = [reader.varint(), reader.varint(), reader.varint()];
      if (numFrames < 1 || numFrames > MAX_GROUP_FRAMES || back > number || length < HEADER_BYTES) return null;
      groups.push({ number, firstFrame, numFrames, scene: number - back, offset, length });
      offset += length;
      firstFrame += numFrames;
    }
    return offset === end && reader.at + 12 === payload.length ? groups : null;
  }

  /**
   * @param {number} offset
   * @param {number} length
   */
  async readBytes(offset, length) {
    const reader = this.source.open(offset, offset + length);
    try {
      return await reader.read(offset, length);
    } finally {
      reader.close();
    }
  }

  /**
   * Find one more group; false at the end of what there is.
   * @returns {Promise<boolean>}
   */
  async more() {
    /** Where damage begins. @type {number | null} */
    let gap = null;
    while (!this.ended) {
      const at = this.next;
      const found = await this.groupAt(at);
      if (found === "end") {
        this.ended = true;
        if (gap !== null) this.cut = gap;
      } else if (found) {
        if (gap !== null) this.gaps.push(`bytes ${gap} to ${at - 1} are damaged`);
        this.groups.push(found);
        this.next = at + found.length;
        return true;
      } else {
        gap ??= at;
        const next = await this.nextMagic(at + 1);
        if (next === null) {
          this.ended = true;
          // Of a file that was cut off this is the group that is not whole.
          this.cut = gap;
        } else {
          this.next = next;
        }
      }
    }
    return false;
  }

  /** Where the file stops being whole, where that is known. @type {number | null} */
  cut = null;

  /**
   * The group that begins at a place: null if what is there is damaged or not whole.
   * @param {number} at
   * @returns {Promise<GroupEntry | "end" | null>}
   */
  async groupAt(at) {
    const { source } = this;
    if (source.size !== null && at >= source.size) return "end";
    const reader = source.open(at, at + SEARCH_BYTES);
    try {
      const start = await reader.read(at, HEADER_BYTES).catch((error) => {
        if (error instanceof SplcError && error.code === "truncated" && error.offset === at) return null;
        throw error;
      });
      if (!start) return "end";
      const { tocLength, length } = parseHeader(start);
      if (tocLength > MAX_TOC_BYTES || (source.size !== null && length > source.size - at)) return null;
      const toc = await reader.read(at, HEADER_BYTES + tocLength);
      let container = new Container(toc, at);
      if (container.all("SIDX").length) {
        this.complete = !this.gaps.length;
        return "end";
      }
      const grph = container.one("GRPH");
      // A stream cannot go back: then all of the group is taken now.
      const bytes = await reader.read(at, source.random || source.size !== null ? grph.offset + grph.length : length);
      container = new Container(bytes, at);
      const { number, firstFrame, numFrames, scene } = groupHead(container);
      const last = this.groups[this.groups.length - 1];
      if (last && (number <= last.number || firstFrame < this.numFrames)) return null;
      const entry = { number, firstFrame, numFrames, scene, offset: at, length };
      this.held = bytes.length === length ? { entry, bytes } : null;
      return entry;
    } catch (error) {
      if (error instanceof SplcError && error.code !== "network" && error.code !== "parameter") return null;
      throw error;
    } finally {
      reader.close();
    }
  }

  /**
   * Where the next header may begin; null at the end of the file.
   * @param {number} at
   */
  async nextMagic(at) {
    for (;;) {
      const reader = this.source.open(at, at + SEARCH_BYTES);
      let bytes;
      let last = false;
      try {
        bytes = await reader.read(at, SEARCH_BYTES).catch((error) => {
          if (!(error instanceof SplcError) || error.code !== "truncated") throw error;
          last = true;
          const end = error.offset ?? at;
          return end > at ? reader.read(at, end - at) : new Uint8Array(0);
        });
      } finally {
        reader.close();
      }
      for (let k = 0; k + 4 <= bytes.length; k++) {
        if (bytes[k] === 0x53 && bytes[k + 1] === 0x50 && bytes[k + 2] === 0x4c && bytes[k + 3] === 0x43) return at + k;
      }
      if (last) return null;
      at += bytes.length - 3;
    }
  }

  /**
   * The bytes of a group.
   * @param {GroupEntry} entry
   */
  async readGroup(entry) {
    if (this.held?.entry === entry) return this.held.bytes;
    return this.readBytes(entry.offset, entry.length);
  }

  /**
   * The group that has a frame; null if it is in a gap or behind the end.
   * @param {number} frame
   * @returns {Promise<GroupEntry | null>}
   */
  async groupOf(frame) {
    while (this.numFrames <= frame && (await this.more()));
    const { groups } = this;
    let low = 0;
    let high = groups.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (groups[middle].firstFrame + groups[middle].numFrames <= frame) low = middle + 1;
      else high = middle;
    }
    return low < groups.length && groups[low].firstFrame <= frame ? groups[low] : null;
  }

  /**
   * The group of a number.
   * @param {number} number
   */
  numbered(number) {
    const { groups } = this;
    const found = groups[number]?.number === number ? groups[number] : groups.find((group) => group.number === number);
    if (!found) throw new SplcError("format", `group ${number} is missing`, this.head.length, "sequence");
    return found;
  }
}
