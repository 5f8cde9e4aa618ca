"""Who takes which place, so that the sum of costs is least. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def least_assignment(cost: npt.NDArray[np.float64]) -> list[int]:
    """Return a column for each row, none twice, so that the sum of costs is least.

    Shortest augmenting paths with potentials (Jonker and Volgenant, "A shortest augmenting path algorithm for dense and
    sparse linear assignment problems", Computing 38, 1987), in time `rows² · columns`.

    Args:
        cost: `[rows, columns]`, finite, no more rows than columns.
    """
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns + 1)
    row_of = np.full(columns + 1, -1)  # the last column is where a row begins its search
    for row in range(rows):
        row_of[columns] = row
        at, seen = columns, np.zeros(columns + 1, dtype=bool)
        least, came_from = np.full(columns, np.inf), np.full(columns, columns)
        while row_of[at] >= 0:
            seen[at] = True
            here = int(row_of[at])
            reduced = cost[here] - row_price[here] - column_price[:columns]
            better = ~seen[:columns] & (reduced < least)
            least[better], came_from[better] = reduced[better], at
            following = int(np.argmin(np.where(seen[:columns], np.inf, least)))
            step = least[following]
            row_price[row_of[seen]] += step
            column_price[seen] -= step
            least[~seen[:columns]] -= step
            at = following
        while at != columns:
            row_of[at] = row_of[came_from[at]]
            at = int(came_from[at])
    chosen = {int(row): column for column, row in enumerate(row_of[:columns]) if row >= 0}
    return [chosen[row] for row in range(rows)]
