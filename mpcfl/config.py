"""The job file: one TOML document, public and equal at all parties, as frozen models.

Unknown keys, wrong types and values out of range are errors that name the file and the
key. `Job.digest()` is what the parties compare before round 0.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from mpcfl.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)


class Unit(StrEnum):
    """Whose presence the guarantee hides."""

    RECORD = "record"
    PARTY = "party"
    NONE = "none"


class Placement(StrEnum):
    """Where the noise of the guarantee is added."""

    DISTRIBUTED = "distributed"
    LOCAL = "local"


class Weighting(StrEnum):
    """How much each party counts in the mean, at party level."""

    UNIFORM = "uniform"
    PUBLIC = "public"
    PRIVATE = "private"


class Clipping(StrEnum):
    """How the clip norm moves from round to round."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class Optimizer(StrEnum):
    """How the server step turns the opened mean into a new model."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"


class Custody(StrEnum):
    """Who holds the Paillier private key."""

    HOLDER = "holder"
    CLIENTS = "clients"
    THRESHOLD = "threshold"


def _read_option(value: object) -> object:
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if not is_number and not isinstance(value, str):
        raise ValueError("a task option is a text, a finite number, true or false")
    return value


def _not_a_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("it must be a number, not true or false")
    return value


def read_neighbors(value: object) -> object:
    """Return ``value`` if it can be a choice of neighbors: "all", "auto" or an integer from 2 on.

    Raises:
        ValueError: it can't; odd numbers and unsafe ones are refused where the parties are known.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if not is_number and value not in ("all", "auto"):
        raise ValueError(
            f'{value!r} is no number of neighbors; write "all", "auto" (the least that is safe) '
            "or an even number from 2 on"
        )
    return value


# TOML writes 1 and 1.0 apart, people do not; everything else is strict.
Real = Annotated[
    float, Field(strict=False, allow_inf_nan=False), BeforeValidator(_not_a_truth_value)
]
PositiveReal = Annotated[Real, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
# Backends with pairwise masks, which may be shared with some of the other parties only.
MASKED_BACKENDS = frozenset({"crypten", "ring"})
# Backends with a key, for which custody has a meaning.
PAILLIER_BACKENDS = frozenset({"phe", "paillier"})
# Without clipping of the sum, its grid has to reach from 2^-10 or so to 128 times the parties.
_LEAST_LOCAL_BITS = 28
# TOML has no enums, so a closed set is written as its string.
UnitName = Annotated[Unit, Field(strict=False)]
OptimizerName = Annotated[Optimizer, Field(strict=False)]
CustodyName = Annotated[Custody, Field(strict=False)]
PlacementName = Annotated[Placement, Field(strict=False)]
WeightingName = Annotated[Weighting, Field(strict=False)]
ClippingName = Annotated[Clipping, Field(strict=False)]
# What a task's options may be: values that TOML, JSON and every party write alike.
OptionValue: TypeAlias = bool | int | float | str
Neighbors = Annotated[Literal["all", "auto"] | int, BeforeValidator(read_neighbors)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_enum_values=False)

    def is_chosen(self, key: str) -> bool:
        """Tell whether a key has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class PartiesTable(_Table):
    """`[parties]`: how many hold data, and what the plan assumes of them."""

    count: PositiveInt
    colluding: PositiveInt = 1
    max_dropout: Annotated[int, Field(ge=0)] = 0
    names: tuple[Name, ...] = Field(default=(), strict=False)
    weighting: WeightingName = Weighting.UNIFORM
    weights: tuple[PositiveReal, ...] = Field(default=(), strict=False)
    max_records: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        public = self.weighting is Weighting.PUBLIC
        if public and len(self.weights) != self.count:
            raise ValueError(
                f"weights lists {len(self.weights)} parties, count says {self.count}; weighting = "
                '"public" needs one public weight for each'
            )
        if self.weights and not public:
            raise ValueError('weights needs weighting = "public"; set it, or leave weights out')
        if (self.max_records is not None) != (self.weighting is Weighting.PRIVATE):
            raise ValueError(
                'weighting = "private" and max_records, the public number of records at which a '
                "party's weight is capped, belong together; set both or neither"
            )
        if self.names and len(self.names) != self.count:
            raise ValueError(f"names lists {len(self.names)} parties, count says {self.count}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("names has a name twice")
        return self

    def all_names(self) -> tuple[str, ...]:
        """Return a name for every data party, made up where the job gives none."""
        return self.names or tuple(f"party-{rank}" for rank in range(self.count))


class PrivacyTable(_Table):
    """`[privacy]`: the guarantee, and what its noise is sized by."""

    unit: UnitName
    placement: PlacementName = Placement.DISTRIBUTED
    epsilon: PositiveReal | None = None
    delta: Annotated[Real, Field(gt=0, lt=1)] = 1e-5
    clip_norm: PositiveReal = 1.0
    sample_rate: Annotated[Real, Field(gt=0, le=1)] = 1.0
    records: PositiveInt | None = None
    mechanism: Literal["discrete-gaussian", "skellam"] = "discrete-gaussian"
    rotation: Literal["none", "hadamard"] = "none"
    accountant: Literal["pld", "rdp"] = "pld"
    noise_multiplier: PositiveReal | None = None
    spare_attempts: Annotated[int, Field(ge=0)] = 0
    max_parties_per_person: PositiveInt = 1
    clipping: ClippingName = Clipping.FIXED
    clip_quantile: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    clip_learning_rate: PositiveReal = 0.2
    count_share: Annotated[Real, Field(gt=0, lt=0.5)] = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unit is not Unit.NONE and self.epsilon is None:
            raise ValueError('epsilon is missing; set it, or set unit = "none" for no privacy')
        if self.unit is Unit.RECORD and self.records is None:
            raise ValueError(
                "records is missing; at record level set it to the public total of training "
                "records at all parties"
            )
        if self.unit is Unit.PARTY and self.sample_rate != 1.0:
            raise ValueError(
                "sample_rate must be 1 at party level: the participants are known, so sampling "
                "parties amplifies nothing"
            )
        for key in ("clip_quantile", "clip_learning_rate"):
            if self.is_chosen(key) and self.clipping is not Clipping.ADAPTIVE:
                raise ValueError(f'{key} needs clipping = "adaptive"; set it, or leave {key} out')
        if self.placement is Placement.LOCAL:
            self._check_local()
        elif self.clipping is Clipping.ADAPTIVE and self.unit is Unit.NONE:
            raise ValueError('clipping = "adaptive" needs a privacy unit; there is nothing to clip')
        return self

    def _check_local(self) -> None:
        if self.unit is not Unit.RECORD:
            raise ValueError(
                'placement = "local" hides records; set unit = "record", or leave placement out'
            )
        for key, only in (
            ("clipping", Clipping.FIXED),
            ("rotation", "none"),
            ("mechanism", "discrete-gaussian"),
        ):
            if getattr(self, key) != only:
                raise ValueError(
                    f'{key} must be "{only}" with placement = "local": the noise is added inside '
                    "each party, not to the sum"
                )


class TrainingTable(_Table):
    """`[training]`: what a party does before it shares anything."""

    rounds: PositiveInt
    local_steps: PositiveInt = 1
    batch_size: PositiveInt = 32
    learning_rate: PositiveReal = 0.1
    microbatch: PositiveInt = 256
    proximal_mu: Annotated[Real, Field(ge=0)] = 0.0
    gradients: Literal["vmap", "opacus"] = "vmap"
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$")] = "cpu"
    evaluate_every: PositiveInt = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.proximal_mu > 0 and self.local_steps == 1:
            raise ValueError(
                "proximal_mu holds local steps back to the global model, at which the first step "
                "begins; set local_steps above 1, or leave proximal_mu out"
            )
        return self


class ServerTable(_Table):
    """`[server]`: the step that every party takes alike with the opened mean."""

    optimizer: OptimizerName = Optimizer.FEDAVG
    learning_rate: PositiveReal = 1.0
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.99
    adaptivity: PositiveReal = 1e-3


class AggregationTable(_Table):
    """`[aggregation]`: how the sum is protected."""

    backend: str
    modulus_bits: Annotated[int, Field(ge=8, le=64)] = 32
    key_bits: Annotated[int, Field(ge=2048, le=8192, multiple_of=256)] = 3072
    custody: CustodyName = Custody.HOLDER
    threshold: Annotated[int, Field(ge=2)] | None = None
    neighbors: Neighbors = "all"
    precompute: bool = True
    checked: bool = True
    deadline_s: PositiveReal = 120.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.neighbors != "all" and self.backend not in MASKED_BACKENDS:
            names = " or ".join(f'"{name}"' for name in sorted(MASKED_BACKENDS, reverse=True))
            raise ValueError(
                f'neighbors must be "all" with backend = "{self.backend}"; leave it out, or set '
                f"backend to {names}, whose masks may be shared with fewer"
            )
        self._check_threshold()
        return self

    def _check_threshold(self) -> None:
        shared = self.custody is Custody.THRESHOLD
        if shared and self.backend != "paillier":
            raise ValueError(
                f'custody = "threshold" needs backend = "paillier", not "{self.backend}"'
            )
        if self.threshold is not None and not shared:
            raise ValueError(
                'threshold is the number of key shares that decrypt; it needs custody = "threshold"'
            )


class Job(_Table):
    """One run, as every party sees it. Public."""

    task: Annotated[str, Field(min_length=1)]
    task_options: dict[str, Annotated[Any, AfterValidator(_read_option)]] = Field(
        default_factory=dict
    )
    parties: PartiesTable
    privacy: PrivacyTable
    training: TrainingTable
    server: ServerTable = ServerTable()
    aggregation: AggregationTable

    @field_validator("task_options")
    @classmethod
    def _sort(cls, options: dict[str, Any]) -> dict[str, Any]:
        # Two files that say the same in another order are the same job.
        return dict(sorted(options.items()))

    @model_validator(mode="after")
    def _check(self) -> Self:
        privacy = self.privacy
        distributed = privacy.placement is Placement.DISTRIBUTED
        if privacy.unit is Unit.RECORD and distributed and self.training.local_steps != 1:
            raise ValueError(
                "training.local_steps must be 1 at record level: each record may touch only one "
                'clipped gradient per round; or set privacy.placement = "local"'
            )
        if self.parties.weighting is not Weighting.UNIFORM and privacy.unit is Unit.RECORD:
            raise ValueError(
                'parties.weighting must be "uniform" at record level: every record counts the '
                "same already"
            )
        if self.parties.weighting is Weighting.PRIVATE and privacy.unit is Unit.NONE:
            raise ValueError(
                'parties.weighting = "private" needs privacy.unit = "party"; without privacy use '
                '"public" weights'
            )
        self._check_sizes()
        if privacy.unit is not Unit.NONE and self.aggregation.modulus_bits < self.least_bits:
            raise ValueError(
                f"aggregation.modulus_bits below {self.least_bits} needs privacy.unit = "
                '"none"; privacy.rotation = "hadamard" works from 10 bits on'
            )
        return self

    def _check_sizes(self) -> None:
        privacy = self.privacy
        if privacy.max_parties_per_person > self.parties.count:
            raise ValueError(
                f"privacy.max_parties_per_person is {privacy.max_parties_per_person}, "
                f"parties.count {self.parties.count}; nobody has records at more parties than "
                "there are"
            )
        weights = self.parties.weighting is Weighting.PRIVATE
        counts = weights or privacy.clipping is Clipping.ADAPTIVE
        if privacy.is_chosen("count_share") and not counts:
            raise ValueError(
                'privacy.count_share needs clipping = "adaptive" or parties.weighting = "private"; '
                "leave it out"
            )
        neighbors, others = self.aggregation.neighbors, self.parties.count - 1
        if isinstance(neighbors, int) and neighbors < others and neighbors % 2:
            raise ValueError(
                f"aggregation.neighbors = {neighbors} is odd: half of them stand on either side of "
                f"a party; take {neighbors + 1}"
            )
        local = privacy.placement is Placement.LOCAL
        if local and self.aggregation.modulus_bits < _LEAST_LOCAL_BITS:
            raise ValueError(
                f"aggregation.modulus_bits must be at least {_LEAST_LOCAL_BITS} with "
                'privacy.placement = "local": updates would be rounded to nothing'
            )

    @property
    def least_bits(self) -> int:
        """Return the smallest ring in which a private sum may be planned."""
        return 10 if self.privacy.rotation == "hadamard" else 16

    def digest(self) -> bytes:
        """Return the SHA-256 digest of the whole job, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    @property
    def needs_aggregator(self) -> bool:
        """True if one more rank, without data and without key, does the sum."""
        aggregation = self.aggregation
        return aggregation.backend in PAILLIER_BACKENDS and aggregation.custody is Custody.CLIENTS

    @property
    def n_ranks(self) -> int:
        """Number of MPI ranks: the data parties and, where custody needs one, an aggregator."""
        return self.parties.count + (1 if self.needs_aggregator else 0)


def load_job(path: Path, overrides: Sequence[str] = (), parties: int | None = None) -> Job:
    """Read a job file, apply ``table.key=TOML-value`` overrides, and check the result.

    Args:
        path: the TOML file.
        overrides: as given to ``--set``; a value that is no TOML is taken as a string.
        parties: number of data parties (``-n``); names are cut, or made up, to fit.

    Raises:
        ConfigError: the file can't be read, or a key is unknown, missing or out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the job file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    for override in overrides:
        _apply_override(document, override)
    if parties is not None:
        _set_party_count(document, parties)
    return parse_job(document, str(path))


def parse_job(document: Mapping[str, Any], source: str) -> Job:
    """Check a parsed job document; ``source`` is named in every error."""
    return read_table(Job, document, source)


def read_table(table: type[_Model], document: Mapping[str, Any], source: str) -> _Model:
    """Check a document against a model of its keys; ``source`` is named in every error.

    Raises:
        ConfigError: a key is unknown, missing or out of range.
    """
    try:
        return table.model_validate(document)
    except ValidationError as error:
        # A misspelt key is also a missing one; what stands in the file is what to mend.
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{source}: {_explain(first, table)}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override!r}: write table.key=value, as privacy.epsilon=2.0")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = document
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a table")
    table[names[-1]] = value


def _set_party_count(document: dict[str, Any], count: int) -> None:
    table = document.setdefault("parties", {})
    if not isinstance(table, dict):
        raise ConfigError("parties must be a table, written [parties]")
    names = table.get("names")
    if isinstance(names, list):
        made_up = (f"party-{rank}" for rank in range(len(names), count))
        table["names"] = [*names[:count], *made_up]
    table["count"] = count


def _explain(error: ErrorDetails, table: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key}{_suggestion(error['loc'], table)}"
    if kind == "missing":
        return f"{key} is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {error['input']!r} is not valid: {message[:1].lower()}{message[1:]}"


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known keys are {', '.join(known)}"
