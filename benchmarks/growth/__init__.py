"""How the cost grows: with the rate, the attributes, the backlog, the worker processes and the SIEMs.

    python -m benchmarks.growth [--only PART] [--quick]

``rate``, ``attributes``, ``backlog``, ``workers`` and ``siems`` are the parts. ``app`` is what is audited, ``driver``
a process that drives it without a server, ``emitter`` the hold on such a process, ``stage`` what runs beside it;
``processes`` measures, ``sheet`` shows.
"""
