"""The C++ of products of matrices, and of sums of products that are written once."""

from __future__ import annotations

__all__ = ["PRODUCTS"]

PRODUCTS = r"""
template <class T> struct Wide {
  typedef T v __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int n = BYTES / sizeof(T);
};

// Rows r < MR of c = a b or c += a b, NV vectors wide; b is dense along columns.
template <class T, int MR, int NV>
IN void tile(const T* a, long ars, long acs, const T* b, long brs, long K, T* c, long crs, long columns, bool add) {
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
    if (add)
      for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) acc[r][j] += *(V*)(c + r * crs + j * W);
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NV; j++) *(V*)(c + r * crs + j * W) = acc[r][j];
  } else {
    for (int r = 0; r < MR; r++) {
      T out[NV * W];
      for (int j = 0; j < NV; j++) *(V*)(out + j * W) = acc[r][j];
      for (long j = 0; j < columns; j++) c[r * crs + j] = add ? c[r * crs + j] + out[j] : out[j];
    }
  }
}

template <class T, int MR, int NV>
IN void strip(const T* a, long ars, long acs, const T* b, long brs, long K, T* c, long crs, long M, long columns,
              bool add) {
  long m = 0;
  for (; m + MR <= M; m += MR) tile<T, MR, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns, add);
  for (; m + 4 <= M; m += 4) tile<T, 4, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns, add);
  for (; m < M; m++) tile<T, 1, NV>(a + m * ars, ars, acs, b, brs, K, c + m * crs, crs, columns, add);
}

static constexpr int rows_of_a_tile(long M) { return M >= 8 ? (BYTES == 64 ? 8 : 4) : M >= 4 ? 4 : 1; }

// Functions of a product's sizes exist twice: with all of them as constants, and with some as arguments ("of").

// Panels of W columns of b, dense along rows and filled up with zeros: all, or those beyond the last whole one.
template <class T, long N, long W> IN void pack_of(long K, const T* b, long brs, long bcs, T* out, bool all) {
  for (long j = all ? 0 : N / W * W; j < N; j += W, out += W * K) {
    const long width = N - j < W ? N - j : W;
    for (long k0 = 0; k0 < K; k0 += 16) {
      const long stop = k0 + 16 < K ? k0 + 16 : K;
      for (long i = 0; i < W; i++)
        for (long k = k0; k < stop; k++) out[k * W + i] = i < width ? b[k * brs + (j + i) * bcs] : (T)0;
    }
  }
}

template <class T, long K, long N, long W> static void pack(const T* b, long brs, long bcs, T* out, bool all) {
  pack_of<T, N, W>(K, b, brs, bcs, out, all);
}

// c = a b, with all panels of b packed, or (dense along columns) those alone beyond the last whole one.
template <class T, long ROWS, long MOST, long DEEPEST, long N, long W>
IN void product_of(
    long M, long K, const T* a, long ars, long acs, const T* b, long brs, const T* panels, bool all, T* c) {
  constexpr int NV = W / Wide<T>::n > 0 ? W / Wide<T>::n : 1, MR = rows_of_a_tile(ROWS);
  for (long j = 0; j < N; j += W) {
    const bool packed = all || j + W > N;
    const T* at = all ? panels + j * K : packed ? panels : b + j;
    strip<T, MR, NV>(a, ars, acs, at, packed ? W : brs, K, c + j, N, M, N - j, false);
  }
}
template <class T, long M, long K, long N, long W>
static void product(const T* a, long ars, long acs, const T* b, long brs, const T* panels, bool all, T* c) {
  product_of<T, M, M, K, N, W>(M, K, a, ars, acs, b, brs, panels, all, c);
}

template <class T> struct Factors {
  const T *a, *b;
  long ars, acs, brs, bcs;
};

// Rows [m0, m0 + count) of the left factors and terms [q0, q1) of their inner axes after one another: tiles of MR rows,
// dense along rows, and what is left over row by row.
template <class T, int MR>
IN void gather_left(long K, const Factors<T>* p, long m0, long count, long q0, long q1, T* out) {
  const long full = count / MR * MR, terms = q1 - q0;
  for (long q = q0, n; q < q1; q += n) {
    const Factors<T>& x = p[q / K];
    n = K - q % K < q1 - q ? K - q % K : q1 - q;
    const T* a = x.a + m0 * x.ars + q % K * x.acs;
    T* to = out + (q - q0) * MR;
    if (x.ars == 1) {
      for (long k = 0; k < n; k++)
        for (long m = 0; m < full; m += MR)
          for (int r = 0; r < MR; r++) to[m * terms + k * MR + r] = a[m + r + k * x.acs];
    } else {
      for (long m = 0; m < full; m += MR)
        for (int r = 0; r < MR; r++)
          for (long k = 0; k < n; k++) to[m * terms + k * MR + r] = a[(m + r) * x.ars + k * x.acs];
    }
    for (long m = full; m < count; m++)
      for (long k = 0; k < n; k++) out[m * terms + q - q0 + k] = a[m * x.ars + k * x.acs];
  }
}

template <class T, long W>
IN void gather_right(long K, const Factors<T>* p, long j, long width, long q0, long q1, T* out) {
  for (long q = q0; q < q1; q++, out += W) {
    const Factors<T>& x = p[q / K];
    const T* b = x.b + q % K * x.brs + j * x.bcs;
    if (width >= W && x.bcs == 1)
      memcpy(out, b, W * sizeof(T));
    else
      for (long i = 0; i < W; i++) out[i] = i < width ? b[i * x.bcs] : (T)0;
  }
}

enum Right { PANELS, DIRECT, GATHERED };

// c = or += the sum over S pairs of a b. Long inner axes are cut, and left factors gathered, so that a tile's factors
// stay in the nearest cache and do not lie at distances that meet in the same sets of it.
template <class T, long ROWS, long MOST, long DEEPEST, long N, long W, long S, Right R>
IN void sums_of(long M, long K, const Factors<T>* p, const T* panels, T* c, bool add) {
  constexpr int NV = W / Wide<T>::n > 0 ? W / Wide<T>::n : 1, MR = rows_of_a_tile(ROWS);
  constexpr long MC = MOST < 128 ? MOST : 128, DEEP = 1024 / sizeof(T), KC = DEEPEST * S < DEEP ? DEEPEST * S : DEEP;
  const long Q = K * S;
  alignas(64) T left[MC * KC];
  alignas(64) T right[R == GATHERED ? KC * W : 1];
  for (long m0 = 0; m0 < M; m0 += MC) {
    const long count = M - m0 < MC ? M - m0 : MC, full = count / MR * MR;
    for (long q0 = 0; q0 < Q; q0 += KC) {
      const long q1 = q0 + KC < Q ? q0 + KC : Q, terms = q1 - q0;
      gather_left<T, MR>(K, p, m0, count, q0, q1, left);
      const bool more = add || q0 > 0;
      for (long j = 0; j < N; j += W) {
        const T* at = right;
        long step = W;
        if (R == GATHERED)
          gather_right<T, W>(K, p, j, N - j, q0, q1, right);
        else if (R == PANELS)
          at = panels + j * K + q0 * W;
        else if (j + W > N)
          at = panels + q0 * W;
        else
          at = p->b + q0 * p->brs + j, step = p->brs;
        T* to = c + m0 * N + j;
        for (long m = 0; m < full; m += MR)
          tile<T, MR, NV>(left + m * terms, 1, MR, at, step, terms, to + m * N, N, N - j, more);
        strip<T, MR, NV>(left + full * terms, terms, 1, at, step, terms, to + full * N, N, count - full, N - j, more);
      }
    }
  }
}

template <class T, long M, long K, long N, long W, long S, Right R>
static void sums(const Factors<T>* p, const T* panels, T* c, bool add) {
  sums_of<T, M, M, K, N, W, S, R>(M, K, p, panels, c, add);
}

// c = a b for few rows, where rows of a and columns of b are dense: sums along K.
template <class T>
IN void products_of(long M, long K, long N, const T* a, long ars, const T* b, long bcs, T* c) {
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

template <class T, long M, long K, long N>
static void products(const T* a, long ars, const T* b, long bcs, T* c) {
  products_of<T>(M, K, N, a, ars, b, bcs, c);
}

// c = a b for few rows, where rows of b are dense: they are added one after the other, eight at a time.
template <class T>
IN void additions_of(long M, long K, long N, const T* a, long ars, long acs, const T* b, long brs, T* c) {
  typedef typename Wide<T>::v V;
  constexpr int W = Wide<T>::n;
  for (long m = 0; m < M; m++, a += ars, c += N) {
    for (long j = 0; j < N; j++) c[j] = 0;
    long k = 0;
    for (; k + 8 <= K; k += 8) {
      T s[8];
      for (int i = 0; i < 8; i++) s[i] = a[(k + i) * acs];
      const T* x = b + k * brs;
      long j = 0;
      for (; j + W <= N; j += W) {
        V t = *(V*)(c + j);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) t += s[i] * *(const V*)(x + i * brs + j);
        *(V*)(c + j) = t;
      }
      for (; j < N; j++)
        for (int i = 0; i < 8; i++) c[j] += s[i] * x[i * brs + j];
    }
    for (; k < K; k++)
      for (long j = 0; j < N; j++) c[j] += a[k * acs] * b[k * brs + j];
  }
}
template <class T, long M, long K, long N>
static void additions(const T* a, long ars, long acs, const T* b, long brs, T* c) {
  additions_of<T>(M, K, N, a, ars, acs, b, brs, c);
}
"""
"""What products in generated code call; it comes after the helpers of ``prelude``."""
