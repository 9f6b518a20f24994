"""Accuracy where parties hold unlike records: FedAvg, FedProx and record-level DP.

    python benchmarks/cases/non_iid.py                 # the whole page; a few minutes on two cores
    python benchmarks/cases/non_iid.py --smoke         # two rounds of a few cells, seconds
    python benchmarks/cases/non_iid.py --table-only    # runs nothing, prints what is there

Every run is the real protocol, ten parties as threads of this process, with the backend
`plain`: all others open the same integers. What is measured is the accuracy on the public test
records, after the last round.

Runs are appended to the results as they end; what stands there with equal settings is not run
again, so the page can be stopped and taken up at any time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from skewed_tasks import SkewedTask, sizes_and_skew

from mpcfl.bench.machine import checkout_commit, installed_versions, this_machine
from mpcfl.config import Job, parse_job
from mpcfl.learn.evaluate import evaluate
from mpcfl.round import run_rounds

PARTIES, EPSILON, DELTA, REPETITIONS = 10, 4.0, 1e-5, 3
RECORDS = {"digits": 1437, "mnist5k": 4000}
# 0 is the strided split, where all parties are alike.
CONCENTRATIONS = (0.0, 1.0, 0.3, 0.1)
MUS = (0.0, 0.01, 0.1, 1.0)
# Many local steps, so that parties have the time to drift apart; one choice for all cells, made
# before any of them was run.
LOCAL = {"rounds": 10, "local_steps": 50, "batch_size": 32, "learning_rate": 0.1}
# Those of the packaged jobs, which were chosen for parties that are alike.
PRIVATE: dict[str, dict[str, Any]] = {
    "digits": {"rounds": 60, "server": {"learning_rate": 0.5, "momentum": 0.9}},
    "mnist5k": {"rounds": 45, "server": {"optimizer": "fedadam", "learning_rate": 0.05}},
}
SAMPLE_RATE = 0.5
RESULTS = Path(__file__).parent.parent / "results" / "non_iid.jsonl"
PAGE = RESULTS.with_suffix(".md")
# A thread may wait for nine others to train; nothing here is a matter of the network.
DEADLINE_S = 3600.0
SMOKE_ROUNDS = 2

Setting = dict[str, Any]


def settings(repetitions: int = REPETITIONS) -> Iterator[Setting]:
    """Yield every run."""
    for task, concentration in itertools.product(RECORDS, CONCENTRATIONS):
        for repetition in range(repetitions):
            cell = {"task": task, "concentration": concentration, "repetition": repetition}
            for mu in MUS:
                yield {**cell, "unit": "none", "mu": mu, **LOCAL}
            yield {**cell, "unit": "record", "mu": 0.0, **PRIVATE[task]}


def smoke_settings() -> list[Setting]:
    """Return a few runs with a few rounds."""
    chosen = [
        s
        for s in settings(repetitions=1)
        if s["task"] == "digits" and s["concentration"] == 0.3 and s["mu"] in {0.0, 1.0}
    ]
    return [{**setting, "rounds": SMOKE_ROUNDS} for setting in chosen]


def job_of(setting: Setting) -> Job:
    """Return the job of one run."""
    options: dict[str, Any] = {"name": setting["task"], "split": "iid"}
    if setting["concentration"] > 0:
        options["split"] = "dirichlet"
        options["concentration"] = setting["concentration"]
        options["repetition"] = setting["repetition"]
    is_private = setting["unit"] == "record"
    parties: dict[str, Any] = {"count": PARTIES}
    privacy: dict[str, Any] = {"unit": "none"}
    training = {"rounds": setting["rounds"], "seed": setting["repetition"]}
    if is_private:
        privacy = {
            "unit": "record",
            "epsilon": EPSILON,
            "delta": DELTA,
            "sample_rate": SAMPLE_RATE,
            "records": RECORDS[setting["task"]],
        }
    else:
        # As FedAvg does: an update counts by its party's records. Their numbers are public here.
        sizes, _ = sizes_and_skew(SkewedTask(**options), PARTIES)
        parties |= {"weighting": "public", "weights": sizes}
        training |= {name: setting[name] for name in LOCAL}
        training["proximal_mu"] = setting["mu"]
    document = {
        "task": "skewed_tasks:SkewedTask",
        "task_options": options,
        "parties": parties,
        "privacy": privacy,
        "training": training,
        "server": setting.get("server", {}),
        "aggregation": {"backend": "plain", "deadline_s": DEADLINE_S},
    }
    return parse_job(document, str(setting))


def run(setting: Setting) -> dict[str, Any]:
    """Run the protocol once and return the record of it: public figures only."""
    job = job_of(setting)
    sizes, skew = sizes_and_skew(SkewedTask(**job.task_options), PARTIES)
    start = time.monotonic()
    public = run_rounds(job)
    is_private = setting["unit"] == "record"
    return {
        **setting,
        "parties": PARTIES,
        "least_records": min(sizes),
        "most_records": max(sizes),
        "skew": skew,
        "accuracy": evaluate(public.model, public.task)["accuracy"],
        "epsilon_spent": public.plan.epsilon(job.training.rounds) if is_private else None,
        "seconds": round(time.monotonic() - start, 1),
        "versions": installed_versions(),
        "commit": checkout_commit(),
        "machine": this_machine().fingerprint,
    }


def load_results(results: Path) -> list[dict[str, Any]]:
    """Return the runs of a results file, none if there is no such file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def is_of(record: Mapping[str, Any], setting: Setting) -> bool:
    """True if a record is that of this run."""
    return all(record.get(name) == value for name, value in setting.items())


def run_missing(wanted: Sequence[Setting], results: Path) -> None:
    """Run what is missing and append each result to the file."""
    known = load_results(results)
    todo = [s for s in wanted if not any(is_of(record, s) for record in known)]
    results.parent.mkdir(parents=True, exist_ok=True)
    for number, setting in enumerate(todo, start=1):
        record = run(setting)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        name = f"{setting['task']}, {split_name(setting['concentration'])}, {method_name(setting)}"
        print(f"{number}/{len(todo)} {name}: {record['accuracy']:.3f}", file=sys.stderr, flush=True)


def split_name(concentration: float) -> str:
    """Return what a column is called."""
    return f"Dirichlet {concentration:g}" if concentration > 0 else "iid"


def method_name(setting: Mapping[str, Any]) -> str:
    """Return what a row is called."""
    if setting["unit"] == "record":
        return f"record-level DP, epsilon {EPSILON:g}"
    return f"FedProx, mu {setting['mu']:g}" if setting["mu"] > 0 else "FedAvg"


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the splits and the accuracies as Markdown tables."""
    cells: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (record["task"], method_name(record), record["concentration"])
        cells.setdefault(key, []).append(record)
    columns = [c for c in CONCENTRATIONS if any(key[2] == c for key in cells)]
    head = [split_name(c) for c in columns]
    lines = [f"| task | method | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for task, method in dict.fromkeys(key[:2] for key in cells):
        found = [cells.get((task, method, c), []) for c in columns]
        lines.append(f"| {task} | {method} | {' | '.join(map(_accuracy, found))} |")
    lines += ["", f"| task | of the split | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for task in dict.fromkeys(key[0] for key in cells):
        splits = [
            [r for k, rs in cells.items() if k[::2] == (task, c) for r in rs] for c in columns
        ]
        sizes = [f"{_least(rs, 'least_records')} to {_most(rs, 'most_records')}" for rs in splits]
        skews = [f"{fmean(r['skew'] for r in rs):.2f}" if rs else "" for rs in splits]
        lines.append(f"| {task} | records of a party, least to most | {' | '.join(sizes)} |")
        lines.append(f"| {task} | skew | {' | '.join(skews)} |")
    return "\n".join(lines)


def _accuracy(records: Sequence[Mapping[str, Any]]) -> str:
    values = [record["accuracy"] for record in records]
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def _least(records: Sequence[Mapping[str, Any]], name: str) -> str:
    return str(min((record[name] for record in records), default=""))


def _most(records: Sequence[Mapping[str, Any]], name: str) -> str:
    return str(max((record[name] for record in records), default=""))


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page, from the records alone."""
    machines = sorted({str(record["machine"]) for record in records})
    template = (Path(__file__).parent / "non_iid_page.md").read_text(encoding="utf-8")
    return template.format(
        parties=PARTIES,
        repetitions=REPETITIONS,
        epsilon=EPSILON,
        delta=DELTA,
        tables=tables(records),
        machines=", ".join(machines),
        **LOCAL,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of the page, print its tables and write it."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    if not options.smoke:
        results = options.out or RESULTS
        return make(options, list(settings()), results, results.with_suffix(".md"))
    with tempfile.TemporaryDirectory() as folder:
        results = options.out or Path(folder) / "smoke.jsonl"
        return make(options, smoke_settings(), results, results.with_suffix(".md"))


def make(
    options: argparse.Namespace, wanted: Sequence[Setting], results: Path, written: Path
) -> int:
    """Run what is missing in ``results``, print the tables and write the page."""
    if not options.table_only:
        run_missing(wanted, results)
    records = [r for r in load_results(results) if any(is_of(r, s) for s in wanted)]
    if not options.table_only:
        written.write_text(page(records), encoding="utf-8")
    print(json.dumps({"schema": 1, "runs": records}) if options.json else tables(records))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="results, a line for each run; the page beside it")
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing; print what is there"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--smoke", action="store_true", help=f"few cells, {SMOKE_ROUNDS} rounds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
