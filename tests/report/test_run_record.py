import json
import math

import pytest

from mpcfl.errors import ConfigError
from mpcfl.report.run_record import RunRecord, append_round, read_rounds, replace_rounds

KEYS = {
    "schema", "job", "backend", "parties", "dim", "privacy", "metrics", "rounds",
    "model_sha256", "versions", "stopped_early", "plan", "epsilon_by_party",
    "model",
}  # fmt: skip
PRIVACY_KEYS = {
    "unit", "epsilon", "epsilon_planned", "epsilon_single", "epsilon_outsider",
    "epsilon_own_share", "delta", "mechanism", "accountant", "neighboring_relation",
}  # fmt: skip
ROUND_KEYS = {
    "round", "attempt", "parties", "epsilon", "accuracy", "loss", "seconds", "bytes_sent",
    "bytes_received", "peak_rss_bytes",
}  # fmt: skip


def test_round_trip_is_exact(run_record, tmp_path):
    record = run_record(stopped_early="the budget is spent")
    record.save(tmp_path / "run.json")
    assert RunRecord.load(tmp_path / "run.json") == record


def test_the_keys_are_the_published_ones(run_record):
    document = json.loads(run_record().to_json())
    assert set(document) == KEYS
    assert set(document["privacy"]) == PRIVACY_KEYS
    assert set(document["rounds"][0]) == ROUND_KEYS


def test_infinite_epsilons_become_null_everywhere(run_record, privacy, tmp_path):
    record = run_record(
        privacy=privacy(epsilon=math.inf, epsilon_own_share=math.inf, delta=None),
        plan={"epsilon": math.inf, "deep": {"x": math.nan}},
    )
    text = record.to_json()
    assert "Infinity" not in text
    assert "NaN" not in text
    record.save(tmp_path / "run.json")
    loaded = RunRecord.load(tmp_path / "run.json")
    assert loaded.privacy.epsilon is None
    assert loaded.plan == {"epsilon": None, "deep": {"x": None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "mpcfl.run/99"}, "schema 'mpcfl.run/99' is not known"),
        ({"surprise": 1}, "surprise"),
        ({"parties": "two"}, "parties"),
    ],
)
def test_other_schemas_keys_and_types_are_refused(run_record, tmp_path, change, message):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(run_record().to_json()) | change))
    with pytest.raises(ConfigError) as refusal:
        RunRecord.load(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_missing_or_torn_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't read the run record"):
        RunRecord.load(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text('{"schema": ')
    with pytest.raises(ConfigError, match="not a JSON file"):
        RunRecord.load(tmp_path / "torn.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="schema None"):
        RunRecord.load(tmp_path / "list.json")


def test_rounds_come_back_as_they_were_appended(rounds, tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert read_rounds(path, 9) == []
    replace_rounds(path, rounds(2))
    append_round(path, rounds(3, loss=math.nan)[2])
    found = read_rounds(path, 9)
    assert found[:2] == list(rounds(2))
    assert found[2].loss is None
    assert read_rounds(path, 1) == list(rounds(2))
    assert read_rounds(path, 0) == list(rounds(1))


def test_a_torn_last_round_is_not_read_and_any_other_damage_is_refused(rounds, tmp_path):
    path = tmp_path / "rounds.jsonl"
    replace_rounds(path, rounds(3))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_rounds(path, 9) == list(rounds(2))
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ConfigError, match=r"rounds\.jsonl: line 1: .*remove the file"):
        read_rounds(path, 9)
