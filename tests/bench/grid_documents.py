"""A grid as its file has it, for tests to change."""

GRID = {
    "name": "test",
    "runs": 3,
    "backends": ["plain", "phe"],
    "parties": [2, 3],
    "dims": [10, 1000],
    "key_bits": [2048, 3072],
    "largest_dim": {"phe": 10},
}
MASKED = {"backends": ["plain", "ring"], "largest_dim": {}}
