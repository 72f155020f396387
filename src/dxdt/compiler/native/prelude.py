"""What generated code begins with: functions of one element, and products of matrices."""

from __future__ import annotations

from dxdt.compiler.native.matmul_text import PRODUCTS

__all__ = ["PRELUDE"]

_ONE = (
    "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc".split()
)
_TWO = ["pow", "atan2", "hypot"]
_PLAIN = ["sqrt", "floor", "ceil", "trunc"]


def _declarations() -> str:
    lines = [
        "#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC_PREREQ)",
        "#if __GLIBC_PREREQ(2, 35)",
        'extern "C" {',
    ]
    for t, suffix in (("double", ""), ("float", "f")):
        lines += [f'__attribute__((simd("notinbranch"))) {t} {n}{suffix}({t}) noexcept;' for n in _ONE]
        lines += [f'__attribute__((simd("notinbranch"))) {t} {n}{suffix}({t}, {t}) noexcept;' for n in _TWO]
    lines += ["}", "#endif", "#endif"]
    for t, suffix in (("double", ""), ("float", "f")):
        lines += [f"IN {t} f_{n}({t} x) {{ return {n}{suffix}(x); }}" for n in (*_ONE, *_PLAIN)]
        lines += [f"IN {t} f_{n}({t} x, {t} y) {{ return {n}{suffix}(x, y); }}" for n in _TWO]
        lines += [f"IN {t} f_fmod({t} x, {t} y) {{ return fmod{suffix}(x, y); }}"]
        lines += [f"IN {t} f_round({t} x) {{ return nearbyint{suffix}(x); }}"]
        lines += [f"IN {t} f_abs({t} x) {{ return fabs{suffix}(x); }}"]
    return "\n".join(lines)


PRELUDE = (
    r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define IN static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
"""
    + _declarations()
    + r"""
// A place in a table of n entries; negative ones count from the end, others outside are noted.
IN int64_t wrap(int64_t i, int64_t n, int& bad) {
  i += i < 0 ? n : 0;
  const bool outside = i < 0 || i >= n;
  bad |= outside;
  return outside ? 0 : i;
}
IN int64_t f_abs(int64_t x) { return x < 0 ? -x : x; }
// A value that is not a number stays one.
template <class T> IN T f_max(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> IN T f_min(T a, T b) { return (a < b || a != a) ? a : b; }
template <class T> IN T f_relu(T x) { return x < (T)0 ? (T)0 : x; }
// A bound that is no number gives none.
template <class T> IN T f_clamp_min(T x, T low) { return (x >= low) | (x != x) ? x : low; }
template <class T> IN T f_clamp_max(T x, T high) { return (x <= high) | (x != x) ? x : high; }

// As torch rounds quotients: from what the division leaves, which has the sign of the divisor.
template <class T> IN T f_remainder(T a, T b) {
  const T m = f_fmod(a, b);
  return (m != 0 && (m < 0) != (b < 0)) ? m + b : m;
}
template <class T> IN T f_floor_divide(T a, T b) {
  const T m = f_fmod(a, b), q = (a - m) / b, d = (m != 0 && (m < 0) != (b < 0)) ? q - 1 : q;
  const T f = f_floor(d), whole = d - f > (T)0.5 ? f + 1 : f;
  return b == 0 ? a / b : d == 0 ? (T)0 * (a / b) : whole;
}
"""
    + PRODUCTS
)
