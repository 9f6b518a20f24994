"""Jobs in which one party is killed, and a judge of what is left.

    python tests/mpi/chaos.py                     # every point x rank x kind, then random kills
    python tests/mpi/chaos.py --only aggregate    # those whose name has that in it
    python tests/mpi/chaos.py --resume            # leaves out those that passed before
    python tests/mpi/chaos.py --seed 1f2e --random 50

Each trial is one line of the log (build/chaos.jsonl). The exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs import TASK, Ended, WarmServer, left_behind, run_job, warm_server
from judge import DEADLINE_S, judge
from trials import (
    JOB,
    KEY_BITS,
    NAMES,
    THRESHOLD,
    Trial,
    at_points,
    at_random_times,
    one_per_point,
)

from mpcfl.hazmat.threshold_key import raw_deal_key
from mpcfl.secagg.key_files import share_path, write_key_share

_DOOMED_RANK = Path(__file__).parent / "doomed_rank.py"
_PASSPHRASE = "four words and a dog"  # noqa: S105 - of keys that live as long as the test run
_LOG = Path("build") / "chaos.jsonl"


@dataclass
class Keys:
    """Key shares of one ceremony; made when they are first needed."""

    folder: Path
    _made: bool = field(default=False)

    def options(self, into: Path) -> list[str]:
        """Copy the shares to a trial of its own; return what a party needs to find them."""
        if not self._made:
            self._make()
        shutil.copytree(self.folder, into / "keys")
        keys = into / "keys"
        return ["--keys", str(keys), "--passphrases", str(keys / "passphrases")]

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _, shares = raw_deal_key(KEY_BITS, len(NAMES), THRESHOLD)
        for name, share in zip(NAMES, shares, strict=True):
            write_key_share(share_path(self.folder, name), share, NAMES, _PASSPHRASE)
        phrases = self.folder / "passphrases"
        phrases.touch(mode=0o600)
        phrases.write_text(f"{_PASSPHRASE}\n" * len(NAMES))
        self._made = True


@dataclass(frozen=True)
class Verdict:
    """What became of a trial: what is wrong with it, if anything, and how it ended."""

    trial: Trial
    ended: Ended
    problems: tuple[str, ...]
    went_on: bool


def run_trial(trial: Trial, warm: WarmServer, keys: Keys, folder: Path) -> Verdict:
    """Run a job with a doomed party in an empty folder, and judge what it leaves."""
    (folder / "small_task.py").write_text(TASK)
    (folder / "job.toml").write_text(JOB)
    # Masks and randomizers made ahead are under way, in threads, when a party dies.
    precompute = f"aggregation.precompute={str(trial.number % 2 == 1).lower()}"
    changes = (*trial.kind.settings, precompute, *trial.settings)
    settings = [part for change in changes for part in ("--set", change)]
    files = keys.options(folder) if trial.kind.has_key_files else []
    arguments = (_DOOMED_RANK, trial.fate(), "job.toml", *settings, *files, "--out", "out")
    ended = run_job(warm, len(trial.kind.names), arguments, folder, deadline_s=DEADLINE_S)
    problems = list(judge(trial, ended, folder))
    problems += [f"left behind: {what}" for what in left_behind(warm)]
    return Verdict(trial, ended, tuple(problems), went_on="done: " in ended.stdout)


@contextmanager
def trial_folder(kept: Path | None, name: str) -> Iterator[Path]:
    """Give an empty folder; keep it where failures are to be looked at."""
    if kept is not None:
        folder = kept / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mpcfl-chaos-") as temporary:
        yield Path(temporary)


def _passed_before(log: Path) -> set[str]:
    if not log.exists():
        return set()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return {record["trial"] for record in records if not record["problems"]}


def _run_all(trials: Sequence[Trial], kept: Path | None, log: Path) -> int:
    """Run trials one after the other, each a line of the log; return how many failed."""
    failed = went_on = 0
    log.parent.mkdir(parents=True, exist_ok=True)
    with warm_server() as warm, tempfile.TemporaryDirectory() as key_folder:
        keys = Keys(Path(key_folder) / "keys")
        for number, trial in enumerate(trials, 1):
            with trial_folder(kept, trial.name) as folder:
                verdict = run_trial(trial, warm, keys, folder)
                if kept is not None:
                    (folder / "said.txt").write_text(verdict.ended.stdout + verdict.ended.stderr)
            failed += bool(verdict.problems)
            went_on += verdict.went_on
            entry = {
                "trial": trial.name,
                "problems": verdict.problems,
                "went_on": verdict.went_on,
                "seconds": round(verdict.ended.seconds, 2),
            }
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            outcome = "; ".join(verdict.problems) or ("went on" if verdict.went_on else "stopped")
            print(
                f"{number}/{len(trials)} {trial.name}: {verdict.ended.seconds:.1f} s, {outcome}",
                flush=True,
            )
    print(f"{len(trials)} trials: {went_on} went on, {failed} failed; see {log}")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="trials whose name has this in it")
    parser.add_argument("--random", type=int, default=200, help="kills at random times")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of the random kills")
    parser.add_argument("--longest-s", type=float, default=1.5, help="latest random kill")
    parser.add_argument("--one-per-point", action="store_true", help="what the tests run")
    parser.add_argument("--resume", action="store_true", help="skip what passed before")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the folders of all trials")
    parser.add_argument("--log", type=Path, default=_LOG)
    options = parser.parse_args(arguments)
    trials = one_per_point() if options.one_per_point else at_points()
    trials += at_random_times(options.random, options.seed, options.longest_s)
    passed = _passed_before(options.log) if options.resume else set()
    chosen = [t for t in trials if options.only in t.name and t.name not in passed]
    print(f"seed of the random kills: {options.seed}", flush=True)
    kept = None if options.keep is None else options.keep.resolve()
    return 1 if _run_all(chosen, kept, options.log) else 0


if __name__ == "__main__":
    sys.exit(main())
