INTERFACE: int
AVAILABLE: int

# The result is a signed integer, little-endian.
def bilinear_form(values: _Buffer, columns: _Buffer, rows: _Buffer, halves: int, /) -> bytes: ...

# Contiguous vectors: values of int32 or int64, columns and rows of uint64.
_Buffer = object
