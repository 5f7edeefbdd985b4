"""``make demo``: the audit trail end to end, with the real Collector and a real log store.

``traffic`` is what is asked of the API, and what an auditor must find of it; ``stage`` is what runs, here or by
``compose``; ``outage`` kills some of that and starts it again; ``evidence`` asks the places where records arrive, and
compares; ``__main__`` runs it all.
"""
