"""Many vectors on a plane, and in groups.

    vectors (N, F) ── directions alone ── principal components (N, C) ──┬── groups (k-means)
                                                                        └── places (t-SNE of landmarks,
                                                                            everybody else beside theirs)

All of it is deterministic for a seed, on the CPU, and done in pieces: `breathe` is called between them, so
that whoever has more urgent work can be let through.

Shapes: N vectors, F their width, C components, M landmarks, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

COMPONENTS: Final = 50
LANDMARKS: Final = 1200
"""Vectors that t-SNE places itself: its time and memory grow with their square."""
PERPLEXITY: Final = 30.0
"""Neighbours that each vector minds, about."""
EARLY: Final = 150
"""Steps with exaggerated attraction, in which groups come together."""
STEPS: Final = 450
"""In all."""
EXAGGERATION: Final = 12.0
NEAREST: Final = 5
"""Landmarks that say where another vector is placed."""
MOST_GROUPS: Final = 24
_TINY: Final = 1e-12
_BLOCK: Final = 1024

Breathe = Callable[[], None]


class Projection(NamedTuple):
    places: Tensor  # (N, 2) within -1 and 1
    groups: Tensor  # (N,) int64, 0 the largest group
    centers: Tensor  # (K, 2) the mean place of each group


def project(vectors: Tensor, *, seed: int = 0, breathe: Breathe = lambda: None) -> Projection:
    """Places and groups of ``vectors`` (N, F), N at least 1."""
    vectors = torch.nan_to_num(vectors.to(torch.float32))
    components = principal_components(F.normalize(vectors, dim=1), COMPONENTS)
    breathe()
    generator = torch.Generator().manual_seed(seed)
    groups = in_groups(components, groups_for(len(vectors)), generator, breathe)
    places = on_a_plane(components, generator, breathe)
    sums = torch.zeros(int(groups.max()) + 1, 2).index_add_(0, groups, places)
    return Projection(places, groups, sums / groups.bincount().unsqueeze(1))


def principal_components(vectors: Tensor, count: int) -> Tensor:
    """(N, F) -> (N, C): the directions in which the vectors differ most, C at most ``count``.

    The sign of each is such that its largest component is positive, or it would be a matter of the library.
    """
    centered = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centered.T @ centered)
    components = centered @ directions[: min(count, len(vectors), vectors.shape[1])].T
    largest = components.abs().argmax(0, keepdim=True)
    turned: Tensor = components * components.gather(0, largest).sign()
    return turned


def groups_for(count: int) -> int:
    """How many groups so many vectors are put in: one for a few, more the more there are."""
    return max(1, min(MOST_GROUPS, round(math.sqrt(count / 6))))


# ---- Groups ------------------------------------------------------------------------------------------------


def in_groups(points: Tensor, count: int, generator: torch.Generator, breathe: Breathe) -> Tensor:
    """(N, C) -> (N,) the group of each, numbered from the largest; at most ``count`` of them.

    Lloyd's algorithm from centers drawn far from each other (k-means++, Arthur and Vassilvitskii 2007); the
    best of several beginnings.
    """
    best, least = torch.zeros(len(points), dtype=torch.int64), math.inf
    for _ in range(5):
        centers = _far_apart(points, count, generator)
        groups = best
        for _ in range(100):
            distances, nearest = _squared_distances(points, centers).min(1)
            if torch.equal(nearest, groups):
                break
            groups = nearest
            sizes = groups.bincount(minlength=len(centers)).clamp_(min=1)
            centers = torch.zeros_like(centers).index_add_(0, groups, points) / sizes.unsqueeze(1)
            breathe()
        if (spread := float(distances.sum())) < least:
            best, least = groups, spread
    order = best.bincount().sort(descending=True, stable=True).indices
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    return number[best]


def _far_apart(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the points, or as many as differ: each drawn with its squared distance from the others."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count and float(distances.max()) > _TINY:
        chosen.append(int(torch.multinomial(distances, 1, generator=generator)))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """(N, C), (M, C) -> (N, M)."""
    products = one @ other.T
    squares = one.square().sum(1, keepdim=True) + other.square().sum(1)
    return (squares - 2 * products).clamp_(min=0)


# ---- Places ------------------------------------------------------------------------------------------------


def on_a_plane(points: Tensor, generator: torch.Generator, breathe: Breathe) -> Tensor:
    """(N, C) -> (N, 2) within -1 and 1: what is near stays near."""
    if len(points) < 4 or float(points.std(0).max()) < 1e-6:
        places = torch.zeros(len(points), 2)
        width = min(2, points.shape[1])
        places[:, :width] = points[:, :width]
        return _within(places)
    landmarks = torch.randperm(len(points), generator=generator)[:LANDMARKS].sort().values
    placed = t_sne(points[landmarks], breathe)
    if len(landmarks) == len(points):
        return _within(placed)
    places = torch.cat([_beside(part, points[landmarks], placed) for part in torch.split(points, _BLOCK)])
    places[landmarks] = placed
    return _within(places)


def _beside(points: Tensor, landmarks: Tensor, placed: Tensor) -> Tensor:
    """(N, C) -> (N, 2): among the places (M, 2) of the nearest landmarks (M, C), the nearer the closer."""
    distances, nearest = _squared_distances(points, landmarks).topk(
        min(NEAREST, len(landmarks)), largest=False
    )
    weights = 1 / (distances + _TINY)
    weights /= weights.sum(1, keepdim=True)
    return (placed[nearest] * weights.unsqueeze(2)).sum(1)


def _within(places: Tensor) -> Tensor:
    centered = places - (places.amax(0) + places.amin(0)) / 2
    return centered / centered.abs().max().clamp(min=_TINY)


def t_sne(points: Tensor, breathe: Breathe = lambda: None) -> Tensor:
    """(M, C) -> (M, 2) by t-SNE (van der Maaten and Hinton 2008), all pairs.

    With p_ij how near i and j are, the same for their places y as q_ij = (1 + |y_i - y_j|^2)^-1 / sum, the
    gradient of the divergence KL(P || Q) is (their equation 5)

        4 sum_j (p_ij - q_ij) (y_i - y_j) (1 + |y_i - y_j|^2)^-1

    It begins with the first two principal components, so that what is far apart stays apart, and with a
    learning rate of M / exaggeration (Kobak and Berens 2019; Belkina et al. 2019); momentum and gains are the
    paper's.
    """
    near = neighbourhoods(points, min(PERPLEXITY, (len(points) - 1) / 3), breathe)
    places = points[:, :2] / points[:, :1].std().clamp(min=_TINY) * 1e-4
    if places.shape[1] < 2:
        places = F.pad(places, (0, 2 - places.shape[1]))
    velocity, gains = torch.zeros_like(places), torch.ones_like(places)
    rate = max(len(points) / EXAGGERATION, 50.0)
    for step in range(STEPS):
        pull = near * EXAGGERATION if step < EARLY else near
        closeness = _squared_distances(places, places).add_(1).reciprocal_().fill_diagonal_(0)
        force = (pull - closeness / closeness.sum().clamp(min=_TINY)).mul_(closeness)
        gradient = 4 * (force.sum(1, keepdim=True) * places - force @ places)
        turned = gradient.sign() != velocity.sign()
        gains = torch.where(turned, gains + 0.2, gains * 0.8).clamp_(min=0.01)
        velocity = (0.5 if step < EARLY else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
        places = places - places.mean(0)
        breathe()
    return places


def neighbourhoods(points: Tensor, perplexity: float, breathe: Breathe = lambda: None) -> Tensor:
    """(M, C) -> (M, M): p_ij = (p_j|i + p_i|j) / 2M, adding up to 1, zero on the diagonal.

    p_j|i falls with the squared distance as a Gaussian does, whose width is such that the entropy of each row
    is log ``perplexity``; found by bisection of 1 / (2 width^2).
    """
    distances = _squared_distances(points, points)
    distances = distances / distances.mean().clamp(min=_TINY)
    low, high = torch.zeros(len(points), 1), torch.full((len(points), 1), math.inf)
    beta = torch.ones(len(points), 1)
    own = torch.eye(len(points), dtype=torch.bool)
    wanted = math.log(max(perplexity, 1.0))
    for _ in range(50):
        scores = (-beta * distances).masked_fill(own, -math.inf)
        rows = scores.softmax(1)
        entropy = -(rows * rows.clamp(min=_TINY).log()).sum(1, keepdim=True)
        wide = entropy > wanted
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
        beta = torch.where(high.isinf(), beta * 2, (low + high) / 2)
        breathe()
    return (rows + rows.T) / (2 * len(points))
