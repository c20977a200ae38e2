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
    for (int64_t c = o.first; c < o.last;) {
        const int NV = o.last - c >= 4 * LANES ? 4 : 1;
        const int64_t here = NV == 4 ? 4 * LANES : o.last - c < LANES ? o.last - c : LANES;
        REAL v[4 * LANES];
        pack(v, here, &j->v, o.b, 0, 1, o.g, o.r, c, o.last);
#define STEP(nv, w, d, f, e) step_columns(&x, S + c, to + c, j->n, j->p, v, y + c, w, nv, d, f, e)
#define READ(nv, w, d, f) (j->exclusive ? STEP(nv, w, d, f, 1) : STEP(nv, w, d, f, 0))
#define FED(nv, w, d) (j->f.at ? READ(nv, w, d, 1) : READ(nv, w, d, 0))
#define WIDE(d) (NV == 4 ? FED(4, 4 * LANES, d) : here == LANES ? FED(1, LANES, d) : FED(1, here, d))
        switch (decay_of(j)) {
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

// The channels of an item, LANES at a time. With n = 1 they lie in the lanes; else the n numbers of a channel do.
INLINE void step_channels(const channel_job *j, const strip *s, int decay, int shared) {
    const REAL *v = row(&j->v, s->b, 0), *log = j->log.at ? row(&j->log, s->b, 0) : v, *rates = j->rate.at;
    const REAL *k = shared ? row(&j->k, s->b, 0) : 0, *q = shared ? row(&j->q, s->b, 0) : 0;
    const REAL *S = (REAL *)j->S.at + s->b * j->S.b;
    REAL *to = (REAL *)j->end.at + s->b * j->end.b, *y = row(&j->y, s->b, 0);
    const int64_t n = j->n, last = s->first + s->lanes;
    for (int64_t at = s->first; at < last; at += LANES) {
        const int64_t here = last - at < LANES ? last - at : LANES;
        if (n == 1) {
            const vec h = load_some(S + at, here), read = shared ? all(q[0]) : all(1);
            vec write = load_some(v + at, here), a = all(1), rate = all(1);
            if (shared) write *= all(k[0]);
            if (decay == PRODUCT || decay == CONSTANT)
                rate = j->rate.n == 1 ? load_some(rates + at, here) : all(rates[0]);
            if (decay == VARYING || decay == PRODUCT) a = vexp(load_some(log + at, here) * rate);
            if (decay == CONSTANT) a = vexp(rate);
            const vec new = a * h + write;
            store_some(to + at, new, here);
            store_some(y + at, read * (j->exclusive ? h : new), here);
            continue;
        }
        vec reads[LANES];
        for (int64_t c = 0; c < LANES; c++) reads[c] = all(0);
        for (int64_t c = 0; c < here; c++) {
            const int64_t l = at + c;
            vec a = decay == VARYING ? vexp(all(log[l])) : all(1);
            for (int64_t i = 0; i < n; i += LANES) {
                const vec h = load_some(S + l * n + i, n - i);
                if (decay == PRODUCT || decay == CONSTANT) {
                    const REAL *from = rates + i * j->rate.g + l * j->rate.n;
                    vec rate = all(0);
                    if (j->rate.g == 1)
                        rate = load_some(from, n - i);
                    else
                        for (int64_t m = 0; m < LANES && i + m < n; m++) rate[m] = from[m * j->rate.g];
                    a = vexp(decay == PRODUCT ? all(log[l]) * rate : rate);
                }
                const vec new = a * h + load_some(k + i, n - i) * all(v[l]);
                store_some(to + l * n + i, new, n - i);
                reads[c] += load_some(q + i, n - i) * (j->exclusive ? h : new);
            }
        }
        store_some(y + at, sums(reads), here);
    }
}

static void channel_step_item(const void *job, int64_t item, void *scratch) {
    const channel_job *j = job;
    (void)scratch;
    int64_t chunk;
    const strip s = strip_of(j, item, &chunk);
    const int decay = channel_decay(j);
#define ONE(d) (j->k.at ? step_channels(j, &s, d, 1) : step_channels(j, &s, d, 0))
    EACH_DECAY(ONE);
#undef ONE
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
}

int matrix_step(const matrix_job *j) {
    tile x;
    REAL *S;
    return share_out(matrix_step_item, j, j->B * j->G * j->R * j->pieces,
                     matrix_scratch(j, &x, &S, 0, 0) * sizeof(REAL), j->threads);
}

int channel_step_run(const channel_job *j) {
    return share_out(channel_step_item, j, j->B * ((j->L + j->chunk - 1) / j->chunk), 64, j->threads);
}

int conv_step(const conv_job *j) {
    return share_out(conv_step_item, j, j->B, (j->taps + 1) * (j->L + LANES) * sizeof(REAL), j->threads);
}
