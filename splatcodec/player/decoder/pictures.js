// Pictures of video groups by WebCodecs, in pages and Workers (secure contexts only).

import { SplcError } from "./container.js";

/** @typedef {import("./planes.js").VideoStream} VideoStream */
/** @typedef {import("./planes.js").Pictures} Pictures */

/** Packets given to the decoder beyond the pictures that were taken; it may want some before it gives any. */
const AHEAD = 8;
/** A decoder that says nothing for so long is taken to be broken. */
const PATIENCE_MS = 10_000;

/** Why this page cannot decode video; null if it can. */
export function whyNoVideo() {
  if ("VideoDecoder" in globalThis) return null;
  return globalThis.isSecureContext
    ? "this browser has no video decoder for pages (WebCodecs)"
    : "browsers give their video decoder (WebCodecs) only to pages from https or from this machine itself";
}

/**
 * Whether the browser decodes a codec.
 * @param {string} codec RFC 6381
 * @param {number} codedWidth
 * @param {number} codedHeight
 */
export async function decodes(codec, codedWidth, codedHeight) {
  try {
    return (await VideoDecoder.isConfigSupported({ codec, codedWidth, codedHeight })).supported === true;
  } catch {
    return false;
  }
}

/**
 * @param {VideoStream} stream
 * @returns {Pictures}
 */
export function openPictures({ codec, codecString, width, height, description, packets }) {
  const why = whyNoVideo();
  if (why) throw new SplcError("unsupported", `the scene is a video, and ${why}`);
  /** @type {{ luma: Uint8Array, stride: number }[]} */
  const ready = [];
  /** @type {SplcError | null} */
  let failure = null;
  let closed = false;
  let given = 0;
  let taken = 0;
  /** Copies of pictures go on one after another. */
  let copying = Promise.resolve();
  let wake = () => {};
  const fail = (/** @type {unknown} */ error) => {
    const { name, message } = /** @type {any} */ (error);
    const unknown = name === "NotSupportedError";
    const said = unknown ? `this browser does not decode ${codecString}` : `the video cannot be decoded: ${message}`;
    failure ??= error instanceof SplcError ? error : new SplcError(unknown ? "unsupported" : "format", said, 0);
    wake();
  };
  const decoder = new VideoDecoder({
    output: (frame) => {
      copying = copying.then(async () => {
        try {
          if (!closed) ready.push(await lumaOf(frame, width, height));
        } catch (error) {
          fail(error);
        } finally {
          frame.close();
        }
        wake();
      });
    },
    error: fail,
  });
  const config = { codec: codecString, codedWidth: width, codedHeight: height, optimizeForLatency: true };
  decoder.configure(codec === "av1" ? config : { ...config, description });
  const feed = (/** @type {number} */ most) => {
    for (; given < packets.length && given < most && decoder.state === "configured"; given++) {
      const type = given ? "delta" : "key";
      decoder.decode(new EncodedVideoChunk({ type, timestamp: given * 1000, data: packets[given] }));
    }
    if (given === packets.length && decoder.state === "configured") decoder.flush().catch(fail), (given = Infinity);
  };
  return {
    async next() {
      if (taken >= packets.length) throw new SplcError("format", "the video has more pictures than packets", 0);
      feed(taken + AHEAD);
      const began = performance.now();
      while (!ready.length) {
        if (failure) throw failure;
        if (closed) throw new SplcError("parameter", "the video was closed");
        await new Promise((done) => {
          wake = () => done(null);
          setTimeout(done, 100);
        });
        // What wants more packets before it gives a picture gets them.
        if (!ready.length && decoder.state === "configured" && decoder.decodeQueueSize === 0) feed(given + 1);
        if (performance.now() - began > PATIENCE_MS) throw new SplcError("format", "the video decoder gives no picture", 0);
      }
      taken++;
      return /** @type {{ luma: Uint8Array, stride: number }} */ (ready.shift());
    },
    close() {
      closed = true;
      if (decoder.state !== "closed") decoder.close();
      ready.length = 0;
      wake();
    },
  };
}

/**
 * @param {VideoFrame} frame
 * @param {number} width
 * @param {number} height
 */
async function lumaOf(frame, width, height) {
  const { format, codedWidth, codedHeight } = frame;
  if (!format || !/^(I420|NV12)/.test(format)) throw new SplcError("unsupported", `pictures of the format ${format}`);
  if (codedWidth < width || codedHeight < height) throw new SplcError("format", `a picture of ${codedWidth} x ${codedHeight}`, 0);
  const rect = { x: 0, y: 0, width, height };
  const bytes = new Uint8Array(frame.allocationSize({ rect }));
  const [{ offset, stride }] = await frame.copyTo(bytes, { rect });
  return { luma: bytes.subarray(offset, offset + stride * height), stride };
}
