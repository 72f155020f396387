"""What generated code begins with: functions of one element, and products of matrices."""

from __future__ import annotations

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
template <class T> IN T f_clamp_min(T x, T low) { return x < low ? low : x; }
template <class T> IN T f_clamp_max(T x, T high) { return x > high ? high : x; }

template <class T> struct Wide {
  typedef T v __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int n = BYTES / sizeof(T);
};

// Rows r < MR of c = a b, NV vectors wide; b is dense along columns.
template <class T, int MR, int NV>
IN void tile(const T* a, long ars, long acs, const T* b, long brs, long K, T* c, long crs, long columns) {
  typedef typename Wide<T>::v V;
  constexpr int W = Wide<T>::n;
  V acc[MR][NV];
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NV; j++) acc[r][j] = V{};
  for (long k = 0; k < K; k++) {
    V row[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) row[j] = *(const V*)(b + k * brs + j * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      const T s = a[r * ars + k * acs];
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) acc[r][j] += s * row[j];
    }
  }
  if (columns >= NV * W) {
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NV; j++) *(V*)(c + r * crs + j * W) = acc[r][j];
  } else {
    for (int r = 0; r < MR; r++) {
      T out[NV * W];
      for (int j = 0; j < NV; j++) *(V*)(out + j * W) = acc[r][j];
      for (long j = 0; j < columns; j++) c[r * crs + j] = out[j];
    }
  }
}

template <class T, int MR, int NV>
IN void strip(const T* a, long ars, long acs, const T* b, long brs, long K, T* c, long crs, long M, long columns) {
  long m = 0;
  for (; m + MR <= M; m += MR) tile<T, MR, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns);
  for (; m + 4 <= M; m += 4) tile<T, 4, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns);
  for (; m < M; m++) tile<T, 1, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns);
}

// Panels of W columns of b, dense along rows and filled up with zeros: all, or those beyond the last whole one.
template <class T, long K, long N, long W> static void pack(const T* b, long brs, long bcs, T* out, bool all) {
  for (long j = all ? 0 : N / W * W; j < N; j += W, out += W * K) {
    const long width = N - j < W ? N - j : W;
    for (long k0 = 0; k0 < K; k0 += 16) {
      const long stop = k0 + 16 < K ? k0 + 16 : K;
      for (long i = 0; i < W; i++)
        for (long k = k0; k < stop; k++) out[k * W + i] = i < width ? b[k * brs + (j + i) * bcs] : (T)0;
    }
  }
}

// c = a b, with all panels of b packed, or (dense along columns) those alone beyond the last whole one.
template <class T, long M, long K, long N, long W>
static void product(const T* a, long ars, long acs, const T* b, long brs, const T* panels, bool all, T* c) {
  constexpr int NV = W / Wide<T>::n > 0 ? W / Wide<T>::n : 1;
  constexpr int MR = M >= 8 ? (BYTES == 64 ? 8 : 4) : M >= 4 ? 4 : 1;
  // Long rows lie at distances that meet in the same sets of the cache: the rows of a tile are put together.
  T* rows = 0;
  if (K >= 256 && M >= MR && MR > 1) {
    rows = (T*)aligned_alloc(64, ((M / MR * MR * K * sizeof(T)) + 63) / 64 * 64);
    for (long m = 0; m + MR <= M; m += MR)
      for (int r = 0; r < MR; r++)
        for (long k = 0; k < K; k++) rows[m * K + k * MR + r] = a[(m + r) * ars + k * acs];
  }
  for (long j = 0; j < N; j += W) {
    const bool packed = all || j + W > N;
    const T* at = all ? panels + j * K : packed ? panels : b + j;
    const long step = packed ? W : brs;
    const long done = rows ? M / MR * MR : 0;
    for (long m = 0; m < done; m += MR) tile<T, MR, NV>(rows + m * K, 1, MR, at, step, K, c + m * N + j, N, N - j);
    strip<T, MR, NV>(a + done * ars, ars, acs, at, step, K, c + done * N + j, N, M - done, N - j);
  }
  free(rows);
}

// c = a b where rows of a and columns of b are dense: sums along K, for a few rows and a large b.
template <class T, long M, long K, long N>
static void products(const T* a, long ars, const T* b, long bcs, T* c) {
  typedef typename Wide<T>::v V;
  constexpr int W = Wide<T>::n;
  for (long m = 0; m < M; m++)
    for (long n0 = 0; n0 < N; n0 += 4) {
      const long count = N - n0 < 4 ? N - n0 : 4;
      V acc[4] = {V{}, V{}, V{}, V{}};
      long k = 0;
      for (; k + W <= K; k += W) {
        const V x = *(const V*)(a + m * ars + k);
#pragma GCC unroll 4
        for (long i = 0; i < 4; i++) acc[i] += x * *(const V*)(b + (n0 + (i < count ? i : 0)) * bcs + k);
      }
      for (long i = 0; i < count; i++) {
        T total = 0;
        for (int w = 0; w < W; w++) total += acc[i][w];
        for (long q = k; q < K; q++) total += a[m * ars + q] * b[(n0 + i) * bcs + q];
        c[m * N + n0 + i] = total;
      }
    }
}
"""
)
