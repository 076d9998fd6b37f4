// Draws packed Gaussians with WebGL2: EWA projection, 0.3 px low-pass, back to front, as the definition of 3D Gaussian
// Splatting has it (Kerbl et al. 2023; anti-aliased variant after Yu et al. 2024).
//
// Gaussians lie in textures 4096 wide, 16 blocks of 256 a row, as the decoder packs them (reconstruct.js): records, three
// textures of SH words, boxes of blocks. What changes while levels arrive is one texel a block: grow, gain, SH or not.
// The order to draw in is a texture too. An instance is 128 quads: instances of one leave most of a GPU's lanes idle.

/** @typedef {import("./camera.js").View} View */

export const BLOCK = 256;
const WIDTH = 4096;
const PER_ROW = WIDTH / BLOCK;
/** Quads of an instance. */
const QUADS = 128;
/** Texels of SH words a Gaussian, by degree. */
export const SH_TEXELS = [0, 1, 2, 3];

/**
 * GLSL that reads bits of SH words w[]: `size` bits from bit `at`, as float.
 * @param {number} at
 * @param {number} size
 */
function bits(at, size) {
  const shift = at & 31;
  const word = `w[${at >> 5}]`;
  const low = shift ? `(${word} >> ${shift}u)` : word;
  const both = shift + size > 32 ? `(${low} | (w[${(at >> 5) + 1}] << ${32 - shift}u))` : low;
  return `float(${both} & ${2 ** size - 1}u)`;
}

/** Basis functions of degrees 1 to 3 at direction d, signs as in 3DGS files. */
const BASIS = [
  "-0.4886025119 * y", "0.4886025119 * z", "-0.4886025119 * x",
  "1.0925484306 * x * y", "-1.0925484306 * y * z", "0.3153915653 * (2.0 * zz - xx - yy)", "-1.0925484306 * x * z",
  "0.5462742153 * (xx - yy)",
  "-0.5900435899 * y * (3.0 * xx - yy)", "2.8906114426 * x * y * z", "-0.4570457995 * y * (4.0 * zz - xx - yy)",
  "0.3731763326 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy)", "-0.4570457995 * x * (4.0 * zz - xx - yy)",
  "1.4453057213 * z * (xx - yy)", "-0.5900435899 * x * (xx - 3.0 * yy)",
];

/** @param {number} degree */
function shSource(degree) {
  if (!degree) return "vec3 shColor(ivec2 at, vec3 d) { return vec3(0.0); }";
  const bands = (degree + 1) ** 2 - 1;
  const wide = Math.min(bands, 8);
  const words = [0, 3, 7, 11][degree];
  const loads = [];
  for (let texel = 0; texel < degree; texel++) loads.push(`uvec4 t${texel} = texelFetch(sh${texel}, at, 0);`);
  const list = Array.from({ length: 4 * degree }, (_, k) => `t${k >> 2}.${"xyzw"[k & 3]}`);
  const terms = BASIS.slice(0, bands).map((basis, band) => {
    const channels = [0, 1, 2].map((channel) =>
      band < 8 ? bits(8 * (wide * channel + band), 8) : bits(192 + 49 * channel + 7 * (band - 8), 7),
    );
    const sum = band < 8 ? "first" : "second";
    return `${sum} += (${basis}) * (vec3(${channels.join(", ")}) - ${band < 8 ? "128.0" : "64.0"});`;
  });
  return `vec3 shColor(ivec2 at, vec3 d) {
    ${loads.join("\n")}
    uint w[${4 * degree}] = uint[${4 * degree}](${list.join(", ")});
    float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
    vec3 first = vec3(0.0), second = vec3(0.0);
    ${terms.join("\n")}
    float scale = uintBitsToFloat(((w[${words - 1}] >> 24) + 856u) << 20);
    return (first / 127.0 + second / 63.0) * scale;
  }`;
}

/** A camera in the texture of nodes: rotation, position as two floats an axis. */
const NODE_TEXELS = 4;
/** Nodes there may be, with the one that is none. */
const MAX_NODES = 256;

/** Where the camera is: the same for all, or one for each node, as its Gaussians see it before they move. */
const CAMERA = "uniform mat3 rotation;\nuniform vec3 cameraHigh, cameraLow;";
const NODE_CAMERA = `int node = ${NODE_TEXELS} * int(look.w);
  vec4 n0 = texelFetch(nodes, ivec2(node, 0), 0), n1 = texelFetch(nodes, ivec2(node + 1, 0), 0);
  vec4 n2 = texelFetch(nodes, ivec2(node + 2, 0), 0), n3 = texelFetch(nodes, ivec2(node + 3, 0), 0);
  mat3 rotation = mat3(n0.xyz, vec3(n0.w, n1.xy), vec3(n1.zw, n2.x));
  vec3 cameraHigh = n2.yzw, cameraLow = n3.xyz;`;

/** @param {number} degree @param {boolean} moving */
const vertexSource = (degree, moving) => `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D order, records, sh0, sh1, sh2;
uniform int count;
uniform sampler2D boxes, looks;
${moving ? "uniform sampler2D nodes;" : CAMERA}
uniform vec4 lens;    // fx, fy, cx, cy
uniform vec4 limits;  // of x/z to the left and right, of y/z to the top and bottom, where projection is linearised
uniform vec2 size;
uniform float near;
uniform bool antialiased;
out vec2 at;
flat out vec4 color;
${shSource(degree)}
float slant(uint q, float step) {
  int d = int(q) - 127;
  float w = uintBitsToFloat(0x3f800000u + uint(abs(d)) * uint(step)) - 1.0;
  return d < 0 ? -w : w;
}
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  int number = gl_InstanceID * ${QUADS} + (gl_VertexID >> 2);
  if (number >= count) return;
  uint place = texelFetch(order, ivec2(number & 4095, number >> 12), 0).x;
  ivec2 texel = ivec2(int(place & 4095u), int(place >> 12));
  ivec2 box = ivec2(texel.x >> 8, texel.y);
  uvec4 q = texelFetch(records, texel, 0);
  vec4 b0 = texelFetch(boxes, ivec2(4 * box.x, box.y), 0);
  vec4 b1 = texelFetch(boxes, ivec2(4 * box.x + 1, box.y), 0);
  vec4 b2 = texelFetch(boxes, ivec2(4 * box.x + 2, box.y), 0);
  vec4 b3 = texelFetch(boxes, ivec2(4 * box.x + 3, box.y), 0);
  vec4 look = texelFetch(looks, box, 0);
  ${moving ? NODE_CAMERA : ""}

  // Relative to the camera in two steps, so that a far origin costs no precision.
  vec3 offset = (b0.xyz - cameraHigh) - cameraLow;
  offset += vec3(float(q.x & 65535u), float(q.x >> 16), float(q.y & 65535u)) * vec3(b0.w, b1.xy);
  vec3 local = rotation * offset;
  if (!(local.z > near)) return;

  vec3 r = exp2(b1.z + look.x + vec3(float((q.y >> 16) & 255u), float(q.y >> 24), float(q.z & 255u)) * b1.w);
  vec3 w = vec3(slant((q.z >> 8) & 255u, b2.x), slant((q.z >> 16) & 255u, b2.x), slant(q.z >> 24, b2.x));
  // Columns of the factor A of the covariance, then of the picture's: M = J W A.
  mat3 factor = rotation * mat3(r.x, w.x * r.y, w.y * r.z, 0.0, r.y, w.z * r.z, 0.0, 0.0, r.z);
  float x = clamp(local.x / local.z, -limits.x, limits.y);
  float y = clamp(local.y / local.z, -limits.z, limits.w);
  vec3 across = lens.x / local.z * (vec3(factor[0].x, factor[1].x, factor[2].x) - x * vec3(factor[0].z, factor[1].z, factor[2].z));
  vec3 down = lens.y / local.z * (vec3(factor[0].y, factor[1].y, factor[2].y) - y * vec3(factor[0].z, factor[1].z, factor[2].z));
  float a = dot(across, across), b = dot(across, down), c = dot(down, down);
  // By minors, so that needles do not cancel; then without the blur that the file's factor has.
  vec3 minors = cross(across, down);
  float sharp = dot(minors, minors);
  vec2 per = lens.xy / local.z;
  float blur = b3.w * exp2(2.0 * look.x);
  float sa = blur * per.x * per.x * (1.0 + x * x), sb = blur * per.x * per.y * x * y, sc = blur * per.y * per.y * (1.0 + y * y);
  sharp = max(sharp - (a * sc + c * sa - 2.0 * b * sb) + (sa * sc - sb * sb), 0.0);
  a = max(a - sa, 0.0);
  b -= sb;
  c = max(c - sc, 0.0);
  float full = sharp + 0.3 * (a + c) + 0.09;
  a += 0.3;
  c += 0.3;

  float opacity = min(float(q.w >> 24) / 255.0 * look.y, 4095.0 / 4096.0);
  if (antialiased) opacity *= sqrt(sharp / full);
  float cut = 2.0 * log(255.0 * opacity);
  if (!(cut > 0.0)) return;

  // Axes of the ellipse, and the square around it out to where alpha falls under 1/255.
  float half_ = 0.5 * (a - c);
  float root = sqrt(half_ * half_ + b * b);
  float large = 0.5 * (a + c) + root;
  float small = full / large;
  vec2 axis = half_ > 0.0 ? vec2(half_ + root, b) : vec2(b, root - half_);
  float length_ = length(axis);
  axis = length_ > 0.0 ? axis / length_ : vec2(1.0, 0.0);
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) * 2.0 - 1.0;
  at = corner * sqrt(cut);
  vec2 middle = lens.xy * local.xy / local.z + lens.zw;
  float reach = sqrt(cut * large);
  if (any(lessThan(middle, vec2(-reach))) || any(greaterThan(middle, size + reach))) return;
  vec2 pixel = middle + at.x * sqrt(large) * axis + at.y * sqrt(small) * vec2(-axis.y, axis.x);

  vec3 rgb = vec3(b2.yzw) + vec3(float(q.w & 255u), float((q.w >> 8) & 255u), float((q.w >> 16) & 255u)) * b3.xyz;
  if (look.z > 0.5) rgb += shColor(texel, normalize(offset));
  color = vec4(max(rgb, 0.0), opacity);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 at;
flat in vec4 color;
out vec4 paint;
void main() {
  float alpha = min(0.99, color.a * exp(-0.5 * dot(at, at)));
  if (alpha < 1.0 / 255.0) discard;
  paint = vec4(color.rgb * alpha, alpha);
}`;

const SAMPLERS = ["order", "records", "boxes", "looks", "sh0", "sh1", "sh2", "nodes"];

/** A context that is lost or cannot be had. */
export class GraphicsError extends Error {}

/** @typedef {Record<string, WebGLUniformLocation | null>} Uniforms */

export class Renderer {
  /** @param {HTMLCanvasElement | OffscreenCanvas} canvas */
  constructor(canvas) {
    const options = { alpha: false, antialias: false, depth: false, stencil: false, powerPreference: "high-performance" };
    const gl = /** @type {WebGL2RenderingContext | null} */ (canvas.getContext("webgl2", options));
    if (!gl) throw new GraphicsError("This browser or device has no WebGL 2, which drawing needs.");
    this.gl = gl;
    this.canvas = canvas;
    this.capacity = 0;
    this.degree = 0;
    this.count = 0;
    /** Whether any SH coefficients are there; until then a smaller program does. */
    this.hasSh = false;
    /** @type {WebGLTexture | null} */
    this.order = null;
    /** Rows of the texture of the order. */
    this.orderRows = 0;
    /** @type {Record<string, WebGLTexture>} */
    this.textures = {};
    /** Cameras of the nodes of a moving scene: position and rows, 12 numbers each. @type {Float64Array | null} */
    this.cameras = null;
    /** @type {WebGLTexture | null} */
    this.nodes = null;
    /** By degree, and 4 more for moving scenes. @type {Map<number, { program: WebGLProgram, uniforms: Uniforms }>} */
    this.programs = new Map();
    this.create();
  }

  /** What has to be made anew after a lost context. */
  create() {
    const { gl } = this;
    this.programs.clear();
    this.textures = {};
    this.capacity = this.count = 0;
    this.order = this.nodes = null;
    this.orderRows = 0;
    const corners = Array.from({ length: QUADS }, (_, k) => [0, 1, 2, 2, 1, 3].map((corner) => 4 * k + corner));
    gl.bindVertexArray(gl.createVertexArray());
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, Uint16Array.from(corners.flat()), gl.STATIC_DRAW);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 4);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.begin(0);
  }

  /**
   * Start to compile for an SH degree; drivers do that beside the page.
   * @param {number} degree
   */
  begin(degree) {
    const { gl } = this;
    const key = degree + (this.cameras ? 4 : 0);
    if (this.programs.has(key)) return;
    const program = /** @type {WebGLProgram} */ (gl.createProgram());
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertexSource(degree, !!this.cameras)], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = /** @type {WebGLShader} */ (gl.createShader(/** @type {number} */ (kind)));
      gl.shaderSource(shader, /** @type {string} */ (source));
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    this.programs.set(key, { program, uniforms: {} });
  }

  /**
   * Have everything compiled that a first picture needs, by drawing nothing.
   */
  warm() {
    const { gl } = this;
    const uniforms = this.use(0);
    gl.uniform1i(uniforms.count, 0);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * QUADS, gl.UNSIGNED_SHORT, 0, 1);
    gl.flush();
  }

  /**
   * A program, ready.
   * @param {number} degree
   */
  use(degree) {
    const { gl } = this;
    this.begin(degree);
    const entry = /** @type {{ program: WebGLProgram, uniforms: Uniforms }} */ (this.programs.get(degree + (this.cameras ? 4 : 0)));
    const { program, uniforms } = entry;
    if (!Object.keys(uniforms).length) {
      if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
        const logs = (gl.getAttachedShaders(program) ?? []).map((shader) => gl.getShaderInfoLog(shader));
        throw new GraphicsError(`The graphics driver refuses our shaders: ${logs.join(" ")} ${gl.getProgramInfoLog(program)}`);
      }
      const names = ["count", "rotation", "cameraHigh", "cameraLow", "lens", "limits", "size", "near", "antialiased"];
      for (const name of [...names, ...SAMPLERS]) uniforms[name] = gl.getUniformLocation(program, name);
      gl.useProgram(program);
      SAMPLERS.forEach((name, k) => gl.uniform1i(uniforms[name], k));
    }
    gl.useProgram(program);
    return uniforms;
  }

  /**
   * Room for a scene; what was there is gone.
   * @param {number} capacity blocks
   * @param {number} degree of SH, 0 to 3
   */
  resize(capacity, degree) {
    const { gl } = this;
    for (const texture of Object.values(this.textures)) gl.deleteTexture(texture);
    this.textures = {};
    this.count = 0;
    const rows = Math.max(1, Math.ceil(capacity / PER_ROW));
    const most = Math.min(4096, gl.getParameter(gl.MAX_TEXTURE_SIZE));
    if (rows > most) throw new GraphicsError(`${capacity} blocks of Gaussians do not fit a texture`);
    this.capacity = rows * PER_ROW;
    this.degree = degree;
    this.hasSh = false;
    const make = (/** @type {string} */ name, /** @type {number} */ format, /** @type {number} */ width) => {
      this.textures[name] = this.makeTexture(format, width, rows);
    };
    make("records", gl.RGBA32UI, WIDTH);
    make("boxes", gl.RGBA32F, 4 * PER_ROW);
    make("looks", gl.RGBA32F, PER_ROW);
    for (let k = 0; k < SH_TEXELS[degree]; k++) make(`sh${k}`, gl.RGBA32UI, WIDTH);
  }

  /**
   * @param {number} format
   * @param {number} width
   * @param {number} height
   */
  makeTexture(format, width, height) {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    }
    return /** @type {WebGLTexture} */ (texture);
  }

  /** Bytes of the textures. */
  get bytes() {
    const texel = 16 * this.capacity;
    return Object.keys(this.textures).length ? texel * (BLOCK * (1 + SH_TEXELS[this.degree]) + 5) : 0;
  }

  /** Bytes of the texture of the order. */
  get orderBytes() {
    return 4 * WIDTH * this.orderRows;
  }

  /**
   * Put rows of texels of blocks into a texture.
   * @param {string} name
   * @param {number} block the first one
   * @param {number} texels how many
   * @param {number} perBlock texels a block has
   * @param {ArrayBufferView} data
   * @param {number} from element of `data`, 4 a texel
   */
  upload(name, block, texels, perBlock, data, from) {
    const { gl } = this;
    const float = name === "boxes" || name === "looks";
    const [format, type] = float ? [gl.RGBA, gl.FLOAT] : [gl.RGBA_INTEGER, gl.UNSIGNED_INT];
    const width = perBlock * PER_ROW;
    if (name.startsWith("sh")) this.hasSh = true;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.textures[name]);
    // Up to three rectangles: the rest of a row, whole rows, the beginning of a row.
    for (let at = perBlock * block; texels > 0; ) {
      const x = at % width;
      const rows = x === 0 && texels >= width ? Math.floor(texels / width) : 1;
      const wide = Math.min(width - x, texels);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, x, Math.floor(at / width), wide, rows, format, type, data, from);
      at += wide * rows;
      from += 4 * wide * rows;
      texels -= wide * rows;
    }
  }

  /**
   * @param {number} block
   * @param {number} blocks
   * @param {number} grow octaves
   * @param {number} gain
   * @param {boolean} sh whether SH coefficients are there
   * @param {Uint8Array} [nodes] node of each block of a moving scene
   */
  setLook(block, blocks, grow, gain, sh, nodes) {
    const looks = new Float32Array(4 * blocks);
    for (let k = 0; k < blocks; k++) looks.set([grow, gain, sh ? 1 : 0, nodes ? nodes[k] : 0], 4 * k);
    this.upload("looks", block, blocks, 1, looks, 0);
  }

  /**
   * @param {Uint32Array} order places, furthest first
   * @param {number} count
   */
  setOrder(order, count) {
    const { gl } = this;
    this.count = count;
    const rows = Math.ceil(count / WIDTH);
    if (rows > this.orderRows) {
      gl.deleteTexture(this.order);
      this.orderRows = Math.max(rows, Math.min(Math.ceil(1.2 * rows), this.capacity / PER_ROW));
      this.order = this.makeTexture(gl.R32UI, WIDTH, this.orderRows);
    }
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.order);
    const [whole, rest] = [Math.floor(count / WIDTH), count % WIDTH];
    const [format, type] = [gl.RED_INTEGER, gl.UNSIGNED_INT];
    if (whole) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, WIDTH, whole, format, type, order, 0);
    if (rest) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, whole, rest, 1, format, type, order, WIDTH * whole);
  }

  /**
   * @param {View} view
   * @param {number} width of the picture
   * @param {number} height
   * @param {number[]} background
   * @param {boolean} antialiased
   */
  draw(view, width, height, background, antialiased) {
    const { gl } = this;
    gl.viewport(0, 0, width, height);
    gl.clearColor(background[0], background[1], background[2], 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count) return;
    const uniforms = this.use(this.hasSh ? this.degree : 0);
    if (this.cameras) this.setCameras(this.cameras);
    SAMPLERS.forEach((name, k) => {
      gl.activeTexture(gl.TEXTURE0 + k);
      gl.bindTexture(gl.TEXTURE_2D, name === "order" ? this.order : name === "nodes" ? this.nodes : (this.textures[name] ?? null));
    });
    gl.uniform1i(uniforms.count, this.count);
    const { rows, position, fx, fy, cx, cy, near } = view;
    gl.uniformMatrix3fv(uniforms.rotation, true, rows);
    const high = position.map(Math.fround);
    gl.uniform3fv(uniforms.cameraHigh, high);
    gl.uniform3fv(uniforms.cameraLow, position.map((x, k) => x - high[k]));
    gl.uniform4f(uniforms.lens, fx, fy, cx, cy);
    const [marginX, marginY] = [(0.15 * width) / fx, (0.15 * height) / fy];
    const [right, bottom] = [Math.max(width - cx, 0) / fx + marginX, Math.max(height - cy, 0) / fy + marginY];
    gl.uniform4f(uniforms.limits, Math.max(cx, 0) / fx + marginX, right, Math.max(cy, 0) / fy + marginY, bottom);
    gl.uniform2f(uniforms.size, width, height);
    gl.uniform1f(uniforms.near, near);
    gl.uniform1i(uniforms.antialiased, antialiased ? 1 : 0);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * QUADS, gl.UNSIGNED_SHORT, 0, Math.ceil(this.count / QUADS));
  }

  /**
   * Cameras of nodes into their texture.
   * @param {Float64Array} cameras
   */
  setCameras(cameras) {
    const { gl } = this;
    this.nodes ??= this.makeTexture(gl.RGBA32F, NODE_TEXELS * MAX_NODES, 1);
    const count = cameras.length / 12;
    const texels = new Float32Array(16 * count);
    for (let k = 0; k < count; k++) {
      const [position, rows] = [cameras.subarray(12 * k, 12 * k + 3), cameras.subarray(12 * k + 3, 12 * k + 12)];
      for (let j = 0; j < 9; j++) texels[16 * k + j] = rows[3 * (j % 3) + Math.floor(j / 3)];
      for (let j = 0; j < 3; j++) {
        const high = Math.fround(position[j]);
        texels[16 * k + 9 + j] = high;
        texels[16 * k + 12 + j] = position[j] - high;
      }
    }
    gl.activeTexture(gl.TEXTURE0 + SAMPLERS.indexOf("nodes"));
    gl.bindTexture(gl.TEXTURE_2D, this.nodes);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, NODE_TEXELS * count, 1, gl.RGBA, gl.FLOAT, texels);
  }

  /**
   * The picture as bytes, red, green, blue, alpha, top row first; to be called right after `draw`.
   * @param {number} width
   * @param {number} height
   */
  pixels(width, height) {
    const { gl } = this;
    const upside = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, upside);
    const rows = new Uint8Array(upside.length);
    for (let y = 0; y < height; y++) rows.set(upside.subarray(4 * width * y, 4 * width * (y + 1)), 4 * width * (height - 1 - y));
    return rows;
  }

  /** Give everything back, the context too. */
  dispose() {
    const { gl } = this;
    for (const texture of Object.values(this.textures)) gl.deleteTexture(texture);
    for (const { program } of this.programs.values()) gl.deleteProgram(program);
    gl.deleteTexture(this.order);
    gl.deleteTexture(this.nodes);
    this.textures = {};
    this.programs.clear();
    this.capacity = this.count = 0;
    gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}
