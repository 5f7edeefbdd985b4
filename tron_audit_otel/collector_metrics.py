"""What became of each SIEM's records, by the Collector's own metrics."""
