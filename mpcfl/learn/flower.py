"""Clients of the Flower framework as a task: their code unchanged, their updates protected.

    def digits(**run_config):
        return FlowerTask(client_fn, initial_parameters, evaluate_fn, **run_config)

Of Flower's contract this keeps the party's side: ``client_fn`` makes a `NumPyClient`, anew for
every round as Flower does, and its ``fit(parameters, config)`` trains. What the server did is
done by all parties alike: the initial parameters, the mean, ``evaluate_fn``. A client's own
``evaluate`` and the metrics that it returns are a party's data, and are not asked for.

Flower itself is never imported here: what has the methods of a client is one. A client trains
opaquely: the unit is "party" or "none" (`own_training.py`). How to: `docs/how-to/flower.md`.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpcfl.config import OptionValue
from mpcfl.errors import ConfigError
from mpcfl.learn.loop import handles, no_loss, whose
from mpcfl.learn.task import Records

Arrays = list[NDArray[Any]]
ClientFn = Callable[[Any], Any]
EvaluateFn = Callable[[int, Arrays, dict[str, Any]], tuple[float, Mapping[str, Any]] | None]


@dataclass(slots=True)
class ClientContext:
    """What a ``client_fn`` is told, with the names that Flower's Context has.

    Attributes:
        run_id: always 0.
        node_id: the party's index.
        node_config: "partition-id", the party's index, and "num-partitions".
        state: the client's own, kept from round to round as long as the process lives; private.
            Flower's class where Flower is loaded, a dict elsewhere.
        run_config: the job's ``task_options``.
    """

    node_id: int
    node_config: dict[str, Any]
    run_config: dict[str, Any]
    state: Any = field(default_factory=dict, repr=False)
    run_id: int = 0
    series_id: int = 0


class ArrayModel(nn.Module):
    """A model that is nothing but its arrays, in the order of ``get_parameters``.

    Arrays of floating types are trained and travel. Others, such as batch normalization's count
    of batches, stay what they are at the beginning: clients get that value in every round, and what
    they make of it is dropped, for it would count a party's records.

    Args:
        arrays: the initial ones.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        super().__init__()
        self._names: list[str] = []
        for index, array in enumerate(map(np.asarray, arrays)):
            self._names.append(f"array_{index}")
            if array.dtype.kind not in "biuf":
                raise ConfigError(
                    f"initial parameter {index} has dtype {array.dtype}; give arrays of numbers"
                )
            tensor = torch.from_numpy(array.copy())
            if array.dtype.kind == "f":
                self.register_parameter(self._names[-1], nn.Parameter(tensor))
            else:
                self.register_buffer(self._names[-1], tensor)

    def arrays(self) -> Arrays:
        """Return copies of all arrays, in order."""
        return [getattr(self, name).detach().cpu().numpy().copy() for name in self._names]

    def load(self, arrays: Sequence[Any]) -> None:
        """Take the floating arrays of a client; each is rounded to the dtype that it had.

        Raises:
            ConfigError: there are more or fewer, or one has another shape.
        """
        if len(arrays) != len(self._names):
            raise ConfigError(
                f"the client returned {len(arrays)} arrays for {len(self._names)}; return all of "
                "them, in the order in which they came"
            )
        with torch.no_grad():
            for name, array in zip(self._names, map(np.asarray, arrays), strict=True):
                own = getattr(self, name)
                if not isinstance(own, nn.Parameter):
                    continue
                if array.shape != own.shape:
                    raise ConfigError(
                        f"the client returned {name} with shape {array.shape}, not "
                        f"{tuple(own.shape)}; return arrays of the shapes in which they came"
                    )
                own.copy_(torch.from_numpy(np.array(array, dtype=np.float64)))


class FlowerTask:
    """A task whose parties are Flower clients.

    Args:
        client_fn: from a context, or from a partition's number, to a ``NumPyClient`` or to what
            its ``to_client()`` returns. Private: called at each party for itself only.
        initial_parameters: arrays, Flower's ``Parameters``, or a function that returns either; it
            is called with torch's generator seeded by ``training.seed``, alike at every party,
            and must not read a party's data.
        evaluate_fn: as for Flower's strategies: from the round's number, the arrays and a config
            to the loss and further figures, or to None; on public data only: they are published.
        on_fit_config_fn: as for Flower's strategies: from the round's number, from 1 on, to the
            config of ``fit``; by default ``{"server_round": number}``.
        num_examples: from a context to that party's number of records, for
            ``parties.weighting = "private"``; stays at the party. What ``fit`` returns as such
            is not used.
        run_config: from the job's ``task_options``.
    """

    def __init__(
        self,
        client_fn: ClientFn,
        initial_parameters: Any,
        evaluate_fn: EvaluateFn | None = None,
        *,
        on_fit_config_fn: Callable[[int], Mapping[str, Any]] | None = None,
        num_examples: Callable[[Any], int] | None = None,
        **run_config: OptionValue,
    ) -> None:
        self._client_fn, self._initial = client_fn, initial_parameters
        self._evaluate_fn, self._fit_config = evaluate_fn, on_fit_config_fn
        self._num_examples, self._run_config = num_examples, run_config
        self.counts_examples = num_examples is not None
        self._contexts: dict[tuple[int, int], ClientContext] = {}
        # Made to be looked at, and good for one round.
        self._made: dict[tuple[int, int], Any] = {}

    def model(self) -> nn.Module:
        """See `Task.model`."""
        found = self._initial() if callable(self._initial) else self._initial
        return ArrayModel(_as_arrays(found))

    def party_data(self, party: int, n_parties: int) -> Records:
        """Make a party's client, and return handles of it in place of records."""
        key = party, n_parties
        node = {"partition-id": party, "num-partitions": n_parties}
        context = ClientContext(party, node, dict(self._run_config), _record_dict())
        self._contexts[key] = context
        self._made[key] = self._client(key)
        count = 1 if self._num_examples is None else int(self._num_examples(context))
        return handles(party, n_parties, count)

    def test_data(self) -> Records:
        """Return a stand-in of the form of `party_data`; no figure is taken from it."""
        return handles(0, 1, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 - of the protocol
        """Refuse: such a task has no loss that others could ask for."""
        raise no_loss()

    def train_party(self, model: nn.Module, data: Records, round_id: int) -> nn.Module:
        """See `TrainsItself.train_party`: one ``fit`` of the party's client."""
        if not isinstance(model, ArrayModel):
            raise ValueError("the model is not the one of this task")
        key, number = whose(data), round_id + 1
        config = {"server_round": number} if self._fit_config is None else self._fit_config(number)
        made = self._made.pop(key, None)
        client = self._client(key) if made is None else made
        arrays, _, _ = client.fit(model.arrays(), dict(config))
        model.load(arrays)
        return model

    def measure(self, model: nn.Module, rounds_done: int) -> Mapping[str, float]:
        """See `MeasuresItself.measure`: what ``evaluate_fn`` says."""
        if self._evaluate_fn is None or not isinstance(model, ArrayModel):
            return {}
        found = self._evaluate_fn(rounds_done, model.arrays(), {})
        if found is None:
            return {}
        loss, figures = found
        return {"loss": loss, **figures}

    def _client(self, key: tuple[int, int]) -> Any:
        party, _ = key
        argument = {"context": self._contexts[key], "int": party, "str": str(party)}
        made = self._client_fn(argument[_wanted(self._client_fn)])
        # What to_client() returns holds the NumPyClient that it was called on.
        client = getattr(made, "numpy_client", made)
        _check_client(client)
        return client


def _as_arrays(found: Any) -> Sequence[Any]:
    """Return arrays, those in Flower's Parameters as well: bytes of .npy files."""
    tensors = getattr(found, "tensors", None)
    if tensors is None:
        return list(found)
    return [np.load(io.BytesIO(tensor), allow_pickle=False) for tensor in tensors]


def _record_dict() -> Any:
    """Return an empty state of Flower's own class where a client has loaded Flower."""
    common = sys.modules.get("flwr.common")
    make = getattr(common, "RecordDict", None) or getattr(common, "RecordSet", None) or dict
    return make()


def _wanted(client_fn: ClientFn) -> str:
    """Tell what a client_fn takes: a context, or, as it once was, a partition's number or name."""
    try:
        first = next(iter(inspect.signature(client_fn).parameters.values()))
    except (TypeError, ValueError, StopIteration):
        return "context"
    annotation = getattr(first.annotation, "__name__", str(first.annotation))
    if first.name == "cid" or annotation == "str":
        return "str"
    return "int" if first.name == "partition_id" or annotation == "int" else "context"


def _check_client(client: Any) -> None:
    """Refuse what is no NumPyClient, by its shape."""
    try:
        inspect.signature(client.fit).bind([], {})
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"client_fn returned {type(client).__name__}, which is no NumPyClient: it has no "
            "fit(parameters, config); return one, or what its to_client() returns"
        ) from error
