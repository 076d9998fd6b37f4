"""Positions of one tile as an octree of leaves, each with a depth and a count (bitstreams/SPEC.md, section 3.3).

A cell is split until it holds one Gaussian, or is no larger than the precision its Gaussians need. What is left of a
position inside its leaf is coded as plain bits elsewhere (`stages/position.py`), because its number depends on the
Gaussian's own size. Order costs nothing: Gaussians come back in depth-first order of their leaves.

Occupancy is coded breadth first with adaptive bits; the context is what is known of the six face neighbours (after
octree point-cloud coding, e.g. MPEG G-PCC).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ..entropy.adaptive import (
    GAMMA_MODELS,
    RATE_LIMIT,
    STEPS,
    decode_gamma,
    encode_bit,
    encode_gamma,
)
from ..entropy.rans import PROB_BITS, PROB_SCALE, RANS_LOW

__all__ = ["MAX_DEPTH", "OCTREE_MODELS", "decode_octree", "encode_octree"]

MAX_DEPTH = 21
_STOP_BASE = 0  # 32 models
_OCC_BASE = 32  # 256 models
_COUNT_BASE = 288
OCTREE_MODELS = _COUNT_BASE + GAMMA_MODELS
_ABSENT = -1
_DIRECTIONS = 6  # 2 * axis + (1 for the positive side)


@njit(cache=True, inline="always")
def _popcount(v):
    v = v - ((v >> 1) & 0x55)
    v = (v & 0x33) + ((v >> 2) & 0x33)
    return (v + (v >> 4)) & 0x0F


def _above_and_ones() -> npt.NDArray[np.uint8]:
    """The part of a child's context that is known of all children: (64, 8), by which neighbours the cell has."""
    table = np.zeros((64, 8), np.uint8)
    for present in range(64):
        for child in range(8):
            above = sum(present >> (2 * axis + (child >> axis & 1)) & 1 for axis in range(3))
            table[present, child] = above << 4 | child.bit_count()
    return table


_ABOVE_AND_ONES = _above_and_ones()
# (256, 8) children of an occupancy before each child.
_RANKS = np.array([[(occ & ((1 << k) - 1)).bit_count() for k in range(8)] for occ in range(256)], np.uint8)


@njit(cache=True)
def _stop_context(neighbors, node, siblings):
    """Context of "this cell is a leaf": how many face neighbours and siblings it has."""
    around = 0
    for k in range(_DIRECTIONS):
        if neighbors[node, k] != _ABSENT:
            around += 1
    return _STOP_BASE + (min(around, 3) << 3) + min(siblings, 8) - 1


@njit(cache=True)
def _child_context(neighbors, occupancy, node, child, coded):
    """Context of "child `child` of `node` is occupied", given the occupancy `coded` of the children before it.

    On each axis one adjacent cell is already known (a sibling, or the child of the lower neighbour) and the other side
    is known one level up if it lies outside the node.
    """
    beside = 0
    above = 0
    ones = 0
    for axis in range(3):
        bit = 1 << axis
        if child & bit:
            ones += 1
            if coded & (1 << (child ^ bit)):
                beside += 1
            if neighbors[node, 2 * axis + 1] != _ABSENT:
                above += 1
        else:
            lower = neighbors[node, 2 * axis]
            if lower != _ABSENT:
                above += 1
                if occupancy[lower] & (1 << (child ^ bit)):
                    beside += 1
    so_far = min(_popcount(coded), 3)
    return _OCC_BASE + (((beside << 2 | above) << 2 | so_far) << 2 | ones)


@njit(cache=True)
def _link_children(neighbors, occupancy, first_child, num_nodes, child_neighbors):
    """Face neighbours of all children of a level, from those of their parents."""
    at = 0
    for node in range(num_nodes):
        occ = occupancy[node]
        for child in range(8):
            if not occ & (1 << child):
                continue
            for axis in range(3):
                bit = 1 << axis
                for side in range(2):
                    other = child ^ bit
                    inside = (child & bit) != (bit if side else 0)
                    owner = node if inside else neighbors[node, 2 * axis + side]
                    found = _ABSENT
                    if owner != _ABSENT and occupancy[owner] & (1 << other):
                        found = first_child[owner] + _popcount(occupancy[owner] & ((1 << other) - 1))
                    child_neighbors[at, 2 * axis + side] = found
            at += 1
    return at


@njit(cache=True, nogil=True)
def encode_octree(codes, stop_depths, models, intervals, count, leaf_depths, leaf_counts):
    """Code the octree of Gaussians sorted by Morton code.

    Args:
        codes: (n,) uint64 ascending Morton codes of MAX_DEPTH bits an axis, x in the lowest bit.
        stop_depths: (n,) int32 depth at which a cell is small enough for the Gaussian, 0..MAX_DEPTH.
        models: (OCTREE_MODELS, 2) int32.
        intervals: uint32 out; needs room for 9 * 22 * n + 64 * n entries at most, see `encode_octree_bound`.
        count: entries already in `intervals`.
        leaf_depths, leaf_counts: (n,) int32 out, in Morton order.

    Returns:
        (count, number of leaves).
    """
    n = len(codes)
    begin = np.zeros(n + 1, np.int32)
    end = np.zeros(n + 1, np.int32)
    siblings = np.ones(n + 1, np.int32)
    neighbors = np.full((n + 1, _DIRECTIONS), _ABSENT, np.int32)
    occupancy = np.zeros(n + 1, np.int32)
    first_child = np.zeros(n + 1, np.int32)
    next_begin = np.zeros(n + 1, np.int32)
    next_end = np.zeros(n + 1, np.int32)
    next_siblings = np.zeros(n + 1, np.int32)
    next_neighbors = np.full((n + 1, _DIRECTIONS), _ABSENT, np.int32)
    leaf_at = np.zeros(n, np.int32)  # depth + 1 of the leaf that starts at this Gaussian, 0 if none
    num_nodes = 1 if n else 0
    end[0] = n
    depth = 0
    while num_nodes:
        shift = np.uint64(3 * (MAX_DEPTH - 1 - depth)) if depth < MAX_DEPTH else np.uint64(0)
        children = 0
        for node in range(num_nodes):
            a, b = begin[node], end[node]
            deepest = 0
            for i in range(a, b):
                deepest = max(deepest, stop_depths[i])
            leaf = b - a == 1 or depth >= deepest or depth == MAX_DEPTH
            if depth < MAX_DEPTH:
                count = encode_bit(
                    models, _stop_context(neighbors, node, siblings[node]), 1 if leaf else 0, intervals, count
                )
            occupancy[node] = 0
            if leaf:
                count = encode_gamma(models, _COUNT_BASE, b - a - 1, intervals, count)
                leaf_at[a] = depth + 1
                continue
            occ = np.int64(0)
            for i in range(a, b):
                occ |= np.int64(1) << np.int64((codes[i] >> shift) & np.uint64(7))
            coded = 0
            for child in range(8):
                bit = (occ >> child) & 1
                if child == 7 and coded == 0:
                    break
                context = _child_context(neighbors, occupancy, node, child, coded)
                count = encode_bit(models, context, bit, intervals, count)
                coded |= int(bit) << child
            occupancy[node] = occ
            first_child[node] = children
            i = a
            family = _popcount(occ)
            for child in range(8):
                if (occ >> child) & 1:
                    next_begin[children] = i
                    while i < b and np.int64((codes[i] >> shift) & np.uint64(7)) == child:
                        i += 1
                    next_end[children] = i
                    next_siblings[children] = family
                    children += 1
        _link_children(neighbors, occupancy, first_child, num_nodes, next_neighbors)
        begin, next_begin = next_begin, begin
        end, next_end = next_end, end
        siblings, next_siblings = next_siblings, siblings
        neighbors, next_neighbors = next_neighbors, neighbors
        num_nodes = children
        depth += 1
    leaves = 0
    i = 0
    while i < n:
        j = i + 1
        while j < n and leaf_at[j] == 0:
            j += 1
        leaf_depths[leaves] = leaf_at[i] - 1
        leaf_counts[leaves] = j - i
        leaves += 1
        i = j
    return count, leaves


@njit(cache=True, inline="always")
def _next_bit(models, index, states, mask, source, at, coded):
    """`decode_bit` with the cursor in registers and no branch on the bit, which is hard to predict.

    Reads its last word again past the end of `source`, as the caller looks at how far `at` has come.

    Returns:
        (bit, at, coded).
    """
    model = models[index]
    probability, seen = np.int64(model[0]), np.int64(model[1])
    p = np.uint64(min(max(probability >> 4, np.int64(1)), np.int64(PROB_SCALE - 1)))
    lane = np.uint64(coded) & mask
    state = states[lane]
    slot = state & np.uint64(PROB_SCALE - 1)
    one = np.uint64(slot < p)
    bit = np.int64(one)
    freq = np.uint64(PROB_SCALE) - p + one * (np.uint64(2) * p - np.uint64(PROB_SCALE))
    state = freq * (state >> np.uint64(PROB_BITS)) + slot - (np.uint64(1) - one) * p
    need = np.uint64(state < np.uint64(RANS_LOW))
    word = np.uint64(source[np.uint64(min(at, len(source) - 1))])
    states[lane] = (state << (need << np.uint64(4))) | (word * need)
    model[0] = probability + (((bit * 65535 - probability) * np.int64(STEPS[np.uint64(seen)])) >> 15)
    model[1] = seen + np.int64(seen < RATE_LIMIT)
    return bit, at + np.int64(need), coded + 1


@njit(cache=True, inline="always")
def _child(first_child, occupancy, node, child):
    """Number of a child in its level, or that of no node, which is the last."""
    occ = np.uint64(occupancy[node])
    number = np.int64(first_child[node]) + np.int64(_RANKS[occ, child])
    return number if occ >> child & np.uint64(1) else np.int64(len(occupancy) - 1)


@njit(cache=True, nogil=True)
def decode_octree(n, models, states, words, cursor, leaf_xyz, leaf_depths, leaf_counts):
    """Decode an octree of n Gaussians.

    Args:
        n: number of Gaussians, 1..65536.
        models: (OCTREE_MODELS, 2) int32.
        states, words, cursor: the rANS stream (`ReadState`).
        leaf_xyz: (n, 3) int32 out, cell coordinates at the leaf's own depth, in depth-first order.
        leaf_depths, leaf_counts: (n,) int32 out.

    Returns:
        number of leaves, or -1 if the stream is damaged (counts do not add up to n).
    """
    # The tree of all levels: `tree_occ` 0 marks a leaf, whose count is then in `tree_first`.
    capacity = 4 * n + 64
    tree_occ = np.zeros(capacity, np.int32)
    tree_first = np.zeros(capacity, np.int32)
    level_start = np.zeros(MAX_DEPTH + 2, np.int64)
    # Of a level and the one above it: face neighbours, occupancy and first child of each node. A level has at most n;
    # node n stands for none and has no children.
    neighbors, upper_neighbors = np.full((n + 1, _DIRECTIONS), n, np.int32), np.full((n + 1, _DIRECTIONS), n, np.int32)
    occupancy, upper_occupancy = np.zeros(n + 1, np.uint8), np.zeros(n + 1, np.uint8)
    first_child, upper_first = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    # Of each node its parent, and which of its children it is. The last may go past the end, where it is found out.
    links, next_links = np.zeros(n + 8, np.int32), np.zeros(n + 8, np.int32)
    upper_occupancy[0] = 1  # above the root, a node with one child
    num_nodes = np.int64(1)
    total = depth = held = np.int64(0)
    mask = np.uint64(len(states) - 1)
    source = words if len(words) > 0 else np.zeros(1, np.uint16)
    at, coded = cursor[0], cursor[1]
    while num_nodes:
        if total + num_nodes > capacity:
            capacity = 2 * capacity + num_nodes
            grown_occ = np.zeros(capacity, np.int32)
            grown_occ[:total] = tree_occ[:total]
            grown_first = np.zeros(capacity, np.int32)
            grown_first[:total] = tree_first[:total]
            tree_occ = grown_occ
            tree_first = grown_first
        level_start[depth] = total
        children = np.int64(0)
        for node in range(num_nodes):
            # On each axis one neighbour is a sibling, the other, on the side of the child's bit, a cousin or none.
            parent, octant = np.uint64(links[node]) >> np.uint64(3), np.uint64(links[node]) & np.uint64(7)
            side_x, side_y, side_z = (
                octant & np.uint64(1),
                octant >> np.uint64(1) & np.uint64(1),
                octant >> np.uint64(2),
            )
            across_x, across_y, across_z = octant ^ np.uint64(1), octant ^ np.uint64(2), octant ^ np.uint64(4)
            beyond = upper_neighbors[parent]
            uncle_x = np.uint64(beyond[side_x])
            uncle_y = np.uint64(beyond[np.uint64(2) + side_y])
            uncle_z = np.uint64(beyond[np.uint64(4) + side_z])
            siblings = np.uint64(upper_occupancy[parent])
            in_x, out_x = (
                siblings >> across_x & np.uint64(1),
                np.uint64(upper_occupancy[uncle_x]) >> across_x & np.uint64(1),
            )
            in_y, out_y = (
                siblings >> across_y & np.uint64(1),
                np.uint64(upper_occupancy[uncle_y]) >> across_y & np.uint64(1),
            )
            in_z, out_z = (
                siblings >> across_z & np.uint64(1),
                np.uint64(upper_occupancy[uncle_z]) >> across_z & np.uint64(1),
            )
            leaf = np.int64(1)
            if depth < MAX_DEPTH:
                around = min(in_x + out_x + in_y + out_y + in_z + out_z, np.uint64(3))
                family = np.uint64(_popcount(np.int64(siblings)))
                context = np.uint64(_STOP_BASE - 1) + (around << np.uint64(3)) + family
                leaf, at, coded = _next_bit(models, context, states, mask, source, at, coded)
            if leaf:
                # Nearly always one: the length of the number before it is then 0, a bit alone.
                state = states[np.uint64(coded) & mask]
                inside = np.int64(1)
                if state & np.uint64(PROB_SCALE - 1) < np.uint64(max(models[_COUNT_BASE, 0] >> 4, 1)):
                    cursor[0], cursor[1] = at, coded
                    inside = decode_gamma(models, _COUNT_BASE, states, words, cursor) + 1
                    at, coded = cursor[0], cursor[1]
                else:
                    _, at, coded = _next_bit(models, np.uint64(_COUNT_BASE), states, mask, source, at, coded)
                if inside < 1 or inside > n - held:
                    return -1
                held += inside
                occupancy[node] = 0
                tree_first[total + node] = inside
                continue
            around_it = neighbors[node]
            around_it[side_x] = _child(upper_first, upper_occupancy, uncle_x, across_x)
            around_it[side_x ^ np.uint64(1)] = _child(upper_first, upper_occupancy, parent, across_x)
            around_it[np.uint64(2) + side_y] = _child(upper_first, upper_occupancy, uncle_y, across_y)
            around_it[np.uint64(3) - side_y] = _child(upper_first, upper_occupancy, parent, across_y)
            around_it[np.uint64(4) + side_z] = _child(upper_first, upper_occupancy, uncle_z, across_z)
            around_it[np.uint64(5) - side_z] = _child(upper_first, upper_occupancy, parent, across_z)
            # What `_child_context` looks up for each child, once for all: which neighbours there are, and what is
            # known of the cells beside, as bits by child.
            present = (
                out_x << side_x
                | in_x << (side_x ^ np.uint64(1))
                | out_y << (np.uint64(2) + side_y)
                | in_y << (np.uint64(3) - side_y)
                | out_z << (np.uint64(4) + side_z)
                | in_z << (np.uint64(5) - side_z)
            )
            above_and_ones = _ABOVE_AND_ONES[present]
            beside_x = np.int64(occupancy[np.uint64(around_it[0])]) & 0xAA
            beside_y = np.int64(occupancy[np.uint64(around_it[2])]) & 0xCC
            beside_z = np.int64(occupancy[np.uint64(around_it[4])]) & 0xF0
            occ = so_far = np.int64(0)
            first_child[node] = children
            for k in range(8):
                bit = np.int64(1)
                if k < 7 or occ:
                    beside = (beside_x >> (k ^ 1) & 1) + (beside_y >> (k ^ 2) & 1) + (beside_z >> (k ^ 4) & 1)
                    seen = np.int64(above_and_ones[k]) | beside << 6 | min(so_far, np.int64(3)) << 2
                    context = np.uint64(_OCC_BASE + seen)
                    bit, at, coded = _next_bit(models, context, states, mask, source, at, coded)
                occ |= bit << k
                so_far += bit
                beside_x |= (bit << k) & 0x55
                beside_y |= (bit << k) & 0x33
                beside_z |= (bit << k) & 0x0F
                next_links[children] = node << 3 | k
                children += bit
            # Every cell still open holds at least one Gaussian that no leaf has claimed.
            if held + children > n or at > len(words):
                return -1
            occupancy[node] = occ
            tree_occ[total + node] = occ
            tree_first[total + node] = first_child[node]
        links, next_links = next_links, links
        neighbors, upper_neighbors = upper_neighbors, neighbors
        occupancy, upper_occupancy = upper_occupancy, occupancy
        first_child, upper_first = upper_first, first_child
        total += num_nodes
        num_nodes = children
        depth += 1
    cursor[0], cursor[1] = at, coded
    if at > len(words):
        cursor[2] = 1
    if held != n or cursor[2]:
        return -1
    # Depth-first walk.
    stack_node = np.zeros(8 * (MAX_DEPTH + 2), np.int64)
    stack_depth = np.zeros(8 * (MAX_DEPTH + 2), np.int64)
    stack_xyz = np.zeros((8 * (MAX_DEPTH + 2), 3), np.int64)
    top = 1
    leaves = 0
    while top:
        top -= 1
        node = stack_node[top]
        d = stack_depth[top]
        x, y, z = stack_xyz[top, 0], stack_xyz[top, 1], stack_xyz[top, 2]
        at = level_start[d] + node
        occ = tree_occ[at]
        if occ == 0:
            leaf_xyz[leaves, 0] = x
            leaf_xyz[leaves, 1] = y
            leaf_xyz[leaves, 2] = z
            leaf_depths[leaves] = d
            leaf_counts[leaves] = tree_first[at]
            leaves += 1
            continue
        index = tree_first[at] + _popcount(occ) - 1
        for child in range(7, -1, -1):
            if occ & (1 << child):
                stack_node[top] = index
                stack_depth[top] = d + 1
                stack_xyz[top, 0] = (x << 1) | (child & 1)
                stack_xyz[top, 1] = (y << 1) | ((child >> 1) & 1)
                stack_xyz[top, 2] = (z << 1) | (child >> 2)
                top += 1
                index -= 1
    return leaves
