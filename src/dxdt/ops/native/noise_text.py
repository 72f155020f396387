"""The C++ of the generator's normals, and of sums of them over the cells of dyadic trees.

Blocks are formed in lines of a few hundred, one array a word, so that compilers use vector units. Every operation
is correctly rounded and none is contracted: the bits are those of ``ops.random``.
"""

from __future__ import annotations

from dxdt.ops.random_constants import LOG, MULTIPLIERS, ROUNDS, SINE, SQRT_HALF_BITS, TWO_LOG_TWO, WEYL

__all__ = ["TEXT"]


def _horner(z: str, coefficients: tuple[float, ...]) -> str:
    text = f"{z} * {coefficients[-1]!r} + {coefficients[-2]!r}"
    for c in coefficients[-3::-1]:
        text = f"({text}) * {z} + {c!r}"
    return f"({text})"


# The exponent is shifted without its sign, which narrow vector units can: 64 is added before and taken off after.
_DRAW = f"""
#include <cmath>
#include <cstdint>
#include <cstring>

static const int LINE = 512;

struct Line {{
    uint32_t c0[LINE], c1[LINE], c2[LINE], c3[LINE];
    double z0[LINE], z1[LINE], z2[LINE], z3[LINE];
}};

static inline double real(uint32_t w) {{ return (double)(int32_t)(w ^ 0x80000000u) + 2147483648.0; }}

static inline void pair(uint32_t w0, uint32_t w1, double &a, double &b) {{
    double x = real(w0) + 0.5;
    uint64_t pattern;
    memcpy(&pattern, &x, 8);
    uint64_t moved = (pattern - {SQRT_HALF_BITS}ULL + (64ULL << 52)) >> 52;
    uint64_t mantissa = pattern - ((moved - 64ULL) << 52);
    double m;
    memcpy(&m, &mantissa, 8);
    double s = (m - 1.0) / (m + 1.0), t = s * s;
    double l = (double)(int32_t)(96 - (int32_t)moved) * {TWO_LOG_TWO!r} - s * {_horner("t", LOG)};
    double r = l * (1.0 / std::sqrt(l)) * (double)(1 - 2 * (int32_t)(w1 & 1u));
    double q = real(w1) * 0x1p-31 - 1.0, p = q * q;
    double half = q * {_horner("p", SINE)};
    double square = half * half, rest = 1.0 - square;
    a = r * (1.0 - 2.0 * square);
    b = r * (2.0 * half * (rest * (1.0 / std::sqrt(rest))));
}}

static void draw(Line &l, int n, uint64_t seed) {{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < {ROUNDS}; ++round) {{
        for (int i = 0; i < n; ++i) {{
            uint64_t p0 = (uint64_t)l.c0[i] * {MULTIPLIERS[0]}u, p1 = (uint64_t)l.c2[i] * {MULTIPLIERS[1]}u;
            l.c0[i] = (uint32_t)(p1 >> 32) ^ l.c1[i] ^ k0;
            l.c1[i] = (uint32_t)p1;
            l.c2[i] = (uint32_t)(p0 >> 32) ^ l.c3[i] ^ k1;
            l.c3[i] = (uint32_t)p0;
        }}
        k0 += {WEYL[0]}u;
        k1 += {WEYL[1]}u;
    }}
    for (int i = 0; i < n; ++i) pair(l.c0[i], l.c1[i], l.z0[i], l.z1[i]);
    for (int i = 0; i < n; ++i) pair(l.c2[i], l.c3[i], l.z2[i], l.z3[i]);
}}
"""

_RUNS = """
// Counters are outer x inner; row and node have a stride for each. Counter c has its blocks in a row of the answer.
template <class T>
static void fill(uint64_t seed, const int64_t *row, int64_t ro, int64_t ri, const int64_t *node, int64_t no, int64_t ni,
                 int64_t outer, int64_t inner, int64_t first, int64_t size, T *out) {
    Line l;
    const int64_t blocks = (size + 3) / 4, total = outer * inner * blocks;
    int64_t o = 0, i = 0, b = 0;
    for (int64_t done = 0; done < total; done += LINE) {
        const int n = (int)(total - done < LINE ? total - done : LINE);
        const int64_t start = (o * inner + i) * size + 4 * b, begun = b;
        for (int k = 0; k < n;) {
            const uint32_t r = (uint32_t)row[o * ro + i * ri];
            const uint64_t m = (uint64_t)node[o * no + i * ni];
            const int stop = (int)(blocks - b < n - k ? blocks - b : n - k);
            for (int j = 0; j < stop; ++j) {
                l.c0[k + j] = (uint32_t)(first + b + j);
                l.c1[k + j] = r;
                l.c2[k + j] = (uint32_t)m;
                l.c3[k + j] = (uint32_t)(m >> 32);
            }
            k += stop;
            b += stop;
            if (b == blocks) {
                b = 0;
                if (++i == inner) { i = 0; ++o; }
            }
        }
        draw(l, n, seed);
        T *to = out + start;
        if (size % 4 == 0) {
            for (int k = 0; k < n; ++k) {
                to[4 * k] = (T)l.z0[k];
                to[4 * k + 1] = (T)l.z1[k];
                to[4 * k + 2] = (T)l.z2[k];
                to[4 * k + 3] = (T)l.z3[k];
            }
            continue;
        }
        int64_t at = begun;
        for (int k = 0; k < n; ++k) {
            if (++at < blocks) {
                to[0] = (T)l.z0[k];
                to[1] = (T)l.z1[k];
                to[2] = (T)l.z2[k];
                to[3] = (T)l.z3[k];
                to += 4;
            } else {
                const int left = (int)(size - 4 * (blocks - 1));
                to[0] = (T)l.z0[k];
                if (left > 1) to[1] = (T)l.z1[k];
                if (left > 2) to[2] = (T)l.z2[k];
                to += left;
                at = 0;
            }
        }
    }
}

extern "C" void fill_double(uint64_t seed, const int64_t *row, int64_t ro, int64_t ri, const int64_t *node, int64_t no,
                            int64_t ni, int64_t outer, int64_t inner, int64_t first, int64_t size, double *out) {
    fill(seed, row, ro, ri, node, no, ni, outer, inner, first, size, out);
}

extern "C" void fill_float(uint64_t seed, const int64_t *row, int64_t ro, int64_t ri, const int64_t *node, int64_t no,
                           int64_t ni, int64_t outer, int64_t inner, int64_t first, int64_t size, float *out) {
    fill(seed, row, ro, ri, node, no, ni, outer, inner, first, size, out);
}
"""

# Sums are formed level by level over a line of points, then by halves over the levels: the order of
# ``paths.dyadic.total``.
_TREES = """
static inline void halves(double *v, int levels, int points) {
    for (int n = levels; n > 1; n = n / 2 + n % 2) {
        const int half = n / 2;
        for (int k = 0; k < half * points; ++k) v[k] += v[half * points + k];
        if (n % 2) for (int p = 0; p < points; ++p) v[half * points + p] = v[2 * half * points + p];
    }
}

// Weights (levels, each, count), nodes (levels, count), row of point p is row[p % rows]; sums (weights, count, size).
extern "C" void tree_sums(uint64_t seed, const int64_t *row, int64_t rows, const int64_t *node, int64_t levels,
                          int64_t count, int64_t each, const double *wa, const double *wb, const double *root_w,
                          const double *root_h, int64_t size, double *a, double *b) {
    Line l;
    double v[LINE];
    const int most = (int)(LINE / levels);
    const int64_t blocks = (each * size + 3) / 4;
    for (int64_t start = 0; start < count; start += most) {
        const int n = (int)(count - start < most ? count - start : most), all = n * (int)levels;
        for (int64_t block = 0; block < blocks; ++block) {
            for (int64_t level = 0, k = 0; level < levels; ++level)
                for (int p = 0; p < n; ++p, ++k) {
                    const uint64_t m = (uint64_t)node[level * count + start + p];
                    l.c0[k] = (uint32_t)block;
                    l.c1[k] = (uint32_t)row[(start + p) % rows];
                    l.c2[k] = (uint32_t)m;
                    l.c3[k] = (uint32_t)(m >> 32);
                }
            draw(l, all, seed);
            double *z[4] = {l.z0, l.z1, l.z2, l.z3};
            const int parts = (int)(4 / each);
            for (int part = 0; part < parts; ++part) {
                const int64_t component = block * parts + part;
                if (component >= size) break;
                double *x = z[each * part], *y = z[each * part + each - 1];
                for (int p = 0; p < n; ++p) {
                    const int64_t at = (start + p) % rows * size + component;
                    if (root_w) x[p] = root_w[at];
                    if (root_h) y[p] = root_h[at];
                }
                for (int which = 0; which < (int)each; ++which) {
                    const double *w = (which ? wb : wa) + start;
                    for (int64_t level = 0; level < levels; ++level) {
                        const double *u = w + level * each * count, *s = u + count;
                        double *to = v + level * n;
                        const double *f = x + level * n, *g = y + level * n;
                        if (each == 1) for (int p = 0; p < n; ++p) to[p] = u[p] * f[p];
                        else for (int p = 0; p < n; ++p) to[p] = u[p] * f[p] + s[p] * g[p];
                    }
                    halves(v, (int)levels, n);
                    double *out = which ? b : a;
                    for (int p = 0; p < n; ++p) out[(start + p) * size + component] = v[p];
                }
            }
        }
    }
}
"""

TEXT = _DRAW + _RUNS + _TREES
