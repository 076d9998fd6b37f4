// Shared by the scripts that tests/test_player.py runs. A script fails by throwing; what it prints is for people.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";

/** A line of output that a test reads. */
export const report = (facts) => console.log(JSON.stringify(facts));

/** Digest of typed arrays, to the bit. */
export function digest(arrays) {
  const hash = createHash("sha256");
  for (const array of arrays) hash.update(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  return hash.digest("hex");
}

/** The arrays of a decoded scene, in a fixed order. */
export const arraysOf = ({ means, covariances, alphas, sh0, shN }) => [means, covariances, alphas, sh0, shN];

/** Fails unless both hold the same bits. */
export function sameBits(actual, expected, what) {
  assert.equal(actual.length, expected.length, `length of ${what}`);
  for (let k = 0; k < actual.length; k++) {
    if (!Object.is(actual[k], expected[k])) assert.fail(`${what}[${k}] is ${actual[k]}, expected ${expected[k]}`);
  }
}

/** What `work` rejects with. */
export async function rejection(work) {
  try {
    await work();
  } catch (error) {
    return error;
  }
  return null;
}

/** A stream of the pieces of `bytes` between the given cuts. */
export async function* pieces(bytes, cuts) {
  let from = 0;
  for (const to of [...cuts, bytes.length]) {
    yield bytes.slice(from, to);
    from = to;
  }
}
