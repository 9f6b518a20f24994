"""TensorBoard's event files, written by its own record writer.

TensorBoard's usual writer names its files after the host, which is one party's, and writes in a
thread, whose errors come late and with a traceback; so the file is opened here, and what is
written is there when `write` returns. Values are kept as 32-bit floats, as TensorBoard has them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from mpcfl.report.tracker import Outcome, Point, RunFacts
from mpcfl.report.tracker_choice import TrackerChoice

# The format of event files, which a reader looks for in the first record.
_FILE_VERSION = "brain.Event:2"
# A reader takes files with "tfevents" in their names, in the order of their names.
_PREFIX, _SUFFIX = "events.out.tfevents.", ".mpcfl"


class TensorBoardTracker:
    """A folder of event files, a new one each time that a writer opens it.

    Args:
        choice: where; in a place that runs share, each has a folder of its name.
        facts: of the run.
    """

    def __init__(self, choice: TrackerChoice, facts: RunFacts) -> None:
        folder = choice.store_folder(facts)
        self._folder = folder if choice.place is None else folder / facts.folder.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._facts = facts
        is_new = not self._files()
        self._begin_file()
        if is_new:
            self._describe()

    def known(self) -> Mapping[str, set[int]]:
        """Return the rounds of each figure in the folder; a torn record at an end is none."""
        rounds: dict[str, set[int]] = defaultdict(set)
        for event in self._events():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    rounds[value.tag].add(event.step)
        return rounds

    def start_over(self) -> None:
        """Remove the files of this run's writers, and begin a new one."""
        for path in self._files():
            path.unlink()
        self._begin_file()
        self._describe()

    def write(self, points: Sequence[Point]) -> None:
        """Add one record per round."""
        events = []
        for number, group in groupby(points, key=lambda point: point.round):
            values = [Summary.Value(tag=point.name, simple_value=point.value) for point in group]
            events.append(Event(step=number, summary=Summary(value=values)))
        self._append(*events)

    def close(self, outcome: Outcome) -> None:
        """Do nothing: event files have no word for the end of a run, and none is open."""

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*{_SUFFIX}"))

    def _begin_file(self) -> None:
        """Begin a file whose name sorts after those that are there."""
        taken = self._files()
        last = int(taken[-1].name.split(".")[3]) + 1 if taken else 0
        path = self._folder / f"{_PREFIX}{max(int(time.time()), last):010d}{_SUFFIX}"
        path.touch(exist_ok=False)
        self._path = path
        self._append(Event(file_version=_FILE_VERSION))

    def _describe(self) -> None:
        """Write the job, for the page of hyperparameters and as text."""
        parameters = self._facts.parameters
        rows = "".join(f"    {name} = {value}\n" for name, value in parameters.items())
        summaries = (hparams_pb(dict(parameters)), _text("job", rows))
        self._append(*(Event(step=0, summary=summary) for summary in summaries))

    def _append(self, *events: Event) -> None:
        with self._path.open("ab") as stream:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(stream).write(event.SerializeToString())

    def _events(self) -> Iterator[Event]:
        for path in self._files():
            for record in RawEventFileLoader(str(path)).Load():
                yield Event.FromString(record)


def _text(name: str, markdown: str) -> Summary:
    """Return a text; TensorBoard's own function for that needs TensorFlow."""
    metadata = text_metadata.create_summary_metadata(display_name=name, description="")
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()])
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])
