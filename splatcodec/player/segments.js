// Where the groups of a moving scene come from: one `.splc` file, or the segments of a package (docs/streaming.md).
//
// Both look alike from outside: renditions (a file is one), groups of frames, and the bytes of each group, or of the part
// of a group that holds the scene which others use.

import { SplcError } from "./decoder/container.js";
import { SequenceFile } from "./decoder/sequence.js";
import { sourceOf } from "./decoder/source.js";

/** @typedef {{ firstFrame: number, numFrames: number }} Span */
/** @typedef {{ bytes: Uint8Array, offset: number }} Piece */

/**
 * One quality of all groups.
 * @typedef {object} Rendition
 * @property {string} id
 * @property {number} bitrate mean, bits a second; 0 where it is not known
 * @property {number} maxGaussians
 * @property {{ codec: string, width: number, height: number }[]} video
 * @property {boolean} usesVideo
 * @property {string | null} refused why it cannot be played here
 */

/**
 * How bytes are fetched: told of pieces as they come.
 * @typedef {(url: string, range: [number, number] | null, most: number, onBytes?: (count: number) => void, signal?: AbortSignal) => Promise<Uint8Array>} Fetcher
 */

const MAX_MANIFEST_BYTES = 2 ** 25;
const MAX_GROUPS = 200_000;
const MAX_RENDITIONS = 32;
const MAX_SEGMENT_BYTES = 2 ** 28;
const MAX_HEAD_BYTES = 2 ** 22;
const NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]*(\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/;

/** A moving `.splc` file. */
export class FileGroups {
  /** @param {SequenceFile} sequence */
  constructor(sequence) {
    this.sequence = sequence;
    this.fps = sequence.fps;
    /** @type {string | null} */
    this.audio = null;
    const { size } = sequence.source;
    const bitrate = size && sequence.complete && sequence.numFrames ? (8 * size * this.fps) / sequence.numFrames : 0;
    /** @type {Rendition[]} */
    this.renditions = [{ id: "file", bitrate, maxGaussians: 0, video: [], usesVideo: false, refused: null }];
  }

  /**
   * @param {any} input
   * @param {import("./decoder/source.js").SourceOptions} options
   */
  static async open(input, options) {
    return new FileGroups(await SequenceFile.open(await sourceOf(input, options)));
  }

  /** @returns {Span[]} groups that are known */
  get groups() {
    return this.sequence.groups;
  }

  get meta() {
    return this.sequence.meta;
  }

  get complete() {
    return this.sequence.ended;
  }

  get size() {
    return this.sequence.source.size ?? 0;
  }

  /** What is to be said of the file. */
  get notices() {
    const { gaps, ended, complete, numFrames, cut } = this.sequence;
    const notices = gaps.map((gap) => `A part of the file is missing: ${gap}.`);
    if (ended && !complete) {
      const where = cut === null ? "it has no index" : `it is cut off or damaged from byte ${cut} on`;
      notices.push(`The file was not finished: ${where}. It plays to frame ${numFrames}.`);
    }
    return notices;
  }

  /** Look for more groups; false where there are none. */
  async more() {
    return this.sequence.more();
  }

  /**
   * Group whose scene a group uses.
   * @param {number} index
   */
  sceneOf(index) {
    const { number, scene } = this.sequence.groups[index];
    if (scene === number) return index;
    const found = this.sequence.groups.findIndex((group) => group.number === scene);
    if (found < 0) throw new SplcError("format", `group ${scene}, whose scene is used, is missing`, this.sequence.groups[index].offset);
    return found;
  }

  /** @param {number} index */
  bytesOf(index) {
    return this.sequence.groups[index].length;
  }

  /** @param {number} index @returns {Promise<Piece>} */
  async bring(index) {
    const entry = this.sequence.groups[index];
    return { bytes: await this.sequence.readGroup(entry), offset: entry.offset };
  }

  /** @param {number} index @returns {Promise<Piece>} */
  bringScene(index) {
    return this.bring(index);
  }

  close() {
    this.sequence.source.close();
  }
}

/** @param {string} what */
const bad = (what) => new SplcError("format", `the manifest is damaged: ${what}`, 0, "manifest.json");

/** @param {unknown} value @param {number} least @param {number} most @param {string} what @returns {number} */
function whole(value, least, most, what) {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) throw bad(what);
  return value;
}

/** @param {unknown} value @param {number} most @param {string} what @returns {any[]} */
function list(value, most, what) {
  if (!Array.isArray(value) || value.length > most) throw bad(what);
  return value;
}

/** A package: its manifest, checked. */
export class PackageGroups {
  /**
   * @param {any} manifest
   * @param {string} address of it
   * @param {Fetcher} fetcher
   */
  constructor(manifest, address, fetcher) {
    this.address = address;
    this.fetcher = fetcher;
    /** @type {Record<string, unknown>} */
    this.meta = {};
    /** @type {string[]} */
    this.notices = [];
    if (!manifest || typeof manifest !== "object" || manifest.format !== "splatcodec-segments") throw bad("it is no manifest of ours");
    if (!(whole(manifest.version, 1, 1e6, "version") <= 1)) {
      throw new SplcError("unsupported", `a manifest of version ${manifest.version}, this player reads version 1`, 0, "manifest.json");
    }
    const [numerator, denominator] = list(manifest.fps, 2, "fps").map((x) => whole(x, 1, 2 ** 31 - 1, "fps"));
    if (!denominator) throw bad("fps");
    this.fps = numerator / denominator;
    this.complete = manifest.complete === true;
    /** @type {Span[]} */
    this.groups = [];
    let next = 0;
    for (const pair of list(manifest.groups, MAX_GROUPS, "groups")) {
      const [first, frames] = list(pair, 2, "groups");
      if (whole(first, 0, 2 ** 40, "groups") !== next) throw bad("groups do not follow each other");
      this.groups.push({ firstFrame: next, numFrames: whole(frames, 1, 256, "groups") });
      next += frames;
    }
    /** @type {{ url: string, bytes: number, integrity: string, scene: number, sceneBytes: number }[][]} */
    this.segments = [];
    /** @type {Rendition[]} */
    this.renditions = list(manifest.renditions, MAX_RENDITIONS, "renditions").map((rendition) => this.rendition(rendition));
    if (!this.renditions.length) throw bad("renditions");
    this.init = this.file(manifest.init, MAX_HEAD_BYTES);
    this.size = Math.max(...this.segments.map((segments) => segments.reduce((sum, { bytes }) => sum + bytes, 0)));
    const [audio] = list(manifest.audio ?? [], 16, "audio");
    /** @type {string | null} */
    this.audio = audio ? this.file(audio, 2 ** 40).url : null;
  }

  /**
   * @param {string} address
   * @param {Fetcher} fetcher
   */
  static async open(address, fetcher) {
    const bytes = await fetcher(address, null, MAX_MANIFEST_BYTES);
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    } catch {
      throw bad("it is no JSON");
    }
    const groups = new PackageGroups(manifest, address, fetcher);
    const head = await SequenceFile.open(await sourceOf(await fetcher(groups.init.url, null, groups.init.bytes), {}));
    groups.meta = head.meta;
    return groups;
  }

  /**
   * A file: its address lies beside the manifest, whatever the manifest says.
   * @param {any} file
   * @param {number} most bytes
   */
  file(file, most) {
    const { file: name, bytes, integrity } = file ?? {};
    if (typeof name !== "string" || name.length > 512 || !NAME.test(name)) throw bad("a file's name");
    const url = new URL(name, this.address);
    if (url.origin !== new URL(this.address).origin || !url.href.startsWith(new URL(".", this.address).href)) throw bad("a file's name");
    return {
      url: url.href, bytes: whole(bytes, 1, most, "the length of a file"),
      integrity: typeof integrity === "string" && integrity.startsWith("sha256-") ? integrity.slice(7) : "",
    };
  }

  /** @param {any} rendition @returns {Rendition} */
  rendition(rendition) {
    const segments = list(rendition?.segments, MAX_GROUPS, "segments").map((segment, k) => {
      const file = this.file(segment, MAX_SEGMENT_BYTES);
      const scene = whole(segment.scene, 0, k, "the scene of a segment");
      const sceneBytes = segment.scene_bytes === undefined ? file.bytes : whole(segment.scene_bytes, 1, file.bytes, "scene_bytes");
      return { ...file, scene, sceneBytes };
    });
    if (segments.length !== this.groups.length) throw bad("a rendition has other groups");
    this.segments.push(segments);
    const video = list(rendition.video ?? [], 64, "video").map(({ codec, width, height }) => {
      return { codec: String(codec).slice(0, 64), width: whole(width, 1, 4096, "video"), height: whole(height, 1, 4096, "video") };
    });
    const id = String(rendition.id).slice(0, 64);
    const maxGaussians = whole(rendition.max_gaussians ?? 0, 0, 2 ** 32, "max_gaussians");
    const bitrate = whole(rendition.bitrate ?? 0, 0, 2 ** 50, "bitrate");
    return { id, bitrate, maxGaussians, video, usesVideo: video.length > 0, refused: null };
  }

  /** Ask whether there is more by now. */
  async more() {
    if (this.complete) return false;
    const fresh = await PackageGroups.open(this.address, this.fetcher);
    const before = this.groups.length;
    const same = fresh.segments.length === this.segments.length && fresh.groups.length >= before;
    if (!same) return false;
    Object.assign(this, { groups: fresh.groups, segments: fresh.segments, complete: fresh.complete });
    return this.groups.length > before;
  }

  /**
   * @param {number} index
   * @param {number} rendition
   */
  sceneOf(index, rendition) {
    const { scene } = this.segments[rendition][index];
    if (this.segments[rendition][scene].scene !== scene) throw bad("a scene that is none");
    return scene;
  }

  /**
   * @param {number} index
   * @param {number} rendition
   */
  bytesOf(index, rendition) {
    return this.segments[rendition][index].bytes;
  }

  /**
   * @param {number} index
   * @param {number} rendition
   * @param {(count: number) => void} [onBytes]
   * @param {AbortSignal} [signal]
   * @returns {Promise<Piece>}
   */
  async bring(index, rendition, onBytes, signal) {
    const { url, bytes, integrity } = this.segments[rendition][index];
    const content = await this.fetcher(url, null, bytes, onBytes, signal);
    if (content.length !== bytes) throw new SplcError("truncated", `a segment of ${content.length} bytes in place of ${bytes}`, content.length, "segment");
    if (integrity && globalThis.crypto?.subtle) {
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", /** @type {BufferSource} */ (content)));
      if (btoa(String.fromCharCode(...digest)) !== integrity) throw new SplcError("checksum", "a segment is not what the manifest says", 0, "segment");
    }
    return { bytes: content, offset: 0 };
  }

  /**
   * What other groups need of a group.
   * @param {number} index
   * @param {number} rendition
   * @param {(count: number) => void} [onBytes]
   * @param {AbortSignal} [signal]
   * @returns {Promise<Piece>}
   */
  async bringScene(index, rendition, onBytes, signal) {
    const { url, sceneBytes } = this.segments[rendition][index];
    return { bytes: await this.fetcher(url, [0, sceneBytes], sceneBytes, onBytes, signal), offset: 0 };
  }

  close() {}
}
