// Section 7 of bitstreams/SPEC.md, read a second time as slow_reader.mjs reads the sections before: in the words and
// order of that page, sharing nothing with the player. Pictures of video are somebody else's to decode.

import {
  Bytes, PlainBits, Rans, bit, clamp, crc32, expGolomb, floorDiv, level, makeTable, models, must, rawBitsOf,
  readContainer, readParts, readWeights, reconstruct, tokenIn, unzigzag, valueOf,
} from "./slow_reader.mjs";

const KNOWN = ["sequence-1", "temporal-1", "video-1", "lossy-1"];
const [POSITION, TURN, SIZE, OPACITY, COLOR, SH] = [0, 1, 2, 3, 4, 5];
const sum = (list) => list.reduce((a, b) => a + b, 0);

// --- 7.1 to 7.3 the file ------------------------------------------------------------------------------------------

/** Frames a second, and of each group {first, frames, number, uses, coding, chunks}. */
export function readSequence(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const containers = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(view.getBigUint64(at + 8, true));
    must(at + length <= file.length, "a container is cut off");
    const bytes = file.subarray(at, at + length);
    containers.push({ length, ...readContainer(bytes, KNOWN) });
    at += length;
  }
  must(containers.every(({ features }) => features.includes("sequence-1")), "sequence-1");
  const [head, ...rest] = containers;
  const seqh = new Bytes(head.chunks.find(({ type }) => type === "SEQH").payload);
  const [numerator, denominator] = [seqh.u32(), seqh.u32()];
  must(numerator >= 1 && denominator >= 1, "frames a second");
  const index = rest.pop();
  must(head.numGaussians === 0 && index.numGaussians === 0, "Gaussians outside groups");
  let first = 0;
  const groups = rest.map(({ chunks, numGaussians }, k) => {
    must(chunks[0].type === "GRPH", "a group begins with GRPH");
    const r = new Bytes(chunks[0].payload);
    const group = { first: Number(r.u64()), frames: r.u32(), number: r.u32(), uses: r.u32(), coding: r.u8(), chunks };
    must(numGaussians === sum(chunks.map(({ type, count }) => (type === "TILE" ? count : 0))), "Gaussians of a group");
    must(group.first === first && group.number === k && group.uses <= k, "number");
    must(group.frames >= 1 && group.frames <= 256 && group.coding <= 1, "frames");
    first += group.frames;
    return group;
  });
  for (const group of groups) must(groups[group.uses].uses === group.uses, "a scene at second hand");
  const sidx = new Bytes(index.chunks.find(({ type }) => type === "SIDX").payload);
  must(sidx.varint() === BigInt(groups.length), "number of groups");
  groups.forEach((group, k) => {
    must(Number(sidx.varint()) === rest[k].length && Number(sidx.varint()) === group.frames, "index");
    must(k - Number(sidx.varint()) === group.uses, "index");
  });
  must(Number(sidx.u64()) === index.length && sidx.ascii(4) === "SEND", "end");
  return { fps: numerator / denominator, groups };
}

// --- 7.4, 7.5 what moves ------------------------------------------------------------------------------------------

/** Parts of the group's base, those of the scene that it uses first: each with the parameters of its own scene. */
function readBase(groups, group) {
  const scenes = [...new Set([groups[group.uses], group])].filter(({ chunks }) => chunks.some((c) => c.type === "PARM"));
  return scenes.flatMap(({ chunks }) => {
    const { parameters, parts } = readParts(chunks);
    must(parts.every((part) => part.level === 1), "levels");
    return parts.map((part) => ({ ...part, parameters }));
  });
}

const secondDifferences = (next, count, start) => {
  let [before, older] = [start, start];
  return Array.from({ length: count }, () => {
    const value = next() + 2 * before - older;
    [older, before] = [before, value];
    return value;
  });
};

function readMotion(payload, frames, degree) {
  const r = new Bytes(payload);
  const numNodes = r.u16();
  const hasEvents = r.u8() === 1;
  r.u8();
  const [bias, positionStep, turnStep, nodeStep] = [r.i32(), r.f32(), r.f32(), r.f32()];
  const J = Array.from({ length: 6 }, () => r.u8());
  must(numNodes <= 255 && Math.abs(bias) <= 2 ** 20 && J.every((j) => j <= frames) && sum(J) <= 64, "counts");
  must(degree > 0 || J[SH] === 0, "shapes of SH");
  const numTables = r.u16();
  const list = new Rans(r.take(r.u32()), 1);
  const m = models(16 * 64);
  const next = (kind) => unzigzag(expGolomb(list, m, 64 * kind));
  const shapes = J.map((j) => Array.from({ length: j }, () => secondDifferences(() => next(0), frames, 0)));
  const nodes = Array.from({ length: numNodes }, () => ({
    pivot: [next(1), next(1), next(1)],
    quat: [65536, 0, 0, 0].map((start) => secondDifferences(() => next(2), frames, start)),
    shift: [0, 0, 0].map(() => secondDifferences(() => next(3), frames, 0)),
  }));
  const weights = Array.from({ length: sum(J) }, () => next(4));
  must(weights.every((w) => w >= 0 && w <= 8192), "weight");
  let table = 0;
  const maps = weights.map(() => Array.from({ length: 32 }, () => (table += next(5))));
  must(maps.flat().every((t) => t >= 0 && t < numTables), "table");
  list.end();
  const rans = new Rans(r.rest(), 1);
  const tables = readWeights(rans, numTables).map(makeTable);
  rans.end();
  return { hasEvents, bias, positionStep, turnStep, nodeStep, shapes, nodes, weights, maps, tables };
}

const componentsOf = (degree) => [3, 3, 3, 1, 3, 3 * ((degree + 1) ** 2 - 1)];

function exponentOf(track, { V, parameters }, i, bias) {
  const [g, c] = [V[0][i], V[1][i]];
  if (track === POSITION) {
    return clamp(floorDiv((V[2][i] + V[3][i] + V[4][i]) * parameters.sizeStep, 3072) + g + bias, 0, 20);
  }
  return [g, g + 1, g + 1, c + 1, c + 1][track - 1];
}

// --- 7.6 TRAJ -----------------------------------------------------------------------------------------------------

/** Of each Gaussian of a part: {node, tracks, birth, death, events, C, M}; C[track][shape][component]. */
function readTrajectories(payload, motion, part, frames) {
  const r = new Bytes(payload);
  const logStates = r.u8();
  r.skip(3);
  const numEvents = r.u32();
  must(logStates <= 5 && numEvents <= 8 * payload.length, "head");
  const rans = new Rans(r.take(r.u32()), 2 ** logStates);
  const plain = new PlainBits(r.rest());
  const m = models(696);
  const G = (base) => expGolomb(rans, m, base);
  const components = componentsOf(part.parameters.degree);
  const all = [];
  for (let i = 0; i < part.place.length; i++) {
    const near = part.place[i].neighbours.map((j) => all[j]);
    const one = { node: 0, tracks: [], birth: 0, death: frames, events: [], C: [], M: [] };
    all.push(one);
    if (motion.nodes.length) {
      const likely = near.length ? near[0].node : 0;
      one.node = bit(rans, m[near.filter(({ node }) => node === likely).length]) ? likely : G(8);
      must(one.node <= motion.nodes.length, "node");
    }
    motion.shapes.forEach((shapes, t) => {
      const has = near.map(({ tracks }) => tracks.includes(t));
      if (shapes.length && bit(rans, m[72 + 16 * t + 2 * has.filter((x) => x).length + (has[0] ? 1 : 0)])) one.tracks.push(t);
    });
    one.partial = bit(rans, m[168 + near.filter(({ partial }) => partial).length]);
    if (one.partial) {
      one.birth = G(176);
      one.death = frames - G(240);
      must(one.birth <= one.death && one.death >= 0, "life");
    }
    if (motion.hasEvents && bit(rans, m[304 + near.filter(({ events }) => events.length).length])) {
      let frame = 0;
      for (let left = G(312) + 1; left > 0; left--) {
        frame += G(376);
        const track = 3 + G(440);
        must(frame >= 1 && frame < frames && track <= SH, "event");
        const e = exponentOf(track, part, i, motion.bias);
        const delta = Array.from({ length: components[track] }, () => unzigzag(G(504 + 64 * (track - 3))) * 2 ** e);
        one.events.push({ frame, track, delta });
      }
    }
    let s = 0;
    motion.shapes.forEach((shapes, t) => {
      const has = one.tracks.includes(t);
      one.C[t] = shapes.map(() => Array(components[t]).fill(0));
      one.M[t] = shapes.map(() => Array(components[t]).fill(0));
      const alike = near.filter(({ tracks, node }) => tracks.includes(t) && node === one.node);
      const n = alike.length;
      const e = exponentOf(t, part, i, motion.bias);
      const before = [0, 0];
      shapes.forEach((_, j) => {
        for (let c = 0; has && c < components[t]; c++) {
          const mean = n && floorDiv(sum(alike.map(({ C }) => C[t][j][c])), n);
          const p = n ? floorDiv(motion.weights[s] * mean + 2048, 4096) : 0;
          const size = n && floorDiv(4 * sum(alike.map(({ M }) => M[t][j][c])), n);
          const around = n ? level(floorDiv(size, 2 ** e), 7) : 7;
          const both = sum(before);
          const own = both === 0 ? 0 : both <= 2 ? 1 : both <= 6 ? 2 : 3;
          const token = rans.next(tokenIn(motion.tables[motion.maps[s][4 * around + own]]));
          const r = valueOf(token, plain.read(rawBitsOf(token)));
          one.C[t][j][c] = clamp(p + r * 2 ** e, -(2 ** 24), 2 ** 24);
          one.M[t][j][c] = Math.min(Math.abs(r), 2 ** 24) * 2 ** e;
          before.shift();
          before.push(Math.abs(r));
        }
        s++;
      });
    });
  }
  rans.end();
  must(sum(all.map(({ events }) => events.length)) === numEvents, "number of events");
  return all;
}

// --- 7.7 frames ---------------------------------------------------------------------------------------------------

const product = ([a, b, c, d], [e, f, g, h]) => [
  a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g, a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e,
];
const unit = (q) => q.map((x) => x / Math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]));
const matrixOf = ([w, x, y, z]) => [
  1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
  2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
  2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
];
const times = (m, [x, y, z]) => [0, 3, 6].map((k) => m[k] * x + m[k + 1] * y + m[k + 2] * z);

/** Eigenvalues and unit eigenvectors of a symmetric matrix, xx xy xz yy yz zz, by Jacobi's rotations. */
function axesOf([xx, xy, xz, yy, yz, zz]) {
  const a = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]];
  const v = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  for (let sweep = 0; sweep < 60; sweep++) {
    for (const [p, q] of [[0, 1], [0, 2], [1, 2]]) {
      if (a[p][q] === 0) continue;
      const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
      const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.hypot(theta, 1));
      const c = 1 / Math.hypot(t, 1);
      const s = t * c;
      for (const row of [...a, ...v]) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
      [a[p], a[q]] = [a[p].map((x, k) => c * x - s * a[q][k]), a[p].map((x, k) => s * x + c * a[q][k])];
    }
  }
  return [0, 1, 2].map((k) => ({ value: a[k][k], axis: v.map((row) => row[k]) }));
}

/** Covariance of axes with standard deviations. */
function covarianceOf(axes) {
  const at = [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2]];
  return at.map(([j, k]) => sum(axes.map(({ sigma, axis }) => sigma * sigma * axis[j] * axis[k])));
}

/** The harmonics of bands 1 to `degree` in the order and signs of 3DGS files, up to one factor a band. */
function harmonicsAt(degree, [x, y, z]) {
  const [xx, yy, zz] = [x * x, y * y, z * z];
  const bands = [
    [-y, z, -x],
    [x * y, -y * z, (2 * zz - xx - yy) / Math.sqrt(12), -x * z, (xx - yy) / 2],
    [
      -Math.sqrt(10) * y * (3 * xx - yy), Math.sqrt(240) * x * y * z, -Math.sqrt(6) * y * (4 * zz - xx - yy),
      2 * z * (2 * zz - 3 * xx - 3 * yy), -Math.sqrt(6) * x * (4 * zz - xx - yy), Math.sqrt(60) * z * (xx - yy),
      -Math.sqrt(10) * x * (xx - 3 * yy),
    ],
  ];
  return bands.slice(0, degree);
}

const DIRECTIONS = Array.from({ length: 60 }, (_, k) => {
  const z = 1 - (2 * k + 1) / 60;
  const across = Math.sqrt(1 - z * z);
  return [across * Math.cos(2.4 * k), across * Math.sin(2.4 * k), z];
});

/** For each band the matrix that turns its coefficients: what is seen from d was seen from R^T d before. */
function bandTurns(degree, R) {
  const back = [0, 1, 2].flatMap((k) => [R[k], R[3 + k], R[6 + k]]);
  const after = DIRECTIONS.map((d) => harmonicsAt(degree, d));
  const before = DIRECTIONS.map((d) => harmonicsAt(degree, times(back, d)));
  return Array.from({ length: degree }, (_, band) => {
    // Least squares: (Y^T Y) M = Y^T Z, by elimination.
    const n = 2 * band + 3;
    const rows = Array.from({ length: n }, (_, j) => [
      ...Array.from({ length: n }, (_, k) => sum(after.map((y) => y[band][j] * y[band][k]))),
      ...Array.from({ length: n }, (_, k) => sum(after.map((y, at) => y[band][j] * before[at][band][k]))),
    ]);
    for (let j = 0; j < n; j++) {
      const pivot = rows[j][j];
      rows[j] = rows[j].map((x) => x / pivot);
      rows.forEach((row, k) => k !== j && (rows[k] = row.map((x, at) => x - row[j] * rows[j][at])));
    }
    return rows.map((row) => row.slice(n));
  });
}

/** A group with motion, ready to give frames. */
function openMotion(groups, group) {
  const parts = readBase(groups, group);
  const degree = parts.length ? parts[0].parameters.degree : 0;
  must(parts.every(({ parameters }) => parameters.degree === degree), "SH degree");
  const motion = readMotion(group.chunks.find(({ type }) => type === "MOTN").payload, group.frames, degree);
  const chunks = group.chunks.filter(({ type }) => type === "TRAJ");
  must(chunks.length === parts.length, "one TRAJ for each TILE");
  const paths = parts.map((part, k) => {
    must(chunks[k].tile === part.tile && chunks[k].level === 1 && chunks[k].count === part.place.length, "TRAJ");
    return readTrajectories(chunks[k].payload, motion, part, group.frames);
  });
  return (f) => motionFrame(parts, paths, motion, degree, f);
}

function motionFrame(parts, paths, motion, degree, f) {
  const out = { means: [], covariances: [], alphas: [], sh0: [], shN: [], nodes: [], floors: [] };
  const moves = motion.nodes.map(({ pivot, quat, shift }) => {
    const q = unit(quat.map((row) => row[f]));
    const P = pivot.map((x) => x * motion.nodeStep);
    return { q, R: matrixOf(q), P, target: P.map((x, k) => x + shift[k][f] * motion.nodeStep) };
  });
  const turns = moves.map(({ R }) => bandTurns(degree, R));
  parts.forEach((part, number) => {
    const { parameters, head } = part;
    part.place.forEach((_, i) => {
      const one = paths[number][i];
      if (f < one.birth || f >= one.death) return;
      /** D / 4096 of a component of a track. */
      const D = (t, c) => {
        const shaped = sum(motion.shapes[t].map((shape, j) => shape[f] * one.C[t][j][c]));
        const jumped = sum(one.events.filter((e) => e.track === t && e.frame <= f).map((e) => e.delta[c]));
        return (shaped + 4096 * jumped) / 4096;
      };
      const move = one.node ? moves[one.node - 1] : null;
      let x = part.means[i].map((base, k) => base + D(POSITION, k) * motion.positionStep);
      if (move) x = times(move.R, x.map((value, k) => value - move.P[k])).map((value, k) => value + move.target[k]);
      const v = part.V.map((row) => row[i]);
      v[8] += Math.floor(D(OPACITY, 0) + 0.5);
      for (let k = 0; k < 3; k++) v[9 + k] += D(COLOR, k);
      for (let k = 12; k < v.length; k++) v[k] += D(SH, k - 12);
      const still = reconstruct(parameters, head, v, 0, 1024);
      // Shape: sizes change along the base's own axes, which then turn.
      const least = Math.max(head.blur / 16, 1e-30);
      const axes = axesOf(still.covariance).map(({ value, axis }) => ({ axis, value, sigma: Math.sqrt(Math.max(value, least * least)) }));
      const order = [0, 1, 2].sort((a, b) => Math.fround(Math.log(axes[a].sigma)) - Math.fround(Math.log(axes[b].sigma)) || a - b);
      const growth = order.map((_, rank) => D(SIZE, rank) * (parameters.sizeStep / 1024) * Math.LN2);
      order.forEach((axis, rank) => (axes[axis].sigma *= Math.exp(growth[rank])));
      const own = unit([1, ...[0, 1, 2].map((k) => D(TURN, k) * motion.turnStep)]);
      const R = matrixOf(move ? product(move.q, own) : own);
      for (const one of axes) one.axis = times(R, one.axis);
      // How much the smallest deviation that there may be can change.
      const raised = Math.max(0, ...axes.map(({ value }) => -value)) + least * least;
      out.floors.push(raised * Math.exp(2 * Math.max(0, ...growth)));
      if (move && degree) {
        let at = 0;
        for (const M of turns[one.node - 1]) {
          const rows = M.map((_, k) => [0, 1, 2].map((c) => still.shN[3 * (at + k) + c]));
          M.forEach((weights, j) => [0, 1, 2].forEach((c) => (still.shN[3 * (at + j) + c] = sum(weights.map((w, k) => w * rows[k][c])))));
          at += M.length;
        }
      }
      out.means.push(...x.map(Math.fround));
      out.covariances.push(...covarianceOf(axes));
      out.alphas.push(still.alpha);
      out.sh0.push(...still.sh0);
      out.shN.push(...still.shN);
      out.nodes.push(one.node);
    });
  });
  return out;
}

// --- 7.10 columns -------------------------------------------------------------------------------------------------

function readColumns(payload, N, width, count) {
  const r = new Bytes(payload);
  const numTables = Number(r.varint());
  const lengths = [r.varint(), r.varint(), r.varint(), r.varint()].map(Number);
  must(numTables <= 256 && N * count <= 24000 * payload.length, "columns");
  const [headBytes, tableBytes, coded, plainBytes] = lengths.map((length) => r.take(length));
  must(r.at === payload.length, "left over");
  const head = new Bytes(headBytes);
  const plans = Array.from({ length: count }, (_, p) => {
    const both = head.u8();
    const [R, shift] = [both % 16, both >> 4];
    const back = head.u8();
    must(R <= 4 && back <= p, "references");
    const refers = Array.from({ length: R }, () => p - 1 - head.u8());
    must(refers.every((q) => q >= 0), "references");
    const coefficients = Array.from({ length: 4 + 3 * R + 1 }, () => unzigzag(Number(head.varint())));
    must(coefficients.every((c, k) => Math.abs(c) < (k < 4 + 3 * R ? 2 ** 20 : 2 ** 27)), "coefficient");
    return { shift, steps: back ? p - back : null, refers, coefficients };
  });
  for (const plan of plans) {
    plan.map = [];
    while (plan.map.length < 64) {
      const [table, run] = [head.u8(), head.u8()];
      must(table < numTables && run >= 1 && plan.map.length + run <= 64, "context map");
      plan.map.push(...Array(run).fill(table));
    }
  }
  must(head.at === headBytes.length, "left over");
  const tableRans = numTables ? new Rans(tableBytes, 1) : null;
  const tables = tableRans ? readWeights(tableRans, numTables).map(makeTable) : [];
  tableRans?.end();
  const rans = new Rans(coded, 8);
  const plain = new PlainBits(plainBytes);
  const [V, M] = [[], []];
  plans.forEach(({ shift, steps, refers, coefficients, map }, p) => {
    const [v, m] = [(V[p] = []), (M[p] = [])];
    for (let i = 0; i < N; i++) {
      const [x, y] = [i % width, floorDiv(i, width)];
      const e = Math.min(15, shift + (steps === null ? 0 : clamp(V[steps][i], 0, 15)));
      /** A neighbour, or what stands for it where there is none. */
      const left = (row) => (x > 0 ? row[i - 1] : y > 0 ? row[i - width] : 0);
      const above = (row) => (y > 0 ? row[i - width] : left(row));
      const aboveLeft = (row) => (y > 0 && x > 0 ? row[i - width - 1] : above(row));
      const aboveRight = (row) => (y > 0 && x + 1 < width ? row[i - width + 1] : above(row));
      const features = [
        left(v), above(v), aboveLeft(v), aboveRight(v), ...refers.flatMap((q) => [V[q][i], left(V[q]), above(V[q])]), 1,
      ];
      const total = sum(features.map((feature, k) => feature * coefficients[k]));
      const prediction = clamp(floorDiv(total + 2048, 4096), -(2 ** 26), 2 ** 26);
      const near = y > 0 ? 2 * above(m) + aboveRight(m) + 2 * left(m) : 5 * left(m);
      const size = floorDiv(p > 0 ? M[p - 1][i] : 0, 2 ** e);
      const own = size === 0 ? 0 : size === 1 ? 1 : size <= 5 ? 2 : 3;
      const token = rans.next(tokenIn(tables[map[4 * level(floorDiv(near, 2 ** e), 16) + own]]));
      const most = floorDiv(2 ** 26, 2 ** e);
      const r = clamp(valueOf(token, plain.read(rawBitsOf(token))), -most, most);
      v[i] = clamp(prediction + r * 2 ** e, -(2 ** 27), 2 ** 27);
      m[i] = Math.abs(r) * 2 ** e;
    }
  });
  rans.end();
  return V;
}

// --- 7.8, 7.9 planes ----------------------------------------------------------------------------------------------

/** The video of a group: {codec, codecString, description, packets, width, height}, or null. */
function openPlanes(group) {
  const { payload, count } = group.chunks.find(({ type }) => type === "VGRP");
  const r = new Bytes(payload);
  const [version, degree] = [r.u8(), r.u8()];
  r.u16();
  must(version === 1 && degree <= 3, "version");
  const f64 = () => r.view.getFloat64(r.skip(8), true);
  const origin = [f64(), f64(), f64()];
  const [position, scale, turn, alpha, colour, harmonic] = Array.from({ length: 6 }, () => r.f32());
  const begun = r.at;
  must(r.u8() === 1, "version");
  const [frames, N, width] = [r.varint(), r.varint(), r.varint()].map(Number);
  must(frames === group.frames && N === count && width <= N, "counts");
  const sets = Array.from({ length: Number(r.varint()) }, () => {
    const K = r.u8();
    return Array.from({ length: frames }, () => Array.from({ length: K }, () => r.i32()));
  });
  let tiles = 0;
  const planes = Array.from({ length: Number(r.varint()) }, () => {
    const name = r.ascii(r.u8());
    const [low, high, flags, set] = [r.i32(), r.i32(), r.u8(), r.u8()];
    const [still, tiled] = [(flags & 1) === 1, (flags & 2) === 2];
    must(set === 0 || (still && set <= sets.length), "set of functions");
    const multiplier = tiled ? Number(r.varint()) : 0;
    return { name, low, high, still, functions: set ? sets[set - 1] : null, multiplier, tile: tiled ? tiles++ : null };
  });
  const columnsOf = ({ still, functions }) => (still ? 1 + (functions ? functions[0].length : 0) : 0);
  const columns = readColumns(r.take(Number(r.varint())), N, width, sum(planes.map(columnsOf)));
  for (const plane of planes) {
    const own = columns.splice(0, columnsOf(plane));
    plane.base = plane.still ? own.shift() : null;
    plane.coefficients = own;
  }
  const up = (x) => 16 * Math.ceil(x / 16);
  const [tileWidth, tileHeight] = [up(width), up(Math.ceil(N / width))];
  const codec = [null, "h264", "hevc", "av1"][r.u8()];
  let video = null;
  if (codec) {
    const across = Number(r.varint());
    const codecString = r.ascii(Number(r.varint()));
    const description = r.take(Number(r.varint()));
    const packets = Array.from({ length: frames }, () => Number(r.varint())).map((length) => r.take(length));
    video = {
      codec, codecString, description, packets, across,
      width: across * tileWidth, height: Math.ceil(tiles / across) * tileHeight,
    };
  }
  const end = r.at;
  must(r.u32() === crc32(payload.subarray(begun, end)) && r.at === payload.length, "checksum of the planes");

  /** Every plane's cells at a frame; `luma` of its picture. */
  const cells = (f, luma) => {
    const found = {};
    for (const { name, low, high, base, functions, coefficients, multiplier, tile } of planes) {
      found[name] = Array.from({ length: N }, (_, i) => {
        let value = base ? base[i] : 128;
        if (functions) value += floorDiv(sum(coefficients.map((column, k) => functions[f][k] * column[i])) + 2 ** 13, 2 ** 14);
        if (tile !== null) {
          const x = (tile % video.across) * tileWidth + (i % width);
          const y = floorDiv(tile, video.across) * tileHeight + floorDiv(i, width);
          value += multiplier * (luma[y * video.width + x] - 128);
        }
        return clamp(value, low, high);
      });
    }
    return found;
  };

  const frame = (f, luma) => {
    const plane = cells(f, luma);
    const out = { means: [], covariances: [], alphas: [], sh0: [], shN: [], nodes: Array(N).fill(0), floors: Array(N).fill(0) };
    for (let i = 0; i < N; i++) {
      out.means.push(...origin.map((o, k) => Math.fround(o + plane[`position ${k}`][i] * position)));
      const t = [0, 1, 2].map((k) => plane[`turn ${k}`][i] * turn);
      const n = t[0] * t[0] + t[1] * t[1] + t[2] * t[2];
      const R = matrixOf([1 - n, ...t.map((x) => 2 * x)].map((x) => x / (1 + n)));
      out.covariances.push(...covarianceOf([0, 1, 2].map((k) => ({
        sigma: Math.exp(plane[`scale ${k}`][i] * scale), axis: [R[k], R[3 + k], R[6 + k]],
      }))));
      out.alphas.push(clamp(plane.alpha[i] * alpha, 1e-6, 1 - 1e-6));
      out.sh0.push(...[0, 1, 2].map((k) => Math.fround(plane[`colour ${k}`][i] * colour)));
      for (let b = 0; b < (degree + 1) ** 2 - 1; b++) {
        out.shN.push(...[0, 1, 2].map((k) => Math.fround(plane[`harmonic ${b} ${k}`][i] * harmonic)));
      }
    }
    return out;
  };
  return { video, frame };
}

/**
 * The group that a frame is of, opened: {group, video, frame(f, luma)}; luma is that of the picture of frame f of the
 * group, where there is a video. Covariances and what nodes turn are outside the promise of equal bits; `floors` says
 * how much a covariance may be off because its smallest axis was held to the least there may be.
 */
export function openGroup({ groups }, group) {
  return group.coding === 0 ? { video: null, frame: openMotion(groups, group) } : openPlanes(group);
}
