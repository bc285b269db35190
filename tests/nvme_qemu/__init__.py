"""NVMe passthrough against the kernel's own driver and emulated drives, in a QEMU guest.

``rig.py`` makes the guest and boots it, ``drives.py`` says what drives it has, ``guest.py`` is what runs inside.
``prepare`` fetches what is needed; ``tests/test_nvme_emulated.py`` boots and reports.
"""
