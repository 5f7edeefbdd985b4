"""The Collector's archive files, read back: records by time or by id."""
