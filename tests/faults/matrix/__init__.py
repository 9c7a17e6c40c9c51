"""The rows of the fault matrix, by what is harmed."""

from tests.faults.matrix import api, chaos, clocks, database, others, redis, suites, workers
from tests.faults.matrix.rows import ROWS, Row

__all__ = ["ROWS", "Row", "api", "chaos", "clocks", "database", "others", "redis", "suites", "workers"]
