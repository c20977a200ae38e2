// Rows [tokens][numbers], in parts of `width` numbers, each normalised by itself; a gate acts before or after.
//
//     z = x gate(g)  or  x                 y = scale z / sqrt(share |z|^2 + eps) weight      times gate(g), or not

enum { NO_GATE = 0, SILU, SIGMOID };

typedef struct {
    int64_t tokens, numbers, width, weights, chunk, threads, gate, first;  // width 0: no norm. first: the gate acts before
    REAL *x, *g, *weight, *y;
    REAL *gy, *dx, *dg, *dweight;  // of the gradient: in one piece; dweight one row an item
    int64_t x_step, g_step;        // to the next token; y lies in one piece
    double scale, share, eps;
} norm_job;

// 1 / sqrt(x): a first guess from the exponent, and Newton's steps. There is no square root without another library.
static double inverse_root(double x) {
    if (!(x > 0 && x < 1e300)) return x > 0 ? 0 : 1 / (x - x);  // infinite: 0, and not a number for the rest
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = 0x5fe6eb50c7b537a9 - (bits >> 1);
    double y;
    memcpy(&y, &bits, sizeof y);
    for (int i = 0; i < 5; i++) y *= 1.5 - 0.5 * x * y * y;
    return y;
}

INLINE vec gated(vec x, const REAL *g, int64_t here, int gate) {
    if (gate == NO_GATE) return x;
    const vec z = load_some(g, here), s = logistic(z);
    return x * (gate == SILU ? z * s : s);
}

INLINE void norm_part(const norm_job *j, const REAL *x, const REAL *g, const REAL *weight, REAL *y, int64_t width, int before,
                      int after) {
    vec squares = all(0), factor = all(1);
    if (j->width) {
        for (int64_t i = 0; i < width; i += LANES) {
            const vec z = gated(load_some(x + i, width - i), g + i, width - i, before);
            squares += z * z;
            if (before) store_some(y + i, z, width - i);
        }
        factor = all((REAL)(j->scale * inverse_root(j->share * sum(squares) + j->eps)));
        if (before) x = y, before = NO_GATE;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        vec z = factor * gated(load_some(x + i, width - i), g + i, width - i, before);
        if (weight) z *= load_some(weight + i, width - i);
        store_some(y + i, gated(z, g + i, width - i, after), width - i);
    }
}

static void norm_item(const void *job, int64_t item, void *scratch) {
    const norm_job *j = job;
    (void)scratch;
    const int64_t stop = (item + 1) * j->chunk < j->tokens ? (item + 1) * j->chunk : j->tokens;
    const int64_t width = j->width ? j->width : j->numbers;
    for (int64_t t = item * j->chunk; t < stop; t++) {
        const REAL *x = j->x + t * j->x_step, *g = j->g + t * j->g_step;
        REAL *y = j->y + t * j->numbers;
        for (int64_t at = 0; at < j->numbers; at += width) {
            const REAL *weight = j->weight ? j->weight + at % j->weights : 0;
#define GATED(kind) \
    (j->first ? norm_part(j, x + at, g + at, weight, y + at, width, kind, NO_GATE) \
              : norm_part(j, x + at, g + at, weight, y + at, width, NO_GATE, kind))
            switch (j->gate) {
                case SILU: GATED(SILU); break;
                case SIGMOID: GATED(SIGMOID); break;
                default: GATED(NO_GATE);
            }
#undef GATED
        }
    }
}

int norm(const norm_job *j) {
    return share_out(norm_item, j, (j->tokens + j->chunk - 1) / j->chunk, 64, j->threads);
}

// With u = x gate(g) or x, r = scale / sqrt(share |u|^2 + eps) and h the gradient of r u:
//
//     du = r h - share / scale^2 r^3 (h^T u) u        dweight = sum of gy r u (times gate(g), if that acts after)

INLINE vec slope(vec z, int gate) {  // of gate(z)
    const vec s = logistic(z);
    return gate == SILU ? s * (all(1) + z * (all(1) - s)) : s * (all(1) - s);
}

INLINE void norm_part_back(const norm_job *j, const REAL *x, const REAL *g, const REAL *weight, const REAL *gy, REAL *dx,
                           REAL *dg, REAL *dweight, int64_t width, int before, int after) {
    REAL r = 1, k = 0;
    if (j->width) {
        vec squares = all(0), along = all(0);
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t here = width - i;
            const vec u = gated(load_some(x + i, here), g + i, here, before);
            vec h = gated(load_some(gy + i, here), g + i, here, after);
            if (weight) h *= load_some(weight + i, here);
            squares += u * u, along += h * u;
        }
        r = (REAL)(j->scale * inverse_root(j->share * sum(squares) + j->eps));
        k = (REAL)(j->share / (j->scale * j->scale)) * r * r * r * sum(along);
    }
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t here = width - i;
        const vec w = weight ? load_some(weight + i, here) : all(1), v = load_some(x + i, here), y = load_some(gy + i, here);
        const vec u = gated(v, g + i, here, before), h = gated(y, g + i, here, after), du = all(r) * h * w - all(k) * u;
        if (dweight) store_some(dweight + i, load_some(dweight + i, here) + h * all(r) * u, here);
        store_some(dx + i, gated(du, g + i, here, before), here);
        if (before) store_some(dg + i, du * v * slope(load_some(g + i, here), before), here);
        if (after) store_some(dg + i, y * w * all(r) * u * slope(load_some(g + i, here), after), here);
    }
}

static void norm_back_item(const void *job, int64_t item, void *scratch) {
    const norm_job *j = job;
    (void)scratch;
    const int64_t stop = (item + 1) * j->chunk < j->tokens ? (item + 1) * j->chunk : j->tokens;
    const int64_t width = j->width ? j->width : j->numbers;
    REAL *dweight = j->dweight ? j->dweight + item * j->weights : 0;
    if (dweight) memset(dweight, 0, j->weights * sizeof(REAL));
    for (int64_t t = item * j->chunk; t < stop; t++) {
        const REAL *x = j->x + t * j->x_step, *g = j->g + t * j->g_step;
        for (int64_t at = 0; at < j->numbers; at += width) {
            const int64_t here = t * j->numbers + at, w = j->weight ? at % j->weights : 0;
#define BACK(before, after) \
    norm_part_back(j, x + at, g + at, j->weight ? j->weight + w : 0, j->gy + here, j->dx + here, j->dg + here, \
                   dweight ? dweight + w : 0, width, before, after)
            switch (j->gate) {
                case SILU: j->first ? BACK(SILU, NO_GATE) : BACK(NO_GATE, SILU); break;
                case SIGMOID: j->first ? BACK(SIGMOID, NO_GATE) : BACK(NO_GATE, SIGMOID); break;
                default: BACK(NO_GATE, NO_GATE);
            }
#undef BACK
        }
    }
}

int norm_back(const norm_job *j) {
    return share_out(norm_back_item, j, (j->tokens + j->chunk - 1) / j->chunk, 64, j->threads);
}
