"""What keeps a load test from being run, in words for the person who started it."""


class LoadTestError(Exception):
    """The test cannot be run as asked for."""
