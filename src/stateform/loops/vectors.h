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

// In blocks of `size` lanes: the even ones of a and b in turns, and the odd ones.
INLINE void exchange(int size, vec a, vec b, vec *even, vec *odd) {
#if PRECISION == 64
    if (size == 4)
        *even = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11), *odd = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    else if (size == 2)
        *even = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13), *odd = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    else
        *even = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14), *odd = SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
#else
    if (size == 8)
        *even = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
        *odd = SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    else if (size == 4)
        *even = SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
        *odd = SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    else if (size == 2)
        *even = SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
        *odd = SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    else
        *even = SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
        *odd = SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#endif
}

// The sums of LANES vectors, each over its own lanes, in one vector: halves are added pairwise, then quarters, ...
INLINE vec sums(vec *x) {
#pragma GCC unroll 4
    for (int size = LANES / 2; size > 0; size /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < size; i++) {
            vec even, odd;
            exchange(size, x[i], x[i + size], &even, &odd);
            x[i] = even + odd;
        }
    return x[0];
}

// to[j][i] = from[i][j]; rows and columns are multiples of LANES.
static void transpose(REAL *to, int64_t to_width, const REAL *from, int64_t width, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r += LANES)
        for (int64_t c = 0; c < columns; c += LANES) {
            vec x[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) x[i] = load(from + (r + i) * width + c);
#pragma GCC unroll 4
            for (int size = LANES / 2; size > 0; size /= 2)
#pragma GCC unroll 8
                for (int pair = 0; pair < LANES / 2; pair++) {
                    const int i = pair / size * size + pair;  // those without the bit `size`
                    vec even, odd;
                    exchange(size, x[i], x[i + size], &even, &odd);
                    x[i] = even, x[i + size] = odd;
                }
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (c + i) * to_width + r, x[i]);
        }
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
