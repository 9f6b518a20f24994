"""Party files: what they may say, and what the errors say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcfl.dp.charge import Budget
from mpcfl.errors import ConfigError, KeyFileError, TranscriptMismatch
from mpcfl.net.handshake import Authenticated, HandshakeContext, authenticate
from mpcfl.net.identity import Identity, public_key_text
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.parties.party_file import OwnLedger, PartyFile, load_party_file

NAMES = ("north", "south", "east")
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}


def document(name: str = "north", identity: str = "north.key", **peers: bytes) -> str:
    lines = [f'name = "{name}"', f'identity = "{identity}"', "[peers]"]
    return "\n".join([*lines, *(f'{n} = "{public_key_text(k)}"' for n, k in peers.items())])


def write(folder: Path, text: str) -> Path:
    path = folder / "north.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_file_gives_name_identity_and_pins_by_rank(tmp_path: Path) -> None:
    text = document(south=KEYS["south"], east=KEYS["east"])
    party = load_party_file(write(tmp_path, text))
    assert party.name == "north"
    assert party.identity == tmp_path / "north.key"
    assert party.pins(NAMES) == {1: KEYS["south"], 2: KEYS["east"]}
    assert party.pins(("east", "north")) == {0: KEYS["east"]}


def test_an_absolute_path_of_the_identity_stays(tmp_path: Path) -> None:
    party = load_party_file(write(tmp_path, document(identity="/keys/north.key")))
    assert party.identity == Path("/keys/north.key")


def test_a_party_may_list_itself_as_others_do(tmp_path: Path) -> None:
    party = load_party_file(write(tmp_path, document(**KEYS)))
    assert party.pins(NAMES) == dict(enumerate(KEYS.values()))


def test_missing_peers_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    with pytest.raises(ConfigError, match="public key of south, east; ask for it") as caught:
        load_party_file(path).pins(NAMES)
    assert str(path) in str(caught.value)


def test_a_party_that_is_not_in_the_job_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, document("west", **KEYS))
    with pytest.raises(ConfigError, match="this party is west, and the job's parties are north,"):
        load_party_file(path).pins(NAMES)


KEY = public_key_text(KEYS["south"])
OWN = 'name = "north"\nidentity = "k"\npeers = {}\n'
LEDGER = f'{OWN}\n[ledger]\nfolder = "l"\ndata_set = "d"\n'


def test_what_lies_at_the_party_is_found_from_the_party_file(tmp_path: Path) -> None:
    path = tmp_path / "north.toml"
    path.touch(mode=0o600)
    path.write_text(f'data = "in/a.csv"\n{LEDGER}epsilon = 3.0\ndelta = 1e-6\n')
    own = load_party_file(path)
    assert own.data == tmp_path / "in" / "a.csv"
    assert own.ledger == OwnLedger(tmp_path / "l", "d", Budget(3.0, 1e-6))
    path.write_text(OWN)
    assert load_party_file(path).data is load_party_file(path).ledger is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "north"\nidentity = "k"', "peers is missing; add it"),
        ('identity = "k"\n[peers]', "name is missing; add it"),
        ('nam = "north"\nidentity = "k"\n[peers]', "unknown key nam; did you mean name?"),
        (
            'name = "north"\nidentity = "k"\nx = 1\n[peers]',
            "known keys are data, identity, ledger, name, peers",
        ),
        ('name = "no rth"\nidentity = "k"\n[peers]', "name is not valid"),
        ('name = 7\nidentity = "k"\n[peers]', "name is not valid"),
        ('name = "north"\nidentity = ""\n[peers]', "identity is not valid: write the name"),
        (f'name = "north"\nidentity = "k"\n[peers]\n"a b" = "{KEY}"', "peers.a b is not valid"),
        ('name = "north"\nidentity = "k"\n[peers]\nsouth = "ed25519:ab"', "peers.south is not va"),
        ('name = "north"\nidentity = "k"\n[peers]\nsouth = 7', "peers.south is not valid"),
        ('name = "north"\nidentity = "k"\npeers = []', "peers is not valid"),
        (f'name = "north"\nidentity = "k"\n[peers]\na = "{KEY}"\nb = "{KEY}"', "key for a and b"),
        ("name = north", "not a TOML file"),
        ("name = '\udcff'", "not a TOML file"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "north.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_party_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("where", ["identity", "peer"])
def test_a_private_key_that_was_pasted_by_mistake_is_not_shown(tmp_path: Path, where: str) -> None:
    Identity.new().save(tmp_path / "k")
    pasted = (tmp_path / "k").read_text()
    secret = pasted.splitlines()[1]
    peers = f'south = """{pasted}"""' if where == "peer" else ""
    identity = f'"""{pasted}"""' if where == "identity" else '"k"'
    path = write(tmp_path, f'name = "north"\nidentity = {identity}\n[peers]\n{peers}')
    with pytest.raises(ConfigError) as caught:
        load_party_file(path)
    assert secret not in str(caught.value)


def test_a_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, document(**KEYS))
    path.chmod(0o644)
    assert load_party_file(path).name == "north"
    path.chmod(0o664)
    with pytest.raises(KeyFileError, match="chmod go-w"):
        load_party_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="can't read the party file: No such file"):
        load_party_file(tmp_path / "north.toml")


@pytest.mark.parametrize("stolen", [False, True], ids=["honest", "a stranger as south"])
def test_three_parties_meet_by_their_files(tmp_path: Path, stolen: bool) -> None:
    """From files on disk to a handshake: what docs/parties.md tells three hospitals to do."""
    keys = {}
    for name in NAMES:
        identity = Identity.new()
        identity.save(tmp_path / f"{name}.key")
        keys[name] = identity.public_key
    for name in NAMES:
        (tmp_path / f"{name}.toml").write_text(document(name, f"{name}.key", **keys))
        (tmp_path / f"{name}.toml").chmod(0o644)
    if stolen:
        (tmp_path / "south.key").unlink()
        Identity.new().save(tmp_path / "south.key")

    def party(transport: MemoryTransport) -> Authenticated:
        name = NAMES[transport.rank]
        file: PartyFile = load_party_file(tmp_path / f"{name}.toml")
        pins = file.pins(NAMES)
        if stolen:
            # Somebody who took the machine would leave his own pin out.
            pins.pop(transport.rank, None)
        context = HandshakeContext("job", NAMES, ())
        return authenticate(transport, Identity.load(file.identity), pins, context)

    if stolen:
        with pytest.raises(TranscriptMismatch, match="south shows another identity"):
            run_parties(3, party, deadline_s=5.0)
        return
    done = run_parties(3, party)
    assert done[0].public_keys == tuple(keys.values())
    assert len({outcome.run_id for outcome in done}) == 1


def test_the_example_of_the_documentation_is_a_party_file(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "parties.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    party = load_party_file(write(tmp_path, example))
    assert sorted(party.pins(NAMES)) == [1, 2]
    assert party.identity == tmp_path / "north.key"
