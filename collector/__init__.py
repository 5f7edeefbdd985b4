"""Tools for developers: build, start and query the servers that the demo and the tests use."""
