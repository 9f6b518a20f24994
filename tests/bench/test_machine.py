import mpcfl
from mpcfl.bench import machine


def test_the_same_machine_has_the_same_fingerprint():
    here = machine.this_machine()
    assert here == machine.this_machine()
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 20
    assert len(here.fingerprint) == 16


def test_versions_name_python_and_mpcfl_and_skip_what_is_not_there(monkeypatch):
    absent = {"numpy": "numpy", "no-such-distribution": "no_such_module"}
    monkeypatch.setattr(machine, "_DISTRIBUTIONS", absent)
    versions = machine.installed_versions()
    assert versions["mpcfl"] == mpcfl.__version__
    assert set(versions) == {"python", "mpcfl", "numpy"}


def test_loaded_versions_leave_out_what_was_not_imported(monkeypatch):
    monkeypatch.delitem(machine.sys.modules, "phe", raising=False)
    assert "phe" not in machine.loaded_versions()


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.mpcfl, "__file__", str(tmp_path / "__init__.py"))
    assert machine.checkout_commit() is None


def test_the_commit_is_named_and_a_change_marks_it_dirty(monkeypatch, tmp_path):
    source = tmp_path / "__init__.py"
    source.write_text("")
    monkeypatch.setattr(machine.mpcfl, "__file__", str(source))
    git = machine.shutil.which("git")
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for arguments in (("init",), ("add", "."), (*name, "commit", "-m", "x")):
        assert machine._git(git, tmp_path, *arguments) is not None
    commit = machine.checkout_commit()
    assert len(commit) == 40
    source.write_text("changed")
    assert machine.checkout_commit() == f"{commit}-dirty"
