import dataclasses
import json

import pytest

from mpcfl.bench.record import (
    SCHEMA,
    Machine,
    Stage,
    load_records,
    parse_record,
    require_one_machine,
)
from mpcfl.errors import ConfigError


@pytest.mark.parametrize("failure", [None, "timed out after 5 s"])
def test_json_round_trip_is_exact(record, failure):
    original = record((0.1, 1 / 3, 1e-9), failure=failure)
    assert parse_record(original.to_json(), "here") == original


def test_a_record_is_immutable(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().run = 3


@pytest.mark.parametrize("schema", ["mpcfl.bench.record/4", None, 1, []])
def test_unknown_schema_is_refused_with_its_name(record, schema):
    document = json.loads(record().to_json()) | {"schema": schema}
    with pytest.raises(ConfigError, match=r"here: schema .* is not known.*" + SCHEMA):
        parse_record(json.dumps(document), "here")


def test_extra_and_missing_keys_are_refused(record):
    document = json.loads(record().to_json())
    with pytest.raises(ConfigError, match="here: mean"):
        parse_record(json.dumps(document | {"mean": 1.0}), "here")
    del document["parameters"]["link"]
    with pytest.raises(ConfigError, match=r"parameters\.link"):
        parse_record(json.dumps(document), "here")


# What a schema did not know yet, by part of the record.
LATER = {
    "mpcfl.bench.record/1": {
        "parameters": ("dtype", "neighbors", "colluding", "round_trip_ms"),
        "measured": ("interface_bytes", "interface_packets", "largest_error"),
    },
    "mpcfl.bench.record/2": {
        "parameters": ("round_trip_ms",),
        "measured": ("interface_bytes", "interface_packets", "largest_error"),
    },
}


def _of_schema(schema, record):
    """Return the document of a record in an earlier schema."""
    document = json.loads(record.to_json()) | {"schema": schema}
    del document["link"]
    for part, keys in LATER[schema].items():
        for key in keys:
            if document[part] is not None:
                del document[part][key]
    return document


@pytest.mark.parametrize("schema", LATER)
@pytest.mark.parametrize("failure", [None, "exit code 1"])
def test_a_record_of_an_earlier_schema_loads_as_what_it_measured(record, schema, failure):
    made = record(failure=failure)
    old = parse_record(json.dumps(_of_schema(schema, made)), "here")
    assert old == made
    assert (old.parameters.dtype, old.parameters.neighbors) == ("int64", None)
    assert (old.parameters.round_trip_ms, old.link) == (0.0, None)


@pytest.mark.parametrize("schema", LATER)
def test_a_record_of_an_earlier_schema_is_checked_as_strictly(record, schema):
    def refused(document):
        with pytest.raises(ConfigError) as caught:
            parse_record(json.dumps(document), "here")
        return str(caught.value)

    for part, keys in LATER[schema].items():
        for key in keys:
            mixed = _of_schema(schema, record())
            mixed[part][key] = 3
            assert refused(mixed).startswith(f"here: {part}.{key}: {schema} has no such key")
    old = _of_schema(schema, record())
    assert refused(old | {"link": None}).startswith(f"here: link: {schema} has no such key")
    assert refused(old | {"mean": 1.0}).startswith("here: mean")
    assert refused(old | {"parameters": 3}).startswith("here: parameters")
    assert refused(old | {"measured": 3}).startswith("here: measured")


def test_the_case_names_what_makes_a_record_comparable(parameters):
    cases = {
        parameters("ring", **changes).case
        for changes in (
            {},
            {"neighbors": 2},
            {"dtype": "int32"},
            {"modulus_bits": 20},
            {"link": "20mbit"},
            {"link": "20mbit", "round_trip_ms": 40.0},
        )
    }
    assert len(cases) == 6
    assert parameters("ring", neighbors=2).variant == "ring 2 neighbors"
    assert parameters("phe", key_bits=2048, custody="holder").variant == "phe 2048 bit, holder"
    # A ratio to the baseline is taken over equal vectors, whatever the graph.
    assert parameters("ring", neighbors=2).workload == parameters().workload
    assert parameters(dtype="int32").workload != parameters().workload


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ConfigError, match="here"):
        parse_record(text, "here")


def test_a_record_is_measured_or_failed_but_not_both(record):
    with pytest.raises(ValueError, match="either measured or failed"):
        dataclasses.replace(record(), failure="both")
    with pytest.raises(ValueError, match="either measured or failed"):
        dataclasses.replace(record(), measured=None)


def test_records_are_loaded_from_file_and_folder_and_the_bad_line_is_named(record, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(f"{record(run=0).to_json()}\n{record(run=1).to_json()}\n")
    assert [r.run for r in load_records(tmp_path)] == [0, 1]
    assert load_records(file) == load_records(tmp_path)
    file.write_text(f"{record().to_json()}\nnonsense\n")
    with pytest.raises(ConfigError, match="line 2"):
        load_records(file)
    with pytest.raises(ConfigError, match="can't read"):
        load_records(tmp_path / "absent.jsonl")


def test_stage_seconds_are_those_of_the_slowest_rank_and_add_up(record):
    value = record((8.0,)).measured.values[0]
    assert value.seconds == 8.0
    assert [value.stage_seconds(stage) for stage in Stage] == [4.0, 2.0, 2.0]


def test_bytes_per_sum_leaves_the_setup_out(record):
    assert record().measured.bytes_per_sum() == 600 / 3


def test_two_machines_are_refused(record):
    other = record(machine=Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210"))
    require_one_machine([record(), record()])
    with pytest.raises(ConfigError, match=r"different machines.*Other CPU"):
        require_one_machine([record(), other])
