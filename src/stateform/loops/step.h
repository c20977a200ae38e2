// One step of each recurrence, for decoding: straight from the memory of the old state to that of the new one, which may
// be the same. The loops over many steps first bring a state into their own memory; for a single one that is most of the work.

// NV vectors of columns of a state, `here` columns of them: [n][p] from `S`, `v` and `y` [columns].
INLINE void step_columns(const tile *x, const REAL *S, REAL *to, int64_t n, int64_t p, const REAL *v, REAL *y, int64_t here,
                         int NV, int decay, int feedback, int exclusive) {
    vec value[4], read[4], z[4], a = all(decay == SCALAR_DECAY ? x->a[0] : 1);
    for (int c = 0; c < NV; c++) value[c] = load_some(v + c * LANES, here - c * LANES), read[c] = z[c] = all(0);
    if (feedback)
        for (int64_t i = 0; i < n; i++)
            for (int c = 0; c < NV; c++) z[c] += all(x->w[i]) * load_some(S + i * p + c * LANES, here - c * LANES);
    for (int64_t i = 0; i < n; i++) {
        const vec k = all(x->k[i]), q = all(x->q[i]), f = feedback ? all(x->f[i]) : all(0);
        if (decay == DIAGONAL_DECAY) a = all(x->a[i]);
        for (int c = 0; c < NV; c++) {
            vec s = load_some(S + i * p + c * LANES, here - c * LANES);
            if (exclusive) read[c] += q * s;
            s = decay == NO_DECAY ? s + k * value[c] : a * s + k * value[c];
            if (feedback) s += f * z[c];
            if (!exclusive) read[c] += q * s;
            store_some(to + i * p + c * LANES, s, here - c * LANES);
        }
    }
    for (int c = 0; c < NV; c++) store_some(y + c * LANES, read[c], here - c * LANES);
}

// A block of at most 4 LANES columns of a head.
static void step_block(const tile *x, const REAL *S, REAL *to, int64_t n, int64_t p, const REAL *v, REAL *y, int64_t columns,
                       int decay, int feedback, int exclusive) {
    for (int64_t c = 0; c < columns;) {
        const int NV = columns - c >= 4 * LANES ? 4 : 1;
        const int64_t here = NV == 4 ? 4 * LANES : columns - c < LANES ? columns - c : LANES;
#define STEP(nv, w, d, f, e) step_columns(x, S + c, to + c, n, p, v + c, y + c, w, nv, d, f, e)
#define READ(nv, w, d, f) (exclusive ? STEP(nv, w, d, f, 1) : STEP(nv, w, d, f, 0))
#define FED(nv, w, d) (feedback ? READ(nv, w, d, 1) : READ(nv, w, d, 0))
#define WIDE(d) (NV == 4 ? FED(4, 4 * LANES, d) : here == LANES ? FED(1, LANES, d) : FED(1, here, d))
        switch (decay) {
            case DIAGONAL_DECAY: WIDE(DIAGONAL_DECAY); break;
            case SCALAR_DECAY: WIDE(SCALAR_DECAY); break;
            default: WIDE(NO_DECAY);
        }
#undef STEP
#undef READ
#undef FED
#undef WIDE
        c += here;
    }
}

static void matrix_step_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    const place o = find(j, item, j->R);
    tile x;
    REAL *unused;
    matrix_scratch(j, &x, &unused, scratch, 0);
    x.steps = 1;
    pack_keys(j, &x, o.b, o.g, o.r, 0);
    const REAL *S = element(&j->S, o.b, 0, o.g, o.r);
    REAL *to = element(&j->end, o.b, 0, o.g, o.r), *y = element(&j->y, o.b, 0, o.g, o.r);
    for (int64_t c = o.first; c < o.last; c += 4 * LANES) {
        const int64_t here = o.last - c < 4 * LANES ? o.last - c : 4 * LANES;
        REAL v[4 * LANES];
        pack(v, here, &j->v, o.b, 0, 1, o.g, o.r, c, o.last);
        step_block(&x, S + c, to + c, j->n, j->p, v, y + c, here, decay_of(j), j->f.at != 0, j->exclusive);
    }
}

// One token of a system from its parts as they lie, [B,H,...] each: a part that is not there counts as 1 (d: as 0).
//
//     S' = exp(log rate) S + f (w^T S) + b k v^T           y = q^T S' + d v   (exclusive: q^T S + d v)

enum { OLD, Q, K, V, LOG, RATE, WRITE, DIRECT, F, W, NEW, READS, PARTS };

typedef struct { int64_t b, h, n, share; } steps;  // to the next row, head and number; how many heads share one

typedef struct {
    void *at[PARTS];
    int64_t B, H, n, p, threads, exclusive;
    steps by[PARTS];
    int64_t grows;  // set where a log decay is above 0 by more than roundings, or not a number
} token_job;

INLINE REAL *part(const token_job *j, int which, int64_t b, int64_t h) {
    const steps *by = &j->by[which];
    return (REAL *)j->at[which] + b * by->b + (by->share > 1 ? h / by->share : h) * by->h;
}

// A number a head, of LANES heads.
INLINE vec of_heads(const token_job *j, int which, int64_t b, int64_t h, int64_t here) {
    if (j->by[which].h == 1 && j->by[which].share == 1) return load_some(part(j, which, b, h), here);
    vec x = all(0);
    for (int64_t c = 0; c < LANES && c < here; c++) x[c] = *part(j, which, b, h + c);
    return x;
}

INLINE vec of_keys(const token_job *j, int which, const REAL *x, int64_t i, int64_t here) {
    return j->by[which].n ? load_some(x + i, here) : all(*x);
}

INLINE vec decay_of_keys(const token_job *j, const REAL *log, const REAL *rate, int64_t i, int64_t here, ints *grows) {
    if (!j->at[LOG]) return all(1);
    vec x = of_keys(j, LOG, log, i, here);
    if (j->at[RATE]) {
        x *= of_keys(j, RATE, rate, i, here);
        for (int64_t c = here; c < LANES; c++) x[c] = 0;  // past the keys: an infinite log (a reset) times 0
    }
    *grows |= ~(x <= all((REAL)1e-6));
    return vexp(x);
}

static void note_growth(const token_job *j, ints grows) {
    for (int i = 0; i < LANES; i++)
        if (grows[i]) __atomic_store_n(&((token_job *)j)->grows, 1, __ATOMIC_RELAXED);
}

// Heads of one value each, no feedback: their keys lie in the lanes, with n = 1 they do themselves.
static void token_channels(const token_job *j, int64_t b, int64_t h, int64_t here) {
    const int64_t n = j->n;
    const vec v = of_heads(j, V, b, h, here), write = j->at[WRITE] ? v * of_heads(j, WRITE, b, h, here) : v;
    const REAL *S = part(j, OLD, b, h);
    REAL *to = part(j, NEW, b, h);
    ints grows = {0};
    vec y;
    if (n == 1) {
        vec a = all(1), before = load_some(S, here);
        if (j->at[LOG]) a = of_heads(j, LOG, b, h, here);
        if (j->at[RATE]) a *= of_heads(j, RATE, b, h, here);
        if (j->at[LOG]) grows = ~(a <= all((REAL)1e-6)), a = vexp(a);
        const vec after = a * before + of_heads(j, K, b, h, here) * write;
        store_some(to, after, here);
        y = of_heads(j, Q, b, h, here) * (j->exclusive ? before : after);
    } else {
        vec reads[LANES];
        for (int64_t c = 0; c < LANES; c++) {
            reads[c] = all(0);
            if (c >= here) continue;
            const REAL *k = part(j, K, b, h + c), *q = part(j, Q, b, h + c);
            const REAL *log = part(j, LOG, b, h + c), *rate = part(j, RATE, b, h + c);
            for (int64_t i = 0; i < n; i += LANES) {
                const vec before = load_some(S + c * n + i, n - i);
                const vec a = decay_of_keys(j, log, rate, i, n - i, &grows);
                const vec after = a * before + load_some(k + i, n - i) * all(write[c]);
                store_some(to + c * n + i, after, n - i);
                reads[c] += load_some(q + i, n - i) * (j->exclusive ? before : after);
            }
        }
        y = sums(reads);
    }
    if (j->at[DIRECT]) y += of_heads(j, DIRECT, b, h, here) * v;
    store_some(part(j, READS, b, h), y, here);
    note_growth(j, grows);
}

// A head of several values: they lie in the lanes.
static void token_head(const token_job *j, int64_t b, int64_t h, REAL *a) {
    const int64_t n = j->n, p = j->p;
    const int decay = !j->at[LOG] ? NO_DECAY : n > 1 && (j->by[LOG].n || j->by[RATE].n) ? DIAGONAL_DECAY : SCALAR_DECAY;
    const REAL *log = part(j, LOG, b, h), *rate = part(j, RATE, b, h), *v = part(j, V, b, h), *S = part(j, OLD, b, h);
    const REAL strength = j->at[WRITE] ? *part(j, WRITE, b, h) : 1, direct = j->at[DIRECT] ? *part(j, DIRECT, b, h) : 0;
    ints grows = {0};
    for (int64_t i = 0; i < (decay == DIAGONAL_DECAY ? n : 1); i += LANES)
        store(a + i, decay_of_keys(j, log, rate, i, n - i, &grows));
    note_growth(j, grows);
    const tile x = {1, n, part(j, Q, b, h), part(j, K, b, h), a, part(j, F, b, h), part(j, W, b, h)};
    REAL *to = part(j, NEW, b, h), *y = part(j, READS, b, h);
    for (int64_t c = 0; c < p; c += 4 * LANES) {
        const int64_t here = p - c < 4 * LANES ? p - c : 4 * LANES;
        REAL write[4 * LANES];
        for (int64_t i = 0; i < here; i++) write[i] = strength * v[c + i];
        step_block(&x, S + c, to + c, n, p, write, y + c, here, decay, j->at[F] != 0, j->exclusive);
        if (j->at[DIRECT])
            for (int64_t i = 0; i < here; i++) y[c + i] += direct * v[c + i];
    }
}

static int64_t heads_at_once(const token_job *j) { return j->p == 1 && !j->at[F] ? LANES : 1; }

static void token_item(const void *job, int64_t item, void *scratch) {
    const token_job *j = job;
    const int64_t many = heads_at_once(j), groups = (j->H + many - 1) / many, b = item / groups, h = item % groups * many;
    if (many > 1)
        token_channels(j, b, h, j->H - h);
    else
        token_head(j, b, h, scratch);
}

static void conv_step_item(const void *job, int64_t item, void *scratch) {
    const conv_job *j = job;
    REAL *weight = j->weight.at;
    if (j->weight.n != 1 || j->weight.t != j->L) {
        weight = scratch;
        for (int64_t i = 0; i < j->taps; i++)
            for (int64_t l = 0; l < j->L; l++) weight[i * j->L + l] = ((REAL *)j->weight.at)[i * j->weight.t + l * j->weight.n];
    }
    const REAL *rows[MOST_TAPS];
    for (int64_t i = 0; i < j->taps; i++) rows[i] = conv_row(j, item, i + 1 - j->taps);
    REAL *y = (REAL *)j->y.at + item * j->y.b;
    for (int64_t at = 0; at < j->L; at += LANES) {
        vec z = conv_sum(j, rows, weight, at, j->L - at, j->taps);
        store_some(y + at, j->activate ? z * logistic(z) : z, j->L - at);
    }
    if (j->next.at)  // the window that the next step has before it
        for (int64_t i = 1; i < j->taps; i++)
            memcpy((REAL *)j->next.at + item * j->next.b + (i - 1) * j->next.t, rows[i], j->L * sizeof(REAL));
}

int matrix_step(const matrix_job *j) {
    tile x;
    REAL *S;
    return share_out(matrix_step_item, j, j->B * j->G * j->R * j->pieces,
                     matrix_scratch(j, &x, &S, 0, 0) * sizeof(REAL), j->threads);
}

int token(const token_job *j) {
    const int64_t many = heads_at_once(j);
    return share_out(token_item, j, j->B * ((j->H + many - 1) / many), (j->n + LANES) * sizeof(REAL), j->threads);
}

int conv_step(const conv_job *j) {
    return share_out(conv_step_item, j, j->B, (j->taps + 1) * (j->L + LANES) * sizeof(REAL), j->threads);
}
