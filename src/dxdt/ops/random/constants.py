"""Numbers of the generator and of its normals, shared by all of its executors."""

from __future__ import annotations

import math

__all__ = ["LOG", "MULTIPLIERS", "ROUNDS", "SINE", "SQRT_HALF_BITS", "TWO_LOG_TWO", "WEYL"]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# 2 log(m) = s P(s^2), s = (m - 1) / (m + 1), for m in [sqrt(1/2), sqrt(2)]: error 1e-13.
LOG = (
    3.99999999999989438,
    1.33333333359158504,
    0.799999897836647655,
    0.571443322917514501,
    0.443484998201549796,
    0.392161912795061055,
)
# sin(pi q / 4) = q P(q^2) for q in [-1, 1]: error 4e-15.
SINE = (
    0.785398163397444947,
    -0.0807455121880386338,
    0.00249039456736706361,
    -0.0000365761921207672526,
    3.13338408290929997e-7,
    -1.73651672885975781e-9,
)
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
TWO_LOG_TWO = 2 * math.log(2)
