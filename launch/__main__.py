"""`python -m mpcfl.launch` is `mpcfl`."""

from mpcfl.launch.cli import main

main()
