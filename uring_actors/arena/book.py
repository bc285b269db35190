"""The address book: what a hot function must know of the arena, as one int64 array (``Arena.address_book()``).

Hot functions take numbers only, and this is the one array that they share: absolute addresses in this process, and
sizes. Its order is this process's own business and no part of the ABI.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

Book = np.ndarray[Any, np.dtype[np.int64]]

BOOK_CONTROL: Final = 0
BOOK_STATE: Final = 1
BOOK_RING: Final = 2
BOOK_ORDER: Final = 3
BOOK_RING_MASK: Final = 4
BOOK_RESULTS: Final = 5
BOOK_RESULT_BYTES: Final = 6
BOOK_DATA: Final = 7
BOOK_SLOT_BYTES: Final = 8
BOOK_CHANNELS: Final = 9
BOOK_CHANNEL_BYTES: Final = 10
BOOK_CHANNEL_MASK: Final = 11
BOOK_LANES: Final = 12
BOOK_SLOTS_PER_LANE: Final = 13
BOOK_HIT_CAPACITY: Final = 14
BOOK_LOG: Final = 15
BOOK_DATA_SLOTS: Final = 16
BOOK_NEWLINES: Final = 17
BOOK_NEWLINE_BYTES: Final = 18
