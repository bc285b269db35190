"""Our matching, held against test data in the format of Rust's regex crate: ``python -m tests.regex_testdata DIR``.

``cases.py`` reads the format, ``differences.py`` says where Rust's meaning is not ours, ``running.py`` runs what is
left through whole scans and at many splits. The ``*.toml`` files beside this one are our own cases, in that format.
"""
