"""Texts as records: reading, tokens, pretrained encoders, and what of them is trained."""
