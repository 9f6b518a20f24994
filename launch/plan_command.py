"""`mpcfl plan`: a job's promise, its noise and its limits, as a page or as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.table import Table

from mpcfl.config import Job, Unit
from mpcfl.dp.plan import NoisePlan
from mpcfl.launch.live import wide_console
from mpcfl.launch.run_command import RunOptions
from mpcfl.report.units import epsilon_text
from mpcfl.round import public_state

# Above this, most of the noise pays for the coarse grid and not for privacy.
_POOR_INFLATION = 2.0
_VIEWS = {
    "outsider": "somebody who sees the opened sums only",
    "single": "any single party, which knows its own noise",
    "coalition": "the planned coalition: what the ledger charges",
    "own-share": "what a party's own noise gives if the aggregation fails",
}


def show_plan(options: RunOptions) -> None:
    """Print the plan of a job; may build the model for its dimension, trains nothing.

    Raises:
        ConfigError: the job is wrong.
        PlanError: no plan meets it.
    """
    job = options.load()
    # A user's own task is importable from where the command is typed, as it is at the ranks.
    sys.path.append(str(Path.cwd()))
    plan = public_state(job).plan
    views = {} if job.privacy.unit is Unit.NONE else {v: plan.epsilon(view=v) for v in _VIEWS}
    if options.as_json:
        document = {**plan.to_dict(), "epsilons": views, "fingerprint": plan.fingerprint()}
        sys.stdout.write(json.dumps(document, indent=2, sort_keys=True) + "\n")
        return
    console = wide_console()
    console.print(_promise(job), highlight=False, soft_wrap=True)
    console.print(_table(plan, views))
    if views and plan.rounding_inflation > _POOR_INFLATION:
        console.print(
            f"Rounding to {plan.modulus_bits} bits costs more noise than the budget does: "
            "use more modulus_bits.",
            highlight=False,
            soft_wrap=True,
        )


def _promise(job: Job) -> str:
    privacy = job.privacy
    if privacy.unit is Unit.NONE:
        return f"Task {job.task}: no privacy is asked for; the exact mean is opened every round."
    hidden = "one record" if privacy.unit is Unit.RECORD else "all data of one party"
    return (
        f"Task {job.task}: whether {hidden} took part is hidden with epsilon "
        f"{privacy.epsilon:g} at delta {privacy.delta:g} over {job.training.rounds} rounds of "
        f"{job.parties.count} parties, even if {job.parties.colluding} of them collude."
    )


def _table(plan: NoisePlan, views: dict[str, float]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for view, epsilon in views.items():
        table.add_row("epsilon, " + view, epsilon_text(epsilon), _VIEWS[view])
    bits = plan.modulus_bits
    rows = [
        ("dimension", f"{plan.dim}", "coordinates of the model that are trained"),
        ("modulus", f"{bits} bits", "ring of the secure sum"),
        ("scale", f"{plan.scale:.6g}", "integer steps per unit of the update"),
    ]
    if views:
        rows += [
            ("noise multiplier", f"{plan.noise_multiplier:.5f}", "sigma over sensitivity"),
            ("local sigma", f"{plan.local_sigma}", "each party's noise, in integer steps"),
            ("norm bound", f"{plan.norm_bound_int}", "largest squared integer norm of one row"),
            ("wrap bound", f"{plan.wrap_probability:.2g}", "probability that a value wraps"),
            ("overhead", f"{plan.overhead_vs_central:.4f}", "noise over a trusted curator's"),
        ]
        affordable = plan.rounds_within_budget()
        if affordable < plan.rounds:
            rows.append(("stops after", f"{affordable} rounds", f"of {plan.rounds}: the budget"))
    rows.append(("fingerprint", plan.fingerprint()[:16], "compared by all parties"))
    for row in rows:
        table.add_row(*row)
    return table
