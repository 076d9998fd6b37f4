"""Compiled loops of the SOG writer: which bytes to store so that error and file size are in proportion.

Every choice minimises squared error plus `price` times bits, where bits come from how often each symbol was chosen in
the round before (entropy-constrained quantization: Chou, Lookabaugh and Gray, 1989). A Gaussian that shows little
therefore takes symbols that are common anyway, one that shows much takes the nearest.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math

import numpy as np

from ..render.kernel import kernel

__all__ = [
    "add_to_clusters",
    "assign_labels",
    "choose_bytes",
    "choose_colors",
    "choose_positions",
    "choose_rotations",
    "descend",
    "grow_tree",
    "label_leaves",
    "lloyd",
    "nearest_neighbors",
    "node_means",
    "price_tree",
    "split_cells",
    "sum_clusters",
]

_ROOT_HALF = math.sqrt(0.5)
# Code units of a quaternion component, whose 255 steps go from -sqrt(1/2) to sqrt(1/2).
_QUAT_STEP = 2.0 * _ROOT_HALF / 255.0
# Even where turning changes nothing, as in a sphere, a turn costs a little: the nearest code is then the answer.
_ISOTROPIC = 1e-3
# Larger ones would leave the component that is not stored without any precision.
_MAX_KEPT_NORM2 = 0.97
_HUGE = 1e300


@kernel
def _cheapest(target, weight, price, book, bits, shift):
    """Code c that minimises weight (target - book[c])^2 + price bits[(c - shift) & 255], and that cost.

    `book` (256,) ascends, so the search goes outwards from the target until the error alone is too much.
    """
    low, high = 0, 256
    while low < high:
        middle = (low + high) >> 1
        if book[middle] < target:
            low = middle + 1
        else:
            high = middle
    best, best_cost = 0, _HUGE
    left, right = low - 1, low
    while left >= 0 or right < 256:
        if left >= 0:
            error = weight * (target - book[left]) ** 2
            if error >= best_cost:
                left = -1
            else:
                cost = error + price * bits[(left - shift) & 255]
                if cost < best_cost:
                    best, best_cost = left, cost
                left -= 1
        if right < 256:
            error = weight * (target - book[right]) ** 2
            if error >= best_cost:
                right = 256
            else:
                cost = error + price * bits[(right - shift) & 255]
                if cost < best_cost:
                    best, best_cost = right, cost
                right += 1
    return best, best_cost


@kernel
def choose_bytes(start, stop, values, weights, price, book, bits, codes):
    """Codes (N,) uint8 of single values (N,)."""
    for i in range(start, stop):
        codes[i] = _cheapest(values[i], weights[i], price, book, bits, 0)[0]


@kernel
def _cheapest_color(red, green, blue, weight, price, book, bits, differences, reach):
    """Codes of one colour and what they cost; with `differences`, red and blue are priced by their distance to green.

    WebP subtracts green from red and blue (modulo 256) where that pays, so greens are tried up to `reach` codes away.
    """
    g, cost = _cheapest(green, weight, price, book, bits[1], 0)
    r, more = _cheapest(red, weight, price, book, bits[0], g if differences else 0)
    cost += more
    b, more = _cheapest(blue, weight, price, book, bits[2], g if differences else 0)
    cost += more
    if differences:
        middle = g
        for other in range(max(middle - reach, 0), min(middle + reach + 1, 256)):
            total = weight * (green - book[other]) ** 2 + price * bits[1, other]
            if other == middle or total >= cost:
                continue
            other_r, more = _cheapest(red, weight, price, book, bits[0], other)
            total += more
            if total >= cost:
                continue
            other_b, more = _cheapest(blue, weight, price, book, bits[2], other)
            total += more
            if total < cost:
                r, g, b, cost = other_r, other, other_b, total
    return r, g, b, cost


@kernel
def choose_colors(start, stop, values, weights, price, book, bits, differences, codes):
    """Codes (N, 3) uint8 of RGB values (N, 3); `bits` (3, 256) are those of the channels, or of their differences."""
    for i in range(start, stop):
        r, g, b, _ = _cheapest_color(
            values[i, 0], values[i, 1], values[i, 2], weights[i], price, book, bits, differences, 2
        )
        codes[i, 0], codes[i, 1], codes[i, 2] = r, g, b


@kernel
def _cell(values, weights, first, last):
    """Mean, and weighted squared distances from it, of ascending values[first:last]."""
    mass = total = 0.0
    for i in range(first, last):
        mass += weights[i]
        total += weights[i] * (values[i] - values[first])
    mean = values[first] + total / mass
    spread = 0.0
    for i in range(first, last):
        spread += weights[i] * (values[i] - mean) ** 2
    return mean, spread


@kernel
def split_cells(values, weights, size, book):
    """Cut ascending values (N,) into at most `size` cells, always the one of most error, at its mean.

    Args:
        weights: (N,) positive. book: (size,) out, the cells' means, ascending; the last one repeats if there are fewer.
    """
    firsts, lasts = np.empty(size, np.int64), np.empty(size, np.int64)
    means, spreads = np.empty(size), np.empty(size)
    firsts[0], lasts[0] = 0, len(values)
    means[0], spreads[0] = _cell(values, weights, 0, len(values))
    count = 1
    while count < size:
        worst = int(np.argmax(spreads[:count]))
        first, last, mean = firsts[worst], lasts[worst], means[worst]
        if not spreads[worst] > 0.0:
            break
        low, high = first, last
        while low < high:
            middle = (low + high) >> 1
            if values[middle] <= mean:
                low = middle + 1
            else:
                high = middle
        if low in (first, last):  # as good as equal
            spreads[worst] = 0.0
            continue
        firsts[count], lasts[count] = low, last
        lasts[worst] = low
        means[worst], spreads[worst] = _cell(values, weights, first, low)
        means[count], spreads[count] = _cell(values, weights, low, last)
        count += 1
    book[:count] = np.sort(means[:count])
    book[count:] = book[count - 1]


@kernel
def lloyd(values, weights, book, rounds):
    """Move a codebook (K,), ascending, to a local optimum for ascending values (N,): Lloyd's rounds, in place."""
    size = len(book)
    sums, masses = np.empty(size), np.empty(size)
    for _ in range(rounds):
        sums[:] = 0.0
        masses[:] = 0.0
        code = 0
        for i in range(len(values)):
            while code + 1 < size and values[i] - book[code] > book[code + 1] - values[i]:
                code += 1
            sums[code] += weights[i] * (values[i] - book[code])
            masses[code] += weights[i]
        moved = 0.0
        for code in range(size):
            if masses[code] > 0.0:
                shift = sums[code] / masses[code]
                moved = max(moved, abs(shift))
                book[code] += shift
        if moved <= 1e-9 * (book[size - 1] - book[0]):
            break


# ------------------------------------------------------------------------------------------------- errors together


@kernel
def _eliminate(form, factors, pivots):
    """Write e^T form e (3 x 3, overwritten) as sum_k pivots_k (e_k + sum_{j<k} factors_kj e_j)^2.

    Codes chosen one after another then make good for the errors of those before them.
    """
    for k in range(2, -1, -1):
        pivots[k] = max(form[k, k], 1e-300)
        for j in range(k):
            factors[k, j] = form[k, j] / pivots[k]
        for a in range(k):
            for b in range(k):
                form[a, b] -= factors[k, a] * factors[k, b] * pivots[k]


@kernel
def choose_positions(start, stop, values, forms, price, bits, top_bits, codes, errors):
    """16-bit codes (N, 3) uint16 of positions, given as code units.

    Args:
        values: (N, 3) float64, 0..65535. forms: (N, 6) float64, squared error of code units: xx, xy, xz, yy, yz, zz.
        bits: (3, 256) of the low bytes. top_bits: bits that a zero bit at the end of the high byte saves.
        errors: (N,) out.
    """
    form, factors = np.empty((3, 3)), np.zeros((3, 3))
    pivots, missed = np.empty(3), np.empty(3)
    for i in range(start, stop):
        form[0, 0], form[1, 1], form[2, 2] = forms[i, 0], forms[i, 3], forms[i, 5]
        form[0, 1] = form[1, 0] = forms[i, 1]
        form[0, 2] = form[2, 0] = forms[i, 2]
        form[1, 2] = form[2, 1] = forms[i, 4]
        _eliminate(form, factors, pivots)
        errors[i] = 0.0
        for k in range(3):
            target = values[i, k]
            for j in range(k):
                target -= factors[k, j] * missed[j]
            target = min(max(target, 0.0), 65535.0)
            best, best_cost, best_error = 0, _HUGE, 0.0
            # Multiples of each power of two, below and above: what ends in zeros soon becomes common.
            for zeros in range(14):
                step = 1 << zeros
                below = int(target) // step * step
                for side in range(2):
                    code = below + side * step
                    if code > 65535:
                        continue
                    error = pivots[k] * (code - target) ** 2
                    cost = error + price * bits[k, code & 255]
                    if zeros > 8:
                        cost -= price * top_bits * (zeros - 8)
                    if cost < best_cost:
                        best, best_cost, best_error = code, cost, error
            codes[i, k] = best
            missed[k] = best - values[i, k]
            errors[i] += best_error


@kernel
def choose_rotations(
    start,
    stop,
    quats,
    scales,
    variances,
    weights,
    scale_weights,
    turn_weight,
    most_stretch,
    price,
    turns,
    axes,
    bits,
    scale_book,
    scale_bits,
    codes,
    orders,
    errors,
):
    """Quaternion codes (N, 3) uint8 with w, the largest component, left out; and the order of axes that goes with them.

    An ellipsoid stays the same when it is turned onto its own axes, so that of the 24 such turns the cheapest is taken
    whose largest component is w; its scales are those of the axes in `orders` (N, 3).

    Args:
        quats: (N, 4) float64 unit. scales: (N, 3) float64 logs. variances: (N, 3) float64, as they show (blurred).
        weights: (N,) squared error per squared log of the covariance. scale_weights: (N, 3) per squared log scale.
        turn_weight: of an off-diagonal element of the whitened covariance, over `weights`. most_stretch: that element
            of a small turn is the turn times (r - 1 / r), r the ratio of two axes; its square saturates here.
        turns: (24, 4) quaternions of the turns. axes: (24, 3) int64, the axis that each new one was.
        bits: (3, 256) of the codes. scale_book: (256,). scale_bits: (3, 256).
        errors: (N,) out, squared error of the rotation.
    """
    q, shown, missed = np.empty(4), np.empty(3), np.empty(3)
    form, jacobian, factors = np.empty((3, 3)), np.empty((3, 3)), np.zeros((3, 3))
    pivots, turn, targets = np.empty(3), np.empty(3), np.empty(3)
    chosen = np.empty(3, np.int64)
    levels = np.arange(256.0)
    for i in range(start, stop):
        best_cost = _HUGE
        for g in range(len(turns)):
            a, b, c, d = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
            e, f, h, m = turns[g, 0], turns[g, 1], turns[g, 2], turns[g, 3]
            q[0] = a * e - b * f - c * h - d * m
            q[1] = a * f + b * e + c * m - d * h
            q[2] = a * h - b * m + c * e + d * f
            q[3] = a * m + b * h - c * f + d * e
            if max(max(abs(q[1]), abs(q[2])), abs(q[3])) > abs(q[0]) * 1.0001:
                continue
            if q[0] < 0.0:
                for k in range(4):
                    q[k] = -q[k]
            for k in range(3):
                shown[k] = variances[i, axes[g, k]]
            for k in range(3):
                one, two = shown[(k + 1) % 3], shown[(k + 2) % 3]
                stretch = (one - two) ** 2 / (one * two)
                turn[k] = turn_weight * weights[i] * (stretch / (1.0 + stretch / most_stretch) + _ISOTROPIC)
            # The turn in the ellipsoid's axes, 2 vec(conj(q) dq), that one code step of component k makes.
            for k in range(3):
                dw = -q[k + 1] / q[0]
                dx, dy, dz = 1.0 * (k == 0), 1.0 * (k == 1), 1.0 * (k == 2)
                size = 2.0 * _QUAT_STEP
                jacobian[0, k] = size * (q[0] * dx - q[1] * dw - q[2] * dz + q[3] * dy)
                jacobian[1, k] = size * (q[0] * dy + q[1] * dz - q[2] * dw - q[3] * dx)
                jacobian[2, k] = size * (q[0] * dz - q[1] * dy + q[2] * dx - q[3] * dw)
                targets[k] = (q[k + 1] / _ROOT_HALF + 1.0) * 127.5
            for r in range(3):
                for s in range(r + 1):
                    value = 0.0
                    for k in range(3):
                        value += turn[k] * jacobian[k, r] * jacobian[k, s]
                    form[r, s] = form[s, r] = value
            _eliminate(form, factors, pivots)
            cost = error = 0.0
            for k in range(3):
                target = targets[k]
                for j in range(k):
                    target -= factors[k, j] * missed[j]
                code, more = _cheapest(target, pivots[k], price, levels, bits[k], 0)
                chosen[k] = code
                missed[k] = code - targets[k]
                error += pivots[k] * (code - target) ** 2
                cost += more
            norm2 = 0.0
            for k in range(3):
                norm2 += ((chosen[k] / 127.5 - 1.0) * _ROOT_HALF) ** 2
            if norm2 > _MAX_KEPT_NORM2:
                cost += 0.5 * _HUGE
            if cost >= best_cost:
                continue
            for k in range(3):
                axis = axes[g, k]
                cost += _cheapest(scales[i, axis], scale_weights[i, axis], price, scale_book, scale_bits[k], 0)[1]
            if cost < best_cost:
                best_cost = cost
                errors[i] = error
                for k in range(3):
                    codes[i, k], orders[i, k] = chosen[k], axes[g, k]


# -------------------------------------------------------------------------------------------------------- palettes


@kernel
def _principal_axis(rows, weights, members, first, last, mean, axis, other):
    """Mean and principal axis (power iteration) of rows; False where they are all the same."""
    size = rows.shape[1]
    mean[:] = 0.0
    mass = 0.0
    for i in range(first, last):
        row = members[i]
        mass += weights[row]
        for k in range(size):
            mean[k] += weights[row] * rows[row, k]
    for k in range(size):
        mean[k] /= mass
    farthest, start = 0.0, -1
    for i in range(first, last):
        row = members[i]
        distance = 0.0
        for k in range(size):
            distance += (rows[row, k] - mean[k]) ** 2
        if distance * weights[row] > farthest:
            farthest, start = distance * weights[row], row
    if start < 0:
        return False
    for k in range(size):
        axis[k] = rows[start, k] - mean[k]
    for _ in range(3):
        other[:] = 0.0
        for i in range(first, last):
            row = members[i]
            along = 0.0
            for k in range(size):
                along += (rows[row, k] - mean[k]) * axis[k]
            along *= weights[row]
            for k in range(size):
                other[k] += along * (rows[row, k] - mean[k])
        norm = 0.0
        for k in range(size):
            norm += other[k] * other[k]
        if not norm > 0.0:
            break
        norm = math.sqrt(norm)
        for k in range(size):
            axis[k] = other[k] / norm
    return True


@kernel
def _split(rows, weights, members, first, last, mean, axis, other, along):
    """Sort members[first:last] into two clusters along their principal axis; where the second begins, or -1."""
    if not _principal_axis(rows, weights, members, first, last, mean, axis, other):
        return -1
    for i in range(first, last):
        row = members[i]
        along[i] = 0.0
        for k in range(rows.shape[1]):
            along[i] += (rows[row, k] - mean[k]) * axis[k]
    cut = 0.0
    for _ in range(6):
        below = below_mass = above = above_mass = 0.0
        for i in range(first, last):
            weight = weights[members[i]]
            if along[i] < cut:
                below += weight * along[i]
                below_mass += weight
            else:
                above += weight * along[i]
                above_mass += weight
        if not (below_mass > 0.0 and above_mass > 0.0):
            break
        cut = 0.5 * (below / below_mass + above / above_mass)
    i, j = first, last - 1
    while i <= j:
        if along[i] < cut:
            i += 1
        else:
            along[i], along[j] = along[j], along[i]
            members[i], members[j] = members[j], members[i]
            j -= 1
    return -1 if i in (first, last) else i


@kernel
def _spread(rows, weights, members, first, last, mean):
    """Weighted squared distances from the mean, which is written, and the weight."""
    size = rows.shape[1]
    mean[:] = 0.0
    mass = 0.0
    for i in range(first, last):
        row = members[i]
        mass += weights[row]
        for k in range(size):
            mean[k] += weights[row] * rows[row, k]
    for k in range(size):
        mean[k] /= mass
    spread = 0.0
    for i in range(first, last):
        row = members[i]
        distance = 0.0
        for k in range(size):
            distance += (rows[row, k] - mean[k]) ** 2
        spread += weights[row] * distance
    return spread, mass


@kernel
def grow_tree(rows, weights, least_spread, members, nodes):
    """Split clusters in two until they are single rows or their spread is less than `least_spread`.

    Args:
        rows: (N, D) float32. weights: (N,) float64, positive.
        members: (N,) int64, 0..N-1; sorted into clusters. nodes: (2 N, 3) int64 out: first and last member, and the
            number of the first of two children or -1. Children have higher numbers than their parents.

    Returns:
        The number of nodes.
    """
    size = rows.shape[1]
    mean, axis, other, along = np.empty(size), np.empty(size), np.empty(size), np.empty(len(rows))
    nodes[0, 0], nodes[0, 1] = 0, len(rows)
    count, node = 1, 0
    while node < count:
        first, last = nodes[node, 0], nodes[node, 1]
        nodes[node, 2] = -1
        if last - first > 1 and _spread(rows, weights, members, first, last, mean)[0] >= least_spread:
            cut = _split(rows, weights, members, first, last, mean, axis, other, along)
            if cut >= 0:
                nodes[count, 0], nodes[count, 1] = first, cut
                nodes[count + 1, 0], nodes[count + 1, 1] = cut, last
                nodes[node, 2] = count
                count += 2
        node += 1
    return count


@kernel
def price_tree(
    start, stop, rows, weights, members, nodes, price, book, bits, differences, single_bits, share, errors, rates
):
    """What each node would cost as one palette entry.

    Args:
        start, stop: nodes to price.
        rows: (N, 3 C) float32, colour innermost. price: squared error worth one bit.
        book, bits, differences: as for `choose_colors`.
        single_bits: of the label of an entry that has one member: labels follow the order of first use.
        share: how many labels a row stands for.
        errors: (nodes,) float64 out, squared error. rates: (nodes,) float64 out, bits of the entry and of all labels.
    """
    size = rows.shape[1]
    mean = np.empty(size)
    for node in range(start, stop):
        first, last = nodes[node, 0], nodes[node, 1]
        error, mass = _spread(rows, weights, members, first, last, mean)
        count = last - first
        rate = share * (single_bits if count == 1 else count * math.log2(len(rows) / count))
        for k in range(0, size, 3):
            r, g, b, _ = _cheapest_color(mean[k], mean[k + 1], mean[k + 2], mass, price, book, bits, differences, 0)
            missed = (mean[k] - book[r]) ** 2 + (mean[k + 1] - book[g]) ** 2 + (mean[k + 2] - book[b]) ** 2
            error += mass * missed
            base = g if differences else 0
            rate += bits[0, (r - base) & 255] + bits[1, g] + bits[2, (b - base) & 255]
        errors[node], rates[node] = error, rate


@kernel
def label_leaves(members, nodes, num_nodes, costs, best, labels):
    """Prune a priced tree to the cheapest one, bottom up, and number its leaves.

    Args:
        costs: (nodes,) of each node as a leaf. best: (nodes,) out, of the cheapest tree below. labels: (N,) int32 out.

    Returns:
        The number of leaves.
    """
    for node in range(num_nodes - 1, -1, -1):
        best[node] = costs[node]
        child = nodes[node, 2]
        if child >= 0:
            best[node] = min(best[node], best[child] + best[child + 1])
    stack = np.empty(num_nodes, np.int64)
    stack[0] = 0
    height, leaves = 1, 0
    while height > 0:
        height -= 1
        node = stack[height]
        if best[node] == costs[node]:
            for i in range(nodes[node, 0], nodes[node, 1]):
                labels[members[i]] = leaves
            leaves += 1
        else:
            stack[height], stack[height + 1] = nodes[node, 2] + 1, nodes[node, 2]
            height += 2
    return leaves


@kernel
def sum_clusters(rows, weights, labels, means, masses, counts):
    """Weighted mean (M, D), weight (M,) and number (M,) of the rows of each label; means of empty ones stay."""
    size = rows.shape[1]
    sums = np.zeros((len(means), size))
    masses[:] = 0.0
    counts[:] = 0
    for i in range(len(rows)):
        label = labels[i]
        masses[label] += weights[i]
        counts[label] += 1
        for k in range(size):
            sums[label, k] += weights[i] * rows[i, k]
    for label in range(len(means)):
        if masses[label] > 0.0:
            for k in range(size):
                means[label, k] = sums[label, k] / masses[label]


@kernel
def add_to_clusters(rows, weights, labels, sums, masses):
    """Add weighted rows to the sums (M, D) and masses (M,) of their labels."""
    for i in range(len(rows)):
        label = labels[i]
        masses[label] += weights[i]
        for k in range(rows.shape[1]):
            sums[label, k] += weights[i] * rows[i, k]


@kernel
def node_means(rows, weights, members, nodes, means):
    """Weighted mean (nodes, D) float32 of the members of each node."""
    mean = np.empty(rows.shape[1])
    for node in range(len(nodes)):
        _spread(rows, weights, members, nodes[node, 0], nodes[node, 1], mean)
        means[node] = mean


@kernel
def descend(start, stop, rows, members, nodes, means, labels):
    """The member of the leaf that is reached from the root by going to the nearer child, for each row (N, D)."""
    for i in range(start, stop):
        node = 0
        while nodes[node, 2] >= 0:
            child = nodes[node, 2]
            first = second = 0.0
            for k in range(rows.shape[1]):
                first += (rows[i, k] - means[child, k]) ** 2
                second += (rows[i, k] - means[child + 1, k]) ** 2
            node = child if first <= second else child + 1
        labels[i] = members[nodes[node, 0]]


@kernel
def _insert(i, j, distance, neighbors, distances):
    """Put j among the neighbours of i, nearest first; the last one goes."""
    at = neighbors.shape[1] - 1
    while at > 0 and distances[i, at - 1] > distance:
        distances[i, at], neighbors[i, at] = distances[i, at - 1], neighbors[i, at - 1]
        at -= 1
    distances[i, at], neighbors[i, at] = distance, j


@kernel
def nearest_neighbors(rows, rounds, neighbors, distances):
    """Near rows of every row, most of them the nearest: neighbours of neighbours are tried (NN-descent, Dong 2011).

    Args:
        rows: (M, D) float32, so ordered that neighbours in the order are often near.
        neighbors: (M, P) int32 out; -1 where there are not as many. distances: (M, P) float32 out, squared.
    """
    count, size = rows.shape
    width = neighbors.shape[1]
    neighbors[:] = -1
    distances[:] = np.inf
    for i in range(count):
        for j in range(max(0, i - width), i):
            distance = np.float32(0.0)
            for k in range(size):
                distance += (rows[j, k] - rows[i, k]) ** 2
            if distance < distances[i, width - 1]:
                _insert(i, j, distance, neighbors, distances)
            if distance < distances[j, width - 1]:
                _insert(j, i, distance, neighbors, distances)
    seen = np.full(count, -1, np.int64)
    for turn in range(rounds):
        for i in range(count):
            stamp = turn * count + i
            seen[i] = stamp
            for p in range(width):
                if neighbors[i, p] >= 0:
                    seen[neighbors[i, p]] = stamp
            for p in range(width):
                via = neighbors[i, p]
                if via < 0:
                    break
                for q in range(width):
                    j = neighbors[via, q]
                    if j < 0:
                        break
                    if seen[j] == stamp:
                        continue
                    seen[j] = stamp
                    bound = max(distances[i, width - 1], distances[j, width - 1])
                    distance = np.float32(0.0)
                    for k in range(size):
                        distance += (rows[j, k] - rows[i, k]) ** 2
                        if distance >= bound:
                            break
                    if distance < distances[i, width - 1]:
                        _insert(i, j, distance, neighbors, distances)
                    if distance < distances[j, width - 1]:
                        known = False
                        for r in range(width):
                            known |= neighbors[j, r] == i
                        if not known:
                            _insert(j, i, distance, neighbors, distances)


@kernel
def assign_labels(start, stop, rows, weights, entries, neighbors, price, label_bits, labels, changes):
    """Move each row to a cheaper entry, going from neighbour to neighbour while it gets cheaper.

    Args:
        rows: (N, D) float32. entries: (M, D) float32. neighbors: (M, P) int32, -1 for none.
        label_bits: (M,) float64. labels: (N,) int32, changed. changes: (N,) bool out.
    """
    size = rows.shape[1]
    for i in range(start, stop):
        label = labels[i]
        distance = np.float32(0.0)
        for k in range(size):
            distance += (rows[i, k] - entries[label, k]) ** 2
        cost = weights[i] * distance + price * label_bits[label]
        while True:
            here = label
            for p in range(neighbors.shape[1]):
                other = neighbors[here, p]
                if other < 0:
                    break
                bound = (cost - price * label_bits[other]) / weights[i]
                if bound <= 0.0:
                    continue
                distance = np.float32(0.0)
                for k in range(size):
                    distance += (rows[i, k] - entries[other, k]) ** 2
                    if distance >= bound:
                        break
                # Compared again as a cost: rounding must not let it go in circles.
                if distance < bound and weights[i] * distance + price * label_bits[other] < cost:
                    label = other
                    cost = weights[i] * distance + price * label_bits[other]
            if label == here:
                break
        changes[i] = label != labels[i]
        labels[i] = label
