"""``make demo``: the audit trail end to end, with the real Collector and a real log store.

``traffic`` is what is asked of the API, and what an auditor must find of it; ``destinations`` are the Collector's
configuration and the places where records arrive; ``evidence`` compares the two; ``__main__`` runs it all.
"""
