"""A small platform API, in memory: the example to read, to run and to test the library against."""
