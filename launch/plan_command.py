"""`mpcfl plan`: a job's promise, its noise and its limits, as a page or as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mpcfl.config import Job, Unit
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.dp.plan import ring_plan_for_job
from mpcfl.launch.live import wide_console
from mpcfl.launch.mask_graph import graph_of_job
from mpcfl.launch.plan_figures import missing_rows, noise_in_mean, view_epsilons
from mpcfl.launch.plan_page import print_page
from mpcfl.launch.run_command import RunOptions
from mpcfl.round import public_state
from mpcfl.secagg.registry import require_backend


def show_plan(options: RunOptions) -> None:
    """Print the plan of a job; may build the model for its dimension, trains nothing.

    Raises:
        ConfigError: the job is wrong.
        BackendUnavailable: the backend is unknown.
        PlanError: no plan meets it, or its number of neighbors is not safe.
    """
    job = options.load()
    require_backend(job.aggregation.backend)
    # What a task would download, it must find here.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # A user's own task is importable from where the command is typed, as it is at the ranks.
    sys.path.append(str(Path.cwd()))
    plan = public_state(job).plan
    if options.as_json:
        document = plan_document(job, plan, ring_plan_for_job(job, plan.dim))
        sys.stdout.write(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")
        return
    print_page(wide_console(), job, plan)


def plan_document(job: Job, plan: NoisePlan, ring: NoisePlan) -> dict[str, Any]:
    """Return a plan and what follows from it, for JSON; infinity is null.

    Args:
        job: what is planned.
        plan: its noise.
        ring: its grid of the summed vector.
    """
    graph = graph_of_job(job)
    private = plan.unit is not Unit.NONE
    return {
        **plan.to_dict(),
        "epsilons": view_epsilons(plan),
        "fingerprint": plan.fingerprint(),
        "vector_dim": ring.vector_dim,
        "releases_per_round": plan.releases_per_round,
        "rounds_within_budget": plan.rounds_within_budget() if private else plan.rounds,
        "noise_in_mean": noise_in_mean(plan),
        "missing": [row.to_dict() for row in missing_rows(plan)],
        "mask_graph": None if graph is None else graph.to_dict(),
        "ring": ring.to_dict() if ring != plan else None,
    }
