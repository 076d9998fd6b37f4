// Controls of a moving scene on the page: play, position with what is fetched, loop, sound, quality.

/** @typedef {import("./player.js").Player} Player */
/** @typedef {import("./clip.js").ClipState} ClipState */

/** @param {string} id @returns {any} */
const part = (id) => document.getElementById(id);

/** @param {number} seconds */
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** What is set where it is not set already: screen readers are told of every change. @param {any} element @param {string} name @param {any} value */
function set(element, name, value) {
  if (element[name] !== value) element[name] = value;
}

export class Timeline {
  /** @param {Player} player */
  constructor(player) {
    this.player = player;
    this.dragging = false;
    this.bar = "";
    part("play").onclick = () => this.toggle();
    part("loop").onclick = () => player.clip?.loop(!player.clip.looping);
    part("sound").onclick = () => player.clip?.mute(!player.clip.muted);
    part("quality").onchange = () => player.clip?.setQuality(Number(part("quality").value));
    const seek = part("seek");
    seek.oninput = () => {
      this.dragging = true;
      player.clip?.seekFrame(Number(seek.value));
    };
    seek.onchange = () => (this.dragging = false);
    document.addEventListener("keydown", (event) => {
      const on = /** @type {HTMLElement} */ (event.target);
      if (event.code !== "Space" || event.repeat || !player.clip || /^(BUTTON|SELECT|INPUT|TEXTAREA)$/.test(on.tagName)) return;
      event.preventDefault();
      this.toggle();
    });
  }

  toggle() {
    const { player } = this;
    if (player.clip?.wantsPlay) player.pause();
    else player.play();
  }

  /** @param {ClipState | null} state null: a scene that does not move */
  show(state) {
    part("clip").hidden = !state;
    if (!state) return;
    const { frame, numFrames, time, duration, playing, looping, buffered, qualities, hasSound, muted, ended } = state;
    set(part("play"), "textContent", playing ? "Pause" : "Play");
    const seek = part("seek");
    set(seek, "max", String(numFrames - 1));
    if (!this.dragging) set(seek, "value", String(frame));
    const text = `${clock(time)} / ${clock(duration)}${ended ? "" : " +"}`;
    set(part("time"), "textContent", text);
    if (seek.getAttribute("aria-valuetext") !== text) seek.setAttribute("aria-valuetext", text);
    for (const [id, pressed] of [["loop", String(looping)], ["sound", String(!muted)]]) {
      if (part(id).getAttribute("aria-pressed") !== pressed) part(id).setAttribute("aria-pressed", pressed);
    }
    set(part("sound"), "hidden", !hasSound);
    const quality = part("quality");
    set(quality, "hidden", qualities.length < 2);
    if (quality.options.length !== qualities.length + 1) {
      quality.replaceChildren(new Option("Auto", "-1"), ...qualities.map((name, k) => new Option(name, String(k))));
    }
    // What is fetched is light, the rest dark.
    const percent = (/** @type {number} */ at) => `${((100 * at) / Math.max(1, numFrames)).toFixed(2)}%`;
    const stops = buffered.map(([from, to]) => `#555 ${percent(from)}, #9bd ${percent(from)}, #9bd ${percent(to)}, #555 ${percent(to)}`);
    const bar = `linear-gradient(90deg, ${["#555 0%", ...stops, "#555 100%"].join(", ")})`;
    if (bar !== this.bar) seek.style.setProperty("--there", (this.bar = bar));
  }
}
