import pytest

from mpcfl.errors import ConfigError
from mpcfl.report.atomic import write_atomically
from mpcfl.report.run_folder import RunFolder, RunLock, open_run_folder, require_resumable


def test_a_new_folder_is_made_with_its_parents_and_an_empty_one_is_taken(tmp_path):
    folder = open_run_folder(tmp_path / "runs" / "a")
    assert folder.path.is_dir()
    assert open_run_folder(folder.path) == folder
    assert list(folder.path.iterdir()) == []


def test_paths_are_the_published_ones(tmp_path):
    folder = open_run_folder(tmp_path)
    paths = (folder.job_json, folder.run_json, folder.model_pt, folder.report_html)
    assert [p.name for p in paths] == ["job.json", "run.json", "model.pt", "report.html"]
    assert folder.ledger_jsonl(2) == tmp_path / "ledger" / "party-2.jsonl"
    assert folder.ledger_jsonl(2).parent.is_dir()


def test_a_lock_keeps_a_second_run_out_until_it_is_closed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.job_json.write_text("{}")
    folder.checkpoint.mkdir()
    lock = RunLock(folder)
    for take in (lambda: RunLock(folder), lambda: require_resumable(tmp_path)):
        with pytest.raises(ConfigError, match=r"the run in .* is still going"):
            take()
    lock.close()
    lock.close()
    assert require_resumable(tmp_path) == folder
    RunLock(folder).close()
    with pytest.raises(ConfigError, match="can't open it"):
        RunLock(RunFolder(tmp_path / "nowhere"))


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path):
    (tmp_path / "run.json").write_text("old")
    with pytest.raises(ConfigError, match=r"not empty \(it holds run.json\).*--out"):
        open_run_folder(tmp_path)
    assert (tmp_path / "run.json").read_text() == "old"


def test_a_file_in_the_place_of_the_folder_or_its_parent_is_refused(tmp_path):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"can't write to the output folder.*--out"):
            open_run_folder(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new, with a lone surrogate \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_file_as_a_whole(tmp_path):
    path = tmp_path / "run.json"
    write_atomically(path, "a long old text")
    write_atomically(path, "new \N{GREEK SMALL LETTER EPSILON}")
    assert path.read_text(encoding="utf-8") == "new \N{GREEK SMALL LETTER EPSILON}"


def test_a_saved_model_is_read_back_with_weights_only(tmp_path):
    import torch

    folder = open_run_folder(tmp_path)
    folder.save_model({"weight": torch.arange(3.0)})
    loaded = torch.load(folder.model_pt, weights_only=True)
    assert loaded["weight"].tolist() == [0.0, 1.0, 2.0]
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
