"""The round that `mpcfl audit inversion` attacks: a real one, of parties with a few digits each.

Stages 1 to 7 of `round.py` run at all parties, in this process, over tapped transports, with
the plan, the noise and the backend of a job.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from mpcfl.audit.gradient_matching import Effort, Reals
from mpcfl.audit.tap import Recorder, Stage, TappedTransport, Via, watching
from mpcfl.audit.uniformity import words_of
from mpcfl.config import Job, TrainingTable, parse_job
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.digits import DigitsTask
from mpcfl.learn.train import record_gradients
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.round import PublicState, party_data, protected_sum, sum_settings
from mpcfl.secagg.base import IntVector, SumId, from_offset_binary
from mpcfl.secagg.registry import load_backend

VICTIM = 0
BACKEND = "crypten"
_MODULUS_BITS = 32
_HIDDEN = 64
_PIXELS, _CLASSES = 64, 10


class TwoLayerDigits(DigitsTask):
    """Digits under a smooth two-layer network; each party holds its first few records only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._batch = batch

    def model(self) -> nn.Module:
        """Return 64 pixels to 64 sigmoids to 10 classes: 4,810 parameters."""
        return nn.Sequential(
            nn.Linear(_PIXELS, _HIDDEN), nn.Sigmoid(), nn.Linear(_HIDDEN, _CLASSES)
        )

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the first records of the party's shard."""
        inputs, targets = super().party_data(party, n_parties)
        return inputs[: self._batch], targets[: self._batch]


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """What is attacked, and how hard.

    Attributes:
        batch: records of each party; up to 32 at all parties together.
        n_parties: parties in the sum, 3 or more.
        epsilon: of one round at record level, delta 1e-5.
        clip_norm: of one record's gradient.
        effort: of the attacker, the same for every vector.
    """

    batch: int = 4
    n_parties: int = 4
    epsilon: float = 4.0
    clip_norm: float = 1.0
    effort: Effort = field(default_factory=Effort)


def inversion_job(settings: InversionSettings) -> Job:
    """Return one round at record level, every record sampled."""
    document = {
        "task": "digits",
        "parties": {"count": settings.n_parties},
        "privacy": {
            "unit": "record",
            "epsilon": settings.epsilon,
            "clip_norm": settings.clip_norm,
            "records": settings.batch * settings.n_parties,
        },
        "training": {"rounds": 1},
        "aggregation": {"backend": BACKEND, "modulus_bits": _MODULUS_BITS},
    }
    return parse_job(document, "audit inversion")


def mean_gradient(public: PublicState, rank: int) -> Reals:
    """Return what a party would send without any protection, as a gradient."""
    data = public.task.party_data(rank, public.job.parties.count)
    everything = np.arange(len(data[0]))
    training = TrainingTable(rounds=1, microbatch=len(everything))
    rows = record_gradients(public.model, data, public.task, everything, training)
    mean: Reals = -np.concatenate(list(rows)).mean(axis=0)
    return mean


def real_round(publics: list[PublicState]) -> tuple[IntVector, IntVector]:
    """Run stages 1 to 7 at all parties; return the victim's vector on the wire and the sum.

    Both are read as an attacker would: off its offset, centred mod 2^b.
    """
    n_parties = len(publics)
    open_backend = load_backend(BACKEND)
    recorder = Recorder(n_parties)

    def party(transport: MemoryTransport) -> IntVector:
        rank, public = transport.rank, publics[transport.rank]
        tapped = TappedTransport(transport, recorder)
        secure = open_backend(tapped, sum_settings(public, run_id="audit-inversion"))
        recorder.enter(rank, Stage.PROTECT, 0)
        own = party_data(public, rank, public.task.party_data(rank, n_parties))
        opened = protected_sum(public, own, secure, SumId(0), transport.meter)
        secure.close()
        return opened

    with watching(recorder):
        opened = run_parties(n_parties, party)[0]
    # What is gathered afterwards are pieces of the sum.
    sent = b"".join(
        m.payload for m in recorder.wire if (m.sender, m.number, m.via) == (VICTIM, 0, Via.SCATTER)
    )
    return from_offset_binary(words_of(sent, opened.size), _MODULUS_BITS, 1), opened
