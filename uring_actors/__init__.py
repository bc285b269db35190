"""Scan files where they land: io_uring into GPU-mapped shared memory, a resident kernel, Ray actors."""
