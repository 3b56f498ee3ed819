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
