// Decoding moving `.splc` scenes in JavaScript: what users of it call. Loaded for moving scenes only.
//
//     openMoving(bytes, Blob, URL or stream) -> head, index; groups as they come where there is none
//     scene.frame(k)                         -> one frame, wherever it is
//     for await (scene.frames(...))          -> frames in order
//
//     bytes -> sequence.js -> containers of groups -> base.js, motion.js -> frames.js    (motion)
//                                                  -> columns.js -> planes.js            (video)

import { located, SplcError } from "./container.js";
import { baseBytes, decodeBase, joinedBase } from "./base.js";
import "./columns.js";
import { Coder } from "./entropy.js";
import { MotionGroup } from "./frames.js";
import { decodeTrajectories, parseMotion, Trajectories } from "./motion.js";
import "./packing.js";
import { VideoGroup } from "./planes.js";
import { Container, groupHead, nameOf, SequenceFile, VIDEO } from "./sequence.js";
import { sourceOf } from "./source.js";

/** @typedef {import("./base.js").Base} Base */
/** @typedef {import("./frames.js").FrameArrays} FrameArrays */
/** @typedef {import("./planes.js").OpenPictures} OpenPictures */
/** @typedef {import("./sequence.js").GroupEntry} GroupEntry */
/** @typedef {import("./source.js").Input} Input */
/** @typedef {import("./source.js").SourceOptions} SourceOptions */
/** @typedef {MotionGroup | VideoGroup} Group */

/**
 * @typedef {object} MovingOptions
 * @property {OpenPictures} [openPictures] what decodes the pictures of video groups; in pages `openPictures` of pictures.js
 * @property {boolean} [plain] do without WebAssembly
 * @property {number} [maxBytes] refuse groups that need more memory, 1 GiB if not given
 */

const MAX_BYTES = 2 ** 30;
/** Scenes that later groups may use and that are kept decoded. */
const KEPT = 2;

/** Decodes groups one after another, and keeps the scenes that the next ones may use. */
export class GroupDecoder {
  /** @param {MovingOptions} [options] */
  constructor({ openPictures, plain = false, maxBytes = MAX_BYTES } = {}) {
    this.options = { openPictures, plain, maxBytes };
    /** @type {Map<number, Base>} */
    this.bases = new Map();
    this.coder = new Coder();
  }

  /**
   * @param {Uint8Array} bytes of the group's container
   * @param {Pick<GroupEntry, "offset"> & Partial<GroupEntry>} entry where it is in the file, and what the index says of it
   * @param {(number: number) => Promise<{ bytes: Uint8Array, offset: number }>} fetchScene brings the container of another
   *     group, whose scene this one uses
   * @returns {Promise<Group>}
   */
  async decode(bytes, entry, fetchScene) {
    const container = new Container(bytes, entry.offset);
    const head = groupHead(container);
    const same = /** @type {const} */ (["number", "firstFrame", "numFrames", "scene"]).every(
      (key) => entry[key] === undefined || entry[key] === head[key],
    );
    if (!same || container.length !== bytes.length) {
      throw new SplcError("format", "the group is not the one that the index names", entry.offset, "GRPH");
    }
    const { maxBytes, openPictures } = this.options;
    if (head.coding === VIDEO) {
      const chunk = container.one("VGRP");
      return container.use(chunk, (payload) => {
        const group = new VideoGroup(payload, head.numFrames, { maxBytes, openPictures });
        if (group.count < chunk.count) throw new SplcError("format", "fewer Gaussians than announced", 0);
        return group;
      });
    }
    const base = await this.baseOf(container, head, fetchScene);
    const motion = container.use(container.one("MOTN"), (chunk) => parseMotion(chunk, head.numFrames, base.shDegree));
    const entries = container.all("TRAJ");
    const fits = entries.length === base.tiles.length && entries.every(({ level, tile, count }, k) => {
      return level === 1 && tile === base.tiles[k].number && count === base.tiles[k].count;
    });
    if (!fits) throw new SplcError("format", "the tiles of the motion are not those of the base", entry.offset, "TRAJ");
    const width = motion.columns[motion.columns.length - 1];
    const needed = base.count * (8 * width + 24 + baseBytes(base.shDegree));
    if (needed > maxBytes) throw new SplcError("limit", `the motion of a group would need ${needed} bytes`, entry.offset, "MOTN");
    const paths = new Trajectories(motion, base.count);
    entries.forEach((chunk, k) => {
      container.use(chunk, (payload) => decodeTrajectories(motion, payload, base, base.tiles[k], paths, this.coder));
    });
    return new MotionGroup(base, motion, paths);
  }

  /**
   * The base of a group: its own, an earlier group's, or both.
   * @param {Container} container
   * @param {{ number: number, scene: number }} head
   * @param {(number: number) => Promise<{ bytes: Uint8Array, offset: number }>} fetchScene
   */
  async baseOf(container, { number, scene }, fetchScene) {
    const { options } = this;
    const own = scene === number || container.all("PARM").length ? await decodeBase(container, options) : null;
    if (scene === number) {
      this.remember(scene, /** @type {Base} */ (own));
      return /** @type {Base} */ (own);
    }
    let base = this.bases.get(scene);
    if (!base) {
      const { bytes, offset } = await fetchScene(scene);
      const earlier = new Container(bytes, offset);
      const head = groupHead(earlier);
      if (head.scene !== scene || head.number !== scene) {
        const message = `group ${scene} has no scene of its own that group ${number} could use`;
        throw new SplcError("format", message, container.base, "GRPH");
      }
      this.remember(scene, (base = await decodeBase(earlier, options)));
    }
    return own ? joinedBase(base, own, container) : base;
  }

  /**
   * @param {number} number
   * @param {Base} base
   */
  remember(number, base) {
    this.bases.delete(number);
    this.bases.set(number, base);
    for (const oldest of this.bases.keys()) if (this.bases.size > KEPT) this.bases.delete(oldest);
  }
}

/**
 * The error with the name of its group.
 * @param {unknown} error
 * @param {GroupEntry} entry
 */
function inGroup(error, entry) {
  const name = nameOf(entry);
  if (error instanceof SplcError && error.chunk && !error.chunk.startsWith("group")) {
    error.chunk = `${name}, ${error.chunk}`;
    error.describe();
  }
  return located(error, name, entry.offset);
}

/** An open moving scene. */
export class MovingFile {
  /**
   * @param {SequenceFile} sequence
   * @param {MovingOptions & SourceOptions} options
   */
  constructor(sequence, options) {
    this.sequence = sequence;
    this.decoder = new GroupDecoder(options);
    this.onNotice = options.onNotice;
    /** @type {{ entry: GroupEntry, group: Group } | null} */
    this.current = null;
  }

  get fps() {
    return this.sequence.fps;
  }

  /** Frames up to the end of the last group that is known, gaps included; all, once `ended`. */
  get numFrames() {
    return this.sequence.numFrames;
  }

  /** Whether no more groups are to be found. */
  get ended() {
    return this.sequence.ended;
  }

  /** Whether the file has its index; else it was cut off, or is still coming. */
  get complete() {
    return this.sequence.complete;
  }

  /** Groups that are known. */
  get groups() {
    return this.sequence.groups;
  }

  /** A line for each stretch of bytes that is no group. */
  get gaps() {
    return this.sequence.gaps;
  }

  get meta() {
    return this.sequence.meta;
  }

  /** Find all groups of a file without an index. */
  async findAll() {
    while (await this.sequence.more());
    this.tellCut();
    return this.groups;
  }

  tellCut() {
    const { complete, ended, cut } = this.sequence;
    if (ended && !complete && !this.told) {
      this.told = true;
      const where = cut === null ? "it has no index" : `it is cut off or damaged from byte ${cut} on`;
      this.onNotice?.(`the file was not finished: ${where}; its frames end at ${this.numFrames}`);
    }
  }

  told = false;

  /**
   * A group, decoded.
   * @param {GroupEntry} entry
   * @returns {Promise<Group>}
   */
  async group(entry) {
    if (this.current?.entry === entry) return this.current.group;
    this.current?.group.close();
    this.current = null;
    try {
      const bytes = await this.sequence.readGroup(entry);
      const group = await this.decoder.decode(bytes, entry, async (number) => {
        const scene = this.sequence.numbered(number);
        try {
          return { bytes: await this.sequence.readGroup(scene), offset: scene.offset };
        } catch (error) {
          if (!(error instanceof SplcError) || error.code !== "parameter") throw error;
          throw new SplcError("format", `the stream has passed ${nameOf(scene)}, whose scene it uses`, entry.offset, "GRPH");
        }
      });
      this.current = { entry, group };
      return group;
    } catch (error) {
      throw inGroup(error, entry);
    }
  }

  /**
   * One frame.
   * @param {number} number
   * @returns {Promise<FrameArrays>}
   */
  async frame(number) {
    const entry = Number.isInteger(number) ? await this.sequence.groupOf(number) : null;
    if (!entry) {
      this.tellCut();
      if (!(number >= 0 && number < this.numFrames && Number.isInteger(number))) throw new SplcError("parameter", `there is no frame ${number}, the scene has ${this.numFrames}`);
      throw new SplcError("format", `frame ${number} is in a gap of the file`, this.sequence.head.length, "sequence");
    }
    const group = await this.group(entry);
    try {
      return await group.arrays(number - entry.firstFrame);
    } catch (error) {
      throw inGroup(error, entry);
    }
  }

  /**
   * Frames in order, as far as there are any; of a stream this is possible once.
   * @param {{ start?: number, stop?: number, keepGoing?: boolean }} [options] `keepGoing`: leave out groups that are
   *     damaged, each told to `onNotice`
   * @returns {AsyncGenerator<FrameArrays & { number: number }, void, void>}
   */
  async *frames({ start = 0, stop = Infinity, keepGoing = false } = {}) {
    for (let number = start; number < stop; ) {
      const entry = await this.sequence.groupOf(number);
      if (!entry) {
        const next = this.groups.find(({ firstFrame }) => firstFrame > number);
        if (!next) break;
        const gap = `frames ${number} to ${next.firstFrame - 1} are missing`;
        if (!keepGoing) throw new SplcError("format", gap, this.sequence.head.length, "sequence");
        this.onNotice?.(gap);
        number = next.firstFrame;
        continue;
      }
      const end = Math.min(stop, entry.firstFrame + entry.numFrames);
      try {
        const group = await this.group(entry);
        for (; number < end; number++) yield { number, ...(await group.arrays(number - entry.firstFrame)) };
      } catch (error) {
        const damage = inGroup(error, entry);
        if (!keepGoing || !(damage instanceof SplcError) || damage.code === "network") throw damage;
        this.onNotice?.(`${nameOf(entry)} is damaged: ${damage.message}`);
        number = end;
      }
    }
    this.tellCut();
  }

  close() {
    this.current?.group.close();
    this.sequence.source.close();
  }
}

/**
 * Open a moving scene: its head is read and checked, and its index, if there is one.
 * @param {Input} input
 * @param {MovingOptions & SourceOptions} [options]
 * @returns {Promise<MovingFile>}
 */
export async function openMoving(input, options = {}) {
  const source = await sourceOf(input, options);
  try {
    return new MovingFile(await SequenceFile.open(source), options);
  } catch (error) {
    source.close();
    throw error;
  }
}

export { SplcError };
