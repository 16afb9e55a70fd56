"""Packing on the CPU: a row costs a look into a set of the spaces that are left.

Blocks with the same space left form a list, the last one touched in front. A set of 64-bit words,
and a set over those words, say which spaces have a block: the smallest that is large enough is a
few steps away, whatever the number of blocks.
"""

import numpy as np

from maskkernels.runtime.jit import inlined, kernel, lowest_bit

_ONE = np.uint64(1)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@inlined
def _next(words, above, at_least):
    """The smallest element of the set that is >= ``at_least``; -1 without one."""
    w = at_least >> 6
    bits = words[w] & (_ALL << np.uint64(at_least & 63))
    if bits == 0:
        a = (w + 1) >> 6
        tops = above[a] & (_ALL << np.uint64((w + 1) & 63))
        while tops == 0:
            a += 1
            if a == above.size:
                return np.int64(-1)
            tops = above[a]
        w = (a << 6) + lowest_bit(tops)
        bits = words[w]
    return (w << 6) + lowest_bit(bits)


@kernel
def _pack(lengths, capacity, window, block_of):
    """Write the block of each row into ``block_of`` [B]; returns the number of blocks."""
    count = lengths.size
    words = np.zeros((capacity >> 6) + 2, np.uint64)
    above = np.zeros((words.size >> 6) + 1, np.uint64)
    head = np.full(capacity + 1, -1, np.int64)  # of the list for each space
    following = np.empty(count, np.int64)  # of each block in its list
    order = np.empty(min(window, count), np.int64)
    longest = lengths.max() if count else np.int64(0)
    begin_of = np.empty(longest + 2, np.int64)
    blocks = 0
    for begin in range(0, count, window):
        end = min(begin + window, count)
        if end - begin < 64:  # cheaper than a table of all lengths
            for i in range(end - begin):
                row, at = begin + i, i
                while at > 0 and lengths[order[at - 1]] < lengths[row]:
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = row
        else:
            begin_of[:] = 0
            for row in range(begin, end):
                begin_of[longest - lengths[row] + 1] += 1
            for i in range(1, begin_of.size):
                begin_of[i] += begin_of[i - 1]
            for row in range(begin, end):
                place = longest - lengths[row]
                order[begin_of[place]] = row
                begin_of[place] += 1
        for i in range(end - begin):
            row = order[i]
            left = _next(words, above, lengths[row])
            if left < 0:
                block, left = blocks, capacity
                blocks += 1
            else:
                block = head[left]
                head[left] = following[block]
                if head[left] < 0:
                    words[left >> 6] &= ~(_ONE << np.uint64(left & 63))
                    if words[left >> 6] == 0:
                        above[left >> 12] &= ~(_ONE << np.uint64((left >> 6) & 63))
            block_of[row] = block
            left -= lengths[row]
            following[block] = head[left]
            head[left] = block
            words[left >> 6] |= _ONE << np.uint64(left & 63)
            above[left >> 12] |= _ONE << np.uint64((left >> 6) & 63)
    return blocks


@kernel
def _by_block(block_of, bounds, rows):
    """Rows in the order of their blocks; ``bounds`` [blocks + 1] begins as zeros."""
    for row in range(block_of.size):
        bounds[block_of[row] + 1] += 1
    for k in range(1, bounds.size):
        bounds[k] += bounds[k - 1]
    place = bounds[:-1].copy()
    for row in range(block_of.size):
        rows[place[block_of[row]]] = row
        place[block_of[row]] += 1


def pack(lengths: np.ndarray, capacity: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    block_of = np.empty(lengths.size, np.int64)
    blocks = _pack(lengths, capacity, window, block_of)
    rows, bounds = np.empty(lengths.size, np.int64), np.zeros(blocks + 1, np.int64)
    _by_block(block_of, bounds, rows)
    return rows, bounds
