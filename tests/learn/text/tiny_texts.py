"""A BERT of two narrow layers with random weights, and reviews whose words tell the label."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "dull")
FILLERS = tuple(f"w{number}" for number in range(80))
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *GOOD, *BAD)
HIDDEN_SIZE = 32
MOST_TOKENS = 64
N_REVIEWS = 200
# All reviews longer than this are cut.
MAX_TOKENS = 24
TEST_RECORDS = 40


def save_tiny_bert(folder: Path) -> None:
    """Write a base as people have theirs: config, weights and tokenizer, by transformers."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = folder / "vocab.txt"
    words.write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertTokenizerFast(str(words)).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noqa: TID251  a public base, equal in every run
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=MOST_TOKENS,
        )
        BertModel(config).save_pretrained(folder)


def save_texts(folder: Path) -> Path:
    """Write the base ``tiny`` and ``reviews.csv`` into a folder, and return it."""
    save_tiny_bert(folder / "tiny")
    write_reviews(folder / "reviews.csv")
    return folder


def tiny_options(folder: Path) -> dict[str, str | int]:
    """Return the options of the task ``imdb`` on ``tiny`` and ``reviews.csv`` in a folder."""
    return {
        "dataset": str(folder / "reviews.csv"),
        "model": str(folder / "tiny"),
        "max_tokens": MAX_TOKENS,
        "test_records": TEST_RECORDS,
    }


def review(number: int) -> tuple[str, int]:
    """Return a text of 5 to 40 words, some of which tell its label, and the label."""
    label = number % 2
    words = [FILLERS[(number * 31 + place * 17) % len(FILLERS)] for place in range(number % 33)]
    telling = (GOOD if label else BAD) * 2
    # Near the end, so that a text that is cut at its start keeps them.
    return " ".join([*words, *telling, FILLERS[number % len(FILLERS)]]), label


def write_reviews(path: Path) -> None:
    """Write the reviews as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows(review(number) for number in range(N_REVIEWS))
