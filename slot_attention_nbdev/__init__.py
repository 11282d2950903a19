__version__ = "0.1.0"

import os

if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton asks once, when first imported, and without a card it can only interpret
