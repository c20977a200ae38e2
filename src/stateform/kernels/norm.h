// Rows [tokens][numbers], in parts of `width` numbers, each normalised by itself; a gate acts before or after.
//
//     z = x gate(g)  or  x                 y = scale z / sqrt(share |z|^2 + eps) weight      times gate(g), or not

enum { NO_GATE = 0, SILU, SIGMOID };

typedef struct {
    int64_t tokens, numbers, width, weights, chunk, threads, gate, first;  // width 0: no norm. first: the gate acts before
    REAL *x, *g, *weight, *y;
    int64_t x_step, g_step;  // to the next token; y lies in one piece
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
