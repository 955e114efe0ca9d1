"""Fewer points that draw the same line."""

import numpy as np

MANY = 500  # points, from which a line alone becomes a band
COLUMNS = 480  # of pixels, that a curve of the report spans at most


def thin(x: np.ndarray, y: np.ndarray, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """The first, lowest, highest and last point in each of `columns` equal parts of the ascending `x`.

    A line through them covers the same pixels as one through all points (M4, Jugel et al. 2014): no spike is lost.
    Points that are not finite are left out.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= 4 * columns:
        return x, y
    width = (x[-1] - x[0]) or 1.0
    column = np.minimum((columns * ((x - x[0]) / width)).astype(np.int64), columns - 1)
    firsts = np.flatnonzero(np.diff(column, prepend=-1))
    lasts = np.append(firsts[1:], len(x)) - 1
    by_height = np.lexsort((y, column))  # columns stay in order, heights ascend within each
    kept = np.unique(np.concatenate([firsts, lasts, by_height[firsts], by_height[lasts]]))
    return x[kept], y[kept]


def typical(x: np.ndarray, y: np.ndarray, columns: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """The median in each of `columns` groups of neighbours: what a band of points is about."""
    known = np.isfinite(x) & np.isfinite(y)
    groups = np.array_split(np.flatnonzero(known), min(columns, int(known.sum())) or 1)
    return np.array([np.median(x[g]) for g in groups if len(g)]), np.array([np.median(y[g]) for g in groups if len(g)])
