// Mouse, touch and keyboard, told to a rig as orbiting, panning, zooming, flying.
//
// One finger or the left button turns, two fingers or another button move, wheel and pinch zoom. Arrow keys turn, W A S D
// Q E move, plus and minus zoom, F fits, O changes between orbiting and flying.

/** @typedef {import("./camera.js").Rig} Rig */

const TURN_PER_PIXEL = 0.005;
const TURN_PER_SECOND = 1.2;
const MOVE_PER_SECOND = 0.6;
const MAX_STEP_S = 0.1;

/** Keys that act while they are held. @type {Record<string, string>} */
const HELD = {
  KeyW: "forward", KeyS: "back", KeyA: "left", KeyD: "right", KeyE: "up", KeyQ: "down",
  ArrowLeft: "turnLeft", ArrowRight: "turnRight", ArrowUp: "turnUp", ArrowDown: "turnDown",
  Equal: "nearer", NumpadAdd: "nearer", Minus: "further", NumpadSubtract: "further",
};

export class Controls {
  /**
   * @param {HTMLElement} element
   * @param {Rig} rig
   * @param {() => void} moved
   */
  constructor(element, rig, moved) {
    this.element = element;
    this.rig = rig;
    this.moved = moved;
    this.flying = false;
    this.enabled = true;
    /** Fingers and buttons that are down. @type {Map<number, { x: number, y: number, second: boolean }>} */
    this.pointers = new Map();
    /** @type {Set<string>} */
    this.keys = new Set();
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    const on = (/** @type {string} */ type, /** @type {(event: any) => void} */ act, /** @type {any} */ options = {}) =>
      element.addEventListener(type, (event) => this.enabled && act(event), { signal, ...options });
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      on(type, (event) => this.pointers.delete(event.pointerId));
    }
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("contextmenu", (event) => event.preventDefault());
    on("keydown", (event) => this.key(event, true));
    on("keyup", (event) => this.key(event, false));
    on("blur", () => this.keys.clear());
  }

  /** @param {PointerEvent} event */
  down(event) {
    this.element.focus({ preventScroll: true });
    try {
      this.element.setPointerCapture(event.pointerId);
    } catch {
      // The finger is up again already.
    }
    const second = event.button !== 0 || event.shiftKey || event.ctrlKey;
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, second });
  }

  /** @param {PointerEvent} event */
  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [dx, dy] = [event.clientX - pointer.x, event.clientY - pointer.y];
    const others = [...this.pointers.values()].filter((other) => other !== pointer);
    const { clientWidth, clientHeight } = this.element;
    const perPixel = (2 * Math.tan(this.rig.fieldOfView / 2)) / Math.max(clientWidth, clientHeight, 1);
    if (others.length === 1) {
      const [other] = others;
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      if (before > 0 && after > 0) this.rig.zoom(before / after);
      // The middle of both fingers moves by half of what one does.
      this.rig.move((-dx / 2) * perPixel, (-dy / 2) * perPixel, 0);
    } else if (others.length === 0) {
      if (pointer.second) this.rig.move(-dx * perPixel, -dy * perPixel, 0);
      else if (this.flying) this.rig.turn(-dx * TURN_PER_PIXEL, -dy * TURN_PER_PIXEL);
      else this.rig.orbit(-dx * TURN_PER_PIXEL, dy * TURN_PER_PIXEL);
    }
    pointer.x = event.clientX;
    pointer.y = event.clientY;
    this.moved();
  }

  /** @param {WheelEvent} event */
  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const amount = Math.max(-1, Math.min(1, event.deltaY * lines * 0.0015));
    if (this.flying) this.rig.move(0, 0, -amount);
    else this.rig.zoom(Math.exp(amount));
    this.moved();
  }

  /**
   * @param {KeyboardEvent} event
   * @param {boolean} down
   */
  key(event, down) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const held = HELD[event.code];
    if (held) {
      if (down) this.keys.add(held);
      else this.keys.delete(held);
    } else if (down && event.code === "KeyF") {
      const { clientWidth, clientHeight } = this.element;
      this.rig.fit(Math.max(clientWidth, clientHeight, 1) / Math.max(1, Math.min(clientWidth, clientHeight)));
    } else if (down && event.code === "KeyO") {
      this.flying = !this.flying;
    } else {
      return;
    }
    event.preventDefault();
    this.moved();
  }

  /**
   * What held keys do in so many seconds; returns whether there are any.
   * @param {number} seconds
   */
  step(seconds) {
    const { keys, rig } = this;
    if (!keys.size) return false;
    const s = Math.min(seconds, MAX_STEP_S);
    const both = (/** @type {string} */ plus, /** @type {string} */ minus) => Number(keys.has(plus)) - Number(keys.has(minus));
    const [yaw, pitch] = [both("turnLeft", "turnRight") * TURN_PER_SECOND * s, both("turnUp", "turnDown") * TURN_PER_SECOND * s];
    if (yaw || pitch) this.flying ? rig.turn(yaw, pitch) : rig.orbit(yaw, pitch);
    const step = MOVE_PER_SECOND * s;
    const [right, up, forward] = [both("right", "left"), both("up", "down"), both("forward", "back")];
    if (right || up || forward) rig.move(right * step, -up * step, forward * step);
    const zoom = both("further", "nearer");
    if (zoom) rig.zoom(Math.exp(zoom * s));
    return true;
  }

  dispose() {
    this.aborter.abort();
    this.pointers.clear();
    this.keys.clear();
  }
}
