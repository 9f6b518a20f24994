"""The `mpcfl` command line and the launchers."""
