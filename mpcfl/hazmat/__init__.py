"""Building blocks that are unsafe when used alone. Only `dp`, `secagg` and `net` import them."""
