// A compiler for the one small language that kernel.src is written in, to WebAssembly. It does what is needed there.
//
//     const NAME = 2 * 3;                     numbers, worked out here
//     fn name(a, b: f64): i32 { ... }         parameters are i32 unless they say i64, f64 or v128; `export fn` can be
//                                             called from JavaScript, `inline fn` is put in place of each call: it has
//                                             one `return`, at its end, sets locals of the caller through `ref`, and
//                                             arguments that are constants stay so in it
//     let x = 1;  x = x + 1;                  a local has the type of what it is first given
//     i32[p + 4] = x;  y = u8[p];             memory: u8 u16 i32 (as i32), s32 i64 (as i64), f32 f64 (as f64), v128,
//                                             v64 (load only: the lower half of a v128)
//     if (c) { ... } else { ... }   while (c) { ... }   return x;   f(x);
//     | ^ & == != < > <= >= << >> >>> + - * / ~ - !       on i32 and i64 (signed), + - * / - and comparisons on f64
//     select(a, b, c)                         a if c else b, both worked out
//
// and the functions of OPERATIONS below, named as in WebAssembly.

const TYPES = { i32: 0x7f, i64: 0x7e, f64: 0x7c, v128: 0x7b };
const LOADS = {
  u8: [0x2d, "i32"], s8: [0x2c, "i32"], u16: [0x2f, "i32"], i32: [0x28, "i32"], f32: [0x2a, "f64"], f64: [0x2b, "f64"],
  i64: [0x29, "i64"], s32: [0x34, "i64"], v128: [[0xfd, 0], "v128"], v64: [[0xfd, 93], "v128"],
};
const STORES = { u8: 0x3a, u16: 0x3b, i32: 0x36, i64: 0x37, f32: 0x38, f64: 0x39, v128: [0xfd, 11] };
const BINARY = {
  i32: {
    "+": 0x6a, "-": 0x6b, "*": 0x6c, "&": 0x71, "|": 0x72, "^": 0x73, "<<": 0x74, ">>": 0x75, ">>>": 0x76,
    "==": 0x46, "!=": 0x47, "<": 0x48, ">": 0x4a, "<=": 0x4c, ">=": 0x4e,
  },
  i64: {
    "+": 0x7c, "-": 0x7d, "*": 0x7e, "&": 0x83, "|": 0x84, "<<": 0x86, ">>": 0x87, ">>>": 0x88, "<": 0x53, ">": 0x55,
  },
  f64: {
    "+": 0xa0, "-": 0xa1, "*": 0xa2, "/": 0xa3, "==": 0x61, "!=": 0x62, "<": 0x63, ">": 0x64, "<=": 0x65, ">=": 0x66,
  },
};
const COMPARES = new Set(["==", "!=", "<", ">", "<=", ">="]);
const PRECEDENCE = [
  ["|"], ["^"], ["&"], ["==", "!="], ["<", ">", "<=", ">="], ["<<", ">>", ">>>"], ["+", "-"], ["*", "/"],
];

const simd = (op) => [0xfd, ...unsigned(op)];
const shuffle = (...lanes) => [...simd(13), ...lanes];
const up = (from) => Array.from({ length: 8 }, (_, k) => from + k);
/** Name: arguments, result, bytes. An argument "#" is a constant that follows the bytes. */
const OPERATIONS = {
  clz: [["i32"], "i32", [0x67]],
  ctz: [["i32"], "i32", [0x68]],
  popcnt: [["i32"], "i32", [0x69]],
  below: [["i32", "i32"], "i32", [0x49]], // unsigned <
  i64: [["i32"], "i64", [0xac]],
  low: [["i64"], "i32", [0xa7]], // the lower half
  i64_below: [["i64", "i64"], "i32", [0x54]],
  i64_ctz: [["i64"], "i64", [0x7a]],
  floor: [["f64"], "f64", [0x9c]],
  abs: [["f64"], "f64", [0x99]],
  f64: [["i32"], "f64", [0xb7]],
  i32: [["f64"], "i32", [0xfc, 2]], // towards 0, held to the range
  f32_bits: [["f64"], "i32", [0xb6, 0xbc]], // of the nearest f32
  f32_of: [["i32"], "f64", [0xbe, 0xbb]],
  i32x4_splat: [["i32"], "v128", simd(17)],
  f64x2_splat: [["f64"], "v128", simd(20)],
  i32x4_lane: [["v128", "#"], "i32", simd(27)],
  f64x2_lane: [["v128", "#"], "f64", simd(33)],
  i64x2_lane: [["v128", "#"], "i64", simd(29)],
  i16x8_narrow_i32x4_s: [["v128", "v128"], "v128", simd(133)],
  i32x4_dot_i16x8_s: [["v128", "v128"], "v128", simd(186)],
  i8x16_narrow_i16x8_u: [["v128", "v128"], "v128", simd(102)],
  i32x4_ne: [["v128", "v128"], "v128", simd(56)],
  i32x4_bitmask: [["v128"], "i32", simd(164)],
  i32x4_add: [["v128", "v128"], "v128", simd(174)],
  i32x4_shr_s: [["v128", "i32"], "v128", simd(172)],
  i32x4_min_s: [["v128", "v128"], "v128", simd(182)],
  i32x4_max_s: [["v128", "v128"], "v128", simd(184)],
  i32x4_trunc_sat_f64x2_s_zero: [["v128"], "v128", simd(252)],
  f64x2_convert_low_i32x4_s: [["v128"], "v128", simd(254)],
  f64x2_add: [["v128", "v128"], "v128", simd(240)],
  f64x2_sub: [["v128", "v128"], "v128", simd(241)],
  f64x2_mul: [["v128", "v128"], "v128", simd(242)],
  f64x2_abs: [["v128"], "v128", simd(236)],
  f64x2_pmin: [["v128", "v128"], "v128", simd(246)],
  f64x2_pmax: [["v128", "v128"], "v128", simd(247)],
  f64x2_floor: [["v128"], "v128", simd(117)],
  v128_or: [["v128", "v128"], "v128", simd(80)],
  high: [["v128"], "v128", [], shuffle(...up(8), ...up(8))], // upper half, twice
  join: [["v128", "v128"], "v128", shuffle(...up(0), ...up(16))], // lower halves of both
  swap32: [["v128"], "v128", [], shuffle(3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4)], // big-endian 32-bit lanes
};

function unsigned(x) {
  return x < 128 ? [x] : [(x & 127) | 128, ...unsigned(Math.floor(x / 128))];
}
const signed = (x) => (x >= -64 && x < 64 ? [x & 127] : [(x & 127) | 128, ...signed(Math.floor(x / 128))]);
const vector = (items) => [...unsigned(items.length), ...items.flat()];
const f64Bytes = (x) => [...new Uint8Array(Float64Array.of(x).buffer)];

function tokenize(source) {
  const number = /0x[0-9a-fA-F]+|\d+\.\d+|\d+/.source;
  const sign = />>>|<<|>>|[=!<>]=|[-+*/&|^~!<>=(){}[\];:,]/.source;
  const pattern = new RegExp(`\\s+|//[^\\n]*|(${number})|([A-Za-z_]\\w*)|${sign}`, "gy");
  const tokens = [];
  while (pattern.lastIndex < source.length) {
    const at = pattern.lastIndex;
    const match = pattern.exec(source);
    const line = source.slice(0, at).split("\n").length;
    if (!match) throw new Error(`line ${line}: cannot read ${source.slice(at, at + 20)}`);
    const [text, number, name] = match;
    if (text.trim() && !text.startsWith("//")) tokens.push({ text, number, name, line });
  }
  return tokens;
}

function parse(source) {
  const tokens = tokenize(source);
  let at = 0;
  const peek = (k = 0) => tokens[at + k]?.text;
  const fail = (what) => {
    throw new Error(`line ${tokens[Math.min(at, tokens.length - 1)].line}: ${what}`);
  };
  const take = (text) => (peek() === text ? tokens[at++] : fail(`expected ${text}, not ${peek()}`));
  const taken = (text) => peek() === text && !!tokens[at++];
  const name = () => (tokens[at]?.name ? tokens[at++].text : fail(`expected a name, not ${peek()}`));

  function list(item, close) {
    const items = [];
    while (!taken(close)) {
      items.push(item());
      if (peek() !== close) take(",");
    }
    return items;
  }
  function primary() {
    const { line } = tokens[at] ?? fail("unexpected end");
    if (taken("(")) {
      const inside = expression();
      take(")");
      return inside;
    }
    if (taken("-")) return { kind: "negative", of: primary(), line };
    if (taken("~")) return { kind: "binary", op: "^", a: primary(), b: { kind: "number", value: -1 }, line };
    if (taken("!")) return { kind: "not", of: primary(), line };
    const { number } = tokens[at];
    if (number) {
      at++;
      return { kind: "number", value: Number(number), type: number.includes(".") && "f64", line };
    }
    const word = name();
    if (taken("(")) return { kind: "call", name: word, args: list(expression, ")"), line };
    if (word in LOADS && taken("[")) {
      const address = expression();
      take("]");
      return { kind: "load", as: word, address, line };
    }
    return { kind: "name", name: word, line };
  }
  function expression(level = 0) {
    if (level === PRECEDENCE.length) return primary();
    let a = expression(level + 1);
    while (PRECEDENCE[level].includes(peek())) {
      const { text: op, line } = tokens[at++];
      a = { kind: "binary", op, a, b: expression(level + 1), line };
    }
    return a;
  }
  function block() {
    take("{");
    const body = [];
    while (!taken("}")) body.push(statement());
    return body;
  }
  function statement() {
    const { line } = tokens[at];
    if (taken("if")) {
      take("(");
      const condition = expression();
      take(")");
      const then = block();
      const otherwise = taken("else") ? (peek() === "if" ? [statement()] : block()) : [];
      return { kind: "if", condition, then, otherwise, line };
    }
    if (taken("while")) {
      take("(");
      const condition = expression();
      take(")");
      return { kind: "while", condition, body: block(), line };
    }
    let result;
    if (taken("let")) {
      const to = name();
      take("=");
      result = { kind: "let", to, value: expression(), line };
    } else if (taken("return")) {
      result = { kind: "return", value: peek() === ";" ? null : expression(), line };
    } else {
      const left = expression();
      if (taken("=")) result = { kind: "set", left, value: expression(), line };
      else result = { kind: "do", value: left, line };
    }
    take(";");
    return result;
  }
  const constants = [];
  const functions = [];
  while (at < tokens.length) {
    if (taken("const")) {
      const to = name();
      take("=");
      constants.push([to, expression()]);
      take(";");
      continue;
    }
    const exported = taken("export");
    const inline = taken("inline");
    const { line } = take("fn");
    const fn = { name: name(), exported, inline, line };
    take("(");
    fn.params = list(() => [name(), taken(":") ? name() : "i32"], ")");
    fn.result = taken(":") ? name() : null;
    fn.body = block();
    functions.push(fn);
  }
  return { constants, functions };
}

/** The bytes of a module that imports `env.memory`, and the values of its constants. */
export function compile(source) {
  const { constants, functions } = parse(source);
  const values = new Map();
  const inlines = new Map(functions.filter((fn) => fn.inline).map((fn) => [fn.name, fn]));
  const compiled = functions.filter((fn) => !fn.inline);
  const indices = new Map(compiled.map((fn, k) => [fn.name, k]));

  /** What names stand for: local variables and constants. */
  let scope = new Map();
  /** The value of an expression that is a constant, else undefined. */
  function constantOf(node) {
    if (node.kind === "number") return node.type ? undefined : node.value;
    if (node.kind === "name") return scope.has(node.name) ? scope.get(node.name).constant : values.get(node.name);
    if (node.kind === "negative") {
      const x = constantOf(node.of);
      return x === undefined ? undefined : -x;
    }
    if (node.kind !== "binary") return undefined;
    const [a, b] = [constantOf(node.a), constantOf(node.b)];
    if (a === undefined || b === undefined) return undefined;
    const work = {
      "<": a < b, ">": a > b, "==": a === b,
      "+": a + b, "-": a - b, "*": a * b, "<<": a << b, ">>": a >> b, "|": a | b, "&": a & b, "^": a ^ b,
    };
    return work[node.op] === undefined ? undefined : Number(work[node.op]);
  }
  for (const [to, node] of constants) {
    const value = constantOf(node);
    if (value === undefined) throw new Error(`${to} is no constant`);
    values.set(to, value);
  }

  function bodyOf(fn) {
    const locals = fn.params.map(([, type]) => type);
    scope = new Map(fn.params.map(([name, type], k) => [name, { index: k, type }]));
    const code = [];
    const emit = (...bytes) => code.push(...bytes.flat());
    // Locals whose scope has ended serve again; `taken` are those of the scope that is open.
    const idle = { i32: [], i64: [], f64: [], v128: [] };
    let taken = [];
    const fresh = (type) => {
      const index = idle[type].pop() ?? locals.push(type) - 1;
      taken.push([type, index]);
      return index;
    };
    function scoped(work) {
      const [outer, outerTaken] = [scope, taken];
      taken = [];
      const result = work();
      for (const [type, index] of taken.reverse()) idle[type].push(index);
      [scope, taken] = [outer, outerTaken];
      return result;
    }
    let lastSet = { index: -1, from: 0, to: 0 };
    const set = (index) => {
      const from = code.length;
      emit(0x21, unsigned(index));
      lastSet = { index, from, to: code.length };
    };
    const get = (index) => {
      // What was just set is still at hand: local.tee.
      if (lastSet.index === index && lastSet.to === code.length) {
        code[lastSet.from] = 0x22;
        lastSet.index = -1;
      } else {
        emit(0x20, unsigned(index));
      }
    };

    function fail(node, what) {
      throw new Error(`line ${node.line}, ${fn.name}: ${what}`);
    }
    function expect(node, type) {
      const got = value(node);
      if (got !== type) fail(node, `expected ${type}, not ${got}`);
    }
    /** Push the address; returns the part of it that goes into the instruction. */
    function address(node) {
      if (node.kind === "binary" && node.op === "+") {
        const offset = constantOf(node.b);
        if (offset !== undefined && offset >= 0) {
          expect(node.a, "i32");
          return unsigned(offset);
        }
      }
      expect(node, "i32");
      return [0];
    }
    function value(node) {
      const constant = constantOf(node);
      if (constant !== undefined) {
        emit(0x41, signed(constant | 0));
        return "i32";
      }
      switch (node.kind) {
        case "number":
          emit(0x44, f64Bytes(node.value));
          return "f64";
        case "name": {
          const local = scope.get(node.name) ?? fail(node, `no ${node.name}`);
          get(local.index);
          return local.type;
        }
        case "negative": {
          if (node.of.kind === "number") {
            emit(0x44, f64Bytes(-node.of.value));
            return "f64";
          }
          const type = value(node.of);
          if (type === "f64") emit(0x9a);
          else emit(0x41, signed(-1), 0x6c);
          return type;
        }
        case "not":
          expect(node.of, "i32");
          emit(0x45);
          return "i32";
        case "binary": {
          const type = value(node.a);
          const op = BINARY[type]?.[node.op] ?? fail(node, `no ${node.op} on ${type}`);
          expect(node.b, type);
          emit(op);
          return COMPARES.has(node.op) ? "i32" : type;
        }
        case "load": {
          const [op, type] = LOADS[node.as];
          const offset = address(node.address);
          emit(op, 0, offset);
          if (node.as === "f32") emit(0xbb);
          return type;
        }
        case "call":
          return call(node);
      }
      return fail(node, "no value");
    }
    function call(node) {
      const { name, args } = node;
      if (name === "select") {
        const type = value(args[0]);
        expect(args[1], type);
        expect(args[2], "i32");
        if (type === "v128") emit(0x1c, 1, TYPES.v128);
        else emit(0x1b);
        return type;
      }
      if (name === "i64" && constantOf(args[0]) !== undefined) {
        emit(0x42, signed(constantOf(args[0])));
        return "i64";
      }
      if (name in OPERATIONS) {
        const [types, result, bytes, again] = OPERATIONS[name];
        if (types.length !== args.length) fail(node, `${name} takes ${types.length}`);
        types.forEach((type, k) => type !== "#" && expect(args[k], type));
        if (again) {
          const copy = fresh("v128");
          emit(0x22, unsigned(copy), 0x20, unsigned(copy), again);
        }
        emit(bytes);
        types.forEach((type, k) => type === "#" && emit(constantOf(args[k])));
        return result;
      }
      const target = inlines.get(name) ?? compiled[indices.get(name)] ?? fail(node, `no ${name}`);
      if (target.params.length !== args.length) fail(node, `${name} takes ${target.params.length}`);
      const refs = new Map();
      args.forEach((arg, k) => {
        const [param, type] = target.params[k];
        const constant = target.inline ? constantOf(arg) : undefined;
        if (type === "ref") refs.set(param, scope.get(arg.name) ?? fail(node, `${param} must be a local`));
        else if (constant !== undefined) refs.set(param, { constant });
        else expect(arg, type);
      });
      if (!target.inline) {
        emit(0x10, unsigned(indices.get(name)));
        return target.result;
      }
      return scoped(() => inline(node, target, refs));
    }
    function inline(node, target, refs) {
      const params = target.params.filter(([param]) => !refs.has(param));
      const locals = params.map(([param, type]) => [param, { index: fresh(type), type }]);
      for (const [, { index }] of [...locals].reverse()) set(index);
      scope = new Map([...refs, ...locals]);
      const last = target.body.at(-1);
      const returns = last?.kind === "return";
      statements(returns ? target.body.slice(0, -1) : target.body);
      const type = returns ? value(last.value) : null;
      if (type !== target.result) fail(node, `${target.name} gives ${type}, not ${target.result}`);
      return type;
    }
    function statements(list) {
      for (const node of list) statement(node);
    }
    function block(list) {
      scoped(() => {
        scope = new Map(scope);
        statements(list);
      });
    }
    function statement(node) {
      switch (node.kind) {
        case "let": {
          const type = value(node.value);
          const index = fresh(type);
          scope.set(node.to, { index, type });
          set(index);
          return;
        }
        case "set": {
          if (node.left.kind === "load") {
            const offset = address(node.left.address);
            const type = LOADS[node.left.as][1];
            expect(node.value, type);
            if (node.left.as === "f32") emit(0xb6);
            emit(STORES[node.left.as], 0, offset);
            return;
          }
          const local = scope.get(node.left.name) ?? fail(node, `no ${node.left.name}`);
          if (local.constant !== undefined) fail(node, `${node.left.name} is a constant here`);
          expect(node.value, local.type);
          set(local.index);
          return;
        }
        case "if": {
          const known = constantOf(node.condition);
          if (known !== undefined) return block(known ? node.then : node.otherwise);
          expect(node.condition, "i32");
          emit(0x04, 0x40);
          block(node.then);
          if (node.otherwise.length) {
            emit(0x05);
            block(node.otherwise);
          }
          emit(0x0b);
          return;
        }
        case "while":
          // One test before, one at the end of each round.
          expect(node.condition, "i32");
          emit(0x04, 0x40, 0x03, 0x40);
          block(node.body);
          expect(node.condition, "i32");
          emit(0x0d, 0, 0x0b, 0x0b);
          return;
        case "return":
          if (node.value) expect(node.value, fn.result);
          emit(0x0f);
          return;
        case "do":
          if (value(node.value)) emit(0x1a);
          return;
      }
    }
    statements(fn.body);
    if (fn.result) emit(0x00);
    const runs = [];
    for (const type of locals.slice(fn.params.length)) {
      if (runs.at(-1)?.type === type) runs.at(-1).count++;
      else runs.push({ type, count: 1 });
    }
    const declared = vector(runs.map(({ type, count }) => [...unsigned(count), TYPES[type]]));
    const bytes = [...declared, ...code, 0x0b];
    return [...unsigned(bytes.length), ...bytes];
  }

  const ascii = (text) => vector([...text].map((c) => [c.charCodeAt(0)]));
  const section = (id, bytes) => [id, ...unsigned(bytes.length), ...bytes];
  const signature = ({ params, result }) => [
    0x60, ...vector(params.map(([, type]) => [TYPES[type]])), ...vector(result ? [[TYPES[result]]] : []),
  ];
  const exported = compiled.filter((fn) => fn.exported);
  const bytes = Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, vector(compiled.map(signature))),
    ...section(2, vector([[...ascii("env"), ...ascii("memory"), 2, 0, 1]])),
    ...section(3, vector(compiled.map((_, k) => unsigned(k)))),
    ...section(7, vector(exported.map((fn) => [...ascii(fn.name), 0, ...unsigned(indices.get(fn.name))]))),
    ...section(10, vector(compiled.map(bodyOf))),
  ]);
  return { bytes, constants: Object.fromEntries(values) };
}
