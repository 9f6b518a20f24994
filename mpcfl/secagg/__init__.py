"""Secure sums: one protocol (`base.SecureSum`), one file per backend."""
