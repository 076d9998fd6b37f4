// A moving scene in the player: frames as they come from the loader, the clock, what is in the textures, sound.
//
//     clip_loader.js (Worker) -> frames -> sorter (Worker): the order for the camera of now -> shown when their time comes
//
// A frame changes records of some blocks; the first one of a group brings all of them, into the half of the textures that
// is not shown. A frame is shown with the order that was made for it. Takes the place of a Scene (scene.js) in the player.

import { BLOCK } from "./renderer.js";
import { extentOf } from "./scene.js";

/** @typedef {import("./camera.js").View} View */
/** @typedef {import("./renderer.js").Renderer} Renderer */
/** @typedef {import("./scene.js").SceneEvents} SceneEvents */
/** @typedef {import("./decoder/packing.js").Update} Update */

/**
 * A frame as the loader hands it over.
 * @typedef {object} Frame
 * @property {number} epoch
 * @property {number} number
 * @property {number} group
 * @property {number} rendition
 * @property {{ blocks: number, counts: Uint16Array, nodes: Uint8Array, shDegree: number } | null} first how blocks are laid
 *     out, of the first frame of a group
 * @property {Update} update
 * @property {Float64Array} nodes 15 numbers each
 * @property {number} count Gaussians
 * @property {number} bytes
 * @property {Layout} layout
 * @property {"queued" | "sorting" | "ready"} state
 * @property {{ order: Uint32Array, count: number } | null} order
 */

/** @typedef {{ base: number, blocks: number, counts: Uint16Array, nodes: Uint8Array, shDegree: number, count: number }} Layout */

/**
 * What a page is told of a moving scene.
 * @typedef {object} ClipState
 * @property {number} frame
 * @property {number} numFrames
 * @property {boolean} ended whether all frames are known
 * @property {number} fps
 * @property {number} time seconds
 * @property {number} duration
 * @property {boolean} playing
 * @property {boolean} waiting it would play, but frames are missing
 * @property {boolean} looping
 * @property {number[][]} buffered first frames and ends of what is fetched
 * @property {string} quality name of what is shown
 * @property {string[]} qualities
 * @property {number} dropped frames that were due and not shown
 * @property {boolean} hasSound
 * @property {boolean} muted
 */

/** Frames that must be there before playing goes on. */
const RESUME_FRAMES = 4;
/** Gaussians of the first frame that say where the scene is. */
const SAMPLES = 1024;

export class Clip {
  /**
   * @param {Renderer} renderer
   * @param {number} budget Gaussians
   * @param {SceneEvents} events
   * @param {{ loader: Worker, sorter: Worker }} workers
   * @param {{ autoplay?: boolean, muted?: boolean, crossOrigin?: boolean, ahead?: number }} [options]
   */
  constructor(renderer, budget, events, { loader, sorter }, { autoplay = true, muted = false, crossOrigin = false, ahead } = {}) {
    this.renderer = renderer;
    this.budget = budget;
    this.events = events;
    this.loader = loader;
    this.sorter = sorter;
    this.crossOrigin = crossOrigin;
    /** What the loader says of the scene. @type {any} */
    this.about = null;
    /** @type {import("./scene.js").Facts | null} */
    this.facts = null;
    /** Of a Scene, here without meaning. @type {never[]} */
    this.uploads = [];
    /** @type {never[]} */
    this.places = [];
    this.received = 0;
    this.peakBytes = this.decoderBytes = 0;
    this.heldBytes = 0;
    this.closed = false;
    /** @type {Frame[]} */
    this.queue = [];
    /** Shown frame. @type {Frame | null} */
    this.shown = null;
    /** Layout that the next frames belong to. @type {Layout | null} */
    this.layout = null;
    this.capacity = 0;
    this.degree = -1;
    this.epoch = 0;
    /** Epoch in which no more frames come. */
    this.over = -1;
    this.dropped = 0;
    /** Frames shown, for tests. */
    this.shows = 0;
    /** @type {Set<number>} */
    this.groupsShown = new Set();
    /** Whether there is something new to draw; whether the textures were made anew, and hold nothing yet. */
    this.fresh = false;
    this.empty = false;
    this.wantsPlay = autoplay;
    this.looping = true;
    this.waiting = true;
    this.hiddenPage = false;
    /** Frame position when the clock was started, and when that was. */
    this.clockFrame = 0;
    this.clockAt = 0;
    this.running = false;
    this.buffered = /** @type {number[][]} */ ([]);
    this.quality = 0;
    this.rate = 0;
    /** @type {View | null} */
    this.view = null;
    this.tangents = [1, 1, 1, 1];
    this.width = this.height = 0;
    this.stale = false;
    this.sorting = false;
    this.sortMs = 0;
    this.sortId = 0;
    this.drawnBlocks = 0;
    /** @type {number[]} */
    this.samples = [];
    /** @type {HTMLAudioElement | null} */
    this.audio = null;
    this.muted = muted;
    /** Whether the sound is what the clock goes by. */
    this.audioLeads = false;
    loader.onmessage = ({ data }) => this.hear(data);
    sorter.onmessage = ({ data }) => this.sorted(data);
    loader.postMessage({ ask: "begin", budget, ahead });
  }

  // --- the loader --------------------------------------------------------------------------------------------------

  /** @param {any} message */
  hear(message) {
    if (this.closed) return;
    const { say } = message;
    if (say === "opened") this.opened(message);
    else if (say === "frame") this.arrived(message);
    else if (say === "end") this.over = message.epoch;
    else if (say === "span") Object.assign(this.about, { numFrames: message.numFrames, ended: message.ended });
    else if (say === "notice") this.events.notice(message.message);
    else if (say === "damage") this.events.damage(message.error);
    else if (say === "error") this.events.failed(message.error);
    else if (say === "state") {
      this.received = message.received;
      this.buffered = message.buffered;
      this.quality = message.quality;
      this.rate = message.rate;
      this.events.told?.();
    }
  }

  /** @param {any} about */
  opened(about) {
    this.about = about;
    const { size, meta, audio } = about;
    this.facts = { version: "", size, numGaussians: 0, shDegree: 0, levels: [], parts: [], meta, boxes: null, growing: false };
    if (audio && typeof Audio !== "undefined") this.openAudio(audio);
    this.events.opened(this.facts);
  }

  /** @param {Frame} frame */
  arrived(frame) {
    if (frame.epoch !== this.epoch) return;
    const { first, count } = frame;
    if (first) this.layout = { base: 0, ...first, count };
    if (count > 1.25 * this.budget) {
      const message = `a frame of ${count} Gaussians is more than this device may hold (${this.budget})`;
      return this.events.failed({ message, code: "limit" });
    }
    frame.layout = /** @type {Layout} */ (this.layout);
    frame.state = "queued";
    frame.order = null;
    this.heldBytes += frame.bytes;
    this.queue.push(frame);
    this.events.changed();
  }

  // --- the clock ---------------------------------------------------------------------------------------------------

  /** Frames a second. */
  get fps() {
    return this.about?.fps ?? 30;
  }

  /** The position of the clock, in frames; may be behind the end, where it goes round. */
  get position() {
    if (!this.running) return this.clockFrame;
    if (this.audioLeads && this.audio && !this.audio.paused && !this.audio.ended) return this.audio.currentTime * this.fps;
    return this.clockFrame + ((performance.now() - this.clockAt) / 1000) * this.fps;
  }

  /** @param {number} frame */
  startClock(frame) {
    this.clockFrame = frame;
    this.clockAt = performance.now();
    this.running = true;
    const { audio } = this;
    if (!audio) return;
    const time = frame / this.fps;
    if (audio.duration > 0 && time >= audio.duration) {
      this.audioLeads = false;
      return;
    }
    // Small steps of the sound would be heard.
    if (Math.abs(audio.currentTime - time) > 0.08) audio.currentTime = time;
    audio.muted = this.muted;
    this.audioLeads = false;
    audio.play().then(
      () => {
        if (this.running) this.audioLeads = true;
        else audio.pause();
      },
      () => {
        // Pages may make a sound only after somebody has touched them.
        if (this.muted) return;
        this.muted = true;
        this.events.notice("The browser lets sound begin only when you ask for it: press Sound.");
        if (this.running) this.startClock(this.position);
      },
    );
  }

  stopClock() {
    this.clockFrame = this.position;
    this.running = false;
    this.audioLeads = false;
    this.audio?.pause();
  }

  /** @param {string} address */
  openAudio(address) {
    const audio = new Audio();
    if (this.crossOrigin) audio.crossOrigin = "anonymous";
    audio.preload = "auto";
    audio.onended = () => {
      // What comes after the sound goes by the clock.
      if (!this.running) return;
      this.audioLeads = false;
      this.clockFrame = audio.duration * this.fps;
      this.clockAt = performance.now();
    };
    audio.onerror = () => {
      if (this.audio !== audio || this.closed) return;
      this.audio = null;
      this.audioLeads = false;
      this.events.notice("The sound cannot be played.");
    };
    audio.src = address;
    this.audio = audio;
  }

  // --- frames ------------------------------------------------------------------------------------------------------

  /** Once a frame of the screen: show what is due; returns whether there will be more. */
  upload() {
    this.peakBytes = Math.max(this.peakBytes, this.heldBytes + this.cpuBytes);
    this.prepare();
    const { queue } = this;
    if (!this.shown || this.shown.epoch !== this.epoch) {
      // The first frame of all, or after a seek, as soon as it is there.
      if (queue[0]?.state === "ready") {
        this.show();
        this.prepare();
      }
      return true;
    }
    if (!this.wantsPlay || this.hiddenPage) return false;
    if (!this.running) {
      this.waiting = true;
      if ((queue.length < RESUME_FRAMES && this.over !== this.epoch) || (queue.length && queue[0].state !== "ready")) return true;
      if (!queue.length) {
        this.stop();
        return false;
      }
      this.waiting = false;
      this.startClock(this.shown.number);
    }
    this.showDue();
    return true;
  }

  /** Show frames whose time has come; the last of them will be drawn. */
  showDue() {
    const { queue } = this;
    for (let count = 0; this.running; count++) {
      const shown = /** @type {Frame} */ (this.shown);
      const [next] = queue;
      if (this.position < shown.number + 1) return;
      if (!next) {
        if (this.over !== this.epoch) return this.starve();
        this.stopClock();
        this.clockFrame = shown.number;
        this.wantsPlay = false;
        this.events.told?.();
        return;
      }
      // From the end to the beginning, or behind a gap, it goes on at once, and the clock with it.
      const jumps = next.number !== shown.number + 1;
      if (next.state !== "ready") return jumps ? this.starve() : undefined;
      if (count) this.dropped++;
      this.show();
      if (jumps) this.startClock(next.number);
      this.prepare();
      if (jumps) return;
    }
  }

  /** Nothing is there to be shown: the clock waits. */
  starve() {
    this.stopClock();
    if (this.shown) this.clockFrame = this.shown.number;
    this.waiting = true;
    this.events.told?.();
  }

  /** Have the next frame sorted, for the camera of now. */
  prepare() {
    const { shown } = this;
    // A player at rest wants no frame but the one it stands at.
    const stands = shown?.epoch === this.epoch && !this.wantsPlay;
    if (stands || this.sorting || this.queue[0]?.state !== "queued") return;
    while (this.maySkip()) this.skip();
    const [next] = this.queue;
    next.state = "sorting";
    const { layout, first } = next;
    if (first) {
      // The half that is not shown, as far as textures reach; else they are made anew.
      const half = this.capacity >> 1;
      layout.base = shown && shown.layout.base === 0 ? half : 0;
      if (first.blocks > half || first.shDegree !== this.degree) this.grow(first);
      // From now on the sorter sees the new group; the old one stays in the picture until its order is there.
      const all = Int32Array.from({ length: this.capacity }, (_, k) => k);
      this.sorter.postMessage({ ask: "show", blocks: all, shown: false });
    }
    const blocks = this.put(next);
    if (first) {
      this.sorter.postMessage({ ask: "show", blocks, shown: true });
      this.fill(next);
    }
    this.ask(next);
  }

  /**
   * Tell the sorter where Gaussians are.
   * @param {Frame} frame
   */
  put({ layout, update: { blocks: own, records, boxes } }) {
    const blocks = own.map((block) => block + layout.base);
    const sizes = Uint16Array.from(own, (block) => layout.counts[block]);
    const nodes = Uint8Array.from(own, (block) => layout.nodes[block]);
    this.sorter.postMessage({ ask: "put", blocks, records, boxes, sizes, nodes });
    return blocks;
  }

  /** Whether the next frame comes too late, as the one behind it is due already; of each group some frame is shown. */
  maySkip() {
    const [late, next] = this.queue;
    if (!this.running || !next || next.number !== late.number + 1 || this.position < next.number) return false;
    return !next.first || this.shown?.group === late.group;
  }

  /** Leave out a frame whose time has passed: what it changes is needed all the same, unless a group ends with it. */
  skip() {
    const [late, next] = this.queue;
    if (late.first && !next.first) {
      // What all others of the group build on is not left out, but the next one can be in its place.
      next.first = late.first;
      next.update = merged(late.update, next.update);
    } else if (!next.first) {
      this.put(late);
      this.fill(late);
    }
    this.queue.shift();
    this.dropped++;
    this.take(late);
  }

  /**
   * A frame is done with: the loader may make another.
   * @param {Frame} frame
   */
  take(frame) {
    const { bytes, epoch, number } = frame;
    this.heldBytes -= bytes;
    frame.update = { ...frame.update, records: new Uint32Array(0), boxes: new Float32Array(0), sh: [] };
    this.loader.postMessage({ ask: "taken", epoch, frame: number, bytes });
  }

  /**
   * Larger textures, twice what a group needs and some more. What is in the picture is gone, but for the picture.
   * @param {{ blocks: number, shDegree: number }} first
   */
  grow({ blocks, shDegree }) {
    const { renderer } = this;
    renderer.cameras ??= new Float64Array(12);
    renderer.resize(Math.ceil(2.2 * blocks) + 16, shDegree);
    this.capacity = renderer.capacity;
    this.degree = shDegree;
    this.empty = true;
    this.queue[0].layout.base = 0;
    this.sorter.postMessage({ ask: "size", capacity: this.capacity });
  }

  /**
   * Put what a frame changes into the textures.
   * @param {Frame} frame
   */
  fill({ layout, update, first }) {
    const { renderer } = this;
    const { base } = layout;
    const { blocks, records, boxes, shBlocks, sh } = update;
    runs(blocks, (from, size) => {
      renderer.upload("records", base + blocks[from], BLOCK * size, BLOCK, records, 4 * BLOCK * from);
      renderer.upload("boxes", base + blocks[from], 4 * size, 4, boxes, 16 * from);
    });
    runs(shBlocks, (from, size) => {
      sh.forEach((texels, k) => renderer.upload(`sh${k}`, base + shBlocks[from], BLOCK * size, BLOCK, texels, 4 * BLOCK * from));
    });
    if (first) renderer.setLook(base, first.blocks, 0, 1, first.shDegree > 0, first.nodes);
  }

  /**
   * Ask for the order of a frame.
   * @param {Frame} frame
   */
  ask(frame) {
    const view = this.view ?? firstView(frame);
    this.sorting = true;
    const { position, rows, near } = view;
    const cameras = camerasOf(view, frame.nodes);
    this.sorter.postMessage({ ask: "sort", id: ++this.sortId, view: { position, rows, near, tangents: this.view ? this.tangents : [9, 9, 9, 9], cameras } });
  }

  /** @param {{ id: number, order: Uint32Array, count: number, blocks: number, ms: number }} answer */
  sorted({ order, count, blocks, ms }) {
    this.sorting = false;
    if (this.closed || this.renderer.gl.isContextLost()) return;
    this.sortMs = ms;
    this.drawnBlocks = blocks;
    const [next] = this.queue;
    if (next?.state === "sorting") {
      next.state = "ready";
      next.order = { order, count };
    } else if (this.shown && this.shown.epoch === this.epoch) {
      // The camera has moved while the picture stands.
      this.renderer.setOrder(order, count);
      this.fresh = true;
    }
    this.events.changed();
  }

  /** Show the next frame, which is ready. */
  show() {
    const { renderer } = this;
    const frame = /** @type {Frame} */ (this.queue.shift());
    if (!frame.first) this.fill(frame);
    if (frame.order) renderer.setOrder(frame.order.order, frame.order.count);
    frame.order = null;
    const begins = !this.shown;
    this.shown = frame;
    this.shows++;
    this.groupsShown.add(frame.group);
    if (!this.samples.length) this.sample(frame);
    if (this.view) renderer.cameras = camerasOf(this.view, frame.nodes);
    this.empty = false;
    // What it brought is in the textures, and in the sorter.
    this.take(frame);
    if (!this.running) this.clockFrame = frame.number;
    this.fresh = true;
    if (begins) {
      this.waiting = false;
      this.events.complete(this.received);
    }
    this.events.told?.();
  }

  // --- what the player asks of a scene -----------------------------------------------------------------------------

  /** All is asked for by the loader. */
  plan() {}

  /** @param {Omit<import("./loader.js").LoaderQuestion, "ask">} _ */
  open(_) {}

  /**
   * The camera is here now.
   * @param {View} view
   * @param {number} width
   * @param {number} height
   */
  look(view, width, height) {
    const { position, rows, fx, fy, cx, cy } = view;
    const old = this.view;
    this.tangents = [cx / fx, (width - cx) / fx, cy / fy, (height - cy) / fy];
    const moved = !old || rows.some((x, k) => x !== old.rows[k]) || position.some((x, k) => x !== old.position[k]) || old.fx !== fx;
    if (moved) this.stale = true;
    if (moved || width !== this.width || height !== this.height) this.fresh = true;
    [this.width, this.height] = [width, height];
    this.view = { ...view, rows: [...rows], position: [position[0], position[1], position[2]] };
    if (this.shown) this.renderer.cameras = camerasOf(view, this.shown.nodes);
  }

  /** Sort again for another camera, if no frame that comes does that anyway. */
  sort() {
    const { shown } = this;
    if (!this.stale || this.sorting || !shown || shown.epoch !== this.epoch) return;
    const [next] = this.queue;
    if (next && (next.state === "sorting" || (this.running && this.fps > 12))) return;
    this.stale = false;
    this.ask(shown);
  }

  get hasPicture() {
    return !!this.shown;
  }

  get settled() {
    return !!this.shown && this.shown.epoch === this.epoch && !this.sorting && (!this.stale || this.running);
  }

  get shownGaussians() {
    return this.shown?.layout.count ?? 0;
  }

  /** Bytes that are kept beside records: the sorter's, and the order, there and in a texture. */
  get cpuBytes() {
    return this.capacity * (10 * BLOCK + 69) + this.renderer.orderBytes;
  }

  /** Where the scene is, by its first frame. */
  extent() {
    return extentOf(this.samples);
  }

  /**
   * Where some Gaussians of the first frame are.
   * @param {Frame} frame
   */
  sample({ update: { records, boxes, blocks }, layout, nodes }) {
    const total = layout.counts.reduce((sum, count) => sum + count, 0);
    const step = Math.max(1, Math.ceil(total / SAMPLES));
    let at = 0;
    blocks.forEach((block, k) => {
      const node = layout.nodes[block];
      for (let i = 0; i < layout.counts[block]; i++) {
        if (at++ % step || this.samples.length >= 4 * SAMPLES) continue;
        const from = 4 * (BLOCK * k + i);
        const q = [records[from] & 65535, records[from] >>> 16, records[from + 1] & 65535];
        let mean = q.map((x, axis) => boxes[16 * k + axis] + x * boxes[16 * k + 3 + axis]);
        if (node) {
          const m = nodes.subarray(15 * (node - 1), 15 * node);
          const d = mean.map((x, axis) => x - m[9 + axis]);
          mean = [0, 3, 6].map((r, axis) => m[r] * d[0] + m[r + 1] * d[1] + m[r + 2] * d[2] + m[12 + axis]);
        }
        this.samples.push(...mean, (records[from + 3] >>> 24) / 255);
      }
    });
  }

  /** A lost context is back: the shown frame comes again. */
  restore() {
    this.capacity = 0;
    this.degree = -1;
    this.layout = null;
    this.sorting = false;
    if (this.about) this.seekFrame(this.shown?.number ?? 0);
  }

  /** @param {boolean} paused the page is hidden */
  pause(paused = true) {
    this.hiddenPage = paused;
    if (paused && this.running) this.stopClock();
    if (this.shown && paused) this.clockFrame = this.shown.number;
    this.loader.postMessage({ ask: "pause", paused });
  }

  close() {
    this.closed = true;
    this.stopClock();
    this.loader.terminate();
    this.sorter.terminate();
    if (this.audio) {
      this.audio.onended = this.audio.onerror = null;
      this.audio.removeAttribute("src");
      this.audio.load();
    }
    this.audio = null;
    this.queue = [];
    this.shown = null;
    this.renderer.cameras = null;
  }

  // --- what people ask ---------------------------------------------------------------------------------------------

  play() {
    const { about, shown } = this;
    this.wantsPlay = true;
    if (about?.ended && shown?.number === about.numFrames - 1 && !this.looping) this.seekFrame(0);
    this.events.changed();
    this.events.told?.();
  }

  /** Stand still. */
  stop() {
    this.wantsPlay = false;
    if (this.running) this.stopClock();
    if (this.shown) this.clockFrame = this.shown.number;
    // The sorter may see another group already; then that is what is shown.
    const [next] = this.queue;
    if (next && next.state !== "queued" && next.first) this.seekFrame(next.number);
    this.waiting = false;
    this.events.changed();
    this.events.told?.();
  }

  /** @param {number} number of a frame */
  seekFrame(number) {
    if (!this.about) return;
    const frame = Math.max(0, Math.min(this.about.numFrames - 1, Math.round(number)));
    if (this.running) this.stopClock();
    this.clockFrame = frame;
    this.epoch++;
    this.heldBytes = 0;
    this.queue = [];
    this.waiting = true;
    this.loader.postMessage({ ask: "seek", epoch: this.epoch, frame });
    this.events.changed();
    this.events.told?.();
  }

  /** @param {boolean} looping */
  loop(looping) {
    this.looping = looping;
    this.over = -1;
    this.loader.postMessage({ ask: "loop", looping });
    // Frames of another round may wait already.
    if (!looping && this.shown && this.queue.some(({ number }) => number <= /** @type {Frame} */ (this.shown).number)) {
      this.seekFrame(this.shown.number);
    }
    this.events.told?.();
  }

  /** @param {boolean} muted */
  mute(muted) {
    this.muted = muted;
    if (this.audio) {
      this.audio.muted = muted;
      if (!muted && this.running && this.audio.paused) this.startClock(this.position);
    }
    this.events.told?.();
  }

  /** @param {number} quality number of a quality, -1 for what the link can take */
  setQuality(quality) {
    this.loader.postMessage({ ask: "quality", quality });
  }

  /** @returns {ClipState | null} */
  get state() {
    const { about, shown } = this;
    if (!about) return null;
    const { fps, numFrames, ended, renditions } = about;
    const frame = this.shown?.epoch === this.epoch ? /** @type {Frame} */ (shown).number : this.clockFrame;
    return {
      frame, numFrames, ended, fps, time: frame / fps, duration: numFrames / fps, playing: this.wantsPlay,
      waiting: this.wantsPlay && this.waiting, looping: this.looping, buffered: this.buffered,
      quality: renditions[shown?.rendition ?? this.quality]?.id ?? "", qualities: renditions.map((/** @type {any} */ r) => r.id),
      dropped: this.dropped, hasSound: !!this.audio, muted: this.muted,
    };
  }
}

/**
 * All of a group's blocks, as a later frame has them.
 * @param {Update} all of all blocks
 * @param {Update} later of some
 * @returns {Update}
 */
function merged(all, later) {
  const put = (/** @type {any} */ out, /** @type {any} */ own, /** @type {Int32Array} */ places, /** @type {number} */ width) =>
    places.forEach((block, k) => out.set(own.subarray(width * k, width * (k + 1)), width * block));
  put(all.records, later.records, later.blocks, 4 * BLOCK);
  put(all.boxes, later.boxes, later.blocks, 16);
  later.sh.forEach((texels, k) => put(all.sh[k], texels, later.shBlocks, 4 * BLOCK));
  return all;
}

/**
 * Runs of blocks that follow each other.
 * @param {Int32Array} blocks
 * @param {(from: number, size: number) => void} work
 */
function runs(blocks, work) {
  for (let from = 0, at = 1; from < blocks.length; at++) {
    if (at < blocks.length && blocks[at] === blocks[at - 1] + 1) continue;
    work(from, at - from);
    from = at;
  }
}

/**
 * The camera as each node's Gaussians see it before the node moves them; node 0 is none.
 * @param {View} view
 * @param {Float64Array} nodes
 */
export function camerasOf({ position, rows }, nodes) {
  const count = nodes.length / 15;
  const out = new Float64Array(12 * (count + 1));
  out.set([...position, ...rows]);
  for (let k = 0; k < count; k++) {
    const m = nodes.subarray(15 * k, 15 * k + 15);
    const at = 12 * (k + 1);
    const d = [0, 1, 2].map((axis) => position[axis] - m[12 + axis]);
    for (let c = 0; c < 3; c++) {
      out[at + c] = m[c] * d[0] + m[3 + c] * d[1] + m[6 + c] * d[2] + m[9 + c];
      for (let r = 0; r < 3; r++) {
        out[at + 3 + 3 * r + c] = rows[3 * r] * m[c] + rows[3 * r + 1] * m[3 + c] + rows[3 * r + 2] * m[6 + c];
      }
    }
  }
  return out;
}

/**
 * Any view, for the first order of all: there is no camera before there is a picture.
 * @param {Frame} frame
 * @returns {View}
 */
function firstView({ update: { boxes } }) {
  return { position: [boxes[0] ?? 0, boxes[1] ?? 0, -1e9], rows: [1, 0, 0, 0, 1, 0, 0, 0, 1], fx: 1, fy: 1, cx: 0, cy: 0, near: 1e-3 };
}
