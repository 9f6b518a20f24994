"""Rows by Opacus' hooks, and one by one: each record's own gradient, language models included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

pytest.importorskip("opacus")

from mpcfl.config import TrainingTable, parse_job
from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.learn.model import initial_model, model_digest, trainable_size
from mpcfl.learn.opacus_gradients import OpacusGradients, gradient_copy, with_hooks
from mpcfl.learn.task import Records
from mpcfl.learn.train import check_record_gradients, record_gradients
from mpcfl.round import run_round

RECORDS, CLASSES, PIXELS, TOKENS, VOCABULARY = 9, 3, 4, 6, 100
SAMPLE = np.array([7, 0, 3, 8, 4], dtype=np.int64)
CPU = torch.device("cpu")
# Float32 gradients of order one, of which two ways of computing agree to a few last bits.
TOLERANCE = 1e-5


class MadeUpTask:
    """Any model on made-up floats, or on made-up token numbers with padding at the end."""

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...] = (PIXELS,)) -> None:
        generator = torch.Generator().manual_seed(1)
        self.build = build
        if shape == (TOKENS,):
            self.inputs = torch.randint(1, VOCABULARY, (RECORDS, TOKENS), generator=generator)
            self.inputs[::2, -2:] = 0
        else:
            self.inputs = torch.randn((RECORDS, *shape), generator=generator)
        self.targets = torch.arange(RECORDS) % CLASSES

    def model(self) -> nn.Module:
        return self.build()

    def party_data(self, party: int, n_parties: int) -> Records:
        return self.inputs, self.targets

    def test_data(self) -> Records:
        return self.inputs.clone(), self.targets.clone()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


def table(gradients: str = "opacus", microbatch: int = 256) -> TrainingTable:
    return TrainingTable.model_validate(
        {"rounds": 1, "gradients": gradients, "microbatch": microbatch}
    )


def rows_of(model: nn.Module, task: MadeUpTask, training: TrainingTable) -> np.ndarray:
    blocks = record_gradients(model, task.party_data(0, 1), task, SAMPLE, training)
    return np.concatenate(list(blocks))


def rows_by_loop(model: nn.Module, task: MadeUpTask) -> np.ndarray:
    """One backward pass per record, with plain autograd."""
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for index in SAMPLE:
        loss = task.loss(model(task.inputs[index][None]), task.targets[index][None])
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(parameters, parts, strict=True)
        full = [torch.zeros_like(p) if g is None else g for p, g in pairs]
        rows.append(-torch.cat([part.reshape(-1) for part in full]).double().numpy())
    return np.array(rows)


class WithUnusedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(PIXELS, CLASSES)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


class Tied(nn.Module):
    """One matrix embeds the tokens and scores them, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 5)
        self.score = nn.Linear(5, VOCABULARY, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.score(self.embed(tokens).mean(dim=1))
        return scores[:, :CLASSES]


class LastOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(2, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.recurrent(inputs)[0][:, -1])
        return outputs


class MeanMix(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(dim=0)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += inputs.detach().sum()
        return inputs


SMALL = {
    "linear": MadeUpTask(lambda: nn.Linear(PIXELS, CLASSES)),
    "mlp": MadeUpTask(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))),
    "frozen": MadeUpTask(
        lambda: nn.Sequential(
            nn.Linear(4, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, CLASSES)
        )
    ),
    "convolution": MadeUpTask(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        (1, 4, 4),
    ),
    "embedding with padding": MadeUpTask(
        lambda: nn.Sequential(
            nn.Embedding(VOCABULARY, 3, padding_idx=0),
            nn.Flatten(),
            nn.LayerNorm(3 * TOKENS),
            nn.Linear(3 * TOKENS, CLASSES),
        ),
        (TOKENS,),
    ),
    "unused layer": MadeUpTask(WithUnusedLayer),
    "tied": MadeUpTask(Tied, (TOKENS,)),
}


@pytest.mark.parametrize("microbatch", [1, 2, 256])
@pytest.mark.parametrize("name", list(SMALL))
def test_rows_are_those_of_torch_func_and_of_a_loop(name: str, microbatch: int) -> None:
    task = SMALL[name]
    model = initial_model(task, seed=2)
    check_record_gradients(model, task, table(microbatch=microbatch))
    rows = rows_of(model, task, table(microbatch=microbatch))
    assert rows.dtype == np.float64
    assert rows.shape == (len(SAMPLE), trainable_size(model))
    np.testing.assert_allclose(rows, rows_by_loop(model, task), rtol=0, atol=TOLERANCE)
    by_func = rows_of(model, task, table("vmap", microbatch))
    np.testing.assert_allclose(rows, by_func, rtol=0, atol=TOLERANCE)


class Sentences(nn.Module):
    """A tiny BERT with random weights, and a head on the mean of what it makes of the words."""

    def __init__(self, explicit_places: bool = True) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        self.explicit_places = explicit_places
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0).long()
        places = torch.arange(tokens.shape[1]).expand(tokens.shape)
        hidden = self.encoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=places if self.explicit_places else None,
        ).last_hidden_state
        mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        outputs: Tensor = self.head(mean)
        return outputs


def head_only() -> nn.Module:
    model = Sentences(explicit_places=False)
    model.encoder.requires_grad_(requires_grad=False)
    return model


class KeptInEvaluation(nn.Module):
    """Has dropout, and stays in evaluation mode whoever asks for another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(PIXELS, 64), nn.Dropout(0.5), nn.Linear(64, CLASSES))
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        return outputs

    def train(self, mode: bool = True) -> KeptInEvaluation:
        super().train(False)
        return self


@pytest.mark.parametrize("microbatch", [1, 256])
def test_a_model_that_stays_in_evaluation_mode_is_differentiated_as_it_is(microbatch: int) -> None:
    task = MadeUpTask(KeptInEvaluation)
    model = initial_model(task, seed=2)
    check_record_gradients(model, task, table(microbatch=microbatch))
    rows = rows_of(model, task, table(microbatch=microbatch))
    np.testing.assert_allclose(rows, rows_by_loop(model, task), rtol=0, atol=TOLERANCE)
    assert not any(layer.training for layer in model.modules())


def last_layer_and_head() -> nn.Module:
    model = head_only()
    model.encoder.encoder.layer[1].requires_grad_(requires_grad=True)
    return model


def adapters_and_head() -> nn.Module:
    """LoRA with its first factor as it was drawn: only the second one and the head are trained."""
    peft = pytest.importorskip("peft")
    model = head_only()
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.0)
    adapted = peft.inject_adapter_in_model(config, model.encoder)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(requires_grad="lora_B" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.encoder = adapted
    return model


BERT = {
    "all": Sentences,
    "head": head_only,
    "last layer": last_layer_and_head,
    "adapters": adapters_and_head,
}


@pytest.fixture(scope="module", params=list(BERT))
def bert(request: pytest.FixtureRequest) -> MadeUpTask:
    return MadeUpTask(BERT[request.param], (TOKENS,))


@pytest.mark.parametrize("microbatch", [1, 3, 256])
def test_rows_of_a_language_model_are_those_of_a_loop(bert: MadeUpTask, microbatch: int) -> None:
    model = initial_model(bert, seed=2)
    digest = model_digest(model)
    check_record_gradients(model, bert, table(microbatch=microbatch))
    rows = rows_of(model, bert, table(microbatch=microbatch))
    expected = rows_by_loop(model.train(), bert)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE)
    assert np.linalg.norm(expected, axis=1).min() > 0.1
    assert model_digest(model) == digest


def test_only_layers_that_are_trained_have_hooks() -> None:
    module = with_hooks(gradient_copy(last_layer_and_head(), CPU))
    for layer in module._module.modules():
        own = list(layer.parameters(recurse=False))
        trained = any(p.requires_grad for p in own)
        assert bool(layer._forward_hooks) == bool(layer._backward_hooks) == trained
        assert all(hasattr(p, "grad_sample") == p.requires_grad for p in own)


def test_a_table_that_is_looked_up_once_for_all_records_needs_one_record_at_a_time() -> None:
    task = MadeUpTask(lambda: Sentences(explicit_places=False), (TOKENS,))
    model = initial_model(task, seed=2)
    with pytest.raises(ConfigError, match=r"set training\.microbatch = 1, or .* first dimension"):
        check_record_gradients(model, task, table())
    check_record_gradients(model, task, table(microbatch=1))
    rows = rows_of(model, task, table(microbatch=1))
    np.testing.assert_allclose(rows, rows_by_loop(model, task), rtol=0, atol=TOLERANCE)


def test_where_torch_func_fails_the_error_names_opacus() -> None:
    task = MadeUpTask(Sentences, (TOKENS,))
    with pytest.raises(ConfigError, match=r'set training\.gradients = "opacus"'):
        check_record_gradients(initial_model(task, seed=2), task, table("vmap"))


@pytest.mark.parametrize("microbatch", [1, 2, 256])
@pytest.mark.parametrize("name", ["mlp", "BERT"])
def test_a_record_that_fails_becomes_nan_and_changes_no_other_row(
    name: str, microbatch: int
) -> None:
    task = SMALL[name] if name in SMALL else MadeUpTask(last_layer_and_head, (TOKENS,))
    bad = MadeUpTask(task.build, task.inputs.shape[1:])
    if name == "BERT":
        bad.inputs[3, 0] = VOCABULARY  # no such word
    bad.targets[8] = CLASSES  # no such class
    model = initial_model(task, seed=2)
    good_rows, rows = (rows_of(model, t, table(microbatch=microbatch)) for t in (task, bad))
    failing = np.isin(SAMPLE, [3, 8] if name == "BERT" else [8])
    assert np.isnan(rows[failing]).all()
    np.testing.assert_array_equal(rows[~failing], good_rows[~failing])


@pytest.mark.parametrize("microbatch", [1, 256])
def test_a_record_that_is_not_finite_spoils_its_own_row_only(microbatch: int) -> None:
    task = SMALL["convolution"]
    bad = MadeUpTask(task.build, (1, 4, 4))
    bad.inputs[3] = float("inf")
    model = initial_model(task, seed=2)
    good_rows, rows = (rows_of(model, t, table(microbatch=microbatch)) for t in (task, bad))
    others = SAMPLE != 3
    assert not np.isfinite(rows[~others]).any()
    np.testing.assert_allclose(rows[others], good_rows[others], rtol=0, atol=TOLERANCE)


def test_nothing_is_left_of_a_pass() -> None:
    task = MadeUpTask(Sentences, (TOKENS,))
    model = initial_model(task, seed=2)
    module = with_hooks(gradient_copy(model, CPU))
    gradients = OpacusGradients(module, task, CPU)

    def all_is_gone() -> bool:
        layers_forgot = not any("activations" in vars(layer) for layer in module.modules())
        return layers_forgot and all(
            p.grad is None and p.grad_sample is None and not hasattr(p, "_current_grad_sample")
            for p in module.parameters()
        )

    gradients(task.inputs[:2], task.targets[:2])
    assert all_is_gone()

    def fail(*_: Any) -> None:
        raise RuntimeError("half-way")

    # Behind the head and the last layers, and before the first ones.
    first = module._module.encoder.encoder.layer[0].register_full_backward_hook(fail)
    with pytest.raises(RuntimeError, match="half-way"):
        gradients(task.inputs[:2], task.targets[:2])
    assert all_is_gone()
    first.remove()
    np.testing.assert_allclose(
        -gradients(task.inputs[SAMPLE], task.targets[SAMPLE]),
        rows_by_loop(model, task),
        rtol=0,
        atol=TOLERANCE,
    )


def test_the_global_model_gets_no_hooks_and_its_values_are_not_copied() -> None:
    task = SMALL["mlp"]
    model = initial_model(task, seed=2).eval()
    rows_of(model, task, table())
    assert not model.training
    for layer in model.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
    copied = gradient_copy(model, CPU)
    pairs = zip(model.parameters(), copied.parameters(), strict=True)
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert copied.training


def test_layers_that_opacus_refuses_are_named_and_work_one_record_at_a_time() -> None:
    task = MadeUpTask(LastOutput, (3, 2))
    model = initial_model(task, seed=2)
    with pytest.raises(ConfigError, match=r'gradients = "opacus" can\'t train.*LSTM at "recurr'):
        check_record_gradients(model, task, table())
    check_record_gradients(model, task, table(microbatch=1))
    rows = rows_of(model, task, table(microbatch=1))
    np.testing.assert_allclose(rows, rows_by_loop(model, task), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("layer", "microbatch", "words"),
    [
        (MeanMix, 256, r"depend on other records.*set training\.microbatch = 1"),
        (Remembers, 256, "a buffer changes with the records"),
        (Remembers, 1, "a buffer changes with the records"),
        (lambda: nn.Linear(PIXELS + 1, PIXELS), 1, "fails on one of its own test records"),
    ],
)
def test_models_that_mix_or_remember_records_are_refused(
    layer: Callable[[], nn.Module], microbatch: int, words: str
) -> None:
    task = MadeUpTask(lambda: nn.Sequential(layer(), nn.Linear(PIXELS, CLASSES)))
    model = initial_model(task, seed=2)
    generator = torch.get_rng_state()
    with pytest.raises(ConfigError, match=words):
        check_record_gradients(model, task, table(microbatch=microbatch))
    assert torch.equal(torch.get_rng_state(), generator)


def test_dropout_differs_from_record_to_record_and_is_secret() -> None:
    task = MadeUpTask(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES)), (64,))
    task.inputs[:] = 1.0
    task.targets[:] = 0
    model = initial_model(task, seed=2)
    for microbatch in (1, 256):
        masks = [
            (row != 0).tobytes()
            for _ in range(2)
            for row in rows_of(model, task, table(microbatch=microbatch))[:, : 64 * CLASSES]
        ]
        assert len(set(masks)) == 2 * len(SAMPLE)


def test_a_round_opens_the_same_sum_but_for_rounding() -> None:
    found = []
    for gradients in ("vmap", "opacus"):
        job = parse_job(
            {
                "task": "digits",
                "parties": {"count": 2},
                "privacy": {"unit": "record", "epsilon": 8.0, "records": 1437, "sample_rate": 0.1},
                "training": {"rounds": 1, "gradients": gradients},
                "aggregation": {"backend": "plain"},
            },
            "job",
        )
        # Equal secret bits: equal samples and equal noise.
        bits = [raw_keyed_bits(bytes([rank]) * 32) for rank in range(2)]
        found.append(run_round(job, bits).opened)
    assert np.abs(found[0]).max() > 1000
    # A last bit of a gradient may move a level by one, for each of some 150 records.
    assert np.abs(found[0] - found[1]).max() <= 150


def test_without_opacus_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SMALL["linear"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match=r'gradients = "opacus" .*"mpcfl\[local\]"'):
        check_record_gradients(task.model(), task, table())
