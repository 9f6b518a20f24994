from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpcfl.dp import DropoutCost, dropout_costs, gaussian_epsilon
from mpcfl.dp.accountant import AccountantKind
from mpcfl.dp.calibrate import Target, calibrate
from mpcfl.errors import ConfigError

CASES = Path(__file__).parents[2] / "benchmarks" / "cases"
# Dordis: 16 of 100 clients a round; epsilon after 10, 20, 30 and 40 % of them left.
SETTING: dict[str, Any] = {
    "epsilon": 6.0, "delta": 0.01, "rounds": 150, "clients": 16, "dropped": [0.1, 0.2, 0.3, 0.4],
}  # fmt: skip
PUBLISHED = [6.45, 6.98, 7.66, 8.52]


def run_case(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CASES / f"{name}.py"), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_setting_of_dordis_gives_its_figures() -> None:
    costs = dropout_costs(**SETTING, accountant="rdp")
    # 0.01 for two roundings to two digits.
    assert [cost.epsilon for cost in costs] == pytest.approx(PUBLISHED, abs=0.01)
    assert all(5.99 < cost.planned_epsilon <= 6.0 for cost in costs)
    assert [cost.clients_left for cost in costs] == pytest.approx([14.4, 12.8, 11.2, 9.6])


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_a_loss_leaves_the_noise_of_the_shares_that_came(accountant: str) -> None:
    (cost,) = dropout_costs(
        epsilon=3.0, delta=1e-5, rounds=20, clients=10, dropped=[0.3], accountant=accountant
    )
    z = calibrate(Target(3.0, 1e-5, 20, 1.0, AccountantKind(accountant)))
    assert cost.noise_multiplier == pytest.approx(z * math.sqrt(0.7))
    assert cost.epsilon == gaussian_epsilon(
        noise_multiplier=cost.noise_multiplier,
        sample_rate=1.0,
        rounds=20,
        delta=1e-5,
        accountant=accountant,
    )
    # Under a plan for the loss, seven of ten larger shares carry z.
    assert cost.planned_noise_multiplier * math.sqrt(0.7) == pytest.approx(z)
    assert cost.planned_epsilon <= 3.0 < cost.epsilon


def test_without_a_loss_nothing_is_lost() -> None:
    (cost,) = dropout_costs(epsilon=1.0, delta=1e-6, rounds=5, clients=2.5, dropped=[0.0])
    assert cost.epsilon == cost.planned_epsilon <= 1.0
    assert cost.noise_multiplier == cost.planned_noise_multiplier
    assert isinstance(cost, DropoutCost)


def test_sampled_releases_lose_too() -> None:
    costs = dropout_costs(
        epsilon=2.0, delta=1e-5, rounds=50, clients=4, dropped=[0.25, 0.5], sample_rate=0.1
    )
    assert 2.0 < costs[0].epsilon < costs[1].epsilon


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"rounds": 0},
        {"clients": 0},
        {"delta": 1.0},
        {"dropped": [0.1, 1.0]},
        {"dropped": [-0.1]},
        {"dropped": [math.nan]},
        {"accountant": "gdp"},
        {"sample_rate": 0.0},
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dropout_costs(**{**SETTING, **change})


def test_the_benchmark_case_prints_the_table_of_dordis() -> None:
    printed = run_case("dropout")
    assert printed.returncode == 0, printed.stderr
    rows = printed.stdout.splitlines()[1:]
    assert [float(row.split()[2]) for row in rows] == pytest.approx(PUBLISHED, abs=0.011)
    document = json.loads(run_case("dropout", "--dropped", "0.5", "--json").stdout)
    assert document["costs"][0]["clients_left"] == 8.0


def test_the_sampler_case_times_ours_without_opendp() -> None:
    arguments = ("--ours-only", "--draws", "2000", "--repetitions", "2", "--sigma", "10")
    document = json.loads(run_case("sampler", *arguments, "--json").stdout)
    assert [len(timing["seconds"]) for timing in document["timings"]] == [2, 2]
    table = run_case("sampler", *arguments)
    assert table.returncode == 0
    assert "Skellam" in table.stdout
