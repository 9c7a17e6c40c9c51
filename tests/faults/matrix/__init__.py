"""The rows of the fault matrix, by what is harmed."""

from tests.faults.matrix import api, clocks, database, others, redis, workers
from tests.faults.matrix.rows import ROWS, Row

__all__ = ["ROWS", "Row", "api", "clocks", "database", "others", "redis", "workers"]
