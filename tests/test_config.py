"""The job file: what is refused, and how the sentence reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from mpcfl.config import Job, Unit, load_job, parse_job, read_table
from mpcfl.errors import ConfigError

GOOD = """
task = "digits"
[parties]
count = 4
names = ["north", "south", "east", "west"]
[privacy]
unit = "record"
epsilon = 4
records = 1437
sample_rate = 0.2
[training]
rounds = 3
[aggregation]
backend = "crypten"
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(GOOD)
    return path


def test_integer_is_a_real_number(job_file: Path) -> None:
    assert load_job(job_file).privacy.epsilon == 4.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilonn=1", "unknown key privacy.epsilonn; did you mean epsilon?"),
        ("frobnicate=1", "unknown key frobnicate; known keys are aggregation"),
        ("privacy.epsilon=0", "privacy.epsilon = 0"),
        ("privacy.epsilon=-1.0", "privacy.epsilon = -1.0"),
        ("privacy.epsilon=nan", "privacy.epsilon = nan"),
        ('privacy.epsilon="much"', "privacy.epsilon"),
        ("privacy.delta=1", "privacy.delta = 1"),
        ("privacy.sample_rate=true", "privacy.sample_rate: it must be a number"),
        ('privacy.unit="family"', "privacy.unit = 'family'"),
        ("parties.count=2.5", "parties.count = 2.5"),
        ("parties.count=true", "parties.count = True"),
        ("parties.count=3", "names lists 4 parties, count says 3"),
        ('parties.names=["a","a","b","c"]', "a name twice"),
        ("parties.colluding=0", "parties.colluding = 0"),
        ("training.local_steps=2", "local_steps must be 1 at record level"),
        ("aggregation.modulus_bits=12", "modulus_bits below 16"),
        ("aggregation.key_bits=1024", "aggregation.key_bits = 1024"),
        ('privacy.placement="nowhere"', "privacy.placement = 'nowhere'"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_file_and_key(
    job_file: Path, override: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(job_file, [override])
    assert words in str(caught.value)
    assert "job.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["novalue", "=3", "a..b=3", "task.x=3"])
def test_an_override_that_names_no_key_is_refused(job_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_job(job_file, [override])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epsilon = 4", "epsilon is missing"),
        ("records = 1437", "records is missing"),
        ('unit = "record"', "privacy.unit is missing"),
        ("rounds = 3", "training.rounds is missing"),
    ],
)
def test_a_missing_key_is_named(job_file: Path, line: str, words: str) -> None:
    job_file.write_text(GOOD.replace(line, ""))
    with pytest.raises(ConfigError, match=words):
        load_job(job_file)


def test_a_misspelt_required_key_is_named_as_it_stands(job_file: Path) -> None:
    job_file.write_text(GOOD.replace("rounds", "ruonds"))
    with pytest.raises(ConfigError, match=r"unknown key training.ruonds; did you mean rounds\?"):
        load_job(job_file)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: can't read"):
        load_job(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("task = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load_job(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (2, ("north", "south")),
        (6, ("north", "south", "east", "west", "party-4", "party-5")),
    ],
)
def test_names_are_cut_or_made_up_to_fit_n(
    job_file: Path, count: int, names: tuple[str, ...]
) -> None:
    assert load_job(job_file, parties=count).parties.all_names() == names


def test_digest_covers_every_key_and_no_order(job_file: Path) -> None:
    base = load_job(job_file)
    assert load_job(job_file, ["privacy.delta=1e-5"]).digest() == base.digest()
    seen = {base.digest()}
    for override in ("privacy.delta=1e-6", "training.seed=1", "server.momentum=0.5"):
        seen.add(load_job(job_file, [override]).digest())
    assert len(seen) == 4


def test_sampling_parties_is_refused_because_it_amplifies_nothing(job_file: Path) -> None:
    with pytest.raises(ConfigError, match="amplifies nothing"):
        load_job(job_file, ['privacy.unit="party"'])


def test_no_privacy_needs_no_epsilon() -> None:
    job: Job = parse_job(
        {
            "task": "toy",
            "parties": {"count": 2},
            "privacy": {"unit": "none"},
            "training": {"rounds": 1},
            "aggregation": {"backend": "plain"},
        },
        "inline",
    )
    assert job.privacy.unit is Unit.NONE
    assert job.n_ranks == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['privacy.placement="local"', 'privacy.unit="party"', "privacy.sample_rate=1"], "records"),
        (['privacy.placement="local"', 'privacy.clipping="adaptive"'], "clipping must be"),
        (['privacy.placement="local"', 'privacy.rotation="hadamard"'], "rotation must be"),
        (['privacy.placement="local"', 'privacy.mechanism="skellam"'], "mechanism must be"),
        (["training.local_steps=2"], 'privacy.placement = "local"'),
        (["parties.weights=[1,1,1,1]"], 'weighting = "public"'),
        (['parties.weighting="public"', "parties.weights=[1,1]"], "weights lists 2 parties"),
        (['parties.weighting="private"'], "max_records"),
        (["parties.max_records=5"], "belong together"),
        (['parties.weighting="public"', "parties.weights=[1,1,1,1]"], "at record level"),
        (['privacy.placement="local"', "aggregation.modulus_bits=20"], "at least 28"),
        (["privacy.clip_quantile=0.7"], 'clip_quantile needs clipping = "adaptive"'),
        (["privacy.clip_learning_rate=0.1"], 'clip_learning_rate needs clipping = "adaptive"'),
        (["privacy.count_share=0.2"], "count_share needs"),
        (["privacy.max_parties_per_person=5"], "nobody has records at more parties"),
        (["aggregation.modulus_bits=12"], 'privacy.rotation = "hadamard"'),
        (["aggregation.modulus_bits=9", 'privacy.rotation="hadamard"'], "below 10"),
        (
            ["aggregation.neighbors=0"],
            'aggregation.neighbors: 0 is no number of neighbors; write "all"',
        ),
        (["aggregation.neighbors=1"], 'write "all", "auto"'),
        (["aggregation.neighbors=true"], 'write "all", "auto"'),
        (["aggregation.neighbors=2.0"], 'write "all", "auto"'),
        (['aggregation.neighbors="some"'], "'some' is no number of neighbors"),
        (["aggregation.neighbors=[2]"], 'write "all", "auto"'),
        (["parties.count=9", "parties.names=[]", "aggregation.neighbors=5"], "take 6"),
        (['aggregation.backend="phe"', "aggregation.neighbors=2"], 'neighbors must be "all"'),
        (
            ['aggregation.backend="crypten-stock"', 'aggregation.neighbors="auto"'],
            'set backend to "ring" or "crypten"',
        ),
        (['aggregation.precompute="yes"'], "aggregation.precompute = 'yes'"),
        (['aggregation.checked="yes"'], "aggregation.checked = 'yes'"),
        (["training.proximal_mu=0.1"], "set local_steps above 1, or leave proximal_mu out"),
        (["training.proximal_mu=-0.1"], "training.proximal_mu = -0.1"),
        (['training.gradients="ghost"'], "training.gradients = 'ghost'"),
        (['training.device="gpu"'], "training.device = 'gpu'"),
        (['training.device="cuda:"'], "training.device = 'cuda:'"),
        (["training.evaluate_every=0"], "training.evaluate_every = 0"),
        (["training.evaluate_every=true"], "training.evaluate_every = True"),
        (["task_options.labels=[0, 1]"], "a task option is a text, a finite number"),
        (["task_options.inner.size=1"], "a task option is a text, a finite number"),
        (["task_options.size=nan"], "a task option is a text, a finite number"),
        (["task_options.size=inf"], "a task option is a text, a finite number"),
        (["task_options.when=2020-01-01"], "a task option is a text, a finite number"),
        (["task_options=3"], "task_options"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_the_remedy(
    job_file: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_job(job_file, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ['privacy.placement="local"', "training.local_steps=5"],
        ['privacy.clipping="adaptive"', "privacy.clip_quantile=0.9"],
        ["aggregation.modulus_bits=12", 'privacy.rotation="hadamard"'],
        ['privacy.mechanism="skellam"'],
        [
            'privacy.unit="party"',
            "privacy.sample_rate=1",
            'parties.weighting="private"',
            "parties.max_records=50",
        ],
        ['privacy.unit="none"', 'parties.weighting="public"', "parties.weights=[1,2,3,4]"],
        ['aggregation.neighbors="auto"'],
        ['aggregation.backend="ring"', "aggregation.neighbors=2"],
        # As many as there are others, or more, is everybody; odd or not.
        ["aggregation.neighbors=3"],
        ["aggregation.neighbors=7"],
        ['aggregation.backend="phe"', 'aggregation.neighbors="all"'],
        ["aggregation.precompute=false"],
        [
            'privacy.unit="party"',
            "privacy.sample_rate=1",
            "training.local_steps=2",
            "training.proximal_mu=0.1",
        ],
        ['training.gradients="opacus"', 'training.device="cuda:1"'],
        ["training.evaluate_every=100"],
        ["task_options.size=1", "task_options.name='x'", "task_options.on=true"],
    ],
)
def test_a_combination_that_makes_sense_is_accepted(job_file: Path, overrides: list[str]) -> None:
    load_job(job_file, overrides)


@pytest.mark.parametrize("value", ['"all"', '"auto"', "2"])
def test_neighbors_are_part_of_the_job_and_come_back_from_its_document(
    job_file: Path, value: str
) -> None:
    job = load_job(job_file, [f"aggregation.neighbors={value}"])
    assert parse_job(json.loads(job.model_dump_json()), "a copy") == job
    assert (job.digest() == load_job(job_file).digest()) is (value == '"all"')


def test_options_of_the_task_are_part_of_the_job_and_come_back_from_its_document(
    job_file: Path,
) -> None:
    changes = ["task_options.b=0.5", "task_options.a='x'", "task_options.c=true"]
    job = load_job(job_file, changes)
    assert dict(job.task_options) == {"a": "x", "b": 0.5, "c": True}
    assert parse_job(json.loads(job.model_dump_json()), "a copy") == job
    assert load_job(job_file, changes[::-1]).digest() == job.digest()
    digests = {load_job(job_file, changes[:n]).digest() for n in range(4)}
    assert len(digests) == 4
    # True is not 1, and "1" is neither.
    alike = {load_job(job_file, [f"task_options.a={v}"]).digest() for v in ("1", "true", "'1'")}
    assert len(alike) == 3


def test_masks_are_made_ahead_unless_the_job_says_no(job_file: Path) -> None:
    assert load_job(job_file).aggregation.precompute is True
    assert load_job(job_file, ["aggregation.precompute=false"]).aggregation.precompute is False


def test_sums_are_checked_unless_the_job_says_no(job_file: Path) -> None:
    assert load_job(job_file).aggregation.checked is True
    assert load_job(job_file, ["aggregation.checked=false"]).aggregation.checked is False


def test_every_key_is_documented_with_its_default() -> None:
    text = (Path(__file__).parents[1] / "docs" / "jobs.md").read_text()
    for name, field in Job.model_fields.items():
        table = field.annotation
        assert f"`[{name}]`" in text or f"`{name}`" in text
        if not (isinstance(table, type) and issubclass(table, BaseModel)):
            continue
        section = text.partition(f"## `[{name}]`")[2].partition("\n## ")[0]
        for key, key_field in table.model_fields.items():
            row = next((line for line in section.splitlines() if f"`{key}`" in line[:60]), None)
            assert row is not None, f"{name}.{key} is not documented"
            default = key_field.default
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                assert float(default) in [
                    float(word) for word in re.findall(r"[0-9][0-9.e-]*", row.split("|")[2])
                ]
            elif isinstance(default, str):
                assert f'"{default}"' in row.split("|")[2]


class Shelf(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    height: int
    width: int = 3


def test_any_table_is_read_by_the_same_rules() -> None:
    assert read_table(Shelf, {"height": 2}, "shelf").height == 2
    for document, words in (
        ({"height": 2, "widht": 1}, "shelf: unknown key widht; did you mean width?"),
        ({"height": 2, "zzz": 1}, "shelf: unknown key zzz; known keys are height, width"),
        ({}, "shelf: height is missing; add it"),
        ({"height": "2"}, "shelf: height = '2' is not valid"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            read_table(Shelf, document, "shelf")
