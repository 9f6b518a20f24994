"""Gradient inversion reads a bare update, and fails on what the protocol lets anybody see."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from mpcfl.audit.attacked_round import InversionSettings, TwoLayerDigits
from mpcfl.audit.gradient_matching import Attacker, Effort, guess_labels, match
from mpcfl.audit.inversion import audit_inversion, psnr_db
from mpcfl.audit.inversion_report import digits_picture, inversion_page, write_inversion_report
from mpcfl.dp.noise import draw_noise_share
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import SystemBits, raw_keyed_bits
from mpcfl.learn.model import initial_model
from mpcfl.secagg.masks import PairMasks

SMALL = InversionSettings(batch=4, n_parties=3, effort=Effort(restarts=3, iterations=500))
LEAST = InversionSettings(batch=2, n_parties=3, effort=Effort(restarts=3, iterations=400))
# Practically none: the guarantee of such an epsilon says nothing.
NO_NOISE = {"epsilon": 1e7, "clip_norm": 10.0}


def starts():
    """Fixed starting points for the attacker; masks and noise are fresh every time."""
    return raw_keyed_bits(bytes(32))


@pytest.fixture(scope="module")
def report():
    return audit_inversion(SMALL, bits=starts())


def error(report, name):
    return next(one.mse for one in report.reconstructions if one.name == name)


def failed(report):
    return {finding.check for finding in report.verdict.findings if not finding.passed}


def test_a_bare_update_gives_the_records_away(report):
    assert error(report, "bare-update") < 0.01
    assert error(report, "bare-update") < report.baseline_mse / 6


def test_a_sum_without_noise_gives_them_away_as_well(report):
    assert error(report, "sum-without-noise") < 0.01


@pytest.mark.parametrize("name", ["wire", "opened-sum"])
def test_what_the_protocol_shows_is_no_better_than_a_guess(report, name):
    assert error(report, name) >= report.baseline_mse


def test_all_of_this_is_a_pass(report):
    assert report.passed
    assert failed(report) == set()


def test_errors_are_those_of_the_pictures(report):
    for one in report.reconstructions:
        assert one.images.shape == report.originals.shape == (SMALL.batch, 64)
        assert 0 <= one.images.min() <= one.images.max() <= 1
        assert one.mse == pytest.approx(np.mean((one.images - report.originals) ** 2), rel=1e-12)


def test_report_is_json_with_every_figure_and_no_pixel(report):
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["passed"] is True
    names = [row["name"] for row in document["reconstructions"]]
    assert names == ["bare-update", "sum-without-noise", "wire", "opened-sum"]
    assert document["baseline_mse"] == report.baseline_mse
    assert "can't prove" in document["caveat"]
    assert len(json.dumps(document)) < 5000
    assert "can't prove" in report.lines()[-1]


def test_too_little_noise_is_found():
    weak = InversionSettings(batch=2, n_parties=3, effort=LEAST.effort, **NO_NOISE)
    assert failed(audit_inversion(weak, bits=starts())) == {"attack-fails-on-opened-sum"}


def test_a_vector_without_masks_is_found(monkeypatch):
    monkeypatch.setattr(PairMasks, "_streams", lambda *_: [])
    weak = InversionSettings(batch=2, n_parties=3, effort=LEAST.effort, **NO_NOISE)
    found = audit_inversion(weak, bits=starts())
    assert failed(found) == {"attack-fails-on-wire", "attack-fails-on-opened-sum"}


def test_an_attack_without_effort_is_not_taken_for_protection():
    lazy = InversionSettings(batch=2, n_parties=3, effort=Effort(1, 1))
    found = audit_inversion(lazy, bits=starts())
    assert not found.passed
    assert "attack-works-on-bare-update" in failed(found)
    assert "not as it should be" in inversion_page(found)


def test_page_works_offline_and_in_both_color_schemes(report, tmp_path):
    path = tmp_path / "inversion.html"
    write_inversion_report(report, path)
    text = path.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import", text)
    # Pixels take the color of the text, in both schemes.
    assert 'fill="var(--ink)"' in text
    assert "rgb(" not in text
    assert "can&#x27;t prove" in text
    for one in report.reconstructions:
        assert f"{one.mse:.5f}" in text
    assert text == inversion_page(report)


def test_picture_draws_every_pixel_where_it_belongs():
    image = np.zeros((1, 64))
    image[0, 8 * 3 + 5] = 0.5
    picture = digits_picture([("<a>", "b", image)])
    assert "&lt;a&gt;" in picture
    assert picture.count("fill-opacity") == 1
    column, row = re.search(r'x="(\d+)" y="(\d+)" width="1" height="1" fill-op', picture).groups()
    frame = re.search(r'x="(\d+)" y="(\d+)" width="8"', picture).groups()
    assert (int(column) - int(frame[0]), int(row) - int(frame[1])) == (5, 3)


def test_match_finds_the_order_with_the_least_total_error():
    images = SystemBits().words(5 * 64).reshape(5, 64) / 2.0**64
    originals = images[[3, 1, 4]] + 0.01
    np.testing.assert_array_equal(match(originals, images), images[[3, 1, 4]])


def test_labels_are_read_off_the_gradient_of_the_output_bias():
    task = TwoLayerDigits(6)
    model = initial_model(task, 0).double()
    inputs, targets = task.party_data(1, 4)
    loss = task.loss(model(inputs.double()), targets)
    gradient = torch.autograd.grad(loss, list(model.parameters()))[-1]
    known = Attacker(model, task, task.test_data()[0].mean(dim=0).double())
    assert sorted(guess_labels(known, gradient, 6).tolist()) == sorted(targets.tolist())


def test_psnr_is_ten_decibels_per_factor_of_ten():
    assert math.isclose(psnr_db(0.001), 30.0)


@pytest.mark.parametrize(
    "settings",
    [
        InversionSettings(batch=0),
        InversionSettings(n_parties=2),
        InversionSettings(batch=9, n_parties=4),
        InversionSettings(effort=Effort(restarts=0)),
        InversionSettings(effort=Effort(iterations=0)),
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="the audit of inversion takes"):
        audit_inversion(settings)


def test_noise_of_the_attacked_sum_is_that_of_a_real_plan(monkeypatch):
    """Every party draws one share of the planned size for the one sum that is opened."""
    drawn = []

    def counting(plan, bits=None):
        drawn.append(plan.local_sigma)
        assert bits is None
        return draw_noise_share(plan, bits)

    monkeypatch.setattr("mpcfl.round.draw_noise_share", counting)
    audit_inversion(InversionSettings(batch=1, n_parties=3, effort=Effort(1, 1)))
    assert len(drawn) == 3
    assert min(drawn) >= 8
