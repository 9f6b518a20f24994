"""`mpcfl audit inversion`: what can be read out of an update, and what the protection leaves of it.

A small batch of one party's digits is reconstructed from its bare update, the mean of its
records' gradients as `learn/train.py` makes them. Then the same attacker, with the same effort
and full knowledge of all public numbers, takes what a real round shows instead: the vector
that the party sends under the `crypten` backend, and the opened sum of all parties with the
noise of a real plan. As a control it also takes the sum without noise, which shows that a
secure sum alone does not hide records from this attack, and that it is not the larger number of
records that stops it.

Errors are per pixel, pixels in [0, 1], after the best assignment of images to originals. What
an attacker knows without any vector, the mean of the public test images, is the baseline.
That an attack fails shows that this one does, not that all do; the guarantee is in
`docs/privacy.md`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mpcfl.audit.attacked_round import (
    BACKEND,
    VICTIM,
    InversionSettings,
    TwoLayerDigits,
    inversion_job,
    mean_gradient,
    real_round,
)
from mpcfl.audit.gradient_matching import (
    PIXEL_HIGH,
    PIXEL_LOW,
    Attacker,
    Reals,
    invert,
    match,
)
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.dp.sampler import BitSource
from mpcfl.errors import ConfigError
from mpcfl.round import public_state

# Above this a digit is no longer the one in the original.
SUCCESS_MSE = 0.01
# Behind more records than this, the control needs more effort than the default.
_MAX_RECORDS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """What the attacker made of one vector.

    Attributes:
        name: stable, with hyphens.
        title: for people.
        records: records that the vector is a mean of.
        misfit: one minus the cosine between the images' gradient and the vector.
        mse: mean squared error per pixel in [0, 1], after the best assignment.
        images: assigned to the originals, shape (batch, 64), in [0, 1].
    """

    name: str
    title: str
    records: int
    misfit: float
    mse: float
    images: Reals = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class InversionReport:
    """What the audit found, with the pictures.

    Attributes:
        verdict: the findings.
        originals: the party's records, shape (batch, 64), in [0, 1].
        baseline_mse: of guessing the mean of the public test images every time.
        reconstructions: one per vector, the bare update first.
    """

    verdict: AuditReport
    originals: Reals = field(repr=False)
    baseline_mse: float
    reconstructions: tuple[Reconstruction, ...]

    @property
    def passed(self) -> bool:
        """True if the attack works on what is bare and fails on what is protected."""
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict and all figures as JSON values; no pictures."""
        rows = [
            {
                "name": one.name,
                "records": one.records,
                "misfit": one.misfit,
                "mse": one.mse,
                "psnr_db": None if one.mse == 0 else psnr_db(one.mse),
            }
            for one in self.reconstructions
        ]
        figures = {"baseline_mse": self.baseline_mse, "reconstructions": rows}
        return self.verdict.to_dict() | figures

    def lines(self) -> list[str]:
        """Return the verdict as lines of text."""
        return self.verdict.lines()


def audit_inversion(
    settings: InversionSettings | None = None, *, bits: BitSource | None = None
) -> InversionReport:
    """Attack one party's records through four vectors.

    Args:
        settings: what is attacked, and how hard.
        bits: for the attacker's starting points, for tests; masks and noise are always fresh.

    Raises:
        ConfigError: a setting is out of range.
        PlanError: no noise plan meets the settings.
        BackendUnavailable: CrypTen is not installed.
    """
    settings = _checked(InversionSettings() if settings is None else settings)
    task = TwoLayerDigits(settings.batch)
    publics = [public_state(inversion_job(settings), task) for _ in range(settings.n_parties)]
    attacker = Attacker(publics[0].model, task, task.test_data()[0].mean(dim=0))
    originals = _unit_range(task.party_data(VICTIM, settings.n_parties)[0].double().numpy())
    # Before the round, which uses the same model.
    bare = [mean_gradient(publics[0], rank) for rank in range(settings.n_parties)]
    wire, opened = real_round(publics)
    scale, everybody = publics[0].plan.scale, settings.batch * settings.n_parties
    # An update is minus a gradient, and each vector is read as a mean over its records.
    vectors = (
        ("bare-update", "the bare update of the party", bare[VICTIM], settings.batch),
        ("sum-without-noise", "the sum of all parties without noise", np.mean(bare, 0), everybody),
        (
            "wire",
            f"what the party sends ({BACKEND})",
            -wire / (scale * settings.batch),
            settings.batch,
        ),
        ("opened-sum", "the opened sum with its noise", -opened / (scale * everybody), everybody),
    )
    reconstructions = []
    for name, title, gradient, records in vectors:
        fit = invert(attacker, gradient, records, settings.effort, bits)
        images = match(originals, _unit_range(fit.images))
        mse = float(np.mean((images - originals) ** 2))
        reconstructions.append(Reconstruction(name, title, records, fit.misfit, mse, images))
    guess = _unit_range(attacker.guess.double().numpy())
    baseline = float(np.mean((originals - guess) ** 2))
    verdict = _judge(settings, reconstructions, baseline)
    return InversionReport(verdict, originals, baseline, tuple(reconstructions))


def psnr_db(mse: float) -> float:
    """Return the peak signal-to-noise ratio of an error above 0, pixels in [0, 1]."""
    return -10 * math.log10(mse)


def _unit_range(pixels: Reals) -> Reals:
    """Map the task's pixels, [-1, 1], to [0, 1]."""
    return (pixels - PIXEL_LOW) / (PIXEL_HIGH - PIXEL_LOW)


def _judge(
    settings: InversionSettings, reconstructions: list[Reconstruction], baseline: float
) -> AuditReport:
    by_name = {one.name: one for one in reconstructions}
    findings = [
        _shown(by_name["bare-update"], baseline),
        _shown(by_name["sum-without-noise"], baseline),
        _hidden(by_name["wire"], baseline),
        _hidden(by_name["opened-sum"], baseline),
    ]
    notes = (
        "the attack works on the first two, or the audit says nothing about the others",
        "a failed attack is no guarantee; against all attacks stands the epsilon of the plan",
    )
    subject = "gradient inversion on digits"
    return AuditReport(subject, tuple(findings), asdict(settings), notes)


def _shown(one: Reconstruction, baseline: float) -> Finding:
    detail = (
        f"from {one.title}, records were reconstructed with an error of {one.mse:.5f} per pixel; "
        f"the attack counts as working below {SUCCESS_MSE} (guessing the mean: {baseline:.4f})"
    )
    figures = {"mse": one.mse, "bound": SUCCESS_MSE, "baseline_mse": baseline}
    return Finding(f"attack-works-on-{one.name}", one.mse < SUCCESS_MSE, detail, figures)


def _hidden(one: Reconstruction, baseline: float) -> Finding:
    detail = (
        f"from {one.title}, the same attack gets an error of {one.mse:.5f} per pixel; it must be "
        f"no better than guessing the mean of public images, {baseline:.4f}"
    )
    figures = {"mse": one.mse, "baseline_mse": baseline}
    return Finding(f"attack-fails-on-{one.name}", one.mse >= baseline, detail, figures)


def _checked(settings: InversionSettings) -> InversionSettings:
    ranges = (
        ("batch", settings.batch, 1, _MAX_RECORDS // 3),
        ("n_parties", settings.n_parties, 3, _MAX_RECORDS // max(1, settings.batch)),
        ("restarts", settings.effort.restarts, 1, 1000),
        ("iterations", settings.effort.iterations, 1, 1_000_000),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; the audit of inversion takes {low} to {high}")
    return settings
