"""The tasks that come with mpcfl; registered as entry points, like anybody else's."""
