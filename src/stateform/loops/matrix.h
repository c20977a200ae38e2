// Per head, a state S of n keys by p values; columns are independent, and lie in the lanes of a vector.
//
//     z_t = S_{t-1}^T w_t                                       (with feedback)
//     S_t = exp(log_t) S_{t-1} + k_t v_t^T + f_t z_t^T          y_t = q_t^T S_t   (exclusive: q_t^T S_{t-1})
//
// The gradient runs backwards over tiles of TILE steps: the state before each tile was kept, those inside are computed
// again. With D_t the gradient of S_t (from y_t, y_{t+1}, ...):
//
//     dq_t = S_t gy_t     dk_t = D_t v_t     dv_t = D_t^T k_t     da_t = rowsum(D_t * S_{t-1})
//     df_t = D_t z_t      dz_t = D_t^T f_t   dw_t = S_{t-1} dz_t  D_{t-1} = a_t D_t + w_t dz_t^T + q_{t-1} gy_{t-1}^T

// What one tile of one head needs, packed: keys in rows of n (padded to LANES), columns in rows of width NV * LANES.
typedef struct {
    int64_t steps, n;
    REAL *q, *k, *a, *f, *w;     // [TILE][n]; a [TILE] where the decay is scalar
    REAL *v, *y, *z, *gy, *gv;    // [TILE][width]
    REAL *dq, *dk, *da, *df, *dw; // as q, k, a, f, w
    REAL *states;                 // [TILE + 1][n][width]
} tile;

enum { NO_DECAY, SCALAR_DECAY, DIAGONAL_DECAY };

#ifdef __AVX512F__
#define ROWS 8  // rows of a state that stay in registers over a tile
#else
#define ROWS 4
#endif

// Without feedback rows are independent too: a block of ROWS stays in registers over all steps of the tile.
INLINE void forward_rows(const tile *x, REAL *S, int NV, int decay, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t i0 = 0; i0 < n; i0 += ROWS) {
        vec s[ROWS][2];
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < NV; c++) s[i][c] = load(S + (i0 + i) * W + c * LANES);
        for (int64_t t = 0; t < x->steps; t++) {
            const REAL *k = x->k + t * n + i0, *q = x->q + t * n + i0;
            vec v[2], y[2], a = all(1);
            for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), y[c] = load(x->y + t * W + c * LANES);
            if (decay == SCALAR_DECAY) a = all(x->a[t]);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                vec ki = all(k[i]), qi = all(q[i]);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i0 + i]);
                for (int c = 0; c < NV; c++) {
                    if (exclusive) y[c] += qi * s[i][c];
                    s[i][c] = decay == NO_DECAY ? s[i][c] + ki * v[c] : a * s[i][c] + ki * v[c];
                    if (!exclusive) y[c] += qi * s[i][c];
                }
            }
            for (int c = 0; c < NV; c++) store(x->y + t * W + c * LANES, y[c]);
        }
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < NV; c++) store(S + (i0 + i) * W + c * LANES, s[i][c]);
    }
}

// With feedback: one pass over the state a step, which writes S_t, reads y_t and already gathers z_{t+1}.
INLINE void forward_feedback(const tile *x, REAL *S, int NV, int decay, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    vec z[4];
    for (int c = 0; c < NV; c++) z[c] = all(0);
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < NV; c++) z[c] += all(x->w[i]) * load(S + i * W + c * LANES);
    for (int64_t t = 0; t < x->steps; t++) {
        const REAL *k = x->k + t * n, *q = x->q + t * n, *f = x->f + t * n, *w = x->w + (t + 1) * n;
        vec v[4], y[4], next[4], a = all(1);
        for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), y[c] = next[c] = all(0);
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i = 0; i < n; i++) {
            vec ki = all(k[i]), qi = all(q[i]), fi = all(f[i]), wi = all(w[i]);
            if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
            for (int c = 0; c < NV; c++) {
                vec s = load(S + i * W + c * LANES);
                if (exclusive) y[c] += qi * s;
                s = decay == NO_DECAY ? s + ki * v[c] : a * s + ki * v[c];
                s += fi * z[c];
                if (!exclusive) y[c] += qi * s;
                next[c] += wi * s;
                store(S + i * W + c * LANES, s);
            }
        }
        for (int c = 0; c < NV; c++) store(x->y + t * W + c * LANES, y[c]), z[c] = next[c];
    }
}

// The states of the tile again, x->states[0] given; and z.
INLINE void recompute(const tile *x, int NV, int decay, int feedback) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t t = 0; t < x->steps; t++) {
        const REAL *from = x->states + t * n * W;
        REAL *to = x->states + (t + 1) * n * W;
        vec v[4], z[4], a = all(1);
        for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), z[c] = all(0);
        if (feedback) {
            for (int64_t i = 0; i < n; i++)
                for (int c = 0; c < NV; c++) z[c] += all(x->w[t * n + i]) * load(from + i * W + c * LANES);
            for (int c = 0; c < NV; c++) store(x->z + t * W + c * LANES, z[c]);
        }
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i = 0; i < n; i++) {
            vec ki = all(x->k[t * n + i]), fi = feedback ? all(x->f[t * n + i]) : all(0);
            if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
            for (int c = 0; c < NV; c++) {
                vec s = load(from + i * W + c * LANES);
                s = decay == NO_DECAY ? s + ki * v[c] : a * s + ki * v[c];
                if (feedback) s += fi * z[c];
                store(to + i * W + c * LANES, s);
            }
        }
    }
}

// D [n][width] is the gradient of the state after the tile, and then of the state before it.
INLINE void backward_tile(const tile *x, REAL *D, int NV, int decay, int feedback, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t t = x->steps - 1; t >= 0; t--) {
        const REAL *before = x->states + t * n * W, *read = exclusive ? before : before + n * W;
        vec v[4], z[4], gy[4], gv[4], gz[4], total = all(0), a = all(1);
        for (int c = 0; c < NV; c++) {
            v[c] = load(x->v + t * W + c * LANES), gy[c] = load(x->gy + t * W + c * LANES);
            z[c] = feedback ? load(x->z + t * W + c * LANES) : all(0);
            gv[c] = gz[c] = all(0);
        }
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i0 = 0; i0 < n; i0 += LANES) {
            vec gq[LANES], gk[LANES], ga[LANES], gf[LANES];
            for (int64_t i = i0; i < i0 + LANES; i++) {
                vec qi = all(x->q[t * n + i]), ki = all(x->k[t * n + i]), sq = all(0), sk = all(0), sa = all(0), sf = all(0);
                vec fi = feedback ? all(x->f[t * n + i]) : all(0);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
                for (int c = 0; c < NV; c++) {
                    vec d = load(D + i * W + c * LANES);
                    if (!exclusive) d += qi * gy[c];
                    sq += load(read + i * W + c * LANES) * gy[c];
                    sk += d * v[c];
                    gv[c] += d * ki;
                    if (decay != NO_DECAY) sa += d * load(before + i * W + c * LANES);
                    if (feedback) sf += d * z[c], gz[c] += d * fi;
                    if (!feedback) {
                        if (decay != NO_DECAY) d = a * d;
                        if (exclusive) d += qi * gy[c];
                    }
                    store(D + i * W + c * LANES, d);
                }
                gq[i - i0] = sq, gk[i - i0] = sk;
                if (decay == DIAGONAL_DECAY) ga[i - i0] = sa;
                if (decay == SCALAR_DECAY) total += sa;
                if (feedback) gf[i - i0] = sf;
            }
            REAL *dq = x->dq + t * n + i0, *dk = x->dk + t * n + i0;
            store(dq, load(dq) + sums(gq));
            store(dk, load(dk) + sums(gk));
            if (decay == DIAGONAL_DECAY) {
                REAL *da = x->da + t * n + i0;
                store(da, load(da) + sums(ga));
            }
            if (feedback) {
                REAL *df = x->df + t * n + i0;
                store(df, load(df) + sums(gf));
            }
        }
        if (decay == SCALAR_DECAY) x->da[t] += sum(total);
        for (int c = 0; c < NV; c++) store(x->gv + t * W + c * LANES, gv[c]);
        if (!feedback) continue;
        for (int64_t i0 = 0; i0 < n; i0 += LANES) {
            vec gw[LANES];
            for (int64_t i = i0; i < i0 + LANES; i++) {
                vec wi = all(x->w[t * n + i]), qi = all(x->q[t * n + i]), sw = all(0);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
                for (int c = 0; c < NV; c++) {
                    vec d = load(D + i * W + c * LANES);
                    sw += load(before + i * W + c * LANES) * gz[c];
                    d = decay == NO_DECAY ? d + wi * gz[c] : a * d + wi * gz[c];
                    if (exclusive) d += qi * gy[c];
                    store(D + i * W + c * LANES, d);
                }
                gw[i - i0] = sw;
            }
            REAL *dw = x->dw + t * n + i0;
            store(dw, load(dw) + sums(gw));
        }
    }
}

#define EACH_WIDTH(call) \
    do { \
        if (NV == 1) call(1); \
        else if (NV == 2) call(2); \
        else call(4); \
    } while (0)

static void forward_block(const tile *x, REAL *S, int NV, int decay, int feedback, int exclusive) {
#define WITH(nv, d, e) (feedback ? forward_feedback(x, S, nv, d, e) : forward_rows(x, S, nv > 2 ? 2 : nv, d, e))
#define ONE(nv) \
    (exclusive ? decay == DIAGONAL_DECAY ? WITH(nv, DIAGONAL_DECAY, 1) : decay == SCALAR_DECAY ? WITH(nv, SCALAR_DECAY, 1) : WITH(nv, NO_DECAY, 1) \
     : decay == DIAGONAL_DECAY ? WITH(nv, DIAGONAL_DECAY, 0) : decay == SCALAR_DECAY ? WITH(nv, SCALAR_DECAY, 0) : WITH(nv, NO_DECAY, 0))
    EACH_WIDTH(ONE);
#undef ONE
#undef WITH
}

static void backward_block(const tile *x, REAL *D, int NV, int decay, int feedback, int exclusive) {
#define WITH(nv, d, f, e) (recompute(x, nv, d, f), backward_tile(x, D, nv, d, f, e))
#define HOW(nv, d) (feedback ? exclusive ? WITH(nv, d, 1, 1) : WITH(nv, d, 1, 0) : exclusive ? WITH(nv, d, 0, 1) : WITH(nv, d, 0, 0))
#define ONE(nv) (decay == DIAGONAL_DECAY ? HOW(nv, DIAGONAL_DECAY) : decay == SCALAR_DECAY ? HOW(nv, SCALAR_DECAY) : HOW(nv, NO_DECAY))
    EACH_WIDTH(ONE);
#undef ONE
#undef HOW
#undef WITH
}

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Columns that are computed side by side, in vectors: with feedback, and for the gradient, 4, else 2.
static int width(int64_t columns, int many) {
    return columns <= LANES ? 1 : columns <= 2 * LANES || !many ? 2 : 4;
}

static int64_t piece(const matrix_job *j) {  // columns of a piece, a multiple of the vector
    return padded((j->p + j->pieces - 1) / j->pieces);
}

static int decay_of(const matrix_job *j) {
    return !j->log.at ? NO_DECAY : j->wide ? DIAGONAL_DECAY : SCALAR_DECAY;
}

static void pack_keys(const matrix_job *j, tile *x, int64_t b, int64_t g, int64_t r, int64_t t) {
    const int64_t n = x->n, s = x->steps;
    pack(x->q, n, &j->q, b, t, s, g, r, 0, j->n);
    pack(x->k, n, &j->k, b, t, s, g, r, 0, j->n);
    if (j->log.at) {
        if (j->wide) {
            pack(x->a, n, &j->log, b, t, s, g, r, 0, j->n);
            exps(x->a, s * n);
        } else {
            memset(x->a, 0, TILE * sizeof(REAL));
            for (int64_t i = 0; i < s; i++) x->a[i] = *element(&j->log, b, t + i, g, r);
            exps(x->a, TILE);
        }
    }
    if (j->f.at) {
        pack(x->f, n, &j->f, b, t, s, g, r, 0, j->n);
        pack(x->w, n, &j->w, b, t, s, g, r, 0, j->n);
        memset(x->w + s * n, 0, n * sizeof(REAL));
    }
}

// The scratch memory of an item, in numbers: keys, columns and the states of its columns.
static int64_t matrix_scratch(const matrix_job *j, tile *x, REAL **state, REAL *at, int gradient) {
    const int64_t n = padded(j->n), keys = (TILE + 1) * n, columns = TILE * 4 * LANES;
    REAL *start = at;
    x->n = n;
    REAL **each[] = {&x->q, &x->k, &x->a, &x->f, &x->w, &x->dq, &x->dk, &x->da, &x->df, &x->dw};
    for (int i = 0; i < (gradient ? 10 : 5); i++) *each[i] = at, at += keys + TILE;
    REAL **sides[] = {&x->v, &x->y, &x->z, &x->gy, &x->gv};
    for (int i = 0; i < 5; i++) *sides[i] = at, at += columns;
    *state = at, at += n * (piece(j) + 4 * LANES);
    x->states = at, at += gradient ? (TILE + 1) * n * 4 * LANES : 0;
    return at - start;
}

// A state [n, columns of a block] from or to memory [n][p].
static void take_state(REAL *to, int64_t width, const REAL *from, int64_t n, int64_t p, int64_t first, int64_t last) {
    int64_t here = last - first < width ? last - first : width;
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * width, from + i * p + first, here * sizeof(REAL));
        memset(to + i * width + here, 0, (width - here) * sizeof(REAL));
    }
}

static void put_state(REAL *to, const REAL *from, int64_t width, int64_t n, int64_t p, int64_t first, int64_t last) {
    int64_t here = last - first < width ? last - first : width;
    for (int64_t i = 0; i < n; i++) memcpy(to + i * p + first, from + i * width, here * sizeof(REAL));
}

typedef struct { int64_t b, g, r, span, piece, head, first, last; } place;

// An item is a piece of the columns of a head; backwards, of a span of heads that share q or k, one after the other.
static place find(const matrix_job *j, int64_t item, int64_t spans) {
    place o;
    o.piece = item % j->pieces, o.span = item / j->pieces % spans;
    o.g = item / j->pieces / spans % j->G, o.b = item / j->pieces / spans / j->G;
    o.r = o.span * j->R / spans;
    o.head = (o.b * j->G + o.g) * j->R + o.r;
    o.first = o.piece * piece(j);
    o.last = o.first + piece(j) < j->p ? o.first + piece(j) : j->p;
    return o;
}

static void matrix_forward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    const place o = find(j, item, j->R);
    tile x;
    REAL *S;
    matrix_scratch(j, &x, &S, scratch, 0);
    const int64_t n = x.n, tiles = (j->T + TILE - 1) / TILE;
    const int feedback = j->f.at != 0;
    if (o.first >= o.last) return;
    memset(S, 0, n * (piece(j) + 4 * LANES) * sizeof(REAL));
    REAL *at = S;
    for (int64_t c = o.first; c < o.last; at += n * width(o.last - c, feedback) * LANES, c += width(o.last - c, feedback) * LANES)
        take_state(at, width(o.last - c, feedback) * LANES, element(&j->S, o.b, 0, o.g, o.r), j->n, j->p, c, o.last);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t t = tile * TILE;
        x.steps = j->T - t < TILE ? j->T - t : TILE;
        pack_keys(j, &x, o.b, o.g, o.r, t);
        at = S;
        for (int64_t c = o.first; c < o.last;) {
            const int NV = width(o.last - c, feedback);
            const int64_t W = NV * LANES;
            if (j->kept.at)
                put_state((REAL *)j->kept.at + (o.head * tiles + tile) * j->n * j->p, at, W, j->n, j->p, c, o.last);
            pack(x.v, W, &j->v, o.b, t, x.steps, o.g, o.r, c, o.last);
            memset(x.y, 0, x.steps * W * sizeof(REAL));
            forward_block(&x, at, NV, decay_of(j), feedback, j->exclusive);
            unpack(x.y, W, &j->y, o.b, t, x.steps, o.g, o.r, c, o.last, 0);
            at += n * W, c += W;
        }
    }
    at = S;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, feedback) * LANES;
        put_state(element(&j->end, o.b, 0, o.g, o.r), at, W, j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
}

// The gradients of what has no columns, of one piece of them.
typedef struct { tensor q, k, log, f, w; } keyed;

static keyed keyed_of(const matrix_job *j, int64_t piece) {
    keyed to = {j->dq, j->dk, j->dlog, j->df, j->dw};
    tensor *each[] = {&to.q, &to.k, &to.log, &to.f, &to.w};
    for (int i = 0; i < 5; i++)
        if (each[i]->at) each[i]->at = (REAL *)each[i]->at + piece * each[i]->piece;
    return to;
}

static void backward_head(const matrix_job *j, tile x, REAL *D, place o, int add) {
    const int64_t n = x.n, tiles = (j->T + TILE - 1) / TILE;
    const int feedback = j->f.at != 0, decay = decay_of(j);
    const int64_t wide = decay == DIAGONAL_DECAY ? n : 1;
    const keyed to = keyed_of(j, o.piece);
    const int64_t rq = j->shared_q ? o.span : o.r, rk = j->shared_k ? o.span : o.r;
    memset(D, 0, n * (piece(j) + 4 * LANES) * sizeof(REAL));
    REAL *at = D;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, 1) * LANES;
        take_state(at, W, element(&j->gend, o.b, 0, o.g, o.r), j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        const int64_t t = tile * TILE;
        x.steps = j->T - t < TILE ? j->T - t : TILE;
        pack_keys(j, &x, o.b, o.g, o.r, t);
        memset(x.dq, 0, x.steps * n * sizeof(REAL));
        memset(x.dk, 0, x.steps * n * sizeof(REAL));
        memset(x.da, 0, x.steps * wide * sizeof(REAL));
        if (j->same) x.df = x.dk;
        if (feedback) memset(x.df, 0, x.steps * n * sizeof(REAL)), memset(x.dw, 0, x.steps * n * sizeof(REAL));
        at = D;
        for (int64_t c = o.first; c < o.last;) {
            const int NV = width(o.last - c, 1);
            const int64_t W = NV * LANES;
            pack(x.v, W, &j->v, o.b, t, x.steps, o.g, o.r, c, o.last);
            pack(x.gy, W, &j->gy, o.b, t, x.steps, o.g, o.r, c, o.last);
            memset(x.states, 0, n * W * sizeof(REAL));
            take_state(x.states, W, (REAL *)j->kept.at + (o.head * tiles + tile) * j->n * j->p, j->n, j->p, c, o.last);
            backward_block(&x, at, NV, decay, feedback, j->exclusive);
            unpack(x.gv, W, &j->dv, o.b, t, x.steps, o.g, o.r, c, o.last, 0);
            at += n * W, c += W;
        }
        unpack(x.dq, n, &to.q, o.b, t, x.steps, o.g, rq, 0, j->n, add && j->shared_q);
        unpack(x.dk, n, &to.k, o.b, t, x.steps, o.g, rk, 0, j->n, add && j->shared_k);
        if (decay != NO_DECAY) {
            for (int64_t i = 0; i < x.steps * wide; i++) x.da[i] *= x.a[i];
            unpack(x.da, wide, &to.log, o.b, t, x.steps, o.g, o.r, 0, decay == DIAGONAL_DECAY ? j->n : 1, 0);
        }
        if (feedback) {
            if (!j->same) unpack(x.df, n, &to.f, o.b, t, x.steps, o.g, o.r, 0, j->n, 0);
            unpack(x.dw, n, &to.w, o.b, t, x.steps, o.g, o.r, 0, j->n, 0);
        }
    }
    at = D;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, 1) * LANES;
        put_state(element(&j->dS, o.b, 0, o.g, o.r), at, W, j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
}

static void matrix_backward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    place o = find(j, item, j->spans);
    tile x;
    REAL *D;
    matrix_scratch(j, &x, &D, scratch, 1);
    const int64_t first = o.r, last = (o.span + 1) * j->R / j->spans;
    if (o.first >= o.last) o.last = o.first;
    for (; o.r < last; o.r++, o.head++) backward_head(j, x, D, o, o.r > first);
}

enum { STRETCH = 4 };  // tiles between the states that are kept where tiles are computed at once

// A tile at once, as products of matrices, for one decay a head and step and f = k. With
//
//     L_ts = a_{s+1} ... a_t (s <= t),   c_t = a_0 ... a_t,   l_s = L_{last,s},   P_ts = L_ts q_t.k_s,   A_ts = L_{t-1,s} w_t.k_s
//
// and u_t = v_t + z_t, what a step writes at k_t (S before, S' after the tile):
//
//     (I - A) U = V + diag(c_{t-1}) W S     Y = diag(c) Q S + P U     S' = c_last S + K^T diag(l) U
//
// Backwards from D', with g = dv_t = dz_t and H_ts what the products of decays from s + 1 to t add up to:
//
//     (I - A)^T G = P^T gY + diag(l) K D'      D = c_last D' + Q^T diag(c) gY + W^T diag(c_{t-1}) G
//     dQ = diag(c) gY S^T + (L * gY U^T) K     dW = diag(c_{t-1}) G S^T + (L_{t-1} * G U^T) K
//     dK = diag(l) U D'^T + (L * gY U^T)^T Q + (L_{t-1} * G U^T)^T W
//     dlog_r = sum of H_ts over s < r <= t
//
// Kept for the gradient are U, and S every STRETCH tiles.

// Rows of keys (n, padded) or columns (W), and how far apart they lie: a distance of a power of 2 would take few places
// of the cache.
typedef struct { int64_t size, step; } axis;

typedef struct {
    int64_t steps, rows;             // rows: steps to a multiple of ROWS
    axis n, W;
    REAL *q, *k, *w, *cq, *lk, *cw;  // [TILE][n], also times c_t, l_t, c_{t-1}; 0 after the last step
    REAL *kt;                        // [n][TILE]
    REAL *a, *c, *l, *earlier;       // [TILE]; earlier: c_{t-1}
    REAL *L, *P, *A, *before;        // [TILE][TILE]; before: L_{t-1}
    REAL *u, *y;                     // [TILE][W]
    REAL *S;                         // [n][W]
    // For the gradient:
    REAL *dq, *dk, *dw, *dP, *dA, *gy, *g, *D;  // as q, q, q, P, A, y, u, S
    REAL *ut, *St, *Dt;                         // turned: [W][TILE], [W][n]
    REAL *hq, *hk, *hw, *dlog;                  // [TILE]
    REAL *states[STRETCH];                         // before each tile of a stretch
} chunk;

static const axis tile_axis = {TILE, TILE};

static axis axis_of(int64_t size) {
    axis x = {padded(size), padded(size)};
    if (x.size % (4 * LANES) == 0) x.step += LANES;
    return x;
}

enum { ALL, UP_TO_DIAGONAL, FROM_DIAGONAL };

// C_mj = keep C_mj + sum_x A_mx B_xj over x < depth, or only x <= m, or x >= m; rows a multiple of ROWS.
// `down` and `across` are the strides of A, one of them 1.
INLINE void product(REAL *C, axis j, REAL keep, const REAL *A, int64_t down, int64_t across, const REAL *B, int64_t rows,
                    int64_t depth, int part) {
#define PANEL(NV) \
    for (int64_t m = 0; m < rows; m += ROWS) { \
        vec sum[ROWS][NV]; \
        for (int i = 0; i < ROWS; i++) \
            for (int c = 0; c < NV; c++) sum[i][c] = all(0); \
        const int64_t first = part == FROM_DIAGONAL ? m + ROWS : 0; \
        const int64_t last = part == UP_TO_DIAGONAL && m < depth ? m : depth; \
        for (int64_t x = first; x < last; x++) { \
            vec b[NV]; \
            for (int c = 0; c < NV; c++) b[c] = load(B + x * j.step + at + c * LANES); \
            _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++) { \
                const vec a = all(A[(m + i) * down + x * across]); \
                for (int c = 0; c < NV; c++) sum[i][c] += a * b[c]; \
            } \
        } \
        if (part != ALL) /* the block on the diagonal: not its other half, where 0 may meet inf or NaN */ \
            _Pragma("GCC unroll 8") for (int e = 0; e < ROWS; e++) { \
                vec b[NV]; \
                for (int c = 0; c < NV; c++) b[c] = load(B + (m + e) * j.step + at + c * LANES); \
                for (int i = part == UP_TO_DIAGONAL ? e : 0; i < (part == UP_TO_DIAGONAL ? ROWS : e + 1); i++) { \
                    const vec a = all(A[(m + i) * down + (m + e) * across]); \
                    for (int c = 0; c < NV; c++) sum[i][c] += a * b[c]; \
                } \
            } \
        for (int i = 0; i < ROWS; i++) \
            for (int c = 0; c < NV; c++) { \
                REAL *to = C + (m + i) * j.step + at + c * LANES; \
                store(to, keep == 0 ? sum[i][c] : all(keep) * load(to) + sum[i][c]); \
            } \
    }
    int64_t at = 0;
    for (; at + LANES < j.size; at += 2 * LANES) PANEL(2)
    if (at < j.size) PANEL(1)
#undef PANEL
}

static void times(REAL *C, axis j, REAL keep, const REAL *A, axis a, const REAL *B, int64_t rows, int64_t depth, int part) {
    product(C, j, keep, A, a.step, 1, B, rows, depth, part);
}

static void turned_times(REAL *C, axis j, REAL keep, const REAL *A, axis a, const REAL *B, int64_t rows, int64_t depth,
                         int part) {
    product(C, j, keep, A, 1, a.step, B, rows, depth, part);
}

// u_t += sum over s < t of A_ts u_s, from the first step on; or over s > t of A_st u_s, from the last one back.
static void solve(REAL *u, axis W, const REAL *A, int64_t rows, int back) {
    for (int64_t block = 0; block < rows; block += ROWS) {
        const int64_t m = back ? rows - ROWS - block : block;
        REAL *to = u + m * W.step;
        if (back)
            turned_times(to, W, 1, A + (m + ROWS) * TILE + m, tile_axis, to + ROWS * W.step, ROWS, block, ALL);
        else
            times(to, W, 1, A + m * TILE, tile_axis, u, ROWS, block, ALL);
        const REAL *a = A + m * TILE + m;
        for (int64_t c = 0; c < W.size; c += LANES) {
            vec x[ROWS];
            for (int i = 0; i < ROWS; i++) x[i] = load(to + i * W.step + c);
#pragma GCC unroll 8
            for (int e = 0; e < ROWS; e++)
#pragma GCC unroll 8
                for (int i = e + 1; i < ROWS; i++) {
                    if (back)
                        x[ROWS - 1 - i] += all(a[(ROWS - 1 - e) * TILE + ROWS - 1 - i]) * x[ROWS - 1 - e];
                    else
                        x[i] += all(a[i * TILE + e]) * x[e];
                }
            for (int i = 0; i < ROWS; i++) store(to + i * W.step + c, x[i]);
        }
    }
}

INLINE void scale_rows(REAL *to, const REAL *from, const REAL *by, axis n) {
    for (int64_t t = 0; t < TILE; t++)
        for (int64_t i = 0; i < n.size; i += LANES) store(to + t * n.step + i, all(by[t]) * load(from + t * n.step + i));
}

INLINE void multiply(REAL *x, const REAL *by, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) store(x + i, load(x + i) * load(by + i));
}

static void pack_tile(REAL *to, axis width, const tensor *x, place o, int64_t t, int64_t steps, int64_t first, int64_t last) {
    pack(to, width.step, x, o.b, t, steps, o.g, o.r, first, last);
    memset(to + steps * width.step, 0, (TILE - steps) * width.step * sizeof(REAL));
}

// What a tile writes at: k and the decays.
static void chunk_writes(const matrix_job *j, chunk *x, place o, int64_t t) {
    const int64_t s = x->steps = j->T - t < TILE ? j->T - t : TILE;
    x->rows = (s + ROWS - 1) / ROWS * ROWS;
    pack_tile(x->k, x->n, &j->k, o, t, s, 0, j->n);
    memset(x->a, 0, TILE * sizeof(REAL));
    if (j->log.at)
        for (int64_t i = 0; i < s; i++) x->a[i] = *element(&j->log, o.b, t + i, o.g, o.r);
    exps(x->a, TILE);
    memset(x->L, 0, TILE * TILE * sizeof(REAL));
    for (int64_t i = 0; i < TILE; i++) {
        REAL *L = x->L + i * TILE;
        if (i > 0)
            for (int64_t e = 0; e < TILE; e += LANES) store(L + e, all(x->a[i]) * load(L - TILE + e));
        L[i] = 1;
        x->earlier[i] = i > 0 ? x->c[i - 1] : 1;
        x->c[i] = x->earlier[i] * x->a[i];
    }
    memcpy(x->l, x->L + (s - 1) * TILE, TILE * sizeof(REAL));
    scale_rows(x->lk, x->k, x->l, x->n);
}

// What it reads with: q and w.
static void chunk_reads(const matrix_job *j, chunk *x, place o, int64_t t) {
    const axis n = x->n;
    pack_tile(x->q, n, &j->q, o, t, x->steps, 0, j->n);
    pack_tile(x->w, n, &j->w, o, t, x->steps, 0, j->n);
    memset(x->before, 0, TILE * sizeof(REAL));
    memcpy(x->before + TILE, x->L, (TILE - 1) * TILE * sizeof(REAL));
    transpose(x->kt, TILE, x->k, n.step, TILE, n.size);
    times(x->P, tile_axis, 0, x->q, n, x->kt, x->rows, n.size, ALL);
    times(x->A, tile_axis, 0, x->w, n, x->kt, x->rows, n.size, ALL);
    multiply(x->P, x->L, x->rows * TILE);
    multiply(x->A, x->before, x->rows * TILE);
    scale_rows(x->cq, x->q, x->c, n);
    scale_rows(x->cw, x->w, x->earlier, n);
}

static void chunk_state(const chunk *x, REAL *S) {  // S after the tile from that before
    turned_times(S, x->W, x->c[x->steps - 1], x->lk, x->n, x->u, x->n.size, x->steps, ALL);
}

// The scratch memory of an item, in numbers.
static int64_t chunk_scratch(const matrix_job *j, chunk *x, REAL *at, int gradient) {
    const axis n = x->n = axis_of(j->n), W = axis_of(piece(j));
    REAL *start = at;
    REAL **single[] = {&x->a, &x->c, &x->l, &x->earlier, &x->hq, &x->hk, &x->hw, &x->dlog};
    for (int i = 0; i < 8; i++) *single[i] = at, at += TILE;
    REAL **pairs[] = {&x->L, &x->P, &x->A, &x->before, &x->dP, &x->dA};
    for (int i = 0; i < 6; i++) *pairs[i] = at, at += TILE * TILE;
    REAL **keys[] = {&x->q, &x->k, &x->w, &x->cq, &x->lk, &x->cw, &x->kt, &x->dq, &x->dk, &x->dw};
    for (int i = 0; i < (gradient ? 10 : 7); i++) *keys[i] = at, at += TILE * n.step;
    REAL **sides[] = {&x->u, &x->y, &x->gy, &x->g, &x->ut};
    for (int i = 0; i < (gradient ? 5 : 2); i++) *sides[i] = at, at += TILE * W.step;
    x->S = at, at += n.size * W.step;
    if (!gradient) return at - start;
    x->D = at, at += n.size * W.step;
    x->St = at, at += n.step * W.size;
    x->Dt = at, at += n.step * W.size;
    for (int i = 0; i < STRETCH; i++) x->states[i] = at, at += n.size * W.step;
    return at - start;
}

// What is kept of a head: the state before every STRETCH tiles [n][p], or u [T][p].
static REAL *kept_state(const matrix_job *j, int64_t head, int64_t t) {
    const int64_t stretches = (j->T + STRETCH * TILE - 1) / (STRETCH * TILE);
    return (REAL *)j->kept.at + (head * (stretches * j->n + j->T) + t / (STRETCH * TILE) * j->n) * j->p;
}

static REAL *kept_writes(const matrix_job *j, int64_t head, int64_t t) {
    return kept_state(j, head + 1, 0) - (j->T - t) * j->p;
}

static void chunk_forward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    const place o = find(j, item, j->R);
    if (o.first >= o.last) return;
    chunk x;
    chunk_scratch(j, &x, scratch, 0);
    const axis n = x.n, W = x.W = axis_of(o.last - o.first);
    const int64_t p = j->p;
    memset(x.S, 0, n.size * W.step * sizeof(REAL));
    take_state(x.S, W.step, element(&j->S, o.b, 0, o.g, o.r), j->n, p, o.first, o.last);
    for (int64_t t = 0; t < j->T; t += TILE) {
        chunk_writes(j, &x, o, t);
        chunk_reads(j, &x, o, t);
        pack_tile(x.u, W, &j->v, o, t, x.steps, o.first, o.last);
        times(x.u, W, 1, x.cw, n, x.S, x.rows, n.size, ALL);
        solve(x.u, W, x.A, x.rows, 0);
        if (j->kept.at) {
            if (t % (STRETCH * TILE) == 0) put_state(kept_state(j, o.head, t), x.S, W.step, j->n, p, o.first, o.last);
            put_state(kept_writes(j, o.head, t), x.u, W.step, x.steps, p, o.first, o.last);
        }
        times(x.y, W, 0, x.cq, n, x.S, x.rows, n.size, ALL);
        times(x.y, W, 1, x.P, tile_axis, x.u, x.rows, x.rows, UP_TO_DIAGONAL);
        unpack(x.y, W.step, &j->y, o.b, t, x.steps, o.g, o.r, o.first, o.last, 0);
        chunk_state(&x, x.S);
    }
    put_state(element(&j->end, o.b, 0, o.g, o.r), x.S, W.step, j->n, p, o.first, o.last);
}

// Rows times by[t], and the products of each with a row of q.
INLINE void scale_and_dot(REAL *h, REAL *dq, const REAL *q, const REAL *by, int64_t rows, axis n) {
    for (int64_t t = 0; t < rows; t++) {
        vec dot = all(0);
        for (int64_t i = t * n.step; i < t * n.step + n.size; i += LANES) {
            vec d = all(by[t]) * load(dq + i);
            dot += d * load(q + i);
            store(dq + i, d);
        }
        h[t] = sum(dot);
    }
}

// The gradient of the log decays, of the products with S and D' in hq, hw, hk and `state`, of the others in dP and dA.
static void chunk_decays(chunk *x, REAL state) {
    const int64_t last = x->steps - 1;
    vec later[TILE / LANES];  // the sum of H_ts over t so far, for each s; state: for the state before the tile
    for (int c = 0; c < TILE / LANES; c++) later[c] = load(x->hk + c * LANES);
    for (int64_t r = last; r >= 0; r--) {
        REAL writes[TILE];
        for (int c = 0; c < TILE / LANES; c++) {
            const int64_t at = r * TILE + c * LANES;
            later[c] += load(x->dP + at) * load(x->P + at);
            if (r < last) later[c] += load(x->dA + at + TILE) * load(x->A + at + TILE);
            store(writes + c * LANES, later[c]);
        }
        state += r < last ? x->hq[r] + x->hw[r + 1] : x->hq[r];
        x->dlog[r] = state;
        for (int64_t s = 0; s < r; s++) x->dlog[r] += writes[s];
    }
}

// S and u before, D after the tile given: D before it, and all gradients.
static void chunk_backward(chunk *x, const REAL *S, int decay) {
    const axis n = x->n, W = x->W;
    const int64_t rows = x->rows;
    const REAL all_steps = x->c[x->steps - 1];
    times(x->g, W, 0, x->lk, n, x->D, rows, n.size, ALL);
    turned_times(x->g, W, 1, x->P, tile_axis, x->gy, rows, rows, FROM_DIAGONAL);
    solve(x->g, W, x->A, rows, 1);
    transpose(x->ut, TILE, x->u, W.step, TILE, W.size);
    transpose(x->St, n.step, S, W.step, n.size, W.size);
    transpose(x->Dt, n.step, x->D, W.step, n.size, W.size);
    times(x->dq, n, 0, x->gy, W, x->St, rows, W.size, ALL);
    times(x->dw, n, 0, x->g, W, x->St, rows, W.size, ALL);
    times(x->dk, n, 0, x->u, W, x->Dt, rows, W.size, ALL);
    times(x->dP, tile_axis, 0, x->gy, W, x->ut, rows, W.size, ALL);
    times(x->dA, tile_axis, 0, x->g, W, x->ut, rows, W.size, ALL);
    scale_and_dot(x->hq, x->dq, x->q, x->c, rows, n);
    scale_and_dot(x->hw, x->dw, x->w, x->earlier, rows, n);
    scale_and_dot(x->hk, x->dk, x->k, x->l, rows, n);
    if (decay) {
        vec ends = all(0);
        for (int64_t i = 0; i < n.size; i++)
            for (int64_t c = i * W.step; c < i * W.step + W.size; c += LANES) ends += load(S + c) * load(x->D + c);
        chunk_decays(x, all_steps * sum(ends));
    }
    multiply(x->dP, x->L, rows * TILE);
    multiply(x->dA, x->before, rows * TILE);
    times(x->dq, n, 1, x->dP, tile_axis, x->k, rows, rows, UP_TO_DIAGONAL);
    times(x->dw, n, 1, x->dA, tile_axis, x->k, rows, rows, UP_TO_DIAGONAL);
    turned_times(x->dk, n, 1, x->dP, tile_axis, x->q, rows, rows, FROM_DIAGONAL);
    turned_times(x->dk, n, 1, x->dA, tile_axis, x->w, rows, rows, FROM_DIAGONAL);
    turned_times(x->D, W, all_steps, x->cq, n, x->gy, n.size, x->steps, ALL);
    turned_times(x->D, W, 1, x->cw, n, x->g, n.size, x->steps, ALL);
}

static void take_writes(const matrix_job *j, chunk *x, place o, int64_t t) {
    take_state(x->u, x->W.step, kept_writes(j, o.head, t), x->steps, j->p, o.first, o.last);
    memset(x->u + x->steps * x->W.step, 0, (TILE - x->steps) * x->W.step * sizeof(REAL));
}

static void chunk_backward_head(const matrix_job *j, chunk x, place o, int add) {
    const axis n = x.n, W = x.W = axis_of(o.last - o.first);
    const int64_t p = j->p;
    const keyed to = keyed_of(j, o.piece);
    const int64_t rq = j->shared_q ? o.span : o.r, rk = j->shared_k ? o.span : o.r;
    memset(x.D, 0, n.size * W.step * sizeof(REAL));
    memset(x.states[0], 0, n.size * W.step * sizeof(REAL));
    take_state(x.D, W.step, element(&j->gend, o.b, 0, o.g, o.r), j->n, p, o.first, o.last);
    for (int64_t start = (j->T - 1) / (STRETCH * TILE) * STRETCH * TILE; start >= 0; start -= STRETCH * TILE) {
        int64_t t = start;
        take_state(x.states[0], W.step, kept_state(j, o.head, t), j->n, p, o.first, o.last);
        for (int i = 1; i < STRETCH && t + TILE < j->T; i++, t += TILE) {
            chunk_writes(j, &x, o, t);
            take_writes(j, &x, o, t);
            memcpy(x.states[i], x.states[i - 1], n.size * W.step * sizeof(REAL));
            chunk_state(&x, x.states[i]);
        }
        for (; t >= start; t -= TILE) {
            chunk_writes(j, &x, o, t);
            chunk_reads(j, &x, o, t);
            take_writes(j, &x, o, t);
            pack_tile(x.gy, W, &j->gy, o, t, x.steps, o.first, o.last);
            chunk_backward(&x, x.states[(t - start) / TILE], j->log.at != 0);
            unpack(x.g, W.step, &j->dv, o.b, t, x.steps, o.g, o.r, o.first, o.last, 0);
            unpack(x.dq, n.step, &to.q, o.b, t, x.steps, o.g, rq, 0, j->n, add && j->shared_q);
            unpack(x.dk, n.step, &to.k, o.b, t, x.steps, o.g, rk, 0, j->n, add && j->shared_k);
            unpack(x.dw, n.step, &to.w, o.b, t, x.steps, o.g, o.r, 0, j->n, 0);
            if (j->log.at) unpack(x.dlog, 1, &to.log, o.b, t, x.steps, o.g, o.r, 0, 1, 0);
        }
    }
    put_state(element(&j->dS, o.b, 0, o.g, o.r), x.D, W.step, j->n, p, o.first, o.last);
}

static void chunk_backward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    place o = find(j, item, j->spans);
    chunk x;
    chunk_scratch(j, &x, scratch, 1);
    const int64_t first = o.r, last = (o.span + 1) * j->R / j->spans;
    if (o.first >= o.last) o.last = o.first;
    for (; o.r < last; o.r++, o.head++) chunk_backward_head(j, x, o, o.r > first);
}

// Whether a decay is above 1: products of many may then grow beyond what they cancel to, and steps are taken one by one.
static int grows(const matrix_job *j) {
    if (!j->log.at) return 0;
    for (int64_t b = 0; b < (j->log.b ? j->B : 1); b++)
        for (int64_t t = 0; t < (j->log.t ? j->T : 1); t++)
            for (int64_t g = 0; g < (j->log.g ? j->G : 1); g++)
                for (int64_t r = 0; r < (j->log.r ? j->R : 1); r++)
                    if (*element(&j->log, b, t, g, r) > (REAL)1e-6) return 1;
    return 0;
}

int matrix_forward(const matrix_job *j) {
    tile x;
    chunk c;
    REAL *S;
    const int64_t items = j->B * j->G * j->R * j->pieces;
    if (j->chunked && !grows(j))
        return share_out(chunk_forward_item, j, items, chunk_scratch(j, &c, 0, 0) * sizeof(REAL), j->threads);
    return share_out(matrix_forward_item, j, items, matrix_scratch(j, &x, &S, 0, 0) * sizeof(REAL), j->threads);
}

int matrix_backward(const matrix_job *j) {
    tile x;
    chunk c;
    REAL *S;
    const int64_t items = j->B * j->G * j->spans * j->pieces;
    if (j->chunked && !grows(j))
        return share_out(chunk_backward_item, j, items, chunk_scratch(j, &c, 0, 1) * sizeof(REAL), j->threads);
    return share_out(matrix_backward_item, j, items, matrix_scratch(j, &x, &S, 0, 1) * sizeof(REAL), j->threads);
}
