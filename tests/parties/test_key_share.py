"""A job and the key shares that its parties bring."""

import pytest

from mpcfl.config import AggregationTable, Custody, Job, PartiesTable
from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.threshold_key import raw_deal_key
from mpcfl.parties.key_share import (
    NO_KEY_FILES,
    KeyFiles,
    backend_of,
    keep_key,
    require_kept_key,
)
from mpcfl.report.run_folder import RunFolder
from mpcfl.secagg import key_files
from mpcfl.secagg.key_files import ScryptCost, write_key_share

PASSPHRASE = "correct horse battery"  # noqa: S105 - of files that live for one test


@pytest.fixture(scope="module")
def dealt():
    return raw_deal_key(512, 4, 3)


@pytest.fixture
def files(tmp_path, dealt, monkeypatch):
    """Share files of four parties, three of whom decrypt; small keys, cheap passphrases."""
    for module in ("custody", "key_documents", "ceremony"):
        monkeypatch.setattr(f"mpcfl.secagg.{module}.check_key_bits", lambda bits: None)
    monkeypatch.setattr(key_files, "_COST", ScryptCost(n=16, r=8, p=1))
    _, shares = dealt
    names = ("party-0", "party-1", "party-2", "party-3")
    for name, share in zip(names, shares, strict=True):
        write_key_share(tmp_path / f"{name}.share", share, names, PASSPHRASE)
    phrases = tmp_path / "phrases"
    phrases.touch(mode=0o600)
    phrases.write_text(PASSPHRASE + "\n")
    return KeyFiles(tmp_path, phrases)


def job(custody="threshold", **aggregation):
    table = {"custody": Custody(custody), "key_bits": 512, "threshold": None, **aggregation}
    return Job.model_construct(
        task="toy",
        parties=PartiesTable(count=4),
        aggregation=AggregationTable.model_construct(backend="paillier", **table),
    )


def test_share_that_suits_the_job_opens_its_backend(files, dealt):
    open_backend, key = backend_of(job(), 2, files)
    assert key == dealt[0].fingerprint
    assert open_backend.keywords["held"].share.index == 3


def test_without_key_files_there_is_no_share():
    assert backend_of(job(), 2, NO_KEY_FILES)[1] == ""


@pytest.mark.parametrize("threshold", [2, 4])
def test_key_whose_threshold_is_not_the_one_that_was_planned_with_is_refused(files, threshold):
    with pytest.raises(
        ConfigError, match=f"3 of these key shares decrypt, threshold is {threshold}"
    ):
        backend_of(job(threshold=threshold), 0, files)


def test_default_threshold_is_compared_with_the_key_s_too(files, monkeypatch):
    monkeypatch.setattr("mpcfl.parties.key_share.resolve_threshold", lambda *_: 2)
    with pytest.raises(ConfigError, match="threshold is 2"):
        backend_of(job(), 0, files)


@pytest.mark.parametrize("custody", ["holder", "clients"])
def test_share_is_of_no_use_with_other_custodies(files, custody):
    with pytest.raises(ConfigError, match='custody = "threshold" only'):
        backend_of(job(custody=custody), 0, files)


def test_missing_share_is_named_with_its_file(files):
    (files.folder / "party-1.share").unlink()
    with pytest.raises(KeyFileError, match=r"party-1\.share"):
        backend_of(job(), 1, files)


@pytest.mark.parametrize("given", [("keys", None), (None, "phrases")])
def test_folder_and_passphrases_go_together(given):
    with pytest.raises(ConfigError, match="go together"):
        KeyFiles(*given)


@pytest.mark.parametrize(
    ("began", "resumed", "text"),
    [
        ("aa" * 32, "", "add --keys DIR"),
        ("", "bb" * 32, "leave out --keys"),
        ("aa" * 32, "bb" * 32, "bring the former"),
    ],
)
def test_run_is_not_continued_with_another_key(tmp_path, began, resumed, text):
    folder = RunFolder(tmp_path)
    keep_key(folder, began)
    require_kept_key(folder, began)
    with pytest.raises(ConfigError, match=text):
        require_kept_key(folder, resumed)
