// L channels that share q and k, one state of n numbers each; the channels lie in the lanes of a vector.
//
//     h_t = exp(log_t rate) h_{t-1} + k_t v_t                   y_t = q_t^T h_t   (exclusive: q_t^T h_{t-1})
//
// Backwards as in matrix.h; the gradients of q and k are summed over the lanes at the end of each step.

enum { STILL = 0, VARYING, PRODUCT, CONSTANT };  // a = 1, exp(log), exp(log rate), exp(rate)

static int channel_decay(const channel_job *j) {
    return j->log.at ? j->rate.at ? PRODUCT : VARYING : j->rate.at ? CONSTANT : STILL;
}

// [vectors of the chunk][n] from rows x [n][L], or from states x [L][n].
static void take_rows(REAL *to, const REAL *x, int64_t row, int64_t lane, int64_t n, int64_t lanes) {
    for (int64_t l = 0; l < lanes; l += LANES)
        for (int64_t i = 0; i < n; i++, to += LANES)
            for (int64_t c = 0; c < LANES; c++) to[c] = l + c < lanes ? x[i * row + (l + c) * lane] : 0;
}

static void put_rows(REAL *x, const REAL *from, int64_t row, int64_t lane, int64_t n, int64_t lanes) {
    for (int64_t l = 0; l < lanes; l += LANES)
        for (int64_t i = 0; i < n; i++, from += LANES)
            for (int64_t c = 0; c < LANES && l + c < lanes; c++) x[i * row + (l + c) * lane] = from[c];
}

typedef struct {
    int64_t b, first, lanes, vectors;
    const REAL *v, *log, *q, *k;
    REAL *y;
} strip;

static strip strip_of(const channel_job *j, int64_t item, int64_t *chunk) {
    const int64_t chunks = (j->L + j->chunk - 1) / j->chunk;
    strip s;
    *chunk = item % chunks;
    s.b = item / chunks, s.first = *chunk * j->chunk;
    s.lanes = j->L - s.first < j->chunk ? j->L - s.first : j->chunk;
    s.vectors = (s.lanes + LANES - 1) / LANES;
    return s;
}

INLINE REAL *row(const tensor *x, int64_t b, int64_t t) { return (REAL *)x->at + b * x->b + t * x->t; }

// One step of a vector of channels: the states h [n] (in place, or into `to`), and what they read.
INLINE vec channel_step(vec v, vec log, const REAL *rate, const REAL *k, const REAL *q, const REAL *h, REAL *to,
                              REAL *factors, int64_t n, int decay, int shared, int exclusive) {
    vec y = all(0), a = all(1);
    if (decay == VARYING) a = vexp(log);
    for (int64_t i = 0; i < n; i++) {
        vec s = load(h + i * LANES), qi = shared ? all(q[i]) : all(1);
        if (exclusive) y += qi * s;
        if (decay == PRODUCT) a = vexp(log * load(rate + i * LANES));
        if (decay == CONSTANT) a = load(rate + i * LANES);  // its exponential was taken before
        if (factors) store(factors + i * LANES, a);
        vec write = shared ? v * all(k[i]) : v;
        s = decay == STILL ? s + write : a * s + write;
        if (!exclusive) y += qi * s;
        store(to + i * LANES, s);
    }
    return y;
}

INLINE void channel_forward(const channel_job *j, const strip *s, REAL *h, const REAL *rate, int64_t n,
                                  int decay, int shared, int exclusive) {
    const int64_t tiles = (j->T + TILE - 1) / TILE;
    for (int64_t t = 0; t < j->T; t++) {
        if (j->kept.at && t % TILE == 0)
            put_rows((REAL *)j->kept.at + (s->b * tiles + t / TILE) * n * j->L + s->first, h, j->L, 1, n, s->lanes);
        const REAL *v = row(&j->v, s->b, t) + s->first, *log = j->log.at ? row(&j->log, s->b, t) + s->first : v;
        const REAL *k = shared ? row(&j->k, s->b, t) : v, *q = shared ? row(&j->q, s->b, t) : v;
        REAL *y = row(&j->y, s->b, t) + s->first;
        for (int64_t c = 0; c < s->vectors; c++) {
            const int64_t at = c * LANES, here = s->lanes - at;
            vec g = decay == VARYING || decay == PRODUCT ? load_some(log + at, here) : all(0);
            vec read = channel_step(load_some(v + at, here), g, rate + at * n, k, q, h + at * n, h + at * n, 0,
                                          n, decay, shared, exclusive);
            store_some(y + at, read, here);
        }
    }
}

#define EACH_DECAY(call) \
    do { \
        switch (decay) { \
            case STILL: call(STILL); break; \
            case VARYING: call(VARYING); break; \
            case PRODUCT: call(PRODUCT); break; \
            default: call(CONSTANT); \
        } \
    } while (0)

static REAL *take_rates(const channel_job *j, const strip *s, REAL *rate, int decay) {
    if (j->rate.at) {
        take_rows(rate, (REAL *)j->rate.at + s->first, j->L, 1, j->n, s->lanes);
        if (decay == CONSTANT) exps(rate, s->vectors * j->n * LANES);
    }
    return rate;
}

static void channel_forward_item(const void *job, int64_t item, void *scratch) {
    const channel_job *j = job;
    int64_t chunk;
    const strip s = strip_of(j, item, &chunk);
    const int64_t n = j->n, size = s.vectors * n * LANES;
    const int decay = channel_decay(j), shared = j->q.at != 0, exclusive = j->exclusive;
    REAL *h = scratch, *rate = take_rates(j, &s, h + size, decay);
    take_rows(h, (REAL *)j->S.at + (s.b * j->L + s.first) * n, 1, n, n, s.lanes);
#define ONE(d) \
    (!shared ? exclusive ? channel_forward(j, &s, h, rate, 1, d, 0, 1) : channel_forward(j, &s, h, rate, 1, d, 0, 0) \
     : exclusive ? channel_forward(j, &s, h, rate, n, d, 1, 1) : n == 16 ? channel_forward(j, &s, h, rate, 16, d, 1, 0) : channel_forward(j, &s, h, rate, n, d, 1, 0))
    EACH_DECAY(ONE);
#undef ONE
    put_rows((REAL *)j->end.at + (s.b * j->L + s.first) * n, h, 1, n, n, s.lanes);
}

typedef struct {
    REAL *rate, *D, *drate, *states, *factors, *gq, *gk;
} channel_room;

static int64_t channel_rooms(const channel_job *j, int64_t lanes, REAL *at, channel_room *x) {
    REAL *start = at;
    const int64_t size = padded(lanes) * j->n;
    x->rate = at, at += size;
    x->D = at, at += size;
    x->drate = at, at += size;
    x->gq = at, at += padded(j->n) * LANES;
    x->gk = at, at += padded(j->n) * LANES;
    x->states = at, at += (TILE + 1) * size;
    x->factors = at, at += TILE * size;
    return at - start;
}

INLINE void channel_backward(const channel_job *j, const strip *s, const channel_room *x, int64_t chunk,
                                   int64_t n, int decay, int shared, int exclusive) {
    const int64_t tiles = (j->T + TILE - 1) / TILE, size = s->vectors * n * LANES;
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        const int64_t start = tile * TILE, stop = start + TILE < j->T ? start + TILE : j->T;
        take_rows(x->states, (REAL *)j->kept.at + (s->b * tiles + tile) * n * j->L + s->first, j->L, 1, n, s->lanes);
        for (int64_t t = start; t < stop; t++) {
            const REAL *v = row(&j->v, s->b, t) + s->first, *log = j->log.at ? row(&j->log, s->b, t) + s->first : v;
            const REAL *k = shared ? row(&j->k, s->b, t) : v, *q = shared ? row(&j->q, s->b, t) : v;
            REAL *h = x->states + (t - start) * size;
            for (int64_t c = 0; c < s->vectors; c++) {
                const int64_t at = c * LANES, here = s->lanes - at;
                vec g = decay == VARYING || decay == PRODUCT ? load_some(log + at, here) : all(0);
                channel_step(load_some(v + at, here), g, x->rate + at * n, k, q, h + at * n, h + size + at * n,
                                   x->factors + (t - start) * size + at * n, n, decay, shared, exclusive);
            }
        }
        for (int64_t t = stop - 1; t >= start; t--) {
            const REAL *v = row(&j->v, s->b, t) + s->first, *log = j->log.at ? row(&j->log, s->b, t) + s->first : v;
            const REAL *k = shared ? row(&j->k, s->b, t) : v, *q = shared ? row(&j->q, s->b, t) : v;
            const REAL *gy = row(&j->gy, s->b, t) + s->first;
            REAL *dv = row(&j->dv, s->b, t) + s->first, *dlog = j->log.at ? row(&j->dlog, s->b, t) + s->first : dv;
            if (shared)
                for (int64_t i = 0; i < padded(n); i++) store(x->gq + i * LANES, all(0)), store(x->gk + i * LANES, all(0));
            for (int64_t c = 0; c < s->vectors; c++) {
                const int64_t at = c * LANES, here = s->lanes - at;
                const REAL *before = x->states + (t - start) * size + at * n, *read = exclusive ? before : before + size;
                const REAL *factors = x->factors + (t - start) * size + at * n;
                REAL *D = x->D + at * n, *drate = x->drate + at * n;
                vec g = load_some(gy + at, here), u = load_some(v + at, here), gv = all(0), gl = all(0);
                vec l = decay == PRODUCT ? load_some(log + at, here) : all(0);
                for (int64_t i = 0; i < n; i++) {
                    vec d = load(D + i * LANES), qg = shared ? all(q[i]) * g : g;
                    if (!exclusive) d += qg;
                    if (shared) {
                        store(x->gq + i * LANES, load(x->gq + i * LANES) + load(read + i * LANES) * g);
                        store(x->gk + i * LANES, load(x->gk + i * LANES) + d * u);
                        gv += all(k[i]) * d;
                    } else
                        gv += d;
                    if (decay != STILL) {
                        d *= load(factors + i * LANES);
                        vec e = d * load(before + i * LANES);
                        if (decay == VARYING) gl += e;
                        if (decay == PRODUCT) gl += e * load(x->rate + at * n + i * LANES);
                        if (decay == PRODUCT) store(drate + i * LANES, load(drate + i * LANES) + e * l);
                        if (decay == CONSTANT) store(drate + i * LANES, load(drate + i * LANES) + e);
                    }
                    if (exclusive) d += qg;
                    store(D + i * LANES, d);
                }
                store_some(dv + at, gv, here);
                if (decay == VARYING || decay == PRODUCT) store_some(dlog + at, gl, here);
            }
            if (!shared) continue;
            REAL *dq = row(&j->dq, s->b, t) + chunk * j->dq.g, *dk = row(&j->dk, s->b, t) + chunk * j->dk.g;
            for (int64_t i = 0; i < n; i += LANES) {
                vec each[LANES];
                memcpy(each, x->gq + i * LANES, sizeof each);
                store_some(dq + i, sums(each), n - i);
                memcpy(each, x->gk + i * LANES, sizeof each);
                store_some(dk + i, sums(each), n - i);
            }
        }
    }
}

static void channel_backward_item(const void *job, int64_t item, void *scratch) {
    const channel_job *j = job;
    int64_t chunk;
    const strip s = strip_of(j, item, &chunk);
    channel_room x;
    channel_rooms(j, j->chunk, scratch, &x);
    const int64_t n = j->n, size = s.vectors * n * LANES;
    const int decay = channel_decay(j), shared = j->q.at != 0, exclusive = j->exclusive;
    take_rates(j, &s, x.rate, decay);
    memset(x.drate, 0, size * sizeof(REAL));
    take_rows(x.D, (REAL *)j->gend.at + (s.b * j->L + s.first) * n, 1, n, n, s.lanes);
#define ONE(d) \
    (!shared ? exclusive ? channel_backward(j, &s, &x, chunk, 1, d, 0, 1) : channel_backward(j, &s, &x, chunk, 1, d, 0, 0) \
     : exclusive ? channel_backward(j, &s, &x, chunk, n, d, 1, 1) : channel_backward(j, &s, &x, chunk, n, d, 1, 0))
    EACH_DECAY(ONE);
#undef ONE
    put_rows((REAL *)j->dS.at + (s.b * j->L + s.first) * n, x.D, 1, n, n, s.lanes);
    if (j->rate.at) put_rows((REAL *)j->drate.at + s.b * n * j->L + s.first, x.drate, j->L, 1, n, s.lanes);
}

static int64_t strips(const channel_job *j) { return j->B * ((j->L + j->chunk - 1) / j->chunk); }

int channel_forward_run(const channel_job *j) {
    return share_out(channel_forward_item, j, strips(j), 2 * padded(j->chunk) * j->n * sizeof(REAL),
                     j->threads);
}

int channel_backward_run(const channel_job *j) {
    channel_room x;
    return share_out(channel_backward_item, j, strips(j),
                     channel_rooms(j, j->chunk, 0, &x) * sizeof(REAL), j->threads);
}

