"""What is trained of a pretrained encoder: a head on frozen features, adapters, or all of it.

In all three the classifier scores a text by the mean of its tokens' scores, so that what is saved
is one of transformers' classifiers of tokens in every case.

Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685) add B A to a frozen weight. The mean of
the parties' B times the mean of their A is not the mean of their B A, so that averaging both
trains something that no party computed, and noise on both multiplies. With A frozen, the same
random one at all parties (FFA-LoRA; Sun et al. 2024, arXiv 2403.12313), B A is linear in what is
trained, and the secure sum of B gives the sum of the products exactly. Hence the default.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from mpcfl.errors import ConfigError
from mpcfl.learn.text.features import token_mean
from mpcfl.learn.text.options import TextOptions
from mpcfl.learn.text.packages import missing_package

_FROZEN_FACTOR = "lora_A"


class MeanLogits(nn.Module):
    """A classifier of tokens as one of texts.

    Args:
        network: one of transformers' classifiers of tokens, adapted or not.
        pad_id: the token that fills up short texts.
    """

    def __init__(self, network: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.network = network
        self.pad_id = pad_id

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scores of each class, shape (k, labels), of tokens, shape (k, tokens)."""
        mask = ids != self.pad_id
        logits = self.network(input_ids=ids, attention_mask=mask.long()).logits
        return token_mean(logits, mask)

    def train(self, mode: bool = True) -> MeanLogits:
        """Stay in evaluation mode: nothing in the network differs but dropout, which is off."""
        del mode
        super().train(False)
        return self


class FeatureHead(nn.Module):
    """The linear layer on an encoder's frozen features.

    Args:
        hidden_size: length of a feature vector.
        labels: number of classes.
    """

    def __init__(self, hidden_size: int, labels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden_size, labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores of each class, shape (k, labels)."""
        scores: Tensor = self.classifier(features)
        return scores


def adapted(network: nn.Module, options: TextOptions, base_name: str) -> nn.Module:
    """Return a classifier of tokens with low-rank adapters, which alone are trained with the head.

    Args:
        network: is changed.
        options: rank, scale and form of the adapters.
        base_name: what saved adapters call the model that they belong to.

    Raises:
        ConfigError: peft is missing, or does not know where this kind of model takes adapters.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ModuleNotFoundError as error:
        raise missing_package("peft") from error
    # peft takes the name from here, and the machine's own path if there is none.
    network.name_or_path = base_name  # type: ignore[assignment]  # nn.Module knows modules only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapters: nn.Module = get_peft_model(
                network,
                LoraConfig(
                    task_type=TaskType.TOKEN_CLS,
                    r=options.lora_rank,
                    # Any number, whatever its annotation says.
                    lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
                    lora_dropout=0.0,
                ),
            )
    except ValueError as error:
        raise ConfigError(
            'task_options.train = "lora": peft does not know which layers of this model take '
            f"adapters ({error}); take another model"
        ) from error
    freeze_factor(adapters, options.lora_form)
    return adapters.eval()


def freeze_factor(adapters: nn.Module, form: Literal["ffa", "both"]) -> None:
    """Freeze A of every adapter in the form ``ffa``."""
    for name, parameter in adapters.named_parameters():
        if _FROZEN_FACTOR in name.split("."):
            parameter.requires_grad_(form == "both")


@torch.no_grad()
def adapter_products(adapters: nn.Module) -> dict[str, Tensor]:
    """Return what each adapter adds to its layer's weight, by name: (alpha / r) B A."""
    products = {}
    for name, module in adapters.named_modules():
        get_delta = getattr(module, "get_delta_weight", None)
        if callable(get_delta):
            products[name] = get_delta("default")
    return products
