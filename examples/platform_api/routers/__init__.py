"""One router a resource; ``app.py`` puts them together under ``/api/v1``."""
