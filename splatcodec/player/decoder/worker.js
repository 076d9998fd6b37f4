// The decoder in a Worker: `openInWorker` gives what `open` of index.js gives, and decodes beside the page.
//
// This module is both ends. Loaded by a page it starts itself as a module worker; loaded as a worker it answers.

import { open, SplcError } from "./index.js";

/** @typedef {import("./index.js").Input} Input */
/** @typedef {import("./index.js").Part} Part */
/** @typedef {import("./index.js").Selection} Selection */
/** @typedef {import("./index.js").SplcFile} SplcFile */

/**
 * What a page asks: `open` a file, `call` a method of it, `stream` parts, the `next` of a stream, or `end` it.
 * @typedef {{ id: number, file: number, ask: string, args: any[] }} Question
 */

/**
 * What can be handed over instead of copied: the results of decoding, all made for the answer.
 * @param {{ parts: Part[] } | Part | null} answer
 * @returns {ArrayBuffer[]}
 */
function buffersOf(answer) {
  const buffers = new Set();
  for (const part of answer && "parts" in answer ? answer.parts : answer ? [answer] : []) {
    const arrays = [part.sh, ...Object.values(part.arrays ?? {}), ...Object.values(part.records ?? {})];
    for (const array of arrays) if (array) buffers.add(array.buffer);
  }
  return [...buffers];
}

/** @param {(message: any, transfer: ArrayBuffer[]) => void} post */
function answering(post) {
  /** @type {Map<number, SplcFile>} */
  const files = new Map();
  /** @type {Map<number, AsyncGenerator<Part, void, void>>} */
  const streams = new Map();

  /** @param {Question} question */
  async function answer({ id, file, ask, args }) {
    if (ask === "open") {
      const opened = await open(args[0], { onNotice: (notice) => post({ id, notice }, []) });
      files.set(file, opened);
      const { version, size, numGaussians, features, shDegree, parts, levels } = opened;
      return { version, size, numGaussians, features, shDegree, parts, levels };
    }
    const target = /** @type {SplcFile} */ (files.get(file));
    if (ask === "stream") return void streams.set(id, target.stream(args[0]));
    if (ask === "next") return (await streams.get(args[0])?.next())?.value ?? null;
    if (ask === "end") {
      await streams.get(args[0])?.return();
      return void streams.delete(args[0]);
    }
    if (ask === "close") files.delete(file);
    return /** @type {any} */ (target)[ask](...args);
  }

  return async (/** @type {Question} */ question) => {
    try {
      const value = await answer(question);
      const results = question.ask === "next" || question.ask === "decode";
      post({ id: question.id, value }, results ? buffersOf(/** @type {any} */ (value)) : []);
    } catch (error) {
      const { name, message, stack } = /** @type {Error} */ (error);
      const splc = error instanceof SplcError;
      const fields = splc ? { code: error.code, detail: error.detail, offset: error.offset, chunk: error.chunk } : null;
      post({ id: question.id, error: { name, message, stack, fields } }, []);
    }
  };
}

/**
 * What is known of an open file.
 * @typedef {Pick<SplcFile, "version" | "size" | "numGaussians" | "features" | "shDegree" | "parts" | "levels">} Facts
 */

/** A file that is open in a worker; `openInWorker` adds its facts. */
class RemoteFile {
  /**
   * @param {Remote} remote
   * @param {number} file
   */
  constructor(remote, file) {
    this.remote = remote;
    this.file = file;
  }

  /** @param {Selection} [selection] @returns {ReturnType<SplcFile["decode"]>} */
  decode(selection) {
    return this.remote.ask(this.file, "decode", [selection]).answer;
  }

  /** @param {Parameters<SplcFile["stream"]>[0]} [options] @returns {ReturnType<SplcFile["stream"]>} */
  async *stream(options) {
    const { id, answer } = this.remote.ask(this.file, "stream", [options]);
    await answer;
    try {
      for (;;) {
        const part = await this.remote.ask(this.file, "next", [id]).answer;
        if (!part) return;
        yield part;
      }
    } finally {
      await this.remote.ask(this.file, "end", [id]).answer;
    }
  }

  /** @returns {ReturnType<SplcFile["meta"]>} */
  meta() {
    return this.remote.ask(this.file, "meta", []).answer;
  }

  /** @returns {ReturnType<SplcFile["boxes"]>} */
  boxes() {
    return this.remote.ask(this.file, "boxes", []).answer;
  }

  close() {
    this.remote.ask(this.file, "close", []);
  }
}

/**
 * @typedef {object} Waiting
 * @property {(value: any) => void} resolve
 * @property {(error: unknown) => void} reject
 * @property {(notice: string) => void} [onNotice]
 */

/** The page's end of a worker. */
class Remote {
  /** @param {Worker} worker */
  constructor(worker) {
    this.worker = worker;
    this.count = 0;
    /** @type {Map<number, Waiting>} */
    this.open = new Map();
    worker.onmessage = ({ data: { id, value, error, notice } }) => {
      const waiting = this.open.get(id);
      if (notice !== undefined) return waiting?.onNotice?.(notice);
      this.open.delete(id);
      if (error) waiting?.reject(revived(error));
      else waiting?.resolve(value);
    };
    worker.onerror = (event) => {
      const error = new SplcError("parameter", `the worker failed: ${event.message ?? "it cannot be loaded"}`);
      for (const { reject } of this.open.values()) reject(error);
      this.open.clear();
    };
  }

  /**
   * @param {number} file
   * @param {string} ask
   * @param {any[]} args
   * @param {(notice: string) => void} [onNotice]
   */
  ask(file, ask, args, onNotice) {
    const id = ++this.count;
    /** @type {Promise<any>} */
    const answer = new Promise((resolve, reject) => this.open.set(id, { resolve, reject, onNotice }));
    this.worker.postMessage({ id, file: file || id, ask, args });
    return { id, answer };
  }
}

/** @param {{ name: string, message: string, stack?: string, fields: any }} error */
function revived({ name, message, stack, fields }) {
  const error = fields ? new SplcError(fields.code, fields.detail, fields.offset, fields.chunk) : new Error(message);
  error.name = name;
  if (stack) error.stack = stack;
  return error;
}

/** @type {WeakMap<Worker, Remote>} */
const remotes = new WeakMap();

/**
 * Open a file in a worker.
 * @param {ArrayBuffer | ArrayBufferView | Blob | string | URL} input bytes are copied
 * @param {{ worker?: Worker, onNotice?: (notice: string) => void }} [options] `worker`: one that loads this module, to
 *     share it between files or to end it with `terminate`
 * @returns {Promise<RemoteFile & Facts>}
 */
export async function openInWorker(input, { worker, onNotice } = {}) {
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  let remote = remotes.get(worker);
  if (!remote) remotes.set(worker, (remote = new Remote(worker)));
  // In a worker a relative URL would count from this module.
  if (typeof input === "string") input = new URL(input, globalThis.location?.href).href;
  if (input instanceof URL) input = input.href;
  const { id, answer } = remote.ask(0, "open", [input], onNotice);
  return Object.assign(new RemoteFile(remote, id), /** @type {Facts} */ (await answer));
}

const scope = /** @type {any} */ (globalThis);
if (typeof scope.WorkerGlobalScope !== "undefined" && scope instanceof scope.WorkerGlobalScope) {
  const answer = answering((message, transfer) => scope.postMessage(message, transfer));
  scope.onmessage = (/** @type {MessageEvent<Question>} */ { data }) => answer(data);
}
