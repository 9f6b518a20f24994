"""Grids that come with the package: `mpcfl bench NAME`."""
