// Vectors of LANES numbers, their exponential and sums, and tensors as packed rows.

#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(64)));
typedef INT ints __attribute__((vector_size(64)));

INLINE vec load(const REAL *x) {
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store(REAL *x, vec v) { memcpy(x, &v, sizeof v); }

INLINE vec all(REAL x) {
#if PRECISION == 64
    return (vec){x, x, x, x, x, x, x, x};
#else
    return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}

INLINE vec most(vec a, vec b) {
    ints more = a > b;
    return (vec)(((ints)a & more) | ((ints)b & ~more));
}

// e^x to the last digit or two: x = m ln 2 + r with |r| <= ln(2)/2, and the Taylor series of e^r. Near the least normal
// number and below the result is 0, so that a hard reset (-inf) is one. NaN stays NaN.
INLINE vec vexp(vec x) {
#if PRECISION == 64
    const REAL shift = 6755399441055744.0, high = 0x1.62e42fefa0000p-1, low = 0x1.cf79abc9e3b3ap-40, least = -708.0,
               top = 710.0;
    const int mantissa = 52;
    const INT bias = 1023;
    static const REAL series[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                  1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1};
#else
    const REAL shift = 12582912.0f, high = 0x1.62e4p-1f, low = 0x1.7f7d1cp-20f, least = -86.99f, top = 89.0f;
    const int mantissa = 23;
    const INT bias = 127;
    static const REAL series[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
#endif
    ints keep = ~(x < all(least));
    ints over = x > all(top);
    x = (vec)(((ints)x & ~over) | ((ints)all(top) & over));
    vec t = x * all((REAL)1.4426950408889634) + all(shift);
    vec m = t - all(shift);
    vec r = x - m * all(high);
    r = r - m * all(low);
    vec s = all(series[0]);
    for (unsigned i = 1; i < sizeof series / sizeof *series; i++) s = s * r + all(series[i]);
    // m + bias may be one beyond what the exponent holds near the top: the last doubling is a product.
    ints e = ((ints)t << mantissa) + ((bias - 1) << mantissa);
    s = s * (vec)e;
    s = s + s;
    return (vec)((ints)s & keep);
}

// The sums of LANES vectors, each over its own lanes, in one vector: halves are added pairwise, then quarters, ...
INLINE vec sums(vec *x) {
    vec a, b;
#if PRECISION == 64
    for (int i = 0; i < 4; i++) {
        a = x[i], b = x[i + 4];
        x[i] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
               SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 2; i++) {
        a = x[i], b = x[i + 2];
        x[i] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
               SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 1; i++) {
        a = x[i], b = x[i + 1];
        x[i] = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
               SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
#else
    for (int i = 0; i < 8; i++) {
        a = x[i], b = x[i + 8];
        x[i] = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    for (int i = 0; i < 4; i++) {
        a = x[i], b = x[i + 4];
        x[i] = SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    for (int i = 0; i < 2; i++) {
        a = x[i], b = x[i + 2];
        x[i] = SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    for (int i = 0; i < 1; i++) {
        a = x[i], b = x[i + 1];
        x[i] = SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
#endif
    return x[0];
}

INLINE REAL sum(vec x) {
    REAL s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

INLINE REAL *element(const tensor *x, int64_t b, int64_t t, int64_t g, int64_t r) {
    return (REAL *)x->at + b * x->b + t * x->t + g * x->g + r * x->r;
}

// Rows [steps][width] of a tensor's last axis from `first` on; what is beyond `size` is 0.
static void pack(REAL *to, int64_t width, const tensor *x, int64_t b, int64_t t, int64_t steps, int64_t g,
                       int64_t r, int64_t first, int64_t size) {
    int64_t here = size - first < width ? size - first : width;
    for (int64_t i = 0; i < steps; i++, to += width) {
        const REAL *from = element(x, b, t + i, g, r) + first * x->n;
        if (x->n == 1)
            memcpy(to, from, here * sizeof(REAL));
        else
            for (int64_t j = 0; j < here; j++) to[j] = from[j * x->n];
        memset(to + here, 0, (width - here) * sizeof(REAL));
    }
}

static void unpack(const REAL *from, int64_t width, const tensor *x, int64_t b, int64_t t, int64_t steps,
                         int64_t g, int64_t r, int64_t first, int64_t size, int add) {
    int64_t here = size - first < width ? size - first : width;
    for (int64_t i = 0; i < steps; i++, from += width) {
        REAL *to = element(x, b, t + i, g, r) + first;  // results are contiguous
        if (add)
            for (int64_t j = 0; j < here; j++) to[j] += from[j];
        else
            memcpy(to, from, here * sizeof(REAL));
    }
}

static void exps(REAL *x, int64_t size) {  // size a multiple of LANES
    for (int64_t i = 0; i < size; i += LANES) store(x + i, vexp(load(x + i)));
}

INLINE vec load_some(const REAL *x, int64_t here) {
    if (here >= LANES) return load(x);
    vec v = all(0);
    memcpy(&v, x, here * sizeof(REAL));
    return v;
}

INLINE void store_some(REAL *x, vec v, int64_t here) { memcpy(x, &v, (here < LANES ? here : LANES) * sizeof(REAL)); }
