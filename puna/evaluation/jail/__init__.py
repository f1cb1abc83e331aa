"""The inside of the sandbox: what the interpreter that runs untrusted code does to itself first.

`puna.evaluation.sandbox` starts a fresh interpreter on `main.main` of this package. It sees neither
Puna nor its packages, so these modules use Python's own library and each other alone, by relative
imports. What each layer closes stands in its module.
"""
