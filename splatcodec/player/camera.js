// Cameras: small vector arithmetic, and a rig that orbits, flies and fits. Axes of a camera are right, down, forward.

/** @typedef {[number, number, number]} Vector */

/** @param {number[]} a @param {number[]} b @returns {Vector} */
export const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
/** @param {number[]} a @param {number[]} b @returns {Vector} */
export const subtract = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
/** @param {number[]} a @param {number} s @returns {Vector} */
export const times = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
/** @param {number[]} a @param {number[]} b */
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
/** @param {number[]} a @param {number[]} b @returns {Vector} */
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
/** @param {number[]} a */
export const norm = (a) => Math.hypot(a[0], a[1], a[2]);

/** @param {number[]} a @returns {Vector} zero stays zero */
export function unit(a) {
  const size = norm(a);
  return size > 0 ? times(a, 1 / size) : [0, 0, 0];
}

/**
 * `a` turned around a unit axis.
 * @param {number[]} a
 * @param {number[]} axis
 * @param {number} angle radians, right-handed
 * @returns {Vector}
 */
export function turned(a, axis, angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return add(add(times(a, c), times(cross(axis, a), s)), times(axis, dot(axis, a) * (1 - c)));
}

/**
 * What the renderer needs of a camera. Lengths in pixels are those of a picture of width x height.
 * @typedef {object} View
 * @property {Vector} position
 * @property {number[]} rows 9 numbers: right, down and forward, world to camera
 * @property {number} fx
 * @property {number} fy
 * @property {number} cx
 * @property {number} cy
 * @property {number} near
 */

/**
 * Where a scene is.
 * @typedef {object} Extent
 * @property {Vector} center
 * @property {number} radius
 * @property {Vector} up
 */

/** Distance from which a ball of radius 1 fills a picture of 50 degrees. */
const FIT_DISTANCE = 2.3662;
const FIELD_OF_VIEW = (50 * Math.PI) / 180;
const RISE = 0.35;
/** Nearest to straight up or down that orbiting comes, radians. */
const POLE = 0.05;

/** A camera that is moved by people. */
export class Rig {
  constructor() {
    /** @type {Extent} */
    this.extent = { center: [0, 0, 0], radius: 1, up: [0, -1, 0] };
    /** @type {Vector} */
    this.position = [0, 0, -1];
    /** @type {Vector} */
    this.forward = [0, 0, 1];
    /** How far ahead lies what orbiting turns around. */
    this.distance = 1;
    this.fieldOfView = FIELD_OF_VIEW;
    /** Where the camera wants to be; it gets there within a few frames. @type {{ position: Vector, forward: Vector } | null} */
    this.goal = null;
  }

  get up() {
    return this.extent.up;
  }

  get right() {
    const right = cross(this.forward, this.up);
    return norm(right) > 1e-4 ? unit(right) : unit(cross(this.forward, [this.up[1], this.up[2], this.up[0]]));
  }

  get target() {
    return add(this.position, times(this.forward, this.distance));
  }

  /**
   * Show all of the scene, from slightly above.
   * @param {number} [aspect] longer side of the picture over the shorter one
   */
  fit(aspect = 1) {
    const { center, radius, up } = this.extent;
    const axes = /** @type {Vector[]} */ ([[1, 0, 0], [0, 1, 0], [0, 0, 1]]);
    const least = axes.reduce((a, b) => (Math.abs(dot(b, up)) < Math.abs(dot(a, up)) ? b : a));
    const east = unit(cross(up, least));
    const offset = add(times(east, Math.sqrt(1 - RISE * RISE)), times(up, RISE));
    this.lookAt(add(center, times(offset, FIT_DISTANCE * radius * Math.min(aspect, 3))), center);
  }

  /**
   * @param {number[]} position
   * @param {number[]} target
   */
  lookAt(position, target) {
    const ahead = subtract(target, position);
    this.goal = null;
    this.position = /** @type {Vector} */ ([...position]);
    if (norm(ahead) > 0) {
      this.distance = norm(ahead);
      this.forward = unit(ahead);
    }
  }

  /**
   * Around the target.
   * @param {number} yaw radians
   * @param {number} pitch radians, positive looks from further above
   */
  orbit(yaw, pitch) {
    const { target } = this;
    this.turn(yaw, pitch);
    this.position = subtract(target, times(this.forward, this.distance));
  }

  /**
   * On the spot.
   * @param {number} yaw
   * @param {number} pitch
   */
  turn(yaw, pitch) {
    this.goal = null;
    const angle = Math.acos(Math.max(-1, Math.min(1, dot(this.forward, this.up))));
    const held = Math.max(POLE - angle, Math.min(Math.PI - POLE - angle, pitch));
    const tipped = turned(this.forward, this.right, -held);
    this.forward = unit(turned(tipped, this.up, yaw));
  }

  /**
   * Along the camera's axes, in shares of the distance to the target.
   * @param {number} right
   * @param {number} down
   * @param {number} forward
   */
  move(right, down, forward) {
    this.goal = null;
    const across = this.right;
    const below = cross(this.forward, across);
    const step = add(add(times(across, right), times(below, down)), times(this.forward, forward));
    this.position = add(this.position, times(step, this.distance));
  }

  /**
   * Nearer to the target, or further.
   * @param {number} factor of the distance
   */
  zoom(factor) {
    this.goal = null;
    const { target } = this;
    const { radius } = this.extent;
    this.distance = Math.max(1e-3 * radius, Math.min(100 * radius, this.distance * factor));
    this.position = subtract(target, times(this.forward, this.distance));
  }

  /**
   * What is drawn in a picture of this size.
   * @param {number} width
   * @param {number} height
   * @returns {View}
   */
  view(width, height) {
    const focal = (0.5 * Math.max(width, height)) / Math.tan(this.fieldOfView / 2);
    const { right, forward, position } = this;
    const rows = [...right, ...cross(forward, right), ...forward];
    const near = 0.01 * Math.min(this.extent.radius, this.distance);
    return { position, rows, fx: focal, fy: focal, cx: width / 2, cy: height / 2, near };
  }
}
