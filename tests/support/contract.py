"""A slow second implementation of the random contract and of masking, in plain Python integers.

Written from the contract's text, not from the library: the tests hold every backend to it.
"""

M32 = (1 << 32) - 1
M64 = (1 << 64) - 1


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & M32, (p0 >> 32) ^ c[3] ^ k[1], p0 & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def word(seed, epoch, stream, sample, index):
    counter = [
        index // 4,
        sample & M32,
        (sample >> 32) & M32,
        ((epoch % (1 << 24)) << 8) | stream,
    ]
    return philox(counter, [seed & M32, (seed >> 32) & M32])[index % 4]


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def row_hash(real_tokens):
    """``real_tokens``: {position: token}."""
    return splitmix64(sum(splitmix64((i << 32) | t) for i, t in real_tokens.items()) & M64)


def T(p):
    return int(p * 2.0**32)  # exact: scaling by a power of two, then truncation of a float64 >= 0


def mask_row(
    tokens, *, policy, seed, epoch=0, sample=None, real=None, special=None, maskable=None,
    replacement_ids=None, units=None, rates=None,
):  # fmt: skip
    """(input_ids, labels) of one row, all lists; ``policy`` has MaskingPolicy's fields."""
    n = len(tokens)
    real = [True] * n if real is None else [bool(r) for r in real]
    first = real.index(True) if any(real) else n
    position = [t - first for t in range(n)]
    if sample is None:
        sample = row_hash({position[t]: tokens[t] for t in range(n) if real[t]})
    sample &= M64

    def eligible(t):
        if not real[t] or (units is not None and units[t] < 0):
            return False
        if special is not None:
            return not special[t]
        return maskable is None or maskable[tokens[t]]

    def draw(stream, index):
        return word(seed, epoch, stream, sample, index)

    both = policy.mask_share + policy.random_share
    action = [None] * n
    candidates = [t for t in range(n) if eligible(t)]
    if policy.selection == "budget":
        leaders = {}
        for t in candidates:
            leaders.setdefault(t if units is None else units[t], t)
        chance = {
            u: T(policy.rate if rates is None else rates[leader]) for u, leader in leaders.items()
        }
        if rates is not None:
            leaders = {u: leader for u, leader in leaders.items() if chance[u]}

        def key(u):
            r = draw(0, position[u]) if units is None else draw(2, u)
            return r if rates is None else (r << 32) // chance[u]

        order = sorted(leaders, key=lambda u: (key(u), position[leaders[u]]))
        k = (sum(chance[u] for u in order) + (1 << 31)) >> 32
        if policy.at_least_one and order:
            k = max(k, 1)
        k_mask = (k * T(policy.mask_share) + (1 << 31)) >> 32
        k_both = (k * T(both) + (1 << 31)) >> 32
        rank = {u: i for i, u in enumerate(order)}
        for t in candidates:
            place = rank.get(t if units is None else units[t], k)
            if place >= k:
                continue
            if units is None or policy.replacement == "unit":
                action[t] = "mask" if place < k_mask else "random" if place < k_both else "keep"
            else:
                r = draw(0, position[t])
                action[t] = (
                    "mask" if r < T(policy.mask_share) else "random" if r < T(both) else "keep"
                )
    else:
        for t in candidates:
            rate = policy.rate if rates is None else rates[t]
            if units is None:
                r = draw(0, position[t])
                if r < T(rate):
                    mask, random = T(rate * policy.mask_share), T(rate * both)
                    action[t] = "mask" if r < mask else "random" if r < random else "keep"
            elif draw(2, units[t]) < T(rate):
                r = draw(0, units[t] if policy.replacement == "unit" else position[t])
                action[t] = (
                    "mask" if r < T(policy.mask_share) else "random" if r < T(both) else "keep"
                )
    allowed = range(policy.vocab_size) if replacement_ids is None else replacement_ids
    out, labels = list(tokens), [policy.ignore_index] * n
    for t in range(n):
        if action[t] is None:
            continue
        labels[t] = tokens[t]
        if action[t] == "mask":
            out[t] = policy.mask_token_id
        elif action[t] == "random":
            out[t] = allowed[(draw(1, position[t]) * len(allowed)) >> 32]
    return out, labels
