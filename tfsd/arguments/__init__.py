"""The arguments of a request: one table of them (`table`), the checks made from it, and the signatures that show it.

`table` imports neither numpy nor TensorFlow, so that the command line can read it.
"""
