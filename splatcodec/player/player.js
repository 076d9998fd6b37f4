// The player: a canvas that shows a `.splc` scene while it loads.
//
//     const player = new Player(canvas, { onState: ... });
//     await player.load("scene.splc");      // resolves when there is a first picture
//     player.dispose();
//
// controls -> rig -> view -> scene (what to fetch, what order) -> renderer. A frame is drawn when something has changed.

import { Rig } from "./camera.js";
import { Controls } from "./controls.js";
import { SplcError } from "./decoder/container.js";
import { GraphicsError, Renderer } from "./renderer.js";
import { Scene } from "./scene.js";
import { startLoader, startSorter } from "./workers.js";

/** @typedef {import("./camera.js").View} View */
/** @typedef {import("./clip.js").Clip} Clip */
/** @typedef {import("./scene.js").Facts} Facts */
/** @typedef {{ message: string, code: string }} Failure */

/**
 * @typedef {object} PlayerOptions
 * @property {number} [budget] Gaussians that may be resident; chosen by the device if not given
 * @property {number[]} [background] red, green, blue; else what the file says, else black
 * @property {boolean} [controls] whether people can move the camera (yes)
 * @property {boolean} [cache] whether to keep downloaded chunks in Cache storage (yes)
 * @property {boolean} [otherOrigins] whether a scene may come from another origin (no)
 * @property {boolean} [autoplay] whether moving scenes begin to play by themselves (yes)
 * @property {number} [ahead] seconds of them to be fetched ahead (20)
 * @property {boolean} [muted] whether their sound is off (no)
 * @property {(state: PlayerState) => void} [onState]
 * @property {{ loader: Worker, sorter: Worker }} [workers] that have been started already
 */

/**
 * A scene: an address, a file, bytes, or text in base64.
 * @typedef {string | URL | Blob | Uint8Array | { base64: string }} Input
 */

/**
 * @typedef {object} PlayerState
 * @property {"empty" | "opening" | "loading" | "complete" | "failed"} phase
 * @property {number} received bytes so far
 * @property {number} size bytes of the file, 0 while not known
 * @property {number} gaussians in the picture
 * @property {number} total in the file
 * @property {string[]} notices
 * @property {Failure | null} error
 * @property {import("./clip.js").ClipState | null} clip of a moving scene
 */

/** Frames that take longer lower the resolution while the camera moves. */
const LATE_MS = 40;
const EARLY_MS = 16;
const MIN_SCALE = 0.5;
/** The camera rests when it has not moved for so long. */
const REST_MS = 200;
const REPLAN_MS = 300;

/** Bytes of the first request: header, table of contents and thumbnail of most scenes. */
const FIRST_BYTES = 65536;
/** How long the graphics wait for them. */
const PATIENCE_MS = 150;

/**
 * The answer to the first request for a scene, asked for before anything else is ready. Null if it is not as hoped for;
 * then the loader asks itself.
 * @param {URL} url
 * @returns {Promise<{ bytes: ArrayBuffer, range: string } | null>}
 */
async function prefetch(url) {
  try {
    const aborter = new AbortController();
    const headers = { Range: `bytes=0-${FIRST_BYTES - 1}` };
    const mode = url.origin === location.origin ? "same-origin" : "cors";
    const response = await fetch(url, { headers, mode, credentials: "same-origin", signal: aborter.signal });
    const range = response.headers.get("Content-Range");
    if (response.status === 206 && range?.startsWith("bytes 0-")) return { bytes: await response.arrayBuffer(), range };
    aborter.abort();
  } catch {
    // The loader will say what is wrong.
  }
  return null;
}

/** Gaussians that this device may hold: by its memory where it says, by its screen where not. */
export function deviceBudget() {
  const { deviceMemory = 0, userAgent = "" } = /** @type {any} */ (globalThis.navigator ?? {});
  const phone = /Android|iPhone|iPad|Mobile/.test(userAgent) || (globalThis.matchMedia?.("(pointer: coarse)").matches ?? false);
  if (phone) return deviceMemory && deviceMemory < 4 ? 500_000 : 1_500_000;
  return deviceMemory && deviceMemory < 4 ? 1_500_000 : 4_000_000;
}

/**
 * What the loader is asked to open.
 * @param {Input} input
 * @param {PlayerOptions} options
 * @returns {Omit<import("./loader.js").LoaderQuestion, "ask">}
 */
function askedOf(input, options) {
  if (input instanceof Blob || input instanceof Uint8Array) return { content: input };
  if (typeof input === "object" && "base64" in input) return { content: input.base64 };
  let url;
  try {
    url = new URL(input, document.baseURI);
  } catch {
    throw new SplcError("network", `${input} is not an address`);
  }
  if (!/^https?:$/.test(url.protocol)) throw new SplcError("network", `scenes come over http or https, not ${url.protocol}`);
  const same = url.origin === location.origin;
  if (!same && !options.otherOrigins) {
    throw new SplcError("network", `the scene is on another site (${url.origin}), which this page does not allow`);
  }
  return { url: url.href, sameOrigin: same, cache: options.cache ?? true };
}

const newWorkers = () => ({ loader: startLoader(), sorter: startSorter() });

/** @param {{ loader: Worker, sorter: Worker }} workers */
function endWorkers({ loader, sorter }) {
  loader.terminate();
  sorter.terminate();
}

export class Player {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {PlayerOptions} [options]
   */
  constructor(canvas, options = {}) {
    this.canvas = canvas;
    this.options = options;
    this.budget = options.budget ?? deviceBudget();
    // Workers start while the graphics are made ready.
    /** @type {ReturnType<typeof newWorkers> | null} */
    this.workers = options.workers ?? newWorkers();
    /** Share of the screen's pixels that are drawn, along each side. */
    this.scale = MIN_SCALE;
    try {
      // At its size from the start: to change it later takes time.
      Object.assign(canvas, this.size());
      this.renderer = new Renderer(canvas);
      this.renderer.warm();
    } catch (error) {
      endWorkers(this.workers);
      throw error;
    }
    this.rig = new Rig();
    /** A view that is given instead of the rig's. @type {(View & { width: number, height: number }) | null} */
    this.fixed = null;
    /** @type {Scene | Clip | null} */
    this.scene = null;
    /** The same where it moves. @type {Clip | null} */
    this.clip = null;
    /** @type {string[]} */
    this.notices = [];
    /** @type {Failure | null} */
    this.error = null;
    this.phase = /** @type {PlayerState["phase"]} */ ("empty");
    this.background = options.background ?? [0, 0, 0];
    this.antialiased = false;
    this.frame = 0;
    this.lastFrame = 0;
    this.movedAt = -Infinity;
    /** Whether the GPU is at work, whether another frame is to follow, how long the last one took and when it ended. */
    this.drawing = false;
    this.again = false;
    this.gpuMs = 0;
    this.drawnAt = 0;
    this.planAt = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.resting = undefined;
    this.ready = false;
    this.disposed = false;
    /** Times in ms since the page began. @type {Record<string, number>} */
    this.marks = {};
    /** @type {{ resolve: () => void, reject: (error: unknown) => void } | null} */
    this.waiting = null;
    this.controls = options.controls === false ? null : new Controls(canvas, this.rig, () => this.touch());
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    canvas.addEventListener("webglcontextlost", (event) => this.lost(event), { signal });
    canvas.addEventListener("webglcontextrestored", () => this.restored(), { signal });
    document.addEventListener("visibilitychange", () => this.hidden(), { signal });
    this.resizer = new ResizeObserver(() => this.draw());
    this.resizer.observe(canvas);
  }

  /**
   * A player that shows a scene, sooner than `new Player` and `load`: bytes and Workers come first, and while they decode
   * the graphics are made ready.
   * @param {HTMLCanvasElement} canvas
   * @param {Input} input
   * @param {PlayerOptions} [options]
   * @returns {Promise<Player>} as soon as there is one, which is before the first picture
   */
  static async open(canvas, input, options = {}) {
    const asked = askedOf(input, options);
    const workers = newWorkers();
    const first = asked.url && !/\.json$/i.test(new URL(asked.url).pathname) ? prefetch(new URL(asked.url)) : Promise.resolve(null);
    // On a slow link the graphics are not kept waiting.
    const soon = await Promise.race([first, new Promise((done) => setTimeout(done, PATIENCE_MS, undefined))]);
    if (soon !== undefined) workers.loader.postMessage({ ask: "open", ...asked, first: soon });
    // No pause from here to `show`: what the loader says before somebody listens is lost.
    const player = new Player(canvas, { ...options, workers });
    player.show((scene) => {
      if (soon === undefined) first.then((answer) => scene.open({ ...asked, first: answer }));
    }).catch(() => {});
    return player;
  }

  /**
   * Show another scene.
   * @param {Input} input
   * @returns {Promise<void>} resolves with the first picture
   */
  async load(input) {
    const asked = askedOf(input, this.options);
    return this.show((scene) => scene.open(asked));
  }

  /**
   * @param {(scene: Scene) => void} begin
   * @returns {Promise<void>}
   */
  show(begin) {
    this.unload();
    this.phase = "opening";
    // A thumbnail is coarse; how many pixels the device can draw is known after it.
    this.scale = MIN_SCALE;
    this.marks = { load: performance.now() };
    /** @type {Promise<void>} */
    const picture = new Promise((resolve, reject) => (this.waiting = { resolve, reject }));
    const workers = this.workers ?? newWorkers();
    this.workers = null;
    const scene = new Scene(this.renderer, this.budget, this.events(), workers);
    this.scene = scene;
    begin(scene);
    this.tell();
    return picture;
  }

  /** @returns {import("./scene.js").SceneEvents} */
  events() {
    return {
      opened: (facts) => this.opened(facts),
      changed: () => this.draw(),
      notice: (message) => this.notice(message),
      damage: ({ message }) => this.notice(`A part of the scene is damaged and not shown: ${message}`),
      failed: (error) => this.fail(error),
      complete: () => this.completed(),
      told: () => this.tell(),
      moving: () => this.move(),
    };
  }

  /** The scene moves: what plays it is loaded, and takes its place. */
  async move() {
    const { scene } = this;
    try {
      const { Clip } = await import("./clip.js");
      if (!scene || this.scene !== scene) return;
      const { autoplay = true, muted, ahead, otherOrigins: crossOrigin } = this.options;
      const workers = { loader: scene.loader, sorter: scene.sorter };
      this.clip = this.scene = new Clip(this.renderer, this.budget, this.events(), workers, { autoplay, muted, ahead, crossOrigin });
    } catch (error) {
      this.fail({ message: `a part of the player cannot be loaded: ${/** @type {Error} */ (error).message}`, code: "internal" });
    }
  }

  /** Play a moving scene. */
  play() {
    this.clip?.play();
  }

  /** Let a moving scene stand. */
  pause() {
    this.clip?.stop();
  }

  /** @param {number} seconds from its start */
  seek(seconds) {
    const { clip } = this;
    clip?.seekFrame(Math.floor(seconds * clip.fps + 1e-6));
  }

  /** @param {Facts} facts */
  opened({ meta }) {
    this.marks.opened = performance.now();
    this.phase = "loading";
    this.antialiased = meta.antialiased === true;
    const color = numbers(meta.background);
    this.background = this.options.background ?? (color ? color.map((x) => Math.max(0, Math.min(1, x))) : [0, 0, 0]);
    this.scene?.plan();
    this.tell();
  }

  /** The thumbnail is there: stand where the file says, or where all of it can be seen. */
  stand() {
    const { scene, rig } = this;
    const meta = scene?.facts?.meta ?? {};
    const { center, radius } = /** @type {Scene | Clip} */ (scene).extent();
    const up = numbers(meta.up) ?? upOf(meta.frame);
    const size = Math.hypot(...up);
    rig.extent = { center, radius, up: size > 0 ? [up[0] / size, up[1] / size, up[2] / size] : [0, -1, 0] };
    rig.fit(this.aspect);
    const camera = /** @type {any} */ (meta.camera ?? {});
    const position = numbers(camera.position);
    const forward = numbers(camera.forward);
    const target = numbers(camera.target) ?? (position && forward ? position.map((x, k) => x + radius * forward[k]) : center);
    if (position) rig.lookAt(position, target);
    this.ready = true;
    scene?.look(this.view(), this.canvas.width, this.canvas.height);
    scene?.plan();
  }

  /** The camera as it is now, for the canvas as it is now. */
  view() {
    const { width, height } = this.fixed ?? this.size();
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    return this.fixed ?? this.rig.view(width, height);
  }

  /** Pixels to draw: those of the screen, fewer while frames are late. */
  size() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = Math.min(globalThis.devicePixelRatio || 1, 2) * this.scale;
    return { width: Math.max(1, Math.round(clientWidth * ratio)), height: Math.max(1, Math.round(clientHeight * ratio)) };
  }

  /**
   * Look through a camera of one's own, in a picture of that size; null gives the camera back to people.
   * @param {(View & { width: number, height: number }) | null} view
   */
  setView(view) {
    this.fixed = view;
    this.touch();
  }

  /** Show all of the scene. */
  fit() {
    this.rig.fit(this.aspect);
    this.touch();
  }

  /** Longer side of the canvas over the shorter one. */
  get aspect() {
    const { clientWidth, clientHeight } = this.canvas;
    return Math.max(clientWidth, clientHeight, 1) / Math.max(1, Math.min(clientWidth, clientHeight));
  }

  /** The camera has moved. */
  touch() {
    this.movedAt = performance.now();
    clearTimeout(this.resting);
    // Once more when it rests: with all pixels, and with what is to be fetched for this view.
    this.resting = setTimeout(() => this.draw(), Math.max(REST_MS, REPLAN_MS) + 20);
    this.draw();
  }

  /** Draw soon. */
  draw() {
    if (!this.frame && !this.disposed && !document.hidden) this.frame = requestAnimationFrame((now) => this.render(now));
  }

  /** @param {number} now */
  render(now) {
    this.frame = 0;
    const { scene, renderer } = this;
    if (!scene || renderer.gl.isContextLost()) return;
    const late = now - this.lastFrame;
    this.lastFrame = now;
    try {
      const moving = this.controls?.step(late / 1000) ?? false;
      if (moving) this.touch();
      const more = scene.upload();
      if (more || moving) this.draw();
      if (!this.ready && scene.hasPicture) this.stand();
      if (!this.ready) return;
      const rests = now - this.movedAt > REST_MS && !this.clip?.wantsPlay;
      this.adapt(rests);
      const view = this.view();
      const { width, height } = this.canvas;
      scene.look(view, width, height);
      scene.sort();
      if (this.movedAt > this.planAt && now - this.planAt > REPLAN_MS) {
        this.planAt = now;
        scene.plan();
      }
      // A clip that shows the frame that it showed before is not drawn again.
      if (this.clip && (!this.clip.fresh || this.clip.empty)) return;
      if (this.holdsBack(now, rests)) return;
      if (this.clip) this.clip.fresh = false;
      renderer.draw(view, width, height, this.background, this.antialiased);
      this.measure();
      if (renderer.count && this.waiting) this.pictured();
      this.tell();
    } catch (error) {
      const code = error instanceof GraphicsError ? "graphics" : "internal";
      this.fail({ message: /** @type {Error} */ (error).message, code });
    }
  }

  /**
   * Whether to draw later: frames do not queue up, and on a slow device refinements leave time to decode.
   * @param {number} now
   * @param {boolean} rests
   */
  holdsBack(now, rests) {
    if (this.drawing) {
      this.again = true;
      return true;
    }
    const refining = rests && this.phase === "loading" && !this.waiting;
    const wait = refining && this.gpuMs > LATE_MS ? this.drawnAt + 2 * this.gpuMs - performance.now() : 0;
    if (wait > 0) {
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.draw(), wait);
    }
    return wait > 0;
  }

  /** How long the GPU takes for the frame that was just asked for. */
  measure() {
    const began = performance.now();
    this.drawing = true;
    this.drawn().then(() => {
      this.drawing = false;
      this.drawnAt = performance.now();
      this.gpuMs = this.drawnAt - began;
      if (this.again) this.draw();
      this.again = false;
    });
  }

  /** The first picture is on its way; it counts when the GPU has drawn it. */
  pictured() {
    const { waiting } = this;
    this.waiting = null;
    this.drawn().then(() => {
      if (this.disposed) return;
      this.marks.picture = performance.now();
      performance.mark("splatcodec-picture");
      // Compiled while more is on its way.
      this.renderer.begin(this.renderer.degree);
      waiting?.resolve();
    });
  }

  /** Resolves when the GPU has done what it was asked to. */
  async drawn() {
    const { gl } = this.renderer;
    const sync = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    await new Promise((done) => setTimeout(done, 1));
    while (sync && !this.disposed && !gl.isContextLost() && gl.clientWaitSync(sync, 0, 0) === gl.TIMEOUT_EXPIRED) {
      await new Promise((done) => setTimeout(done, 2));
    }
    gl.deleteSync(sync);
  }

  /**
   * Fewer pixels while frames are late, all of them when the camera rests.
   * @param {boolean} rests
   */
  adapt(rests) {
    // Another size empties the canvas: not while what would fill it has to wait.
    if (this.drawing) return;
    if (this.fixed || (rests && this.phase !== "loading")) this.scale = 1;
    else if (this.gpuMs > LATE_MS) this.scale = Math.max(MIN_SCALE, this.scale * 0.85);
    else if (this.drawnAt && this.gpuMs < EARLY_MS) this.scale = Math.min(1, this.scale * 1.4);
  }

  completed() {
    if (this.phase === "loading") {
      this.phase = "complete";
      this.marks.complete = performance.now();
    }
    const { scene } = this;
    if (scene && this.waiting && !scene.uploads.length && !scene.places.some(({ state }) => state !== "absent")) {
      const damaged = scene.places.some(({ damaged }) => damaged);
      if (damaged) this.fail({ message: "No part of the scene can be shown: it is damaged.", code: "checksum" });
      else this.pictured();
    }
    this.draw();
    this.tell();
  }

  /** @param {string} message */
  notice(message) {
    if (!this.notices.includes(message) && this.notices.length < 20) this.notices.push(message);
    this.tell();
  }

  /** @param {Failure} error */
  fail(error) {
    this.error = error;
    this.phase = "failed";
    this.waiting?.reject(Object.assign(new Error(error.message), { code: error.code }));
    this.waiting = null;
    this.tell();
  }

  /** @returns {PlayerState} */
  get state() {
    const { scene, phase, notices, error } = this;
    return {
      phase, notices, error,
      received: scene?.received ?? 0,
      size: scene?.facts?.size ?? 0,
      gaussians: scene?.shownGaussians ?? 0,
      total: this.clip ? this.clip.shownGaussians : (scene?.facts?.numGaussians ?? 0),
      clip: this.clip?.state ?? null,
    };
  }

  tell() {
    this.options.onState?.(this.state);
  }

  /** @param {Event} event */
  lost(event) {
    if (this.disposed) return;
    // Else the browser does not give it back.
    event.preventDefault();
    this.notice("The graphics device was lost; the scene comes back when it does.");
  }

  restored() {
    if (this.disposed) return;
    this.notices = this.notices.filter((message) => !message.startsWith("The graphics device"));
    this.renderer.create();
    this.scene?.restore();
    this.draw();
    this.tell();
  }

  /** Nothing is drawn, sorted or fetched for a page that nobody sees. */
  hidden() {
    this.scene?.pause(document.hidden);
    if (document.hidden) {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
    } else {
      this.draw();
    }
  }

  /**
   * Resolves when all that is wanted is in the picture and drawn.
   * @param {number} [timeoutMs]
   */
  async settled(timeoutMs = 60_000) {
    const end = performance.now() + timeoutMs;
    while (!(this.phase === "complete" && this.scene?.settled && !this.frame && !this.again && !this.waiting)) {
      if (this.phase === "failed") throw new Error(this.error?.message);
      if (performance.now() > end) throw new Error("the scene does not settle");
      await new Promise((done) => setTimeout(done, 10));
    }
    await this.drawn();
  }

  /** The picture as it is now: bytes red, green, blue, alpha, top row first. */
  snapshot() {
    const view = this.view();
    const { width, height } = this.canvas;
    this.renderer.draw(view, width, height, this.background, this.antialiased);
    return { width, height, pixels: this.renderer.pixels(width, height) };
  }

  /** Bytes of the records, and beside them: what stays, the most there was, and what the decoder took to work in. */
  get memory() {
    const { cpuBytes: cpu = 0, peakBytes: peakBeside = 0, decoderBytes: decoder = 0 } = this.scene ?? {};
    return { gpu: this.renderer.bytes, cpu, peakBeside, decoder };
  }

  /** Let go of the scene. */
  unload() {
    this.scene?.close();
    this.scene = this.clip = null;
    this.renderer.cameras = null;
    this.waiting?.reject(new Error("another scene was loaded"));
    this.waiting = null;
    this.notices = [];
    this.error = null;
    this.phase = "empty";
    this.ready = false;
    if (this.renderer.capacity && !this.renderer.gl.isContextLost()) this.renderer.resize(0, 0);
    this.renderer.count = 0;
  }

  /** Let go of everything. */
  dispose() {
    this.unload();
    if (this.workers) endWorkers(this.workers);
    this.workers = null;
    this.disposed = true;
    cancelAnimationFrame(this.frame);
    clearTimeout(this.resting);
    this.controls?.dispose();
    this.aborter.abort();
    this.resizer.disconnect();
    this.renderer.dispose();
  }
}

/**
 * Three finite numbers, or null: metadata may hold anything.
 * @param {unknown} value
 * @returns {number[] | null}
 */
function numbers(value) {
  return Array.isArray(value) && value.length === 3 && value.every((x) => typeof x === "number" && Math.abs(x) < 1e30)
    ? value
    : null;
}

/**
 * Up in a frame such as "RUB": x right, y up, z back.
 * @param {unknown} frame
 */
function upOf(frame) {
  const up = [0, -1, 0];
  if (typeof frame !== "string" || !/^[RLUDFB]{3}$/.test(frame)) return up;
  return [...frame].map((letter) => (letter === "U" ? 1 : letter === "D" ? -1 : 0));
}
