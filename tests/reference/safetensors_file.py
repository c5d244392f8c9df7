"""Makes tests/reference/safetensors/mixed.safetensors with the safetensors package: what our reader has to read.

numpy and ml_dtypes, not we, round the float32 numbers in "single" to bfloat16 and float16.
Needs: pip install numpy ml_dtypes safetensors
"""

from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(1)
single = (rng.standard_normal((6, 7)) * 10.0 ** rng.integers(-6, 3, (6, 7))).astype(np.float32)
# Ties in the 16th bit: down to even, up to even; and the smallest number that is not one.
single[0, :3] = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
half = single.astype(np.float16)
bfloat = single.astype(ml_dtypes.bfloat16)
save_file(
    {
        "single": single,
        "bfloat": bfloat,
        "half": half,
        "half_as_single": half.astype(np.float32),
        "half_as_bfloat": half.astype(np.float32).astype(ml_dtypes.bfloat16),
        "ids": np.arange(5, dtype=np.int64),
        "bytes": np.arange(3, dtype=np.uint8),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    },
    Path(__file__).parent / "safetensors" / "mixed.safetensors",
    metadata={"made by": "tests/reference/safetensors_file.py"},
)
