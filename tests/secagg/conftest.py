import pytest

from mpcfl.secagg import custody


@pytest.fixture
def small_keys(monkeypatch):
    """Allow Paillier keys that are fast and protect nothing."""
    monkeypatch.setattr(custody, "MIN_KEY_BITS", 512)
    return 512
