"""The example platform API, and the demo that runs it with a real Collector."""
