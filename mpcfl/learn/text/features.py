"""What a frozen encoder makes of a text: one vector, computed once and kept on disk.

The vector is the mean of the text's tokens in the encoder's last layer. A linear layer on it gives
the mean of what the same layer gives for each token, so a head that is trained on these vectors
is the classifier of `models.MeanLogits` exactly, without running the encoder again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpcfl.learn.block_cache import BlockCache, TellProgress, cache_key, cache_root
from mpcfl.learn.text.pretrained import Pretrained
from mpcfl.learn.text.tokens import TokenTable

_BLOCK_ROWS = 256
# Records that pass the encoder together: more take more memory and no less time.
_BATCH = 32
# As a part of the median.
_LEAST_SPREAD = 0.01
_LEAST_MEDIAN = 1e-6


def text_features(
    table: TokenTable, pretrained: Pretrained, progress: TellProgress
) -> NDArray[np.float32]:
    """Return the features of all records, from disk as far as they are there.

    Args:
        table: the records.
        pretrained: the encoder.
        progress: is told how far it is.

    Returns:
        Shape (records, hidden size), float32; as secret as the texts.
    """
    network: list[nn.Module] = []

    def make(start: int, stop: int) -> NDArray[np.float32]:
        if not network:
            network.append(pretrained.encoder())
        rows = [
            mean_of_tokens(network[0], table.ids[at : min(at + _BATCH, stop)], pretrained.pad_id)
            for at in range(start, stop, _BATCH)
        ]
        return np.concatenate([row.numpy() for row in rows])

    key = cache_key("features", table.key, pretrained.digest)
    cache = BlockCache(
        cache_root() / f"features-{key}", len(table.ids), _BLOCK_ROWS, "features of the texts"
    )
    return cache.rows(make, progress)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureScale:
    """Public constants that features are shifted and divided by, shape (hidden size,), float32.

    A clipped gradient spends its norm on the largest features otherwise.
    """

    centre: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureScale:
        """Return the mean and the standard deviation of public features."""
        # A typical scaled feature vector has a norm of 1 then, and its gradient one below it.
        spread = features.std(dim=0)
        # Some encoders have constant coordinates, and what is nothing here must not become much.
        spread = spread.clamp_min(max(float(spread.median()), _LEAST_MEDIAN) * _LEAST_SPREAD)
        return cls(features.mean(dim=0), spread * features.shape[1] ** 0.5)

    def apply(self, features: Tensor) -> Tensor:
        """Return scaled features."""
        return (features - self.centre) / self.spread


def scaled_features(
    table: TokenTable, pretrained: Pretrained, progress: TellProgress
) -> tuple[Tensor, FeatureScale]:
    """Return the features of all records, scaled by what the public test records tell, and how.

    No label goes into the scale, and no record of a party.
    """
    features = torch.from_numpy(text_features(table, pretrained, progress))
    scale = FeatureScale.of(features[torch.from_numpy(table.test_rows)])
    return scale.apply(features), scale


@torch.no_grad()
def mean_of_tokens(network: Any, ids: Tensor, pad_id: int) -> Tensor:
    """Return the mean vector of each text's tokens, shape (k, hidden size), float32."""
    mask = ids != pad_id
    vectors = network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return token_mean(vectors, mask)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens that are there.

    Args:
        values: shape (k, tokens, n).
        mask: True where there is a token, shape (k, tokens); at least one in each row.
    """
    weights = mask.unsqueeze(-1).to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1)
