"""Accuracy against epsilon at record level: distributed noise, local noise and none, ten parties.

    python benchmarks/cases/utility.py                 # the whole table; says how long it takes
    python benchmarks/cases/utility.py --smoke         # a few rounds of two cells, seconds

Every run is the real protocol: ten parties as threads of this process, the backend's own
messages between them, exact noise from the operating system. The constants come from
benchmarks/cases/utility.toml, which tune_utility.py wrote: for every seed from the training
records of that seed's split alone.

A seed sets the split into training and test records (split_tasks.py), with it the parties'
shards and the constants, and as ``training.seed`` the initial weights. Samples and noise are
fresh in every run whatever its seed, so no run can be repeated exactly. The spread over seeds is
that of all these together; that of a mean over reruns is smaller, since the splits stay.

Runs are appended to the results as they end; what stands there with equal settings is not run
again, so the table can be stopped and taken up at any time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from split_tasks import task_path
from utility_table import Setting, as_json, key_of, rows, table

from mpcfl.bench.machine import checkout_commit, installed_versions, this_machine
from mpcfl.config import Job, parse_job
from mpcfl.learn.evaluate import evaluate
from mpcfl.round import run_rounds

PARTIES, DELTA = 10, 1e-5
RECORDS = {"digits": 1437, "mnist5k": 4000}
FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "utility.jsonl"
# A thread may wait for nine others to train; nothing here is a matter of the network.
DEADLINE_S = 3600.0
# Enough for any batch: without privacy a step takes all records.
ALL_RECORDS = 1_000_000
SMOKE_ROUNDS = 2
SMOKE_CELLS = (("digits", "distributed", 8.0), ("digits", "local", 8.0))


def load_settings() -> list[Setting]:
    """Return the chosen constants: seed by seed, one setting per cell that has this seed."""
    cells = tomllib.loads((FOLDER / "utility.toml").read_text(encoding="utf-8"))["cell"]
    return [
        {name: v[index] if isinstance(v, list) else v for name, v in cell.items()}
        for index in range(max(len(cell["seed"]) for cell in cells))
        for cell in cells
        if index < len(cell["seed"])
    ]


def job_of(setting: Setting, backend: str) -> Job:
    """Return the job of one run."""
    private = setting["placement"] != "none"
    # The server takes the rate of a single step, so that distributed and local jobs read alike.
    single = setting["local_steps"] == 1 and private
    privacy = {
        "unit": "record",
        "placement": setting["placement"],
        "epsilon": setting["epsilon"],
        "delta": DELTA,
        "clip_norm": setting["clip_norm"],
        "sample_rate": setting["sample_rate"],
        "records": RECORDS[setting["task"]],
    }
    document = {
        "task": task_path(setting["task"], setting["seed"]),
        "parties": {"count": PARTIES},
        "privacy": privacy if private else {"unit": "none"},
        "training": {
            "rounds": setting["rounds"],
            "local_steps": setting["local_steps"],
            "learning_rate": 1.0 if single else setting["learning_rate"],
            "batch_size": ALL_RECORDS,
            "seed": setting["seed"],
        },
        "server": {
            "learning_rate": setting["learning_rate"] if single else 1.0,
            "momentum": setting["momentum"],
        },
        "aggregation": {"backend": backend, "deadline_s": DEADLINE_S},
    }
    return parse_job(document, f"{setting['task']}, {setting['placement']}")


def run(setting: Setting, backend: str) -> dict[str, Any]:
    """Run the protocol once and return the record of it: public figures only."""
    job = job_of(setting, backend)
    start = time.monotonic()
    public = run_rounds(job)
    private = setting["placement"] != "none"
    return {
        **identity(setting, backend),
        "accuracy": evaluate(public.model, public.task)["accuracy"],
        "epsilon_spent": public.plan.epsilon(job.training.rounds) if private else None,
        "noise_multiplier": public.plan.noise_multiplier,
        "seconds": round(time.monotonic() - start, 1),
        "versions": installed_versions(),
        "commit": checkout_commit(),
        "machine": this_machine().fingerprint,
    }


def identity(setting: Setting, backend: str) -> dict[str, Any]:
    """Return what makes two runs the same run: everything that was chosen."""
    chosen = {name: value for name, value in setting.items() if name != "validation_accuracy"}
    return {**chosen, "parties": PARTIES, "delta": DELTA, "backend": backend}


def work(setting: Setting) -> float:
    """Return roughly how long a run takes, in some unit."""
    records = RECORDS[setting["task"]] * setting["sample_rate"]
    gradients = records * {"digits": 650, "mnist5k": 7850}[setting["task"]] * 2e-8
    # Gradients of each step and the exchange of each round; seconds on a 2020s core.
    return float(setting["rounds"] * (0.1 + setting["local_steps"] * gradients))


def run_all(todo: Sequence[Setting], backend: str, results: Path) -> None:
    """Run what is missing and append each result to the file; say how long it will take."""
    left = sum(work(setting) for setting in todo)
    done = spent = 0.0
    _say(f"{len(todo)} runs to make, about {left / 60:.0f} minutes on a core of one's own")
    results.parent.mkdir(parents=True, exist_ok=True)
    for number, setting in enumerate(todo, start=1):
        record = run(setting, backend)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        spent, done, left = (
            spent + record["seconds"], done + work(setting), left - work(setting),
        )  # fmt: skip
        name = f"{setting['task']} {setting['placement']} epsilon {setting['epsilon']:g}"
        minutes = left * spent / done / 60
        _say(f"{number}/{len(todo)} {name}: {record['accuracy']:.3f}, {minutes:.0f} minutes left")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load_results(results: Path) -> list[dict[str, Any]]:
    """Return the runs of a results file, none if there is no such file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def is_same(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True if a record is that of this run."""
    return all(record.get(name) == value for name, value in wanted.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of the table and print it; 1 if a mean misses its reference."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    if not options.smoke:
        return make(options, wanted_settings(options), options.out or RESULTS)
    with tempfile.TemporaryDirectory() as folder:
        return make(options, smoke_settings(), options.out or Path(folder) / "smoke.jsonl")


def wanted_settings(options: argparse.Namespace) -> list[Setting]:
    """Return the settings that the command line asks for."""
    return [
        setting
        for setting in load_settings()
        if (options.seeds is None or setting["seed"] < options.seeds)
        and options.task in {None, setting["task"]}
    ]


def smoke_settings() -> list[Setting]:
    """Return a few settings with a few rounds."""
    few = [s for s in load_settings() if s["seed"] == 0 and key_of(s) in SMOKE_CELLS]
    return [{**setting, "rounds": SMOKE_ROUNDS} for setting in few]


def make(options: argparse.Namespace, settings: Sequence[Setting], results: Path) -> int:
    """Run what is missing in ``results`` and print the table."""
    identities = [identity(setting, options.backend) for setting in settings]
    known = load_results(results)
    todo = [
        setting
        for setting, chosen in zip(settings, identities, strict=True)
        if not any(is_same(record, chosen) for record in known)
    ]
    if todo and not options.table_only:
        run_all(todo, options.backend, results)
    records = [r for r in load_results(results) if any(is_same(r, i) for i in identities)]
    # A few rounds reach nothing that could be compared.
    lines = rows(records, (), {}) if options.smoke else rows(records, settings)
    print(as_json(lines, records) if options.json else table(lines))
    return int(any(row.reached is False for row in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="crypten", help="plain for a trial without CrypTen")
    parser.add_argument("--seeds", type=int, help="runs per cell at most; all if left out")
    parser.add_argument("--task", choices=sorted(RECORDS), help="this task only")
    parser.add_argument("--out", type=Path, help="results, a line for each run")
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing; print what is there"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--smoke", action="store_true", help=f"two cells, {SMOKE_ROUNDS} rounds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
