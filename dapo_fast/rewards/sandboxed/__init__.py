"""What runs in the sandbox: closes itself in, then is either the program under test or its judge.

Of the standard library alone, started by ``sandbox.py`` as a package of its own with ``python -I -S``. Its standard
input is one frame (four bytes of length, JSON) with its orders. The judge and the program are two sandboxes that share
two pipes and no more: the program receives calls as plain data and answers with plain data. What it answers is rebuilt
from its data on the judge's side, so that no object of the program's making, with whatever ``__eq__``, ever meets an
assertion, and no name, frame or descriptor of the judge's exists where the program runs.
"""
