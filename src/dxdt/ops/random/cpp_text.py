"""The C++ of the generator's normals, and of sums of them over the cells of dyadic trees.

Blocks are formed in lines of a few hundred, one array a word, so that compilers use vector units. Every operation
is correctly rounded and none is contracted: the bits are those of ``ops.random``.
"""

from __future__ import annotations

import math

from dxdt.ops.random.constants import LOG, MULTIPLIERS, ROUNDS, SINE, SQRT_HALF_BITS, TWO_LOG_TWO, WEYL

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
        if (blocks < 16) {
            // Short runs: one after the other, without the turns that a vector loop needs to begin.
            const int64_t *r = row + o * ro + i * ri, *m = node + o * no + i * ni;
            for (int k = 0; k < n; ++k) {
                l.c0[k] = (uint32_t)(first + b);
                l.c1[k] = (uint32_t)*r;
                l.c2[k] = (uint32_t)*m;
                l.c3[k] = (uint32_t)((uint64_t)*m >> 32);
                if (++b < blocks) continue;
                b = 0;
                r += ri;
                m += ni;
                if (++i < inner) continue;
                i = 0;
                ++o;
                r = row + o * ro;
                m = node + o * no;
            }
        } else for (int k = 0; k < n;) {
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

# Sums are formed level by level over a line of points, then by halves over the levels; weights are those of
# ``paths.dyadic``, operation by operation.
_TREES = """
static inline void halves(double *v, int levels, int points) {
    for (int n = levels; n > 1; n = n / 2 + n % 2) {
        const int half = n / 2;
        for (int k = 0; k < half * points; ++k) v[k] += v[half * points + k];
        if (n % 2) for (int p = 0; p < points; ++p) v[half * points + p] = v[2 * half * points + p];
    }
}

static const double R3 = ROOT_3, R3_2 = ROOT_3_HALVES, R3_24 = ROOT_3_24TH, R3_6 = ROOT_3_6TH;

struct Tree {
    uint64_t seed;
    const int64_t *row;
    int64_t rows, depth, each, size;
    const double *root_w, *root_h;
};

struct Weights {
    double w[2][LINE], i[2][LINE];
    uint64_t node[LINE];
};

static void hats(const double *x, int n, int depth, Weights &u) {
    for (int level = 1; level < depth + 1; ++level) {
        const double length = std::ldexp(1.0, 1 - level), amplitude = std::sqrt(length);
        for (int p = 0; p < n; ++p) {
            double f = u.w[0][level * n + p], g = 1.0 - f;
            u.w[0][level * n + p] = (f < g ? f : g) * amplitude;
        }
    }
    const double amplitude = std::sqrt(std::ldexp(1.0, -depth));
    double *last = u.w[0] + (depth + 1) * n;
    for (int p = 0; p < n; ++p) {
        last[p] = std::sqrt(last[p] * (1.0 - last[p])) * amplitude;
        u.w[0][p] = x[p];
    }
}

static void quadratics(const double *x, int n, int depth, Weights &u) {
    for (int level = 1; level < depth + 1; ++level) {
        const double length = std::ldexp(1.0, 1 - level), wide = std::sqrt(length), tall = wide * length;
        double *w0 = u.w[0] + level * n, *w1 = u.w[1] + level * n, *i0 = u.i[0] + level * n, *i1 = u.i[1] + level * n;
        for (int p = 0; p < n; ++p) {
            double f = w0[p], r = 1.0 - f, g = 2.0 * (f < r ? f : r);
            double bow = R3_2 * g * (1.0 - g), slant = g * g * (1.0 - g) * 0.125;
            w0[p] = g * (3.0 * g - 2.0) * 0.25 * wide;
            w1[p] = (f < 0.5 ? bow : -bow) * wide;
            i0[p] = (f < 0.5 ? -slant : slant) * tall;
            i1[p] = g * g * (3.0 - 2.0 * g) * R3_24 * tall;
        }
    }
    const int at = (depth + 1) * n;
    const double length = std::ldexp(1.0, -depth), wide = std::sqrt(length), tall = wide * length;
    for (int p = 0; p < n; ++p) {
        double f = u.w[0][at + p], r = 1.0 - f, cubes = 1.0 - 3.0 * f * r, v = 0.5 * std::sqrt(f * r / cubes);
        double w = 2.0 * v * cubes, i = f * (0.5 * w - v * f * f), z = x[p];
        u.w[0][at + p] = w * wide;
        u.w[1][at + p] = 0.0;
        u.i[0][at + p] = i * tall;
        u.i[1][at + p] = f * f * r * v / R3 * tall;
        u.w[0][p] = z;
        u.w[1][p] = R3 * z * (1.0 - z);
        u.i[0][p] = 0.5 * z * z;
        u.i[1][p] = z * z * (3.0 - 2.0 * z) * R3_6;
    }
}

// Sums (count, size) of W, and of I with two normals a cell, at points x of [0, 1]; the row of point p is p % rows.
static void sums(const Tree &t, const double *x, int64_t count, double *a, double *b) {
    Line l;
    Weights u;
    double v[LINE];
    const int depth = (int)t.depth, levels = depth + 2, most = LINE / levels, each = (int)t.each, parts = 4 / each;
    const int64_t leaves = 1LL << depth, blocks = (each * t.size + 3) / 4;
    for (int64_t start = 0; start < count; start += most) {
        const int n = (int)(count - start < most ? count - start : most), all = n * levels;
        const double *at = x + start;
        for (int p = 0; p < n; ++p) {
            int64_t leaf = (int64_t)std::floor(at[p] * (double)leaves);
            leaf = leaf < 0 ? 0 : leaf > leaves - 1 ? leaves - 1 : leaf;
            u.node[p] = 0;
            for (int level = 1; level < levels; ++level) {
                const int shift = depth + 1 - level;
                u.node[level * n + p] = (uint64_t)((leaf + leaves) >> shift);
                // A quotient by a power of two, exact as the product.
                u.w[0][level * n + p] = at[p] * (double)(1LL << (level - 1)) - (double)(leaf >> shift);
            }
        }
        if (each == 1) hats(at, n, depth, u);
        else quadratics(at, n, depth, u);
        for (int64_t block = 0; block < blocks; ++block) {
            for (int k = 0; k < all; ++k) {
                l.c0[k] = (uint32_t)block;
                l.c2[k] = (uint32_t)u.node[k];
                l.c3[k] = (uint32_t)(u.node[k] >> 32);
            }
            for (int p = 0; p < n; ++p) l.c1[p] = (uint32_t)t.row[(start + p) % t.rows];
            for (int level = 1; level < levels; ++level) memcpy(l.c1 + level * n, l.c1, 4 * n);
            draw(l, all, t.seed);
            double *z[4] = {l.z0, l.z1, l.z2, l.z3};
            for (int part = 0; part < parts; ++part) {
                const int64_t component = block * parts + part;
                if (component >= t.size) break;
                double *f = z[each * part], *g = z[each * part + each - 1];
                for (int p = 0; p < n; ++p) {
                    const int64_t known = (start + p) % t.rows * t.size + component;
                    if (t.root_w) f[p] = t.root_w[known];
                    if (t.root_h) g[p] = t.root_h[known];
                }
                for (int which = 0; which < each; ++which) {
                    const double *w = which ? u.i[0] : u.w[0], *s = which ? u.i[1] : u.w[1];
                    if (each == 1) for (int k = 0; k < all; ++k) v[k] = w[k] * f[k];
                    else for (int k = 0; k < all; ++k) v[k] = w[k] * f[k] + s[k] * g[k];
                    halves(v, levels, n);
                    double *out = which ? b : a;
                    for (int p = 0; p < n; ++p) out[(start + p) * t.size + component] = v[p];
                }
            }
        }
    }
}

extern "C" void tree_values(const Tree *t, const double *x, int64_t count, double *a, double *b) {
    sums(*t, x, count, a, b);
}

struct Query {
    Tree tree;
    const double *low, *length;
    double *t, *dt;         // (rows,) each
    double *times, *x;      // (2, rows) of the states that are kept, and (rows,)
    double *w, *i;          // (2, rows, size)
    int64_t have[2];
    double slack;
};

static int find(Query &q, const double *time) {
    for (int k = 0; k < 2; ++k)
        if (q.have[k] && !memcmp(q.times + k * q.tree.rows, time, 8 * q.tree.rows)) return k;
    return -1;
}

static void form(Query &q, const double *time, int place) {
    const int64_t rows = q.tree.rows, area = rows * q.tree.size;
    for (int64_t r = 0; r < rows; ++r) {
        double x = (time[r] - q.low[r]) / q.length[r];
        q.x[r] = x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x;
    }
    sums(q.tree, q.x, rows, q.w + place * area, q.i + place * area);
    memcpy(q.times + place * rows, time, 8 * rows);
    q.have[place] = 1;
}

// W and H over [t, t + dt]; the states at both ends are kept for the next query. 1 where a time is outside.
template <class T> static int increment(Query &q, T *W, T *H) {
    const int64_t rows = q.tree.rows, size = q.tree.size, area = rows * size;
    double *end = q.x + rows;
    bool good = true;
    for (int64_t r = 0; r < rows; ++r) {
        end[r] = q.t[r] + q.dt[r];
        double a = (q.t[r] - q.low[r]) / q.length[r], b = (end[r] - q.low[r]) / q.length[r];
        good = good && a >= -q.slack && a <= 1.0 + q.slack && b >= -q.slack && b <= 1.0 + q.slack;
    }
    if (!good) return 1;
    int from = find(q, q.t), to = find(q, end);
    if (from < 0) { from = to < 0 ? 0 : 1 - to; form(q, q.t, from); }
    if (to < 0) { to = 1 - from; form(q, end, to); }
    const double *w0 = q.w + from * area, *w1 = q.w + to * area, *i0 = q.i + from * area, *i1 = q.i + to * area;
    for (int64_t r = 0; r < rows; ++r) {
        const double unit = std::sqrt(q.length[r]), h = q.dt[r] / q.length[r];
        const bool moving = q.dt[r] != 0.0;
        for (int64_t k = r * size; k < (r + 1) * size; ++k) {
            W[k] = moving ? (T)((w1[k] - w0[k]) * unit) : (T)0;
            if (q.tree.each == 2)
                H[k] = moving ? (T)(((i1[k] - i0[k]) / h - 0.5 * (w0[k] + w1[k])) * unit) : (T)0;
        }
    }
    return 0;
}

extern "C" int increment_double(Query *q, double *W, double *H) { return increment(*q, W, H); }
extern "C" int increment_float(Query *q, float *W, float *H) { return increment(*q, W, H); }
"""


def _with_roots(text: str) -> str:
    roots = {"_HALVES": math.sqrt(3.0) / 2.0, "_24TH": math.sqrt(3.0) / 24.0, "_6TH": math.sqrt(3.0) / 6.0}
    for name, value in roots.items():
        text = text.replace("ROOT_3" + name, repr(value))
    return text.replace("ROOT_3", repr(math.sqrt(3.0)))


TEXT = _DRAW + _RUNS + _with_roots(_TREES)
