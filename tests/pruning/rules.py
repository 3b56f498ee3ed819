"""The rules of the comparison pruners written out: numpy, loops, no speed. Tests compare the pruners with them."""

from __future__ import annotations

import numpy as np


def cosines(tokens: np.ndarray) -> np.ndarray:
    """[n, n] of tokens [n, D]."""
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    return unit @ unit.T


def highest(scores: np.ndarray, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])[:count]


def farthest_first(distance: np.ndarray, count: int) -> list[int]:
    """The loneliest point, then again and again the one farthest from all that were taken."""
    everyone = range(len(distance))
    taken: list[int] = []
    while len(taken) < count:
        others = [i for i in everyone if i not in taken]
        against = [taken or [j for j in everyone if j != i] for i in others]
        gaps = [min(distance[i][j] for j in those) for i, those in zip(others, against, strict=True)]
        taken.append(others[gaps.index(max(gaps))])
    return sorted(taken)


def divprune(tokens: np.ndarray, keep: int) -> list[int]:
    return farthest_first(1 - cosines(tokens), keep)


def prune2drive(tokens: np.ndarray, budgets: list[int]) -> list[int]:
    """Tokens [views, n, D]; a budget for each view."""
    count = tokens.shape[1]
    kept = [
        view * count + index
        for view, budget in enumerate(budgets)
        for index in farthest_first(1 - cosines(tokens[view]), budget)
    ]
    return sorted(kept)


def vispruner(tokens: np.ndarray, attention: np.ndarray, keep: int) -> list[int]:
    """Half by attention; the rest loses, eight at a time, the even ones that resemble an odd one most."""
    similar = cosines(tokens)
    falling = highest(attention, len(attention))
    important, rest = falling[: keep // 2], falling[keep // 2 :]
    while len(rest) > keep - keep // 2:
        even, odd = rest[::2], rest[1::2]
        even.sort(key=lambda i: -max(similar[i][j] for j in odd))
        away = min(8, len(rest) - (keep - keep // 2), len(even))
        rest = even[away:] + odd
    return sorted(important + rest)


def cdpruner(tokens: np.ndarray, text: np.ndarray, keep: int) -> list[int]:
    """The largest determinant, one token after the other; ``keep`` is at most the kernel's rank."""
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    words = text / np.linalg.norm(text, axis=1, keepdims=True)
    relevance = (unit @ words.T).mean(axis=1)
    quality = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = quality[:, None] * (unit @ unit.T) * quality[None]
    taken: list[int] = []
    while len(taken) < keep:
        others = [i for i in range(len(tokens)) if i not in taken]
        sizes = [np.linalg.det(kernel[np.ix_([*taken, i], [*taken, i])]) for i in others]
        taken.append(others[int(np.argmax(sizes))])
    return sorted(taken)


def sparsevlm_raters(visual: np.ndarray, text: np.ndarray) -> list[int]:
    """Words whose mean softmax(V T^T) is above the average word's."""
    products = np.exp(visual @ text.T)
    relevance = (products / products.sum(axis=1, keepdims=True)).mean(axis=0)
    return [word for word in range(len(text)) if relevance[word] > relevance.mean()]


def sparsevlm_step(attention: np.ndarray, hidden: np.ndarray, best: int) -> dict[int, np.ndarray]:
    """The states by place behind a step that leaves the ``best`` tokens and the clusters of the recycled ones."""
    falling = highest(attention, len(attention))
    dropped = falling[best:]
    recycled = sorted(dropped[: int(0.3 * len(dropped))])
    left = {place: hidden[place] for place in falling[:best]}
    return left | (clusters(recycled, hidden, len(recycled) // 10 + 1) if recycled else {})


def unmerged_step(attention: np.ndarray, hidden: np.ndarray, keep: int) -> dict[int, np.ndarray]:
    return {place: hidden[place] for place in highest(attention, keep)}


def clusters(places: list[int], hidden: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """Density peaks: the mean of each cluster by the place of its center."""
    distance = {(i, j): np.sqrt(((hidden[i] - hidden[j]) ** 2).mean()) for i in places for j in places}
    density = {i: np.exp(-np.mean(sorted(distance[i, j] ** 2 for j in places)[:count])) for i in places}
    peak = {}
    for number, i in enumerate(places):
        denser = [j for j in places if density[j] > density[i] or (density[j] == density[i] and j in places[:number])]
        peak[i] = min(distance[i, j] for j in denser) if denser else max(distance[i, j] for j in places)
    centers = sorted(places, key=lambda i: -density[i] * peak[i])[:count]
    members: dict[int, list[int]] = {center: [center] for center in centers}
    for i in places:
        if i not in centers:
            members[min(centers, key=lambda center: distance[i, center])].append(i)
    return {center: np.mean([hidden[i] for i in those], axis=0) for center, those in members.items()}


def dart(tokens: np.ndarray, text: np.ndarray, budget: int) -> list[int]:
    """Of one image: four pivots by L1, and for each of them and of four words in turn what resembles it least."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    pivots = highest(np.abs(tokens).sum(axis=1), min(4, budget))
    words = highest(np.abs(text).sum(axis=1), 4)
    vectors = [tokens[i] for i in pivots] + [text[i] for i in words]
    kept = list(pivots)
    for number, vector in enumerate(vectors):
        quota = int(np.ceil((budget - len(kept)) / (len(vectors) - number)))
        others = [i for i in range(len(tokens)) if i not in kept]
        kept += sorted(others, key=lambda i: cosine(tokens[i], vector))[:quota]
    return sorted(kept)


def coverage(rows: int, columns: int, budget: int) -> list[int]:
    """The cells with the smallest fractional parts of x / g + y / g^2, where g^3 = g + 1."""
    g = max(root.real for root in np.roots([1, 0, -1, -1]) if abs(root.imag) < 1e-9)
    parts = [(x / g + y / g**2) % 1.0 for y in range(rows) for x in range(columns)]
    return sorted(sorted(range(rows * columns), key=lambda cell: parts[cell])[:budget])


def prumerge(tokens: np.ndarray, attention: np.ndarray, keep: int, neighbors: int) -> dict[int, np.ndarray]:
    """The kept tokens by place: each the mean, by attention, of itself and its nearest ones."""
    similar = cosines(tokens)
    merged = {}
    for i in highest(attention, keep):
        others = [j for j in highest(similar[i], len(tokens)) if j != i][:neighbors]
        merged[i] = np.average(tokens[[i, *others]], axis=0, weights=attention[[i, *others]])
    return merged


def seen_twice(cameras: list, grid: tuple[int, int]) -> list[bool]:
    """Of each token of level cameras (focal length, width, height, yaw): does another have its ray nearer to its axis?

    In angles: azimuth to the left of the vehicle's front, and the height of the ray over its horizontal part.
    """
    found = []
    for focal, width, height, yaw in cameras:
        for row in range(grid[0]):
            for column in range(grid[1]):
                x = (column + 0.5) / grid[1] * width - width / 2
                y = (row + 0.5) / grid[0] * height - height / 2
                azimuth, rise = yaw - np.arctan2(x, focal), -y / np.hypot(x, focal)
                off_axis = abs(azimuth - yaw)
                seen = False
                for other_focal, other_width, other_height, other_yaw in cameras:
                    apart = (azimuth - other_yaw + np.pi) % (2 * np.pi) - np.pi
                    if abs(apart) >= np.pi / 2 or other_yaw == yaw:
                        continue
                    inside_x = abs(other_focal * np.tan(apart)) < other_width / 2
                    inside_y = abs(other_focal * rise / np.cos(apart)) < other_height / 2
                    seen |= bool(inside_x and inside_y and abs(apart) < off_axis)
                found.append(seen)
    return found
